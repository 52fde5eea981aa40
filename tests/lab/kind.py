"""What there is to say about a kind of lab host; each kind is one small module that says it.

``kvm.py`` and ``xen.py`` are the examples.  Everything else in this package works for any kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from uuid import NAMESPACE_DNS, UUID, uuid5

from tests.guests.kernel import Kernel
from tests.lab.tree import Tree

MIB = 1 << 20

# What every lab host is made of besides its own packages.
BASE_PACKAGES = (
    *("busybox-static", "dropbear-bin", "iproute2", "kmod", "netbase", "procps", "socat"),
    *("netcat-openbsd", "mount", "util-linux", "iputils-ping", "iptables", "e2fsprogs"),
)

# What the root needs before it is mounted.
BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic")

# For the network of the host, and for bridged and translated networks on it.
NETWORK_MODULES = (
    *("virtio_net", "virtio_rng", "tun", "bridge", "br_netfilter", "8021q"),
    *("ip_tables", "iptable_filter", "iptable_nat", "iptable_mangle", "ip6_tables", "ip6table_filter"),
    *("ip6table_nat", "ip6table_mangle", "nf_nat", "xt_MASQUERADE", "xt_CHECKSUM", "xt_comment", "xt_conntrack"),
    *("xt_tcpudp", "xt_physdev", "ipt_REJECT", "ip6t_REJECT", "xt_mark", "xt_MARK", "xt_multiport"),
    *("nf_tables", "nft_compat", "nft_chain_nat", "nft_reject_inet", "nft_reject_ipv4", "ebtables", "ebtable_nat"),
    *("ebtable_filter", "overlay", "loop", "dm_mod", "fuse"),
)


@dataclass(frozen=True, slots=True)
class Boot:
    """What QEMU boots: the arguments ``-kernel``, ``-append`` and ``-initrd``."""

    kernel: str
    append: str
    initrd: str


class Kind(ABC):
    """A kind of lab host."""

    name: ClassVar[str]
    """Also the folder below ``rootfs/`` with the files that only this kind has."""

    packages: ClassVar[tuple[str, ...]]
    kernel_packages: ClassVar[tuple[str, ...]]
    """The packages that depend on the kernel, of which the first one known counts."""

    modules: ClassVar[tuple[str, ...]]
    suite: ClassVar[str] = "bookworm"
    root_bytes: ClassVar[int]
    memory_mib: ClassVar[int]
    processors: ClassVar[int]
    cpu: ClassVar[str]
    """QEMU's name for the processor, with what is to be left out of it."""

    ports: ClassVar[dict[str, int]]
    """The ports of the host that are forwarded, by what they are for; ``ssh`` is always one."""

    boot_s: ClassVar[float] = 180.0
    """How long booting without a saved state may take on a slow machine, seconds."""

    def inputs(self) -> list[Path]:
        """More files that decide what is in the image; the kind's own module and folder do anyway."""
        return []

    @abstractmethod
    def add_files(self, tree: Tree, kernel: Kernel, scratch: Path) -> None:
        """Add what is not simply a file below ``rootfs/``: guests, for example."""

    def hook(self) -> str:
        """Shell commands that run in the host's unpacked root folder, before it becomes a disk."""
        return ""

    @abstractmethod
    def write_boot_files(self, kernel: Kernel, initramfs: bytes, taken: Path, folder: Path) -> None:
        """Write what :meth:`boot` names into the folder.

        ``taken`` has what the hook left for it, in a file of its own.
        """

    @abstractmethod
    def boot(self, folder: Path, host: Host) -> Boot:
        """Say how QEMU boots the host from the files in the folder."""

    @abstractmethod
    def uri(self, ports: dict[str, int]) -> str:
        """The host's address, without encryption."""

    @abstractmethod
    def tls_uri(self, ports: dict[str, int], pki: Path) -> str:
        """The host's address with TLS; the client's certificates are in the folder ``pki``."""

    @abstractmethod
    def check(self, ports: dict[str, int]) -> str:
        """Ask the host something that only a working one can answer, and return the answer.

        :raises NotReadyError: with what it said instead.
        """


class NotReadyError(Exception):
    """The host does not answer yet; the message says what it did instead."""


@dataclass(frozen=True)
class Host:
    """One host of the lab."""

    name: str
    kind: Kind
    link: int = 0
    """Its number on the private link between hosts (10.9.0.NUMBER); 0: it is not on it."""

    uuid: UUID = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "uuid", uuid5(NAMESPACE_DNS, f"{self.name}.lab"))

    @property
    def words(self) -> str:
        """What the host reads of its kernel's command line."""
        words = [f"lab.name={self.name}", f"lab.uuid={self.uuid}"]
        if self.link:
            words.append(f"lab.ip=10.9.0.{self.link}/24")
        return " ".join(words)
