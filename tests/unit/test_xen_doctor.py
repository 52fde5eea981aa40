"""The Xen doctor: what commonly goes wrong on a Xen host is found, and said with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import libvirt
import pytest
from virtd_xen.doctor import EMULATORS, ask, emulator

from virtd.model.host import CheckStatus, HostCheck

S = CheckStatus
MIB = 1 << 20
TYPES = ("xenpv", "xenpvh", "xenfv")


class Domain0:
    """The control domain."""

    def __init__(self, most_mib: int) -> None:
        self._most_mib = most_mib

    def name(self) -> str:
        return "Domain-0"

    def info(self) -> list[int]:
        return [1, self._most_mib << 10, 1024 << 10, 1, 0]


class Connection:
    """libvirt's connection to a host on which everything is as it should be, but for what is said."""

    def __init__(self, **changes: Any) -> None:
        self._is = {"kind": "Xen", "types": TYPES, "xen": 4_017_000, "most_mib": 1024, "free": 2048 * MIB, **changes}

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "numOfNetworks": 0, "numOfStoragePools": 0, "getStoragePoolCapabilities": "<storagepoolCapabilities/>",
        }  # fmt: skip
        return lambda *_arguments: answers.get(name, [])

    def getType(self) -> str:  # noqa: N802 - libvirt's name
        return str(self._is["kind"])

    def getURI(self) -> str:  # noqa: N802 - libvirt's name
        return "xen:///system"

    def getLibVersion(self) -> int:  # noqa: N802 - libvirt's name
        return 9_000_000

    def getVersion(self) -> int:  # noqa: N802 - libvirt's name
        return int(self._is["xen"])

    def getInfo(self) -> list[Any]:  # noqa: N802 - libvirt's name
        return ["x86_64", 4095, 2, 0, 1, 1, 2, 1]

    def getFreeMemory(self) -> int:  # noqa: N802 - libvirt's name
        if self._is["free"] is None:
            raise self._error(libvirt.VIR_ERR_NO_SUPPORT)
        return int(self._is["free"])

    def lookupByID(self, _id: int) -> Domain0:  # noqa: N802 - libvirt's name
        if not self._is["most_mib"]:
            raise self._error(libvirt.VIR_ERR_NO_SUPPORT)
        return Domain0(self._is["most_mib"])

    def getCapabilities(self) -> str:  # noqa: N802 - libvirt's name
        machines = "".join(f"<machine>{found}</machine>" for found in self._is["types"])
        return (
            "<capabilities><host><cpu><arch>x86_64</arch></cpu><iommu support='no'/></host>"
            f"<guest><os_type>xen</os_type><arch name='x86_64'>{machines}</arch></guest></capabilities>"
        )

    def _error(self, code: int) -> libvirt.libvirtError:
        error = libvirt.libvirtError("told to fail")
        error.err = (code, libvirt.VIR_FROM_LIBXL, str(error), 2, "", "", "", 0, 0)
        return error


def found(id_: str, **changes: Any) -> HostCheck:
    (check,) = [check for check in ask(Connection(**changes)) if check.id == id_]
    return check


def test_a_good_host_has_nothing_to_do() -> None:
    checks = {check.id: check for check in ask(Connection())}
    pools = checks.pop("xen.cpu_pools")  # libvirt does not show them, on no host
    assert pools.status is S.UNKNOWN
    assert "xl cpupool-list" in pools.remedy
    assert {check.status for check in checks.values()} == {S.OK}, checks


def test_a_host_that_is_not_xen() -> None:
    check = found("xen.hypervisor", kind="QEMU")
    assert check.status is S.PROBLEM
    assert "QEMU" in check.summary


def test_an_old_xen() -> None:
    assert found("xen.version", xen=4_014_000).status is S.WARNING


def test_a_cpu_without_virtualization() -> None:
    check = found("xen.guests", types=("xenpv",))
    assert check.status is S.WARNING
    assert "AMD-V" in check.remedy


@pytest.mark.parametrize(("most_mib", "status"), [(1024, S.OK), (1 << 30, S.WARNING), (0, S.UNKNOWN)])
def test_a_control_domain_without_a_limit(most_mib: int, status: CheckStatus) -> None:
    """libvirt tells a limit that is none as a number beyond the host's memory."""
    check = found("xen.control_domain", most_mib=most_mib)
    assert check.status is status
    if status is S.WARNING:
        assert "dom0_mem" in check.remedy


@pytest.mark.parametrize(("free", "status"), [(256 * MIB, S.OK), (255 * MIB, S.WARNING), (None, S.UNKNOWN)])
def test_memory_for_guests(free: int | None, status: CheckStatus) -> None:
    assert found("xen.memory", free=free).status is status


@pytest.mark.parametrize("place", [*EMULATORS, "usr/lib/xen-4.17/bin/qemu-system-i386"])
def test_the_emulator_is_found_where_distributions_put_it(tmp_path: Path, place: str) -> None:
    missing = emulator(tmp_path)
    assert missing.status is S.WARNING
    assert "qemu-system-xen" in missing.remedy
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).touch()
    assert emulator(tmp_path).status is S.OK
