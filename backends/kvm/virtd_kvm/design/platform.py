"""What the designer knows of a host: facts that the session has learned, and nothing that it could ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from virtd.backend.api import OptionSchema

PC: Final = ("x86_64", "i686")
"""Architectures with the machines ``pc`` and ``q35``."""

OPTIONS: Final = (
    OptionSchema(
        "disk_io",
        "How QEMU does asynchronous I/O on disk images; native needs a cache mode without the host's page cache.",
        ("threads", "native", "io_uring"),
    ),
    OptionSchema("balloon_stats", "Whether the guest reports its own memory use by the balloon.", ("yes", "no"), "yes"),
)
"""The keys of ``backend_options`` that the designer understands."""


@dataclass(frozen=True, slots=True)
class Platform:
    """A host, as far as it decides what a guest becomes.  An empty collection is "not known": nothing is refused by it.

    :param driver: libvirt's driver, ``qemu`` or ``test``.
    :param arch: libvirt's name of the guests' architecture.
    :param missing: capability -> why this host has it not.
    :param version: libvirt's, as ``(9, 0, 0)``.
    :param cpu_vendor: ``Intel``, ``AMD`` or empty.
    :param cpus: numbers of the host's CPUs.
    :param nodes: numbers of the host's NUMA nodes.
    :param huge_pages: size in bytes -> pages that are reserved, for the sizes beyond ordinary pages.
    :param cpu_models: libvirt's domain type -> models that guests of it can have.
    :param video_models: video cards that the emulator has.
    """

    driver: str = "qemu"
    arch: str = "x86_64"
    missing: Mapping[str, str] = field(default_factory=dict)
    version: tuple[int, int, int] = (9, 0, 0)
    cpu_vendor: str = ""
    cpus: frozenset[int] = frozenset()
    nodes: frozenset[int] = frozenset()
    huge_pages: Mapping[int, int] = field(default_factory=dict)
    cpu_models: Mapping[str, frozenset[str]] = field(default_factory=dict)
    video_models: tuple[str, ...] = ()

    @property
    def test(self) -> bool:
        """Libvirt's test driver: it writes guests down and runs none."""
        return self.driver == "test"

    @property
    def pc(self) -> bool:
        """Whether guests are PCs."""
        return self.arch in PC
