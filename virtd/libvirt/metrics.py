"""Usage counters of all guests by one bulk call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import libvirt

from virtd.libvirt.connections import HostConnections
from virtd.model.metrics import BlockMetrics, GuestMetrics, InterfaceMetrics

_GROUPS: Final = (
    libvirt.VIR_DOMAIN_STATS_STATE
    | libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
    | libvirt.VIR_DOMAIN_STATS_BALLOON
    | libvirt.VIR_DOMAIN_STATS_VCPU
    | libvirt.VIR_DOMAIN_STATS_INTERFACE
    | libvirt.VIR_DOMAIN_STATS_BLOCK
)
_FLAGS: Final = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
_KIB: Final = 1024
_NS: Final = 1e9


class Metrics:
    """Samples every active guest."""

    def __init__(self, connections: HostConnections) -> None:
        self._connections: Final = connections

    async def sample_guests(self) -> Sequence[GuestMetrics]:
        """One sample of each active guest; what a busy guest cannot tell now is None."""
        rows = await self._connections.call(
            "virConnectGetAllDomainStats",
            lambda connection: [
                (UUID(bytes=domain.UUID()), stats) for domain, stats in connection.getAllDomainStats(_GROUPS, _FLAGS)
            ],
        )
        now = datetime.now(UTC)
        return [sample(uuid, now, stats) for uuid, stats in rows]


def sample(uuid: UUID, now: datetime, stats: Mapping[str, Any]) -> GuestMetrics:
    """One guest's sample from ``virConnectGetAllDomainStats``' typed parameters."""
    cpu = stats.get("cpu.time")
    return GuestMetrics(
        uid=uuid,
        sample_time=now,
        cpu_time_s=None if cpu is None else cpu / _NS,
        vcpus=stats.get("vcpu.current"),
        memory_assigned_bytes=_kib(stats.get("balloon.current")),
        memory_used_bytes=_used(stats),
        memory_rss_bytes=_kib(stats.get("balloon.rss")),
        blocks=tuple(
            BlockMetrics(
                name=stats.get(f"block.{index}.name", ""),
                read_bytes=stats.get(f"block.{index}.rd.bytes"),
                written_bytes=stats.get(f"block.{index}.wr.bytes"),
                read_requests=stats.get(f"block.{index}.rd.reqs"),
                write_requests=stats.get(f"block.{index}.wr.reqs"),
            )
            for index in range(stats.get("block.count", 0))
        ),
        interfaces=tuple(
            InterfaceMetrics(
                name=stats.get(f"net.{index}.name", ""),
                received_bytes=stats.get(f"net.{index}.rx.bytes"),
                sent_bytes=stats.get(f"net.{index}.tx.bytes"),
                received_packets=stats.get(f"net.{index}.rx.pkts"),
                sent_packets=stats.get(f"net.{index}.tx.pkts"),
            )
            for index in range(stats.get("net.count", 0))
            if f"net.{index}.name" in stats
        ),
    )


def _kib(value: int | None) -> int | None:
    return None if value is None else value * _KIB


def _used(stats: Mapping[str, int]) -> int | None:
    """What the guest itself uses, by its balloon driver; None until that has reported."""
    available, usable = stats.get("balloon.available"), stats.get("balloon.usable")
    if available is None or usable is None:
        return None
    return max(0, available - usable) * _KIB
