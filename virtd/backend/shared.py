"""Directories that several hosts share, by what their configuration says.

The option ``shared_directories`` of a host lists absolute directories, separated by colons, that every
other host with the same entry sees under the same path: NFS, a cluster's file system, one disk array.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

from virtd.errors import CONFIG_INVALID, InvalidArgumentError

OPTION: Final = "shared_directories"


def option_of(options: Mapping[str, str]) -> str:
    """The option's text; empty where it is not set."""
    return options.get(OPTION, "")


def directories_of(text: str) -> tuple[PurePosixPath, ...]:
    """The directories of the option.

    :raises InvalidArgumentError: CONFIG_INVALID, one is not absolute.
    """
    found = tuple(PurePosixPath(part) for part in text.split(":") if part)
    for directory in found:
        if not directory.is_absolute() or ".." in directory.parts:
            raise InvalidArgumentError(CONFIG_INVALID, f"{OPTION}: {directory} is not an absolute directory")
    return found


def shared_by_option(paths: Sequence[str], here: str, there: str) -> dict[str, str]:
    """Which files lie in a directory that both hosts name."""
    both = [directory for directory in directories_of(here) if directory in directories_of(there)]
    found: dict[str, str] = {}
    for path in paths:
        if ".." in PurePosixPath(path).parts:
            continue
        for directory in both:
            if PurePosixPath(path).is_relative_to(directory):
                found[path] = f"both hosts name {directory} in {OPTION}"
    return found
