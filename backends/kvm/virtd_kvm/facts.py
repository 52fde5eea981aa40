"""What libvirt tells of a host with QEMU in particular."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from virtd.backend import capabilities as ids
from virtd.libvirt.facts import domain_capabilities, missing_drivers

NAMES: Final[Mapping[str, str]] = {"QEMU": "QEMU", "TEST": "libvirt test driver"}
"""libvirt's names of hypervisors, and ours."""


def missing(connection: Any, architecture: str) -> dict[str, str]:
    """What this particular host lacks, as libvirt's domain capabilities tell."""
    found: dict[str, str] = {}
    answer = domain_capabilities(connection, architecture, "qemu")
    if answer is None:
        return found
    firmware = [(entry.text or "").strip() for entry in answer.findall("os/enum[@name='firmware']/value")]
    if "efi" not in firmware:
        found[ids.UEFI] = "no UEFI firmware image is installed on the host (on Debian: the package ovmf)"
    return found | missing_drivers(connection)
