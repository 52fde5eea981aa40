"""A Xen host: Xen 4.17 with a Debian 12 dom0, and libvirtd with its driver for libxl."""

from __future__ import annotations

from pathlib import Path

from tests.guests.kernel import Kernel
from tests.lab import libvirtd, vmlinux, xenguest
from tests.lab.kind import MIB, NETWORK_MODULES, Boot, Host
from tests.lab.tree import Tree

_DOM0_MIB = 1024
_DATA_BYTES = 16 * MIB

# bootscrub: emulated memory is clean.
_XEN = (
    f"console=com1 com1=115200 dom0_mem={_DOM0_MIB}M,max:{_DOM0_MIB}M dom0_max_vcpus=1 "
    "bootscrub=0 spec-ctrl=no loglvl=warning guest_loglvl=warning"
)
_LINUX = f"console=hvc0 {xenguest.CMDLINE} net.ifnames=0"

_HOOK = """\
gzip -dc boot/xen-4.17-amd64.gz >@TAKEN@
# libvirt looks for Xen's programs and firmware in these places.
[ -e usr/lib/xen ] || ln -s xen-4.17 usr/lib/xen
[ -e usr/lib/xen-4.17/bin/qemu-system-i386 ] \\
    || ln -s /usr/libexec/xen-qemu-system-i386 usr/lib/xen-4.17/bin/qemu-system-i386
# libvirtd would end at once: this driver wants a user that only its own package makes.
rm -f usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so
# ... and likewise where no processor model fits: QEMU emulates none that has VME.
grep -l "<feature name='vme'/>" usr/share/libvirt/cpu_map/x86_*.xml | grep -v -e features -e vendors \\
    | xargs sed -i "/<feature name='vme'/d"
mkdir -p var/log/xen/console var/lib/xen/dump var/lib/libvirt/images
"""


class Xen(libvirtd.LibvirtKind):
    """PV, PVH and HVM guests are in ``/srv/guest``; the bridge ``xenbr0`` has 192.168.100.1 and a DHCP server."""

    name = "xen"
    scheme = "xen"
    packages = (
        *("xen-hypervisor-4.17-amd64", "xen-utils-4.17", "qemu-system-xen", "bridge-utils", "qemu-utils"),
        *("libvirt-daemon", "libvirt-daemon-driver-xen", "libvirt-clients", "dnsmasq-base"),
    )
    kernel_packages = ("linux-image-amd64", "linux-image-generic")
    modules = (
        *NETWORK_MODULES,
        *("xenfs", "xen_evtchn", "xen_gntdev", "xen_gntalloc", "xen_privcmd", "xen_blkback", "xen_netback"),
        *("xen_blkfront", "xen_netfront", "nbd", "squashfs", "isofs"),
    )
    root_bytes = 1536 * MIB
    memory_mib = 4096
    processors = 2
    # QEMU 7.2 emulates the first two in a way that Xen does not survive.  Without the third there is no AVX, whose
    # state gets lost now and then where SVM is emulated: programs of the host die of it, libvirtd among them.
    cpu = "max,-smap,-rdtscp,-xsave"

    def inputs(self) -> list[Path]:
        """The guest's files."""
        return xenguest.inputs()

    def add_files(self, tree: Tree, kernel: Kernel, scratch: Path) -> None:
        """The certificates of libvirt; the guests."""
        super().add_files(tree, kernel, scratch)
        initramfs = scratch / "guest-initrd.img"
        initramfs.write_bytes(xenguest.build_initramfs(kernel))
        tree.file("srv/guest/guest-initrd.img", initramfs)
        tree.file("srv/guest/vmlinuz", kernel.image)
        tree.file("srv/guest/vmlinux", vmlinux.unpack(kernel.image))
        tree.file("srv/guest/hvm.img", xenguest.build_disk(scratch))
        for name in ("data.img", "data2.img"):
            tree.file(f"srv/guest/{name}", bytes(_DATA_BYTES))

    def hook(self) -> str:
        """Takes the hypervisor, and repairs what does not fit this host."""
        return _HOOK

    def write_boot_files(self, kernel: Kernel, initramfs: bytes, taken: Path, folder: Path) -> None:
        """Xen, and as its modules dom0's kernel, unpacked, and initramfs."""
        (folder / "xen").write_bytes(taken.read_bytes())
        (folder / "vmlinux").write_bytes(vmlinux.unpack(kernel.image))
        (folder / "initrd.img").write_bytes(initramfs)

    def boot(self, folder: Path, host: Host) -> Boot:
        """Xen by the multiboot protocol."""
        vmlinux_path, initrd = (str(folder / name).replace(",", ",,") for name in ("vmlinux", "initrd.img"))
        return Boot(str(folder / "xen"), _XEN, f"{vmlinux_path} {_LINUX} {host.words},{initrd}")
