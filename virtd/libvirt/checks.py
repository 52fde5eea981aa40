"""Checks of a host that are the same for every hypervisor behind libvirt: what libvirt itself tells (on a worker)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import libvirt

from virtd.model.host import CheckStatus, HostCheck

LIBVIRT_TESTED: Final = (9, 0, 0)
"""The oldest version that the tests of virtd run with."""
POOL_FREE_LEAST: Final = 0.10
_MILLION: Final = 1_000_000
_THOUSAND: Final = 1000

S = CheckStatus


def version(name: str, number: int, least: tuple[int, int, int], package: str) -> Iterable[HostCheck]:
    """Whether a version, as libvirt counts it (9000000), is one that virtd is tested with."""
    id_, found = f"{name.lower()}.version", (number // _MILLION, number // _THOUSAND % _THOUSAND, number % _THOUSAND)
    words = ".".join(map(str, found))
    if found < least:
        yield HostCheck(
            id_, S.WARNING, f"{name} {words} is older than what virtd is tested with, {'.'.join(map(str, least))}",
            f"upgrade the package {package}",
        )  # fmt: skip
    else:
        yield HostCheck(id_, S.OK, f"{name} {words}")


def pools(connection: Any) -> Iterable[HostCheck]:
    """Whether the pools are active and have space left."""
    try:
        found = connection.listAllStoragePools(0)
    except libvirt.libvirtError as error:
        yield HostCheck("storage.pools", S.UNKNOWN, f"the storage pools cannot be listed: {error}")
        return
    troubled = False
    for pool in found:
        name, id_ = pool.name(), f"storage.pool.{pool.name()}"
        state, capacity, _allocation, available = pool.info()
        if state == libvirt.VIR_STORAGE_POOL_INACTIVE:
            troubled = True
            yield HostCheck(id_, S.WARNING, f"pool {name} is not active", f"guestctl pool start {name}")
        elif capacity and available / capacity < POOL_FREE_LEAST:
            troubled = True
            yield HostCheck(
                id_, S.WARNING, f"pool {name} has {available / capacity:.0%} of its space left ({available >> 20} MiB)",
                "delete volumes, snapshots or backups, or give it more space: guests stop when it is full",
            )  # fmt: skip
    if not troubled:
        yield HostCheck("storage.pools", S.OK, f"{len(found)} pools, active and with space left")


def networks(connection: Any) -> Iterable[HostCheck]:
    """Whether the networks are active."""
    try:
        found = connection.listAllNetworks(0)
    except libvirt.libvirtError as error:
        yield HostCheck("networks", S.UNKNOWN, f"the networks cannot be listed: {error}")
        return
    down = [network.name() for network in found if not network.isActive()]
    for name in down:
        yield HostCheck(
            f"network.{name}", S.WARNING, f"network {name} is not active: guests on it do not start",
            f"guestctl network start {name}",
        )  # fmt: skip
    if not down:
        yield HostCheck("networks", S.OK, f"{len(found)} networks, all active")
