"""Golden files of the Xen designer: the domain XML of each case, and its verdicts.

``VIRTD_REGENERATE=1 pytest tests/golden`` writes them anew; look at the difference before it is kept.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from virtd_xen import capabilities
from virtd_xen.designer import design, design_domain
from virtd_xen.dialect import DIALECT, MACHINES
from virtd_xen.platform import Platform

from tests.golden.test_kvm_designer import text_of
from tests.golden.xen_cases import CASES, DATA, UUID1, guest, kernel
from virtd.backend import capabilities as ids
from virtd.backend.api import Fidelity, ResolvedGuest, ResolvedInterface
from virtd.libvirt.reader import read_guest
from virtd.libvirt.states import State
from virtd.libvirt.unmodelled import unmodelled_of
from virtd.libvirt.xml.domain import Domain
from virtd.model.guest import DiskBus, GuestState, InterfaceKind
from virtd.model.host import CapabilityLevel

HERE = Path(__file__).parent / "xen"


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    plan = design(*CASES[name])
    assert plan == design(*CASES[name]), "pure: the same twice"
    path = HERE / f"{name}.xml"
    if os.environ.get("VIRTD_REGENERATE"):
        path.write_text(text_of(plan))
    assert text_of(plan) == path.read_text()
    rejected = [verdict for verdict in plan.verdicts if verdict.fidelity is Fidelity.REJECTED]
    assert bool(rejected) == name.startswith("rejected"), rejected
    assert bool(plan.verdicts) == name.startswith(("rejected", "told"))
    for verdict in plan.verdicts:
        assert verdict.reason
        assert verdict.field.startswith("spec.")


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in HERE.glob("*.xml")} == set(CASES)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("rejected")])
def test_what_is_built_is_read_back(name: str) -> None:
    """Building and parsing are inverses, so nothing that is written gets lost or changed by reading."""
    wanted, _ = CASES[name]
    domain, _verdicts = design_domain(*CASES[name])
    native = domain.to_xml()
    assert Domain.parse(native).to_xml() == native
    found = read_guest(UUID1, State(GuestState.STOPPED, "", "shutoff"), Domain.parse(native), DIALECT, persistent=True)
    spec = found.spec
    assert (spec.accelerator, spec.machine, spec.vcpus, spec.max_vcpus) == (
        wanted.accelerator, domain.boot.machine, wanted.vcpus, wanted.max_vcpus,
    )  # fmt: skip
    assert spec.direct_kernel_boot == wanted.direct_kernel_boot
    assert [(disk.name, disk.device, disk.host_file and disk.host_file.path) for disk in spec.disks] == [
        (disk.name, disk.device, disk.path or None) for disk in wanted.disks
    ]
    assert [(entry.name, entry.kind, entry.network, entry.mac, entry.model) for entry in spec.interfaces] == [
        (entry.name, entry.kind, entry.network, entry.mac, entry.model) for entry in wanted.interfaces
    ]
    assert spec.usb == wanted.usb
    assert spec.host_devices == wanted.host_devices
    assert (spec.cpu and spec.cpu.pins) == (wanted.cpu and wanted.cpu.pins)
    assert (spec.clock or "UTC") == (wanted.clock or "UTC")
    given = [disk.boot_order for disk in wanted.disks]
    assert [disk.boot_order for disk in spec.disks] == given or not any(given)
    assert (spec.graphics is not None) == (wanted.graphics is not None)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("rejected")])
def test_nothing_of_it_is_unmodelled(name: str) -> None:
    assert unmodelled_of(design(*CASES[name]).native, DIALECT) == ()


def rejected(wanted: ResolvedGuest, platform: Platform | None = None) -> dict[str, str]:
    plan = design(wanted, platform or Platform())
    return {verdict.field: verdict.reason for verdict in plan.verdicts if verdict.fidelity is Fidelity.REJECTED}


@pytest.mark.parametrize("machine", MACHINES)
def test_what_a_type_lacks_is_refused_with_the_reason_that_the_host_states(machine: str) -> None:
    """What :func:`capabilities.kinds` says of a type and what the designer does cannot differ."""
    (kind,) = capabilities.kinds([machine], capabilities.DECLARED)
    absent = {entry.id: entry.reason for entry in kind.capabilities if entry.level is CapabilityLevel.UNSUPPORTED}
    fields = {
        ids.USB: "spec.usb",
        ids.PASSTHROUGH_PCI: "spec.host_devices[0].pci",
        ids.CONSOLE_GRAPHICAL: "spec.graphics",
    }
    base = CASES["rejected-pvh"][0]
    found = rejected(dataclasses.replace(base, machine=machine))
    for id_, field in fields.items():
        assert found.get(field) == absent.get(id_), f"{machine}: {id_}"


def test_a_kind_differs_only_where_its_host_has_it() -> None:
    """An IOMMU that is not there is missed by every guest, with the host's reason."""
    host = capabilities.probed({ids.PASSTHROUGH_PCI: "no IOMMU"})
    for kind in capabilities.kinds(MACHINES, host):
        assert ids.PASSTHROUGH_PCI not in {entry.id for entry in kind.capabilities}


def test_every_reason_says_whose_limit_it_is() -> None:
    for entry in capabilities.DECLARED:
        if entry.level is CapabilityLevel.UNSUPPORTED:
            words = ("libvirt", "Xen", "virtd", "QEMU")
            assert any(word in entry.reason for word in words), f"{entry.id}: {entry.reason}"


def test_disks_by_the_kernel_or_by_a_qemu() -> None:
    domain, _ = design_domain(*CASES["pv"])
    assert [(disk.target, disk.bus, disk.driver) for disk in domain.disks] == [
        ("xvda", "xen", "phy"), ("xvdb", "xen", "qemu"),
    ]  # fmt: skip


def test_the_twentyseventh_disk() -> None:
    disks = tuple(dataclasses.replace(DATA, name=f"d{number}") for number in range(28))
    domain, _ = design_domain(kernel("xenpv", disks=disks), Platform())
    assert [disk.target for disk in domain.disks[25:]] == ["xvdz", "xvdaa", "xvdab"]


def test_a_network_is_named() -> None:
    found = rejected(kernel(interfaces=(ResolvedInterface("n", InterfaceKind.NETWORK, "00:16:3e:00:00:01"),)))
    assert found == {"spec.interfaces[0].network": "is required for kind NETWORK"}


def test_ide_takes_four() -> None:
    disks = tuple(dataclasses.replace(DATA, name=f"d{number}", bus=DiskBus.IDE) for number in range(5))
    assert rejected(guest(disks=disks)) == {"spec.disks[4].bus": "the IDE bus takes four disks"}
