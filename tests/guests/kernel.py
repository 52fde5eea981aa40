"""The guest's kernel: downloaded as a package, unpacked, never installed."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.guests.tools import GuestBuildError, run

# The packages that depend on today's small kernel: Debian's name, then Ubuntu's.
_META_PACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual")

# A versioned kernel image, or the modules that Ubuntu packs apart from it.
_KERNEL_PACKAGE = re.compile(r"linux-(?:image|modules)-(?:unsigned-)?[0-9][^\s,(|]*")

_MODULE_NAME = re.compile(r"^(?P<stem>.+?)\.ko(?:\.(?P<packing>xz|zst|gz))?$")


@dataclass(frozen=True, slots=True)
class KernelPackages:
    """The packages that make up one kernel, as the package lists name them."""

    packages: tuple[str, ...]
    version: str


@dataclass(frozen=True, slots=True)
class Module:
    """A kernel module in an unpacked package."""

    name: str
    path: Path
    packing: str | None

    def read(self) -> bytes:
        """Return the module as the kernel loads it, unpacked."""
        data = self.path.read_bytes()
        match self.packing:
            case "xz":
                return lzma.decompress(data)
            case "gz":
                return gzip.decompress(data)
            case "zst":
                return run("zstd", "-dc", stdin=data)
            case _:
                return data


@dataclass(frozen=True, slots=True)
class Content:
    """What is in a module: its bytes, the modules it needs, the names it also answers to."""

    data: bytes
    needs: tuple[str, ...]
    aliases: tuple[str, ...]


class Kernel:
    """An unpacked kernel: its image, and its modules by name."""

    def __init__(self, root: Path) -> None:
        """Look at what was unpacked into the folder."""
        self.image = _only(root.glob("boot/vmlinuz-*"), "kernel image")
        modules = _only([*root.glob("lib/modules/*"), *root.glob("usr/lib/modules/*")], "modules")
        self.release = modules.name
        self._modules = {module.name: module for module in _modules(modules)}
        builtin = (modules / "modules.builtin").read_text().split()
        self._builtin = {_canonical(Path(line).name.removesuffix(".ko")) for line in builtin}

    def closure(self, names: Iterable[str]) -> dict[str, Content]:
        """Return the modules and all they depend on, each with its content.

        What a module needs comes before it. Names that are built into the kernel, and names this
        kernel does not know, are left out.
        """
        found: dict[str, Content] = {}
        for name in names:
            self._add(_canonical(name), found)
        return found

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Return which of the modules this kernel has neither built in nor beside it."""
        known = self._builtin | self._modules.keys()
        return [name for name in names if _canonical(name) not in known]

    def _add(self, name: str, found: dict[str, Content]) -> None:
        module = self._modules.get(name)
        if module is None or name in found:
            return
        data = module.read()
        depends = ",".join(_information(data, "depends")).split(",")
        needs = tuple(need for need in map(_canonical, depends) if need in self._modules)
        for need in needs:
            self._add(need, found)
        found[name] = Content(data, needs, tuple(_information(data, "alias")))


def resolve(scratch: Path, metas: tuple[str, ...] = _META_PACKAGES) -> tuple[KernelPackages, list[str]]:
    """Find today's kernel in the package lists; also return the apt options that found it.

    ``metas`` are the packages that depend on the kernel that is wanted; the first one known counts.
    Where the machine has no lists, they are fetched into the scratch folder, for which nobody
    needs to be root.
    """
    try:
        return _resolve(metas, []), []
    except GuestBuildError:
        options = _own_lists(scratch)
        return _resolve(metas, options), options


def download(wanted: KernelPackages, options: list[str], scratch: Path, store: Path) -> list[Path]:
    """Return the package files, those missing in the store downloaded into it first."""
    store.mkdir(parents=True, exist_ok=True)
    paths = []
    for package in wanted.packages:
        path = store / f"{package}_{wanted.version.replace(':', '%3a')}.deb"
        if not path.is_file():
            os.replace(_download(f"{package}={wanted.version}", options, scratch), path)
        paths.append(path)
    return paths


def unpack(packages: Iterable[Path], root: Path) -> Kernel:
    """Unpack package files into a folder."""
    for package in packages:
        run("dpkg-deb", "-x", package, root)
    return Kernel(root)


def _resolve(metas: tuple[str, ...], options: list[str]) -> KernelPackages:
    for meta in metas:
        try:
            image = _show(meta, options)
        except GuestBuildError:
            continue
        for package in _KERNEL_PACKAGE.findall(image.get("Depends", "")):
            fields = _show(package, options)
            # Debian's image holds its modules; Ubuntu's depends on a package of them.
            parts = [package, *_KERNEL_PACKAGE.findall(fields.get("Depends", ""))]
            return KernelPackages(tuple(dict.fromkeys(parts)), fields["Version"])
    raise GuestBuildError(
        f"apt knows no kernel package ({' or '.join(metas)}): apt-get update, "
        "and check that the package sources are Debian's or Ubuntu's for amd64"
    )


def _show(package: str, options: list[str]) -> dict[str, str]:
    text = run("apt-cache", *options, "show", "--no-all-versions", package).decode()
    lines = (line.partition(": ") for line in text.splitlines() if not line.startswith(" "))
    return {name: value for name, colon, value in lines if colon}


def _own_lists(scratch: Path) -> list[str]:
    """Fetch package lists into the scratch folder, and return the apt options to use them."""
    state, cache = scratch / "apt/state", scratch / "apt/cache"
    (state / "lists/partial").mkdir(parents=True, exist_ok=True)
    (cache / "archives/partial").mkdir(parents=True, exist_ok=True)
    options = ["-o", f"Dir::State={state}", "-o", f"Dir::Cache={cache}"]
    options += ["-o", "Dir::State::status=/var/lib/dpkg/status"]
    run("apt-get", *options, *_AS_IS, "-q", "update")
    return options


# apt would otherwise want a user of its own to be able to write into our folder.
_AS_IS = ("-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3")


def _download(package: str, options: list[str], scratch: Path) -> Path:
    folder = scratch / "download"
    try:
        return _download_into(folder, package, options)
    except GuestBuildError:
        if options:
            raise
        # The machine's lists may be older than what the archive still has.
        return _download_into(folder, package, _own_lists(scratch))


def _download_into(folder: Path, package: str, options: list[str]) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run("apt-get", *options, *_AS_IS, "-q", "download", package, cwd=folder)
    return _only(folder.glob("*.deb"), f"download of {package}")


def _modules(folder: Path) -> Iterator[Module]:
    for path in sorted(folder.rglob("*.ko*")):
        if match := _MODULE_NAME.match(path.name):
            yield Module(_canonical(match["stem"]), path, match["packing"])


def _information(data: bytes, field: str) -> list[str]:
    """Return what a module says of itself in a field, which may stand there several times."""
    return [value.decode() for value in re.findall(rb"\0%s=([^\0]+)" % field.encode(), data)]


def _canonical(name: str) -> str:
    """Return the name as the kernel spells it; file names may have dashes."""
    return name.replace("-", "_")


def _only(paths: Iterable[Path], what: str) -> Path:
    found = sorted(paths)
    if len(found) != 1:
        raise GuestBuildError(f"expected one {what}, found {[str(path) for path in found]}")
    return found[0]
