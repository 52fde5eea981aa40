"""What is in an image: Debian from its packages, and what the kind of host adds to it.

Made without loop devices and without booting anything, as the Debian guest is.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shlex
import shutil
from pathlib import Path

from tests.guests import kernel, tools
from tests.guests.cache import cache_root
from tests.guests.cpio import CpioWriter
from tests.guests.initramfs import host_inputs
from tests.lab import keys
from tests.lab.kind import BASE_PACKAGES, BOOT_MODULES, Kind
from tests.lab.tree import Tree

HERE = Path(__file__).parent
_NAMES = ("127.0.0.1", "localhost", "kvm1", "kvm2", "xen", "10.9.0.1", "10.9.0.2", "10.0.2.15")
_BUILD_S = 1800.0
_EXCLUDED = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
    "/usr/share/iso-codes/*",
)

_INIT = """\
#!/bin/busybox sh
B=/bin/busybox
$B mount -t devtmpfs dev /dev
for module in $($B cat /etc/modules); do $B insmod /modules/$module.ko; done
n=0
while [ ! -b /dev/vda ]; do
    n=$((n + 1))
    [ $n -lt 600 ] || { echo "lab: no disk"; exec $B sh; }
    $B usleep 50000
done
$B mount -t ext4 -o rw,noatime /dev/vda /root
$B mount -o move /dev /root/dev
exec $B switch_root /root /bin/busybox init
"""


def build(kind: Kind, scratch: Path, target: Path) -> None:
    """Build an image of the kind and put it at ``target``; the folder ``scratch`` is on the same file system.

    :raises GuestBuildError: which says what to do, where it cannot be built.
    """
    made = scratch / "made"
    (made / "boot").mkdir(parents=True)
    keys.make(scratch / "pki", _NAMES)
    wanted, options = kernel.resolve(scratch, kind.kernel_packages)
    packages = kernel.download(wanted, options, scratch, cache_root() / "packages")
    unpacked = kernel.unpack(packages, scratch / "kernel")
    overlay = scratch / "overlay.tar"
    with Tree(overlay) as tree:
        _add_common(tree, kind, unpacked, scratch)
        kind.add_files(tree, unpacked, scratch)
    taken = scratch / "taken"
    versions = _write_root(kind, overlay, made / "root.ext4", taken, scratch)
    kind.write_boot_files(unpacked, _initramfs(unpacked), taken, made / "boot")
    shutil.copytree(scratch / "pki", made / "pki")
    manifest = {"kernel": unpacked.release, "packages": versions}
    (made / "manifest.json").write_text(json.dumps(manifest, indent=1))
    (made / "root.ext4").chmod(0o444)
    if target.is_dir():
        # Machines that run from it keep their open files.
        os.replace(target, scratch / "old")
    os.replace(made, target)


def _add_common(tree: Tree, kind: Kind, unpacked: kernel.Kernel, scratch: Path) -> None:
    for folder in ("common", kind.name):
        tree.copy(HERE / "rootfs" / folder)
    tree.folder("root/.ssh", 0o700)
    tree.file("root/.ssh/authorized_keys", scratch / "pki" / f"{keys.SSH_KEY}.pub", 0o600)
    tree.folder("etc/dropbear")
    folder = f"usr/lib/modules/{unpacked.release}"
    for name, module in unpacked.closure((*BOOT_MODULES, *kind.modules)).items():
        tree.file(f"{folder}/{name}.ko", module.data)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        for found in (scratch / "kernel").rglob(name):
            tree.file(f"{folder}/{name}", found)


def _initramfs(unpacked: kernel.Kernel) -> bytes:
    stream = io.BytesIO()
    archive = CpioWriter(stream)
    for path in ("dev", "root", "bin", "modules", "etc"):
        archive.directory(path)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", host_inputs()["bin/busybox"].read_bytes(), executable=True)
    archive.symlink("bin/sh", "busybox")
    archive.file("init", _INIT.encode(), executable=True)
    modules = unpacked.closure(BOOT_MODULES)
    for name, module in modules.items():
        archive.file(f"modules/{name}.ko", module.data)
    archive.file("etc/modules", "\n".join(modules).encode())
    archive.end()
    return gzip.compress(stream.getvalue(), compresslevel=6, mtime=0)


def _write_root(kind: Kind, overlay: Path, raw: Path, taken: Path, scratch: Path) -> dict[str, str]:
    """Unpack and configure Debian, and write it as an ext4 file system; return the packages' versions.

    mke2fs runs as a hook of mmdebstrap: there the files have the owners they are to have, also where mmdebstrap runs
    without root, in a user namespace.  Packages are kept in the cache: a second build downloads only what is new.
    """
    store = cache_root() / "packages"
    listing = scratch / "versions"
    for path in (raw, taken, listing):
        path.touch()
        path.chmod(0o666)
    # Where mmdebstrap runs without root, its root is somebody else on this side.
    scratch.chmod(0o755)
    raw.parent.chmod(0o755)
    before, after = scratch / "before.sh", scratch / "after.sh"
    before.write_text(_BEFORE.format(store=shlex.quote(str(store))))
    after.write_text(
        _AFTER.format(
            store=shlex.quote(str(store)),
            listing=shlex.quote(str(listing)),
            hook=kind.hook().replace("@TAKEN@", shlex.quote(str(taken))),
            mke2fs=tools.need_tool("mke2fs"),
            mount=shlex.quote(str(scratch / "mount")),
            raw=shlex.quote(str(raw)),
            blocks=kind.root_bytes // 1024,
        )
    )
    # On the file system of the store: packages are linked, not copied, where that is allowed.
    tools.run(
        "env",
        f"TMPDIR={scratch}",
        str(tools.need_tool("mmdebstrap")),
        "--variant=apt",
        f"--include={','.join(dict.fromkeys((*BASE_PACKAGES, *kind.packages)))}",
        "--aptopt=APT::Install-Recommends false",
        "--aptopt=Acquire::Languages none",
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude={path}" for path in _EXCLUDED),
        "--skip=download/empty,essential/unlink,cleanup/apt",
        f'--setup-hook=sh {before} "$1"',
        f"--customize-hook=tar-in {overlay} /",
        f'--customize-hook=sh {after} "$1"',
        "--format=null",
        kind.suite,
        "-",
        *_sources(kind.suite),
        timeout=_BUILD_S,
    )
    return dict(line.split() for line in listing.read_text().splitlines())


# Services are not started in the folder: mmdebstrap sees to that.
_BEFORE = """\
set -e
mkdir -p "$1/var/cache/apt/archives"
cp -l {store}/*.deb "$1/var/cache/apt/archives/" 2>/dev/null || cp {store}/*.deb "$1/var/cache/apt/archives/" || :
"""

_AFTER = """\
set -e
for package in "$1"/var/cache/apt/archives/*.deb; do
    kept={store}/${{package##*/}}
    [ -e "$kept" ] || {{ cp "$package" "$kept.$$" && mv "$kept.$$" "$kept"; }} || :
