"""What a host says of a spec: its capabilities, the backend's options, and the files and devices it names.

No side effect.  Files and devices are looked at where the host is this machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from virtd.backend import capabilities as cap
from virtd.backend.needs import needs_of
from virtd.errors import FIELD_INVALID, FIELD_UNSUPPORTED, FieldViolation, InvalidArgumentError, UnsupportedError
from virtd.inventory import HostLink
from virtd.model.devices import HostDeviceSpec, UsbHostDevice
from virtd.model.guest import GuestSpec, RunStrategy
from virtd.service.core import is_local
from virtd.service.validate import check_allowed_path

_PCI_DEVICES: Final = "/sys/bus/pci/devices"
_USB_DEVICES: Final = "/sys/bus/usb/devices"


def check_host(link: HostLink, spec: GuestSpec, allowed: tuple[str, ...]) -> GuestSpec:
    """All of it; the spec with every path of the host resolved.

    :raises InvalidArgumentError: FIELD_INVALID, FIELD_UNSUPPORTED or PATH_NOT_ALLOWED.
    """
    local = is_local(link.config)
    spec = check_paths(spec, allowed, local=local)
    check_capabilities(link, spec)
    if local:
        check_host_devices(spec)
    return spec


def check_capabilities(link: HostLink, spec: GuestSpec) -> None:
    """Everything that the host's capabilities and the backend's options say of the spec, all at once.

    :raises InvalidArgumentError: FIELD_UNSUPPORTED, with the reason of each capability that is missing.
    """
    found: list[FieldViolation] = []
    for capability, field, alternatives in _needs(spec):
        try:
            cap.require(link.capabilities, capability)
        except UnsupportedError as error:
            found.append(FieldViolation(f"guest.{field}", error.record.metadata["why"], alternatives))
    options = {option.name: option for option in link.backend.descriptor.options}
    for key, value in spec.backend_options.items():
        field = f"guest.spec.backend_options[{key}]"
        if key not in options:
            why = f"the backend {link.backend.descriptor.id} has no such option"
            found.append(FieldViolation(field, why, tuple(options)))
        elif options[key].values and value not in options[key].values:
            found.append(FieldViolation(field, f"{value!r} is not one of its values", options[key].values))
    if found:
        raise InvalidArgumentError(
            FIELD_UNSUPPORTED,
            "; ".join(f"{violation.field}: {violation.description}" for violation in found[:5]),
            resource=f"hosts/{link.id}",
            violations=tuple(found),
        )


def _needs(spec: GuestSpec) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """What only the core asks for, and what the fields themselves need."""
    if any(disk.blank is not None or disk.image is not None or disk.volume is not None for disk in spec.disks):
        yield cap.VOLUMES, "spec.disks", ("host_file",)
    if spec.autostart:
        yield cap.AUTOSTART, "spec.autostart", ("false",)
    if spec.run_strategy is RunStrategy.HALTED:
        yield cap.SHUTDOWN, "spec.run_strategy", (RunStrategy.MANUAL.value,)
    for need in needs_of(spec):
        yield need.capability, need.field, need.alternatives


def check_paths(spec: GuestSpec, allowed: tuple[str, ...], *, local: bool) -> GuestSpec:
    """The spec with every path of the host resolved.

    :raises InvalidArgumentError: PATH_NOT_ALLOWED, or FIELD_INVALID where nothing is there.
    """
    boot = spec.direct_kernel_boot
    if boot is not None:
        field = "guest.spec.direct_kernel_boot"
        boot = replace(
            boot,
            kernel_path=_file(boot.kernel_path, allowed, f"{field}.kernel_path", local=local),
            initrd_path=_file(boot.initrd_path, allowed, f"{field}.initrd_path", local=local)
            if boot.initrd_path
            else "",
        )
    disks = []
    for index, disk in enumerate(spec.disks):
        if disk.host_file is not None:
            path = _file(disk.host_file.path, allowed, f"guest.spec.disks[{index}].host_file.path", local=local)
            disk = replace(disk, host_file=replace(disk.host_file, path=path))  # noqa: PLW2901 - its new version
        disks.append(disk)
    filesystems = []
    for index, filesystem in enumerate(spec.filesystems):
        field = f"guest.spec.filesystems[{index}].path"
        path = check_allowed_path(filesystem.path, allowed, field, local=local)
        if local and not Path(path).is_dir():
            raise _nothing(field, f"there is no directory {path}", "no such directory")
        filesystems.append(replace(filesystem, path=path))
    return replace(spec, direct_kernel_boot=boot, disks=tuple(disks), filesystems=tuple(filesystems))


def _file(path: str, allowed: tuple[str, ...], field: str, *, local: bool) -> str:
    real = check_allowed_path(path, allowed, field, local=local)
    if local and not Path(real).is_file():
        raise _nothing(field, f"there is no file {real}", "no such file")
    return real


def check_host_devices(spec: GuestSpec) -> None:
    """Devices of this machine that the spec gives to the guest are there.

    :raises InvalidArgumentError: FIELD_INVALID.
    """
    for index, device in enumerate(spec.host_devices):
        field = f"guest.spec.host_devices[{index}]"
        if device.pci is not None and not Path(_PCI_DEVICES, device.pci.address.lower()).exists():
            why = f"the host has no PCI device {device.pci.address}"
            raise _nothing(f"{field}.pci.address", why, why)
        if device.usb is not None and not _has_usb(device.usb):
            why = f"the host has no USB device {_text_of(device)}"
            raise _nothing(f"{field}.usb", why, why)


def _has_usb(wanted: UsbHostDevice) -> bool:
    places = Path(_USB_DEVICES)
    if not places.is_dir():
        return False
    for place in places.iterdir():
        if wanted.vendor_id:
            found = [_read(place / name, 16) for name in ("idVendor", "idProduct")]
            if found == [wanted.vendor_id, wanted.product_id]:
                return True
        elif [_read(place / name, 10) for name in ("busnum", "devnum")] == [wanted.bus, wanted.device]:
            return True
    return False


def _read(path: Path, base: int) -> int | None:
    try:
        return int(path.read_text(), base)
    except (OSError, ValueError):
        return None


def _text_of(device: HostDeviceSpec) -> str:
    usb = device.usb
    assert usb is not None
    if usb.vendor_id:
        return f"{usb.vendor_id:04x}:{usb.product_id:04x}"
    return f"{usb.device} on bus {usb.bus}"


def _nothing(field: str, message: str, description: str) -> InvalidArgumentError:
    return InvalidArgumentError(FIELD_INVALID, f"{field}: {message}", violations=(FieldViolation(field, description),))
