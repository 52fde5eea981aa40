"""Which parts of a domain the guest's spec cannot express.  Pure.

What libvirt adds by itself (addresses, aliases, controllers, the PS/2 keyboard) is not such a part.
Everything that is not known here is: a list of what is known cannot forget anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from virtd.libvirt.dialect import Dialect
from virtd.libvirt.words import (
    AGENT_CHANNEL,
    BOOT_DEVICES,
    CLOCKS,
    INTERFACE_KINDS,
    SOUND_MODELS,
    TPM_MODELS,
    WATCHDOG_ACTIONS,
    WATCHDOGS,
)
from virtd.libvirt.xml import override
from virtd.libvirt.xml.build import Element, attribute, parse
from virtd.libvirt.xml.interface import ALIAS
from virtd.libvirt.xml.metadata import NAMESPACE as OURS

_PLACED: Final = frozenset({"address", "alias"})  # where libvirt has put a device, and how it calls it

# Top-level elements, with the children that are modelled; None: whatever is in it.
_TOP: Final[Mapping[str, frozenset[str] | None]] = {
    **dict.fromkeys(("name", "uuid", "title", "description", "metadata", "memory", "currentMemory"), None),
    **dict.fromkeys(("vcpu", "vcpus", "resource", "seclabel"), None),
    **dict.fromkeys(("on_poweroff", "on_reboot", "on_crash"), frozenset()),
    "memoryBacking": frozenset({"hugepages", "locked", "source", "access"}),
    "cputune": frozenset({"vcpupin", "emulatorpin"}),
    "numatune": frozenset({"memory", "memnode"}),
    "os": frozenset({"type", "firmware", "loader", "nvram", "kernel", "initrd", "cmdline", "boot"}),
    "features": None,
    "cpu": frozenset({"model", "vendor", "topology", "feature", "numa"}),
    "clock": frozenset(),
    "devices": None,
}

_DISK: Final = frozenset(
    {"driver", "source", "backingStore", "mirror", "target", "readonly", "boot", "iotune", "serial"}
)
_DEVICES: Final[Mapping[str, frozenset[str]]] = {
    "emulator": frozenset(),
    "disk": _DISK,
    "controller": frozenset({"model", "target", "master"}),
    "filesystem": frozenset({"driver", "binary", "source", "target", "readonly"}),
    "interface": frozenset({"mac", "source", "target", "model", "link", "mtu", "boot"}),
    "serial": frozenset({"source", "target", "log"}),
    "console": frozenset({"source", "target", "log"}),
    "channel": frozenset({"source", "target"}),
    "input": frozenset(),
    "tpm": frozenset({"backend"}),
    "graphics": frozenset({"listen"}),
    "audio": frozenset(),
    "sound": frozenset({"codec"}),
    "video": frozenset({"model"}),
    "hostdev": frozenset({"source", "driver"}),
    "watchdog": frozenset(),
    "memballoon": frozenset({"stats"}),
    "rng": frozenset({"backend"}),
}

_LIMITS: Final = frozenset(
    {"total_bytes_sec", "read_bytes_sec", "write_bytes_sec", "total_iops_sec", "read_iops_sec", "write_iops_sec"}
)
_SINGLE: Final = ("serial", "tpm", "sound", "video", "watchdog", "memballoon", "rng", "graphics")
"""Devices of which the spec has one at most."""


def unmodelled_of(xml: str, dialect: Dialect) -> tuple[str, ...]:
    """Paths such as ``devices/disk[vdb]/encryption``, in the order of the document, each once."""
    return tuple(dict.fromkeys(_found(parse(xml), dialect)))


def _found(root: Element, dialect: Dialect) -> Iterator[str]:
    for child in root:
        tag = str(child.tag)
        if tag.startswith(f"{{{override.NAMESPACE}}}"):
            continue
        if tag not in _TOP:
            yield _local(tag)
            continue
        known = _TOP[tag]
        if known is not None:
            yield from (f"{tag}/{_local(found.tag)}" for found in child if str(found.tag) not in known)
        yield from _TOP_RULES.get(tag, _no_rule)(child, dialect)
    yield from _devices(root, dialect)
    yield from _qemu(root)


def _no_rule(_found: Element, _dialect: Dialect) -> Iterator[str]:
    return iter(())


def _behaviour(found: Element, _dialect: Dialect) -> Iterator[str]:
    """The designer's own choice is the one that every guest has."""
    usual = {"on_poweroff": "destroy", "on_reboot": "restart", "on_crash": "destroy"}
    if (found.text or "").strip() != usual[str(found.tag)]:
        yield str(found.tag)


