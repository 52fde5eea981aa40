"""Learn what the designer has to know of a host: a handful of native calls, before anything is lowered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from virtd.backend import capabilities as ids
from virtd.libvirt.facts import domain_capabilities
from virtd.libvirt.xml.build import Element, attribute, integer, parse, scaled_attribute, text
from virtd_kvm import facts
from virtd_kvm.capabilities import BACKUP_REMOTE, TEST_DRIVER
from virtd_kvm.design.platform import PC, Platform

_KIB: Final = 1024
_KINDS: Final = ("qemu", "kvm")
# Where distributions put virtiofsd; libvirt itself finds it by the descriptions in the first.
_VIRTIOFSD: Final = (
    "/usr/share/qemu/vhost-user",
    "/usr/libexec/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
    "/usr/lib/virtiofsd",
)
_OVERRIDE_SINCE: Final = (8, 2, 0)


def learn(connection: Any, *, driver: str, local: bool) -> Platform:
    """Ask the host (on a worker; its first contact can take seconds: emulators are examined).

    :param local: the host is this machine, so its files can be looked at.
    """
    if driver == "test":
        return Platform(driver, str(connection.getInfo()[0]), missing=TEST_DRIVER)
    root = parse(connection.getCapabilities())
    arch = text(root, "host/cpu/arch") or str(connection.getInfo()[0])
    # Of the machine that guests get by default: libvirt's own default, pc, has no secure boot.
    machine = "q35" if arch in PC else None
    domains = {kind: domain_capabilities(connection, arch, kind, machine) for kind in _KINDS}
    version = _version(connection.getLibVersion())
    session = connection.getURI().partition("?")[0].endswith("/session")
    missing = dict(facts.missing(connection, arch))
    if (domain := domains["qemu"]) is not None:
        missing.update(_missing_devices(domain, local=local, session=session))
    if not local:
        missing |= dict.fromkeys((ids.BACKUP, ids.BACKUP_INCREMENTAL), BACKUP_REMOTE)
    if ids.UEFI in missing:
        missing.setdefault(ids.SECURE_BOOT, missing[ids.UEFI])
    if version < _OVERRIDE_SINCE:
        missing[ids.PORT_FORWARD] = f"needs libvirt 8.2, the host has {'.'.join(map(str, version))}"
    huge = _huge_pages(root)
    if huge and not any(huge.values()):
        missing[ids.HUGEPAGES] = "the host has reserved no huge pages (on Linux: the setting vm.nr_hugepages)"
    if attribute(root, "host/iommu", "support") == "no":
        missing[ids.PASSTHROUGH_PCI] = (
            "the host has no IOMMU that is on: switch on VT-d or AMD-Vi in its firmware, "
            "and on Intel boot it with intel_iommu=on"
        )
    return Platform(
        driver=driver,
        arch=arch,
        missing=missing,
        version=version,
        cpu_vendor=text(root, "host/cpu/vendor"),
        cpus=frozenset(_numbers(root.findall("host/topology/cells/cell/cpus/cpu"))),
        nodes=frozenset(_numbers(root.findall("host/topology/cells/cell"))),
        huge_pages=huge,
        cpu_models={kind: _cpu_models(found) for kind, found in domains.items() if found is not None},
        video_models=() if domains["qemu"] is None else _video_models(domains["qemu"]),
    )


def _missing_devices(domain: Element, *, local: bool, session: bool) -> Mapping[str, str]:
    """What guests of this emulator cannot have.  A list that libvirt does not give says nothing."""
    found = {}
    if "emulator" not in (_values(domain, "devices/tpm/enum[@name='backendModel']") or ["emulator"]):
        found[ids.TPM] = "swtpm is not installed on the host (on Debian: the packages swtpm and swtpm-tools)"
    if "yes" not in (_values(domain, "os/loader/enum[@name='secure']") or ["yes"]):
        found[ids.SECURE_BOOT] = "the host has no UEFI firmware with secure boot (on Debian: the package ovmf)"
    drivers = _values(domain, "devices/filesystem/enum[@name='driverType']")
    if drivers and "virtiofs" not in drivers:
        found[ids.VIRTIOFS] = "the host's QEMU has no virtiofs"
    elif session:
        found[ids.VIRTIOFS] = "a user's own libvirt does not run virtiofsd: use qemu:///system"
    elif local and not any(map(_is_there, _VIRTIOFSD)):
        found[ids.VIRTIOFS] = "virtiofsd is not installed on the host (on Debian: qemu-system-common or virtiofsd)"
    if drivers and "path" not in drivers:
        found[ids.P9] = "the host's QEMU has no 9p"
    kinds = _values(domain, "devices/hostdev/enum[@name='subsysType']")
    for id_, kind in ((ids.PASSTHROUGH_PCI, "pci"), (ids.PASSTHROUGH_USB, "usb")):
        if kinds and kind not in kinds:
            found[id_] = f"the host's QEMU cannot pass {kind.upper()} devices through"
    return found


def _is_there(path: str) -> bool:
    where = Path(path)
    return any("virtiofsd" in entry.name for entry in where.iterdir()) if where.is_dir() else where.is_file()


def _values(domain: Element, path: str) -> list[str]:
    return [(value.text or "").strip() for value in domain.findall(f"{path}/value")]


def _huge_pages(root: Element) -> Mapping[int, int]:
    """Size -> pages reserved on all nodes together; ordinary pages are left out."""
    sizes = [size for page in root.findall("host/cpu/pages") if (size := scaled_attribute(page, "size"))]
    ordinary = min(sizes, default=4 * _KIB)
    found = {size: 0 for size in sizes if size > ordinary}
    for page in root.findall("host/topology/cells/cell/pages"):
        size = scaled_attribute(page, "size")
        if size in found:
            found[size] += integer((page.text or "").strip()) or 0
    return found


def _cpu_models(domain: Element) -> frozenset[str]:
    return frozenset(
        (model.text or "").strip()
        for model in domain.findall("cpu/mode[@name='custom']/model")
        if model.get("usable") != "no"
    )


def _video_models(domain: Element) -> tuple[str, ...]:
    return tuple(_values(domain, "devices/video/enum[@name='modelType']"))


def _numbers(found: Iterable[Element]) -> Iterable[int]:
    return (number for entry in found if (number := integer(entry.get("id") or "")) is not None)


def _version(number: int) -> tuple[int, int, int]:
    return number // 1_000_000, number // 1000 % 1000, number % 1000