done
rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*
chroot "$1" dpkg-query -W -f '${{Package}} ${{Version}}\\n' >{listing}
cd "$1"
chroot . depmod "$(ls usr/lib/modules)"
sed -i 's/^root:[^:]*:/root::/' etc/shadow
mkdir -p var/log/libvirt
{hook}
# Without what is mounted below it.
mkdir {mount}
mount --bind . {mount}
trap 'umount {mount}' EXIT
{mke2fs} -q -F -t ext4 -O ^has_journal,^metadata_csum -L lab -m 0 -d {mount} \\
    -E lazy_itable_init=1 {raw} {blocks}k
"""


def _sources(suite: str) -> list[str]:
    """The machine's own package sources for the suite, if it has some; otherwise mmdebstrap knows Debian's."""
    form = "$(SITE)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"
    listed = tools.run("apt-get", "indextargets", "--format", form, "Created-By: Packages").decode().split("\n")
    lines = []
    for site, release, component, origin in (line.split("|") for line in listed if line.count("|") == 3):
        # Without package lists apt does not know a source's origin, and leaves the name of the field there.
        known = origin in {"Debian", "$(ORIGIN)"}
        if known and component == "main" and release in {suite, f"{suite}-updates", f"{suite}-security"}:
            lines.append(f"deb {site} {release} {component}")
    return list(dict.fromkeys(lines))
