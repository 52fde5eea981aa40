"""A nested KVM host: Debian 12 with kvm_amd on the AMD SVM that QEMU emulates, and libvirtd."""

from __future__ import annotations

from pathlib import Path

from tests.guests import build_demo
from tests.guests.kernel import Kernel
from tests.lab import libvirtd
from tests.lab.kind import MIB, NETWORK_MODULES, Boot, Host
from tests.lab.tree import Tree

# What is switched off costs time under emulation and proves nothing.
QUIET = "quiet mitigations=off nokaslr cryptomgr.notests audit=0 net.ifnames=0"


class Kvm(libvirtd.LibvirtKind):
    """The demo guest is in ``/srv/guest``; two of these reach each other at 10.9.0.1 and 10.9.0.2."""

    name = "kvm"
    scheme = "qemu"
    packages = (
        *("libvirt-daemon", "libvirt-daemon-system", "libvirt-daemon-driver-qemu", "libvirt-clients"),
        *("libvirt-daemon-config-network", "qemu-system-x86", "qemu-utils", "dnsmasq-base", "nftables"),
    )
    kernel_packages = ("linux-image-cloud-amd64", "linux-image-virtual")
    modules = (*NETWORK_MODULES, "kvm_amd", "kvm_intel", "vhost_net", "nbd")
    root_bytes = 1536 * MIB
    memory_mib = 2048
    processors = 1
    cpu = "max"

    def add_files(self, tree: Tree, kernel: Kernel, scratch: Path) -> None:
        """The certificates of libvirt, and the demo guest."""
        super().add_files(tree, kernel, scratch)
        guest = build_demo()
        tree.file("srv/guest/vmlinuz", guest.kernel)
        tree.file("srv/guest/initrd.img", guest.initrd)

    def write_boot_files(self, kernel: Kernel, initramfs: bytes, taken: Path, folder: Path) -> None:
        """A Linux kernel and its initramfs."""
        (folder / "vmlinuz").write_bytes(kernel.image.read_bytes())
        (folder / "initrd.img").write_bytes(initramfs)

    def boot(self, folder: Path, host: Host) -> Boot:
        """Linux, directly."""
        return Boot(str(folder / "vmlinuz"), f"console=ttyS0 {QUIET} {host.words}", str(folder / "initrd.img"))
