"""What is learned of a host, and the reason behind each "no"."""

from __future__ import annotations

from typing import Any

import libvirt
import pytest
from virtd_kvm import platforms

from virtd.backend import capabilities as cap

CAPABILITIES = """<capabilities><host><cpu><arch>x86_64</arch><vendor>AMD</vendor><pages unit='KiB' size='4'/>
<pages unit='KiB' size='2048'/></cpu><iommu support='{iommu}'/><topology><cells num='1'><cell id='0'>
<pages unit='KiB' size='4'>100</pages><pages unit='KiB' size='2048'>{pages}</pages>
<cpus num='2'><cpu id='0'/><cpu id='1'/></cpus></cell></cells></topology></host></capabilities>"""
DOMAIN = """<domainCapabilities><os><enum name='firmware'>{efi}</enum><loader><enum name='secure'>{secure}</enum>
</loader></os>
<cpu><mode name='custom'><model usable='yes'>Nehalem</model><model usable='no'>EPYC</model></mode></cpu><devices>
<video><enum name='modelType'><value>vga</value></enum></video>
<filesystem><enum name='driverType'><value>path</value>{virtiofs}</enum></filesystem>
<tpm><enum name='backendModel'><value>passthrough</value>{swtpm}</enum></tpm>
<hostdev><enum name='subsysType'><value>pci</value>{usb}</enum></hostdev></devices></domainCapabilities>"""
GOOD = {
    "iommu": "yes",
    "pages": "8",
    "efi": "<value>efi</value>",
    "secure": "<value>yes</value>",
    "virtiofs": "<value>virtiofs</value>",
    "swtpm": "<value>emulator</value>",
    "usb": "<value>usb</value>",
}


class Connection:
    """As much of a libvirt connection as is asked."""

    def __init__(self, *, uri: str = "qemu:///system", version: int = 9_000_000, **parts: str) -> None:
        self.parts, self.uri, self.version = {**GOOD, **parts}, uri, version

    def getCapabilities(self) -> str:  # noqa: N802 - libvirt's name
        return CAPABILITIES.format(**self.parts)

    def getDomainCapabilities(self, _emulator: Any, _arch: str, _machine: Any, kind: str, _flags: int) -> str:  # noqa: N802 - libvirt's name
        if kind == "kvm":
            error = libvirt.libvirtError("no KVM")
            error.err = (libvirt.VIR_ERR_INVALID_ARG, 0, "", 0, "", None, None, 0, 0)
            raise error
        return DOMAIN.format(**self.parts)

    def getLibVersion(self) -> int:  # noqa: N802 - libvirt's name
        return self.version

    def getURI(self) -> str:  # noqa: N802 - libvirt's name
        return self.uri

    def numOfNetworks(self) -> int:  # noqa: N802 - libvirt's name
        return 0

    numOfStoragePools = numOfNetworks  # noqa: N815 - libvirt's name


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtd.libvirt.facts.missing_kinds", lambda _connection: {})


def learn(**changes: Any) -> platforms.Platform:
    return platforms.learn(Connection(**changes), driver="qemu", local=False)


def test_a_good_host() -> None:
    found = learn()
    # A backup needs a host on this machine; that is not about devices.
    assert {id_ for id_ in found.missing if not id_.startswith("guest.backup")} == set()
    assert (found.cpus, found.nodes, found.huge_pages) == ({0, 1}, {0}, {2 << 20: 8})
    assert (found.cpu_vendor, found.version, found.video_models) == ("AMD", (9, 0, 0), ("vga",))
    assert found.cpu_models == {"qemu": {"Nehalem"}}


@pytest.mark.parametrize(
    ("changes", "capability", "reason"),
    [
        ({"iommu": "no"}, cap.PASSTHROUGH_PCI, "no IOMMU that is on"),
        ({"pages": "0"}, cap.HUGEPAGES, "vm.nr_hugepages"),
        ({"secure": ""}, cap.SECURE_BOOT, ""),
        ({"secure": "<value>no</value>"}, cap.SECURE_BOOT, "no UEFI firmware with secure boot"),
        ({"efi": ""}, cap.SECURE_BOOT, "no UEFI firmware"),
        ({"virtiofs": ""}, cap.VIRTIOFS, "QEMU has no virtiofs"),
        ({"uri": "qemu:///session"}, cap.VIRTIOFS, "qemu:///system"),
        ({"swtpm": ""}, cap.TPM, "swtpm is not installed"),
        ({"usb": ""}, cap.PASSTHROUGH_USB, "cannot pass USB devices"),
        ({"version": 8_001_000}, cap.PORT_FORWARD, "needs libvirt 8.2, the host has 8.1.0"),
    ],
)
def test_the_reason_behind_a_no(changes: dict[str, Any], capability: str, reason: str) -> None:
    missing = learn(**changes).missing
    assert (capability in missing) is bool(reason), missing
    assert reason in missing.get(capability, "")
