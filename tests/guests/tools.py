"""The outside programs that a build uses: finding them, running them, saying what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Which Debian and Ubuntu package brings a program.
PACKAGES = {
    "as": "binutils",
    "apt-cache": "apt",
    "apt-get": "apt",
    "busybox": "busybox-static",
    "dpkg-deb": "dpkg",
    "grub-mkimage": "grub-common",
    "ld": "binutils",
    "ldd": "libc-bin",
    "mcopy": "mtools",
    "mformat": "mtools",
    "mke2fs": "e2fsprogs",
    "mmd": "mtools",
    "mmdebstrap": "mmdebstrap",
    "qemu-ga": "qemu-guest-agent",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "ssh": "openssh-client",
    "virsh": "libvirt-clients",
    "zstd": "zstd",
}

# A user's PATH often leaves out where Debian puts daemons.
_EXTRA_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin")


# The time that tools write into what they make: the first that FAT can hold.
_EPOCH = "315532800"


class GuestBuildError(Exception):
    """The guest cannot be built here; the message says why and what to do."""


def need_tool(name: str) -> Path:
    """Return where the program is; if it is missing, say which package has it."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_EXTRA_PATH))
    found = shutil.which(name, path=path)
    if found is None:
        raise GuestBuildError(f"the program {name} is missing: apt-get install {PACKAGES.get(name, name)}")
    return Path(found)


def need_file(path: Path, package: str) -> Path:
    """Return the path; if there is no such file, say which package has it."""
    if not path.is_file():
        raise GuestBuildError(f"{path} is missing: apt-get install {package}")
    return path


def run(
    name: str,
    *arguments: str | Path,
    cwd: Path | None = None,
    stdin: bytes | None = None,
    timeout: float = 600,
) -> bytes:
    """Run a program and return what it printed; if it fails, say what it said."""
    command: Sequence[str] = [str(need_tool(name)), *map(str, arguments)]
    environment = {**os.environ, "LC_ALL": "C", "MTOOLS_SKIP_CHECK": "1", "SOURCE_DATE_EPOCH": _EPOCH}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            input=stdin if stdin is not None else b"",
            capture_output=True,
            check=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise GuestBuildError(f"{' '.join(command)}: no end after {timeout:.0f} s") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).decode(errors="replace").strip()
        raise GuestBuildError(f"{' '.join(command)}: exit code {error.returncode}: {said}") from error
    return done.stdout
