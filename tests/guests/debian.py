"""Debian 12 with cloud-init, the QEMU guest agent and sshd, as an image that boots by BIOS and UEFI.

Made without loop devices and without booting anything: mmdebstrap unpacks and configures the
packages, mke2fs writes the file system out of the folder, and the disk gets the boot loader of the
demo disk. Time under emulation decides what is in it: the kernel modules a guest of ours can need,
an initramfs that only mounts the root, no services that a first boot does not need.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from tests.guests import disk, initramfs, kernel
from tests.guests.cache import building, cache_root, recipe_hash
from tests.guests.cpio import CpioWriter
from tests.guests.tools import need_tool, run

SUITE = "bookworm"

_MIB = 1024 * 1024
_ROOT_SIZE = 1200 * _MIB

_CMDLINE = (
    "root=LABEL=root ro console=tty0 console=ttyS0 quiet mitigations=off nokaslr cryptomgr.notests "
    "net.ifnames=0 systemd.show_status=false"
)

_PACKAGES = (
    *("systemd-sysv", "udev", "dbus", "kmod", "iproute2", "netbase", "procps"),
    *("openssh-server", "sudo", "qemu-guest-agent", "cloud-init", "cloud-guest-utils", "fdisk", "e2fsprogs"),
)

# What the root needs before it is mounted.
_BOOT_MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ext4")

# What a guest of ours can meet later; udev loads them by their aliases.
_MORE_MODULES = (
    *("virtio_net", "virtio_console", "virtio_balloon", "virtio_rng", "virtio_input", "virtio_mmio"),
    *("sr_mod", "isofs", "vfat", "nls_ascii", "nls_cp437", "nls_utf8", "loop", "button", "evdev"),
    *("9pnet_virtio", "9p", "virtiofs", "overlay", "i6300esb", "iTCO_wdt", "fuse"),
)

_INIT = """\
#!/bin/busybox sh
B=/bin/busybox
$B mount -t devtmpfs dev /dev
$B mount -t proc proc /proc
for module in $($B cat /etc/modules); do $B insmod /modules/$module.ko; done
n=0
while ! device=$($B findfs LABEL=root 2>/dev/null); do
    n=$((n + 1))
    [ $n -lt 600 ] || { echo "no file system is labelled root"; exec $B sh; }
    $B usleep 50000
done
$B mount -t ext4 -o ro,noatime "$device" /root
$B umount /proc
$B mount -o move /dev /root/dev
exec $B switch_root /root /sbin/init
"""

# Every module costs an import under emulation; these are what a guest specification can ask for.
_CLOUD_CONFIG = """\
datasource_list: [NoCloud, None]
cloud_init_modules: [seed_random, bootcmd, write-files, growpart, resizefs, set_hostname, update_etc_hosts,
  users-groups, ssh]
cloud_config_modules: [set-passwords, timezone, runcmd]
cloud_final_modules: [package-update-upgrade-install, scripts-per-boot, scripts-user, final-message]
ssh_genkeytypes: [ed25519]
ssh_publish_hostkeys: {enabled: false}
no_ssh_fingerprints: true
system_info:
  network: {renderers: [networkd]}
