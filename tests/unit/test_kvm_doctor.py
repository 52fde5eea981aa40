"""The KVM doctor's look at a machine's files: each trouble is found, and said with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from virtd_kvm.doctor import machine

from virtd.model.host import CheckStatus, HostCheck

S = CheckStatus


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine on which everything is as it should be."""
    write(tmp_path / "proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu vme vmx ssse3\n")
    write(tmp_path / "proc/modules", "kvm_intel 364544 4 - Live 0x0\nkvm 1056768 1 kvm_intel, Live 0x0\n")
    write(tmp_path / "sys/module/kvm_intel/parameters/nested", "Y\n")
    write(tmp_path / "dev/kvm", "")
    (tmp_path / "dev/kvm").chmod(0o666)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def found(root: Path, id_: str) -> HostCheck:
    (check,) = [check for check in machine(root) if check.id == id_]
    return check


def test_a_good_machine_has_nothing_to_do(root: Path) -> None:
    checks = machine(root)
    assert {check.status for check in checks} == {S.OK}
    assert not any(check.remedy for check in checks)


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [("fpu", "firmware"), ("fpu hypervisor", "nested virtualization")],
)
def test_a_cpu_without_virtualization(root: Path, flags: str, remedy: str) -> None:
    write(root / "proc/cpuinfo", f"flags\t\t: {flags}\n")
    check = found(root, "cpu.virtualization")
    assert check.status is S.PROBLEM
    assert remedy in check.remedy


def test_flags_that_cannot_be_read_are_unknown_not_wrong(root: Path) -> None:
    (root / "proc/cpuinfo").unlink()
    assert found(root, "cpu.virtualization").status is S.UNKNOWN


def test_no_device(root: Path) -> None:
    (root / "dev/kvm").unlink()
    check = found(root, "kvm.device")
    assert check.status is S.PROBLEM
    assert "modprobe" in check.remedy


def test_a_device_that_only_root_can_open(root: Path) -> None:
    (root / "dev/kvm").chmod(0o600)
    check = found(root, "kvm.device")
    assert check.status is S.WARNING
    assert "chmod 660" in check.remedy


def test_virtualbox_beside_kvm(root: Path) -> None:
    write(root / "proc/modules", "vboxdrv 1 0 - Live 0x0\nkvm_amd 1 0 - Live 0x0\n")
    check = found(root, "hypervisor.conflict")
    assert check.status is S.WARNING
    assert "vboxdrv" in check.remedy


def test_virtualbox_alone_is_no_conflict(root: Path) -> None:
    write(root / "proc/modules", "vboxdrv 1 0 - Live 0x0\n")
    assert found(root, "hypervisor.conflict").status is S.OK