def _vcpu(found: Element, _dialect: Dialect) -> Iterator[str]:
    if found.get("cpuset") or found.get("placement", "static") != "static":
        yield "vcpu@cpuset"


def _backing(found: Element, _dialect: Dialect) -> Iterator[str]:
    pages = found.findall("hugepages/page")
    if found.find("hugepages") is not None and (len(pages) != 1 or pages[0].get("nodeset")):
        yield "memoryBacking/hugepages"
    if attribute(found, "source", "type") not in ("", "memfd", "anonymous"):
        yield "memoryBacking/source"


def _numa_tune(found: Element, _dialect: Dialect) -> Iterator[str]:
    modes = {entry.get("mode") or "strict" for entry in found}
    if found.find("memnode") is None or len(modes) > 1 or modes - {"strict", "preferred", "interleave"}:
        yield "numatune/memory"


def _os(found: Element, dialect: Dialect) -> Iterator[str]:
    boots = [boot.get("dev") for boot in found.findall("boot")]
    if boots not in ([], ["hd"]) and not (dialect.boot_devices and set(boots) <= set(BOOT_DEVICES)):
        yield "os/boot"
    if attribute(found, "type", "arch") and (found.findtext("type") or "") not in dialect.os_types:
        yield "os/type"
    features = {entry.get("name"): entry.get("enabled") for entry in found.findall("firmware/feature")}
    if features.get("enrolled-keys", "no") != features.get("secure-boot", "no"):
        yield "os/firmware"


def _cpu(found: Element, _dialect: Dialect) -> Iterator[str]:
    for feature in found.findall("feature"):
        if feature.get("policy", "require") not in ("require", "disable"):
            yield f"cpu/feature[{feature.get('name')}]"
    for cell in found.findall("numa/cell"):
        if len(cell) or set(cell.attrib) - {"id", "cpus", "memory", "unit"}:
            yield f"cpu/numa/cell[{cell.get('id')}]"


def _clock(found: Element, dialect: Dialect) -> Iterator[str]:
    adjusted = found.get("adjustment")
    if found.get("offset") not in CLOCKS.values() or (adjusted and adjusted not in dialect.clock_adjustments):
        yield "clock@offset"


def _features(found: Element, dialect: Dialect) -> Iterator[str]:
    yield from (f"features/{_local(feature.tag)}" for feature in found if str(feature.tag) not in dialect.features)


_TOP_RULES: Final[Mapping[str, Callable[[Element, Dialect], Iterator[str]]]] = {
    **dict.fromkeys(("on_poweroff", "on_reboot", "on_crash"), _behaviour),
    "vcpu": _vcpu,
    "memoryBacking": _backing,
    "numatune": _numa_tune,
    "os": _os,
    "cpu": _cpu,
    "clock": _clock,
    "features": _features,
}


# ------------------------------------------------------------------------------------------- devices


def _devices(root: Element, dialect: Dialect) -> Iterator[str]:
    counts: dict[str, int] = {}
    own_io = root.find(f"metadata/{{{OURS}}}guest/{{{OURS}}}option[@name='disk_io']") is not None
    for device in root.findall("devices/*"):
        tag = str(device.tag)
        counts[tag] = counts.get(tag, 0) + 1
        name = f"devices/{_local(tag)}[{_name(device, counts[tag])}]"
        if tag not in _DEVICES or (tag in _SINGLE and counts[tag] > 1) or not _KNOWN.get(tag, _yes)(device, dialect):
            yield name
            continue
        known = _DEVICES[tag] | _PLACED | dialect.device_parts.get(tag, frozenset())
        yield from (f"{name}/{_local(found.tag)}" for found in device if str(found.tag) not in known)
        if tag == "disk":
            yield from (
                f"{name}/iotune/{_local(limit.tag)}"
                for limit in device.findall("iotune/*")
                if str(limit.tag) not in _LIMITS
            )
            driver = device.find("driver")
            extra = set() if driver is None else set(driver.attrib) - {"name", "type", "cache", "discard", "queues"}
            if extra - ({"io"} if own_io else set()):
                yield f"{name}/driver"


