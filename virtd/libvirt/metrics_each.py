"""Usage counters of guests by calls for each of them, for drivers without a bulk call.

Some of the calls wait for a job that a guest is busy with (libxl gives up after 30 s), so the sampling
has a worker and a connection of its own, a busy guest gets the calls that never wait only, and a sample
of all guests has a limit of time: what is asked later than that gets these calls only, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import libvirt

from virtd.libvirt.connections import HostConnections, LaneName
from virtd.libvirt.xml.domain import Domain
from virtd.model.metrics import BlockMetrics, GuestMetrics, InterfaceMetrics

_KIB: Final = 1024
_NS: Final = 1e9
DETAILS_S: Final = 5.0
"""How long the details of all guests together are asked for."""
_LIMIT_S: Final = 60.0
_NO_JOB: Final = (libvirt.VIR_DOMAIN_JOB_NONE,)
_READ_REQUESTS, _READ_BYTES, _WRITE_REQUESTS, _WRITTEN_BYTES = range(4)
_RX_BYTES, _RX_PACKETS, _TX_BYTES, _TX_PACKETS = 0, 1, 4, 5


class EachMetrics:
    """Samples every active guest that is none of ``untouchable``."""

    def __init__(self, connections: HostConnections, untouchable: frozenset[UUID] = frozenset()) -> None:
        self._connections: Final = connections
        self._untouchable: Final = untouchable

    async def sample_guests(self) -> Sequence[GuestMetrics]:
        """One sample of each active guest; what a busy guest cannot tell now is None or left out."""

        def run(connection: Any) -> list[GuestMetrics]:
            deadline = time.monotonic() + DETAILS_S
            found = []
            for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                uuid = UUID(bytes=domain.UUID())
                if uuid in self._untouchable:
                    continue
                sampled = optional(lambda: sample(uuid, domain, details=time.monotonic() < deadline))  # noqa: B023 - called at once
                if sampled is not None:
                    found.append(sampled)
            return found

        return await self._connections.call("virDomainGetInfo", run, lane=LaneName.SAMPLE, timeout_s=_LIMIT_S)


def sample(uuid: UUID, domain: Any, *, details: bool) -> GuestMetrics:
    """One guest's sample (on a worker).

    :param details: False: only what is told without waiting for anything.
    """
    state, _most, memory_kib, vcpus, cpu_ns = domain.info()
    metrics = GuestMetrics(
        uid=uuid,
        sample_time=datetime.now(UTC),
        cpu_time_s=cpu_ns / _NS,
        vcpus=vcpus or None,
        memory_assigned_bytes=memory_kib * _KIB or None,
    )
    busy = optional(lambda: domain.jobInfo()[0] not in _NO_JOB)
    if not details or busy or state == libvirt.VIR_DOMAIN_SHUTOFF:
        return metrics
    described = Domain.parse(domain.XMLDesc(0))
    return GuestMetrics(
        uid=uuid,
        sample_time=metrics.sample_time,
        cpu_time_s=metrics.cpu_time_s,
        vcpus=metrics.vcpus,
        memory_assigned_bytes=metrics.memory_assigned_bytes,
        blocks=tuple(filter(None, (_block(domain, disk.target) for disk in described.disks))),
        interfaces=tuple(
            filter(
                None, (_interface(domain, interface.target) for interface in described.interfaces if interface.target)
            )
        ),
    )


def optional(call: Callable[[], Any]) -> Any:
    """None where the driver does not count this, or the guest has just gone."""
    try:
        return call()
    except libvirt.libvirtError as error:
        if error.get_error_domain() == libvirt.VIR_FROM_RPC:
            raise  # the connection is lost: nothing else will be told either
        return None


def _block(domain: Any, target: str) -> BlockMetrics | None:
    found = optional(lambda: domain.blockStats(target))
    if found is None:
        return None
    return BlockMetrics(
        target,
        read_bytes=_known(found[_READ_BYTES]),
        written_bytes=_known(found[_WRITTEN_BYTES]),
        read_requests=_known(found[_READ_REQUESTS]),
        write_requests=_known(found[_WRITE_REQUESTS]),
    )


def _interface(domain: Any, target: str) -> InterfaceMetrics | None:
    found = optional(lambda: domain.interfaceStats(target))
    if found is None:
        return None
    return InterfaceMetrics(
        target,
        received_bytes=_known(found[_RX_BYTES]),
        sent_bytes=_known(found[_TX_BYTES]),
        received_packets=_known(found[_RX_PACKETS]),
        sent_packets=_known(found[_TX_PACKETS]),
    )


def _known(value: int) -> int | None:
    """Libvirt's -1 is "not counted"."""
    return None if value < 0 else value