"""

# Without a seed the guest asks for addresses by DHCP; with one, cloud-init's own file comes first.
_NETWORK = """\
[Match]
Name=eth*
[Network]
DHCP=yes
"""

_FILES = {
    "etc/fstab": "LABEL=root / ext4 defaults,noatime 0 1\n",
    "etc/hostname": "debian\n",
    "etc/machine-id": "",
    "etc/cloud/cloud.cfg.d/99_virtd.cfg": _CLOUD_CONFIG,
    "etc/systemd/network/90-dhcp.network": _NETWORK,
    "etc/apt/apt.conf.d/99min": 'APT::Install-Recommends "0";\nAcquire::Languages "none";\n',
}

_MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer"),
    *("e2scrub_all.timer", "e2scrub_reap.service", "systemd-binfmt.service", "systemd-pstore.service"),
    *("systemd-networkd-wait-online.service", "systemd-timesyncd.service", "systemd-update-utmp.service"),
    *("apparmor.service", "cloud-init-hotplugd.socket", "getty@tty1.service"),
)

_EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


@dataclass(frozen=True, slots=True)
class DebianGuest:
    """Where the image is, a plain qcow2 file; it is shared, so never write to it."""

    disk: Path


def build_debian() -> DebianGuest:
    """Return the Debian guest, built first (some minutes) if the cache has none made this way.

    Raises ``GuestBuildError``, which says what to install, where it cannot be built.
    """
    recipe = recipe_hash([Path(__file__), *initramfs.host_inputs().values()], SUITE)
    target = cache_root() / f"debian-{recipe}"
    if not target.is_dir():
        with building() as scratch:
            if not target.is_dir():
                _build(scratch, target)
    return DebianGuest(target / "disk.qcow2")


def _build(scratch: Path, target: Path) -> None:
    wanted, options = kernel.resolve(scratch)
    packages = kernel.download(wanted, options, scratch, cache_root() / "packages")
    unpacked = kernel.unpack(packages, scratch / "kernel")
    initrd = scratch / "initrd.img"
    initrd.write_bytes(_initramfs(unpacked))
    raw = scratch / "disk.raw"
    start = disk.write_raw(raw, unpacked.image, initrd, _CMDLINE, scratch, _ROOT_SIZE)
    _write_root(_overlay(unpacked, scratch / "overlay"), raw, start, scratch)
    made = scratch / "made"
    made.mkdir()
    image = made / "disk.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", raw, image)
    image.chmod(0o444)
    os.replace(made, target)


def _write_root(overlay: Path, raw: Path, start: int, scratch: Path) -> None:
    """Unpack and configure Debian, and write it into the second partition as an ext4 file system.

    mke2fs runs as a hook of mmdebstrap: there the files have the owners they are to have, also
    where mmdebstrap runs without root, in a user namespace.
    """
    if os.geteuid():
        # The namespace's root is somebody else on this side.
        raw.chmod(raw.stat().st_mode | stat.S_IWOTH)
        scratch.chmod(0o711)
    hook = scratch / "hook.sh"
    hook.write_text(_hook(overlay, raw, start))
    run(
        "mmdebstrap",
        "--variant=apt",
        f"--include={','.join(_PACKAGES)}",
        "--aptopt=APT::Install-Recommends false",
        *(f"--dpkgopt=path-exclude={path}" for path in _EXCLUDED),
        f'--customize-hook=sh {hook} "$1"',
        "--format=null",
        SUITE,
        "-",
        timeout=1800,
    )


def _hook(overlay: Path, raw: Path, start: int) -> str:
    masks = "\n".join(f"ln -sf /dev/null etc/systemd/system/{unit}" for unit in _MASKED)
    return f"""\
set -e
cd "$1"
cp -R {overlay}/. .
rm -f etc/ssh/ssh_host_* var/lib/dbus/machine-id
{masks}
chroot . depmod "$(ls lib/modules)"
chroot . systemctl -q enable systemd-networkd.service serial-getty@ttyS0.service
rm -rf var/lib/apt/lists/* var/cache/apt/* var/log/*.log usr/share/locale/*
# Without what is mounted below it.
mkdir {overlay}.root
mount --bind . {overlay}.root
trap 'umount {overlay}.root' EXIT
{need_tool("mke2fs")} -q -F -t ext4 -L root -m 0 -d {overlay}.root \\
    -E offset={start},lazy_itable_init=1,lazy_journal_init=1 {raw} {_ROOT_SIZE // 1024}k
"""


def _overlay(unpacked: kernel.Kernel, folder: Path) -> Path:
    """Write what is ours in the guest into a folder."""
    for name, content in _FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    modules = folder / "usr/lib/modules" / unpacked.release
    modules.mkdir(parents=True)
    for name, module in unpacked.closure((*_BOOT_MODULES, *_MORE_MODULES)).items():
        (modules / f"{name}.ko").write_bytes(module.data)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        for found in (folder.parent / "kernel").rglob(name):
            shutil.copyfile(found, modules / name)
    return folder


def _initramfs(unpacked: kernel.Kernel) -> bytes:
    stream = io.BytesIO()
    archive = CpioWriter(stream)
    for path in ("proc", "dev", "root", "bin", "modules", "etc"):
        archive.directory(path)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", initramfs.host_inputs()["bin/busybox"].read_bytes(), executable=True)
    archive.symlink("bin/sh", "busybox")
    archive.file("init", _INIT.encode(), executable=True)
    modules = unpacked.closure(_BOOT_MODULES)
    for name, module in modules.items():
        archive.file(f"modules/{name}.ko", module.data)
    archive.file("etc/modules", "\n".join(modules).encode())
    archive.end()
    return gzip.compress(stream.getvalue(), mtime=0)