def _yes(_device: Element, _dialect: Dialect) -> bool:
    return True


def _disk(device: Element, dialect: Dialect) -> bool:
    return (
        device.get("type") == "file"
        and device.get("device", "disk") in ("disk", "cdrom")
        and attribute(device, "target", "bus") in dialect.buses
        and attribute(device, "driver", "type") in ("qcow2", "raw", "")
    )


def _controller(device: Element, dialect: Dialect) -> bool:
    models = dialect.controllers.get(device.get("type") or "")
    return models is not None and (not models or device.get("model") in models)


def _character(device: Element, _dialect: Dialect) -> bool:
    return device.get("type") == "pty" and attribute(device, "target", "port") in ("", "0")


def _input(device: Element, dialect: Dialect) -> bool:
    return device.get("type") in dialect.inputs.get(device.get("bus") or "", ())


def _host_device(device: Element, _dialect: Dialect) -> bool:
    kinds = ("pci", "usb")
    return device.get("mode") == "subsystem" and device.get("type") in kinds


_KNOWN: Final[Mapping[str, Callable[[Element, Dialect], bool]]] = {
    "disk": _disk,
    "controller": _controller,
    "interface": lambda device, _: device.get("type") in INTERFACE_KINDS.values(),
    "filesystem": lambda device, _: device.get("type", "mount") == "mount",
    "serial": _character,
    "console": _character,
    "channel": lambda device, _: attribute(device, "target", "name") == AGENT_CHANNEL,
    "input": _input,
    "tpm": lambda device, _: (
        device.get("model") in TPM_MODELS.values() and attribute(device, "backend", "type") == "emulator"
    ),
    "graphics": lambda device, _: device.get("type") == "vnc" and not device.get("passwd"),
    "audio": lambda device, _: device.get("type") in (None, "none"),
    "sound": lambda device, _: device.get("model") in SOUND_MODELS.values(),
    "hostdev": _host_device,
    "watchdog": lambda device, _: (
        device.get("model") in WATCHDOGS.values() and device.get("action", "reset") in WATCHDOG_ACTIONS.values()
    ),
    "memballoon": lambda device, dialect: device.get("model") in dialect.balloons,
    "rng": lambda device, _: device.get("model") == "virtio" and attribute(device, "backend", "model") == "random",
}


def _name(device: Element, number: int) -> str:
    """What tells it from its like: the target, the address, the kind; at last its number."""
    for path, key in (
        ("target", "dev"),
        ("target", "name"),
        ("mac", "address"),
        ("target", "dir"),
        (".", "type"),
        (".", "model"),
    ):
        if text := attribute(device, path, key):
            return text
    return str(number)


def _qemu(root: Element) -> Iterator[str]:
    """Options past libvirt, but for the user networks that virtd writes."""
    ours = {network.argument for network in override.parse(root)}
    aliases = {f"{ALIAS}{network.interface}" for network in override.parse(root)}
    space = f"{{{override.NAMESPACE}}}"
    values = [found.get("value") or "" for found in root.findall(f"{space}commandline/{space}arg")]
    if any(value not in ours and value != "-netdev" for value in values) or (
        root.find(f"{space}commandline/{space}env") is not None
    ):
        yield "qemu:commandline"
    if any(found.get("alias") not in aliases for found in root.findall(f"{space}override/{space}device")):
        yield "qemu:override"
    for other in root:
        tag = str(other.tag)
        if tag.startswith(space) and _local(tag) not in ("commandline", "override"):
            yield f"qemu:{_local(tag)}"


def _local(tag: object) -> str:
    return str(tag).rpartition("}")[2]
