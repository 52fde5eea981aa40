"""qemu-img, in processes with limits: image headers are written by guests, and are not to be trusted."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from virtd.errors import BACKEND_ERROR, STORAGE_FULL, InternalError, NativeError, ResourceExhaustedError, VirtdError

INFO_S: Final = 30.0
_INFO_LIMITS: Final = ("--as=1073741824", "--cpu=30")
_PERCENT: Final = re.compile(rb"\((\d+\.\d+)/100%\)")


@dataclass(frozen=True, slots=True)
class Layer:
    """One image of a chain.

    :param backing: the path below it; ``""`` at the end.
    :param backing_format: what the image says of that file's format; ``""`` where it says nothing.
    :param snapshots: names of the internal snapshots inside it.
    """

    path: str
    format: str
    backing: str = ""
    backing_format: str = ""
    snapshots: tuple[str, ...] = ()
    size_bytes: int = 0


class UnreadableChainError(Exception):
    """qemu-img cannot read the chain; the text says why."""


def available() -> bool:
    """Whether this machine has what is needed."""
    return shutil.which("qemu-img") is not None and shutil.which("prlimit") is not None


def chain(path: str, format_: str) -> tuple[Layer, ...]:
    """The images from ``path`` down, as the files themselves say.  Reads only, also of running guests.

    :param format_: the format of the first; never guessed, because a raw disk's content is its guest's.
    :raises UnreadableChainError: a file is missing or damaged, or the chain is a ring.
    """
    command = ["qemu-img", "info", "-U", "--backing-chain", "--output=json", "-f", format_, path]
    try:
        done = subprocess.run(
            ["prlimit", *_INFO_LIMITS, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=INFO_S,
            env=_environment(),
        )
    except subprocess.TimeoutExpired as error:
        raise UnreadableChainError(f"qemu-img info of {path} took longer than {INFO_S:g} s") from error
    if done.returncode:
        raise UnreadableChainError(done.stderr.decode(errors="replace").strip()[-500:] or "qemu-img failed")
    return tuple(_layer(entry) for entry in json.loads(done.stdout))


def _layer(entry: dict[str, Any]) -> Layer:
    return Layer(
        path=os.path.realpath(entry["filename"]),
        format=entry["format"],
        backing=os.path.realpath(entry.get("full-backing-filename") or entry["backing-filename"])
        if entry.get("backing-filename")
        else "",
        backing_format=entry.get("backing-filename-format", ""),
        snapshots=tuple(found["name"] for found in entry.get("snapshots", ())),
        size_bytes=entry.get("virtual-size", 0),
    )


def commit(path: str, format_: str, progress: Callable[[float], None]) -> None:
    """Write what ``path`` holds into the image below it.  Keeps ``path``; may be repeated.

    :param progress: called with 0..1.
    :raises VirtdError: STORAGE_FULL, or BACKEND_ERROR with what qemu-img says.
    """
    _run(["qemu-img", "commit", "-p", "-d", "-f", format_, path], progress)


def rebase(path: str, backing: str, backing_format: str) -> None:
    """Put ``path``, a qcow2 image, over another file of the same content: its header only.

    :raises VirtdError: BACKEND_ERROR.
    """
    _run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", backing, "-F", backing_format, path], lambda _share: None)


def create_overlay(path: str, backing: str, backing_format: str) -> None:
    """An empty qcow2 image over another.

    :raises VirtdError: BACKEND_ERROR or STORAGE_FULL.
    """
    _run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", backing_format, path], lambda _share: None)


def _run(command: list[str], progress: Callable[[float], None]) -> None:
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while part := os.read(process.stdout.fileno(), 4096):
            shares = _PERCENT.findall(part)
            if shares:
                progress(float(shares[-1]) / 100)
        said = process.stderr.read().decode(errors="replace").strip()[-500:]
    if process.returncode:
        raise _failed(command[1], said)


def _failed(what: str, said: str) -> VirtdError:
    native = NativeError(f"qemu-img {what}", "", said)
    # qemu-img has one exit code for everything; the C locale's strerror text is all that tells a full disk.
    if os.strerror(28) in said:
        return ResourceExhaustedError(STORAGE_FULL, f"no space left on the host: {said}", native=native)
    return InternalError(BACKEND_ERROR, f"qemu-img {what} failed: {said}", native=native)


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
