"""What a Xen host has of a guest that moves, and what it cannot do live, by what libvirt's libxl driver says."""

from __future__ import annotations

from dataclasses import dataclass

import libvirt
import pytest
from virtd_xen import capabilities
from virtd_xen.backend import XenBackend
from virtd_xen.dialect import HVM, MACHINES, PV, PVH
from virtd_xen.migration import POLICY

from virtd.backend import capabilities as ids
from virtd.backend.api import HostConfig, MigrationOrder, MigrationSide
from virtd.errors import InvalidArgumentError, UnsupportedError
from virtd.libvirt.migration_route import route_of
from virtd.libvirt.xml.build import parse
from virtd.model.host import CapabilityLevel

S = MigrationSide
RUNNING, PAUSED, OFF = libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_SHUTOFF


@dataclass
class Domain:
    """As libxl's driver shows one."""

    now: int
    persistent: bool = True
    job: int = libvirt.VIR_DOMAIN_JOB_NONE

    def isActive(self) -> int:  # noqa: N802 - libvirt's name
        return int(self.now != OFF)

    def isPersistent(self) -> int:  # noqa: N802 - libvirt's name
        return int(self.persistent)

    def state(self) -> tuple[int, int]:
        return self.now, 0

    def jobStats(self, _flags: int) -> dict[str, int]:  # noqa: N802 - libvirt's name
        return {"type": self.job}


BUSY = libvirt.VIR_DOMAIN_JOB_UNBOUNDED


@pytest.mark.parametrize(
    ("domain", "side"),
    [
        (Domain(OFF), S.DOWN),
        (Domain(RUNNING), S.ACTIVE),
        (Domain(PAUSED), S.ACTIVE),
        (Domain(RUNNING, job=BUSY), S.OUTGOING),
        (Domain(OFF, persistent=False, job=BUSY), S.INCOMING),
        (Domain(PAUSED, persistent=False, job=BUSY), S.INCOMING),
        (Domain(PAUSED, persistent=False), S.INCOMING),
        (Domain(RUNNING, persistent=False, job=BUSY), S.INCOMING),
    ],
)
def test_the_side_of_a_guest(domain: Domain, side: MigrationSide) -> None:
    assert POLICY.side(domain) is side


def test_what_cannot_be_done_live_is_named() -> None:
    xml = parse("<domain/>")
    assert not list(POLICY.objections(Domain(RUNNING), xml, MigrationOrder()))
    (paused,) = POLICY.objections(Domain(PAUSED), xml, MigrationOrder())
    assert (paused.reason, paused.severity.value) == ("WRONG_STATE", "CRITICAL")
    assert paused.remedy
    order = MigrationOrder(auto_converge=True, bandwidth_bytes_per_s=1 << 20, max_downtime_ms=5)
    found = list(POLICY.objections(Domain(RUNNING), xml, order))
    assert {one.subject for one in found} == {"auto_converge", "bandwidth_bytes_per_s", "max_downtime_ms"}
    assert all("libxl driver" in one.message and one.remedy for one in found)


def test_orders_that_xen_cannot_obey_are_refused() -> None:
    POLICY.require(MigrationOrder())
    for order, id_ in (
        (MigrationOrder(mirrors=True), ids.MIGRATE_STORAGE),
        (MigrationOrder(post_copy=True), ids.MIGRATE_POSTCOPY),
    ):
        with pytest.raises(UnsupportedError) as caught:
            POLICY.require(order)
        assert id_ in str(caught.value.record.metadata.values())


def test_what_is_said_of_each_type() -> None:
    host = {entry.id: entry for entry in capabilities.probed({})}
    assert host[ids.MIGRATE].level is CapabilityLevel.EMULATED
    live = host[ids.MIGRATE_LIVE]
    assert live.level is CapabilityLevel.PARTIAL
    assert "abort" in live.reason
    assert "shadow paging" in live.reason
    assert host[ids.MIGRATE_STORAGE].level is CapabilityLevel.UNSUPPORTED
    assert host[ids.MIGRATE_POSTCOPY].level is CapabilityLevel.UNSUPPORTED
    kinds = {
        kind.machine: {entry.id: entry for entry in kind.capabilities}
        for kind in capabilities.kinds(MACHINES, host.values())
    }
    assert kinds[PV][ids.MIGRATE_LIVE].level is CapabilityLevel.UNSUPPORTED
    for machine in (PVH, HVM):
        assert kinds[machine][ids.MIGRATE_LIVE].level is CapabilityLevel.PARTIAL
        assert "shadow paging" not in kinds[machine][ids.MIGRATE_LIVE].reason


def config(**options: str) -> HostConfig:
    return HostConfig("xen2", "xen+tcp://127.0.0.1:1234/system", "/nowhere", options=options)


def test_the_way_there_is_configured_as_for_any_host() -> None:
    backend = XenBackend()
    good = config(
        migration_uri="xen+tcp://10.9.0.4/system", migration_data_uri="tcp://10.9.0.4", shared_directories="/a"
    )
    backend.check_host(good)
    route = route_of(config(), good)
    assert (route.uri, route.data, route.findings) == ("xen+tcp://10.9.0.4/system", "tcp://10.9.0.4", ())
    with pytest.raises(InvalidArgumentError, match=r"xen\+tls://NAME/system"):
        backend.check_host(config(migration_uri="xen:///system"))
    (unknown,) = route_of(good, config()).findings
    assert unknown.reason == "CONNECTION_UNKNOWN"
    assert "xen+tls://NAME/system" in unknown.remedy
