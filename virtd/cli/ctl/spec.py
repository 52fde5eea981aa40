"""The options of ``create guest`` that hold several things: ``--disk`` and ``--network``."""

from __future__ import annotations

import os
from typing import Any, Final

from virtd.cli.ctl import kinds
from virtd.cli.ctl.errors import UsageError
from virtd.cli.ctl.lazy import joined
from virtd.cli.ctl.text import did_you_mean, parse_size

_DISK_KEYS: Final = (
    "name", "size", "format", "bus", "image", "file", "volume", "pool", "device", "readonly", "boot", "copy",
)  # fmt: skip
_NETWORK_KEYS: Final = ("name", "mac", "model")


def pairs(text: str, option: str, known: tuple[str, ...]) -> dict[str, str]:
    """``a=1,b=2`` as a dictionary; ``,,`` stands for a comma in a value, as QEMU has it."""
    result: dict[str, str] = {}
    for part in text.replace(",,", "\0").split(","):
        key, separator, value = part.replace("\0", ",").partition("=")
        if key not in known:
            raise UsageError(f"{option} {text!r}: unknown key {key!r}{did_you_mean(key, known)}")
        if key in result:
            raise UsageError(f"{option} {text!r}: {key} is there twice")
        if not separator and key not in {"readonly", "copy"}:
            raise UsageError(f"{option} {text!r}: {key} needs a value, such as {key}=...")
        result[key] = value if separator else "true"
    return result


def choice(option: str, given: str, descriptor: Any) -> Any:
    """The number of an enum value by its short name.

    :raises UsageError: with the names that there are.
    """
    names = {kinds.short(descriptor, v.name).lower(): v.number for v in descriptor.values if v.number}
    if given.lower() not in names:
        raise UsageError(f"{option}: {given!r} is not {joined(list(names))}{did_you_mean(given, names)}")
    return names[given.lower()]


def size(option: str, given: str) -> int:
    """Bytes of a size in an option."""
    try:
        return parse_size(given)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error


def flag(option: str, given: str) -> bool:
    """A truth value in an option."""
    if given.lower() not in {"true", "false", "yes", "no", "on", "off"}:
        raise UsageError(f"{option}: {given!r} is not yes or no")
    return given.lower() in {"true", "yes", "on"}


def local_path(path: str, *, local: bool) -> str:
    """A path of the daemon's machine; where that is this machine, a relative one is meant from here."""
    return os.path.abspath(path) if local and path else path  # noqa: PTH100 - symbolic links stay as they are


def add_disk(spec: Any, text: str, *, local: bool) -> None:
    """Add the disk that ``--disk`` describes to a GuestSpec.

    :raises UsageError: for anything that is not clear.
    """
    from virtd.v1 import guest_pb2 as pb

    option = f"--disk {text!r}"
    given = pairs(text, "--disk", _DISK_KEYS)
    disk = spec.disks.add(name=given.get("name") or f"disk{len(spec.disks)}")
    _add_source(disk, given, option, local=local)
    if "bus" in given:
        disk.bus = choice(f"{option}: bus", given["bus"], pb.DiskBus.DESCRIPTOR)
    if "device" in given:
        disk.device = choice(f"{option}: device", given["device"], pb.DiskDevice.DESCRIPTOR)
    disk.read_only = flag(f"{option}: readonly", given.get("readonly", "no"))
    if "boot" in given:
        if not given["boot"].isdecimal() or not 0 < int(given["boot"]) < 2**32:
            raise UsageError(f"{option}: boot is a place in the boot order, 1 first")
        disk.boot_order = int(given["boot"])


_SOURCES: Final = {
    "size": {"size", "format", "pool"},
    "image": {"image", "size", "format", "pool", "copy"},
    "file": {"file", "format"},
    "volume": {"volume"},
}
"""The sources of a disk, by the key that chooses them, and the keys that go with each."""


def _add_source(disk: Any, given: dict[str, str], option: str, *, local: bool) -> None:
    from virtd.v1 import guest_pb2 as pb

    # With an image, size is a property; alone it is the source.
    chosen: list[str] = [key for key in ("image", "file", "volume") if key in given]
    if not chosen and "size" in given:
        chosen = ["size"]
    if len(chosen) != 1:
        raise UsageError(f"{option}: give one of size (a new empty disk), image, file and volume")
    source = chosen[0]
    for key in given:
        if key not in _SOURCES[source] and any(key in keys for keys in _SOURCES.values()):
            raise UsageError(f"{option}: {key} does not go with {source}")
    form: Any = choice(f"{option}: format", given["format"], pb.DiskFormat.DESCRIPTOR) if "format" in given else 0
    capacity: Any = size(f"{option}: size", given["size"]) if "size" in given else None
    pool = given.get("pool", "")
    if source == "size":
        disk.blank.CopyFrom(pb.BlankSource(capacity_bytes=capacity, format=form, pool=pool))
    elif source == "image":
        name = f"images/{given['image'].removeprefix('images/')}"
        copy = flag(f"{option}: copy", given.get("copy", "no"))
        disk.image.CopyFrom(pb.ImageSource(image=name, format=form, pool=pool, capacity_bytes=capacity, copy=copy))
    elif source == "volume":
        disk.volume = given["volume"]
    elif form:
        disk.host_file.CopyFrom(pb.HostFileSource(path=local_path(given["file"], local=local), format=form))
    else:
        raise UsageError(f"{option}: format is needed with file: it is never guessed from content")


def add_network(spec: Any, text: str) -> None:
    """Add the interface that ``--network`` describes to a GuestSpec.

    ``user``, ``network:NAME`` or ``bridge:BR``, then ``,mac=`` and ``,model=``.
    """
    from virtd.v1 import guest_pb2 as pb

    head, _, rest = text.partition(",")
    kind, _, name = head.partition(":")
    known = {
        "user": pb.INTERFACE_KIND_USER,
        "network": pb.INTERFACE_KIND_NETWORK,
        "bridge": pb.INTERFACE_KIND_BRIDGE,
    }
    if kind not in known or (kind == "user") == bool(name):
        raise UsageError(f"--network {text!r}: write user, network:NAME or bridge:NAME{did_you_mean(kind, known)}")
    given = pairs(rest, "--network", _NETWORK_KEYS) if rest else {}
    spec.interfaces.add(
        name=given.get("name") or f"net{len(spec.interfaces)}",
        kind=known[kind],
        network=name,
        mac=given.get("mac", ""),
        model=given.get("model", ""),
    )


def labels(option: str, given: tuple[str, ...]) -> dict[str, str]:
    """``KEY=VALUE`` options as a dictionary."""
    result = {}
    for entry in given:
        key, separator, value = entry.partition("=")
        if not separator or not key:
            raise UsageError(f"{option} {entry!r}: write KEY=VALUE")
        result[key] = value
    return result
