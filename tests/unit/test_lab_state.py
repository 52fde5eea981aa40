"""What the lab decides without a host: keys, command lines, what was written down, whose process it is."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

from tests.guests import GuestBuildError
from tests.lab import image, keys, machine, playground, root, saved, state, vmlinux
from tests.lab.hosts import from_environment, private_lab
from tests.lab.image import Image
from tests.lab.kind import Host
from tests.lab.machine import Machine, is_ours
from tests.lab.registry import HOSTS
from tests.lab.ssh import LabError
from tests.lab.tree import Tree


def a_machine(tmp_path: Path, name: str = "kvm1", ports: dict[str, int] | None = None) -> Machine:
    return Machine(
        HOSTS[name], Image(HOSTS[name].kind, tmp_path / "image"), tmp_path / "run" / name, tmp_path, ports or {}
    )


@pytest.fixture
def qemu_version(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said = ["QEMU emulator version 7.2.22"]
    monkeypatch.setattr(saved, "run", lambda *_: said[0].encode())
    return said


def test_hosts_differ_in_what_identifies_them() -> None:
    assert len({host.uuid for host in HOSTS.values()}) == len(HOSTS)
    links = [host.link for host in HOSTS.values() if host.link]
    assert sorted(links) == [1, 2, 3, 4]
    assert all("ssh" in host.kind.ports for host in HOSTS.values())


def test_a_saved_state_is_for_one_host_qemu_and_hardware(
    tmp_path: Path, qemu_version: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = saved.key(a_machine(tmp_path))
    assert saved.key(a_machine(tmp_path, "kvm2")) != key
    monkeypatch.setattr(type(HOSTS["kvm1"].kind), "memory_mib", 4096)
    assert saved.key(a_machine(tmp_path)) != key
    monkeypatch.undo()
    qemu_version[0] = "QEMU emulator version 9.0.0"
    monkeypatch.setattr(saved, "run", lambda *_: qemu_version[0].encode())
    assert saved.key(a_machine(tmp_path)) != key


@pytest.mark.usefixtures("qemu_version")
def test_a_saved_state_does_not_depend_on_where_it_is(tmp_path: Path) -> None:
    elsewhere = a_machine(tmp_path / "other", ports={"tcp": 16509})
    assert saved.key(elsewhere) == saved.key(a_machine(tmp_path))
    assert saved.folder(elsewhere).parent == elsewhere.image.folder


def test_an_images_key_is_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kvm, xen = HOSTS["kvm1"].kind, HOSTS["xen"].kind
    before = image.key(kvm), image.key(xen)
    assert before == (image.key(kvm), image.key(xen))
    assert before[0] != before[1]

    copy = tmp_path / "lab"
    subprocess.run(["cp", "-r", image.HERE, copy], check=True)
    monkeypatch.setattr(image, "HERE", copy)
    assert (image.key(kvm), image.key(xen)) == before
    with (copy / "rootfs/kvm/sbin/lab-host").open("a") as stream:
        stream.write("# changed\n")
    assert image.key(kvm) != before[0]
    assert image.key(xen) == before[1], "what only the other kind has is not part of it"
    (copy / "rootfs/common/etc/inittab").chmod(0o755)
    assert image.key(xen) != before[1]


def test_both_hosts_of_a_kind_share_its_image() -> None:
    assert HOSTS["kvm1"].kind is HOSTS["kvm2"].kind
    assert HOSTS["xen"].kind is HOSTS["xen2"].kind


def test_the_machines_command_line(tmp_path: Path) -> None:
    wanted = a_machine(tmp_path / "a,b", ports={"tcp": 1234})
    words = [*wanted.hardware(), *wanted._surroundings()]
    text = "\n".join(words)
    assert f"lab.name=kvm1 lab.uuid={HOSTS['kvm1'].uuid} lab.ip=10.9.0.1/24" in text
    assert "hostfwd=tcp:127.0.0.1:1234-:16509" in text, "the port that was asked for"
    assert "hostfwd=tcp:127.0.0.1:0-:22" in text, "any free port"
    # A comma ends a value of QEMU's options, unless it is doubled.
    assert f"local.path={tmp_path}/a,,b/link1" in text
    assert f"remote.path={tmp_path}/a,,b/link2" in text
    other = a_machine(tmp_path, "kvm2")._surroundings()
    assert any(f"local.path={tmp_path}/link2" in word and f"remote.path={tmp_path}/link1" in word for word in other)
    for name, mine, peer in (("xen", 3, 4), ("xen2", 4, 3)):
        link = next(word for word in a_machine(tmp_path, name)._surroundings() if word.startswith("dgram"))
        assert f"local.path={tmp_path}/link{mine}," in link
        assert link.endswith(f"remote.path={tmp_path}/link{peer}")
    alone = replace(a_machine(tmp_path), host=Host("alone", HOSTS["kvm1"].kind))
    assert not any("netdev=link" in word for word in alone.hardware())
    assert not any("link" in word for word in alone._surroundings())


def test_qemus_ports_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = """Hub 0 (out):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[HOST_FORWARD]  16       127.0.0.1 40461       10.0.2.15 16514     0     0
  TCP[HOST_FORWARD]  15       127.0.0.1 41234       10.0.2.15 16509     0     0
  TCP[ESTABLISHED]   17       127.0.0.1 55555       10.0.2.15    22     0     0
  TCP[HOST_FORWARD]  14       127.0.0.1 41831       10.0.2.15    22     0     0
"""

    class Qmp:
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def monitor(self, line: str) -> str:
            assert line == "info usernet"
            return said

    wanted = a_machine(tmp_path)
    monkeypatch.setattr(machine, "Qmp", lambda _path: Qmp())
    process = subprocess.Popen(["true"])
    wanted._find_ports(process)
    process.wait()
    assert wanted.ports == {"ssh": 41831, "tcp": 41234, "tls": 40461}


def test_only_our_own_process_is_ended(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", f"{tmp_path}/qmp"]) as process:
        try:
            # Linux says what a program's arguments are a moment after it was started.
            deadline = time.monotonic() + 10
            while not is_ours(process.pid, tmp_path):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert not is_ours(process.pid, tmp_path / "other")
            assert not is_ours(0, tmp_path)
            assert not is_ours(os.getpid(), tmp_path / "other")
            machine.end(process.pid, tmp_path / "other")
            assert process.poll() is None
            machine.end(process.pid, tmp_path)
            process.wait(10)
        finally:
            process.kill()
    assert not is_ours(process.pid, tmp_path)


def test_what_was_started_is_written_down(tmp_path: Path) -> None:
    assert state.load(tmp_path) == state.State()
    now = state.State({"xen": state.HostState(77, {"ssh": 22022}, "/images/x")}, 78, "lab")
    state.save(tmp_path, now)
    assert state.load(tmp_path) == now
    found = now.hosts["xen"].machine(HOSTS["xen"], tmp_path)
    assert (found.pid, found.ports, found.image.folder) == (77, {"ssh": 22022}, Path("/images/x"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"hosts": {"xen": {"pid": 1}}, "virtd": 0, "context": ""}', "\x00"])
def test_a_state_that_cannot_be_understood_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(LabError, match="cannot be understood"):
        state.load(tmp_path)
    with pytest.raises(LabError):
        playground.Playground(tmp_path).status()


def test_every_clone_has_a_lab_of_its_own(tmp_path: Path) -> None:
    assert state.directory(tmp_path / "a") != state.directory(tmp_path / "b")
    assert len(str(state.directory() / "virtd/run/virtd.sock")) < 108
    assert len(str(state.directory() / "kvm1/console")) < 108


def test_a_host_from_the_environment(tmp_path: Path) -> None:
    assert from_environment("xen", {}, tmp_path) is None
    assert from_environment("xen", {"VIRTD_LAB_KVM1_URI": "qemu+tcp://h/system"}, tmp_path) is None
    host = from_environment("xen", {"VIRTD_LAB_XEN_URI": "xen+tcp://h/system"}, tmp_path)
    assert host is not None
    assert (host.name, host.kind, host.uri, host.tls_uri) == ("xen", "xen", "xen+tcp://h/system", "")
    with pytest.raises(LabError, match="VIRTD_LAB_XEN_SSH"):
        host.run("true")
    full = {
        "VIRTD_LAB_XEN_URI": "xen+tcp://h/system",
        "VIRTD_LAB_XEN_TLS_URI": "xen+tls://h/system",
        "VIRTD_LAB_XEN_SSH": "2222:/key",
    }
    host = from_environment("xen", full, tmp_path)
    assert host is not None
    assert (host.tls_uri, host.ssh_port, host.ssh_key) == ("xen+tls://h/system", 2222, Path("/key"))
    with pytest.raises(LabError, match="PORT:KEYFILE"):
        from_environment("xen", full | {"VIRTD_LAB_XEN_SSH": "key"}, tmp_path)


def test_a_private_labs_directory_goes_even_after_a_failure() -> None:
    directories = []

    def fail() -> None:
        with private_lab() as lab:
            directories.append(lab.directory)
            assert lab.directory.is_dir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not directories[0].exists()


def test_two_private_labs_leave_each_other_alone() -> None:
    with private_lab() as first, private_lab() as second:
        assert first.directory != second.directory
        assert first.directory.is_dir()


def test_package_sources_are_the_machines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [
        "http://a.test/debian|bookworm|main|Debian",
        "http://a.test/debian|bookworm|contrib|Debian",
        "http://a.test/debian|bookworm-updates|main|Debian",
        "http://a.test/debian|trixie|main|Debian",
        "http://b.test/apt|bookworm|main|Somebody",
        "http://c.test/security|bookworm-security|main|$(ORIGIN)",
        "garbage",
        "",
    ]
    monkeypatch.setattr(root.tools, "run", lambda *_: "\n".join(listed).encode())
    assert root._sources("bookworm") == [
        "deb http://a.test/debian bookworm main",
        "deb http://a.test/debian bookworm-updates main",
        "deb http://c.test/security bookworm-security main",
    ]
    assert root._sources("sid") == []


def test_files_of_a_root_belong_to_root(tmp_path: Path) -> None:
    (tmp_path / "in/sbin").mkdir(parents=True)
    (tmp_path / "in/sbin/tool").write_text("#!")
    (tmp_path / "in/sbin/tool").chmod(0o700)
    with Tree(tmp_path / "tar") as tree:
        tree.copy(tmp_path / "in")
        tree.file("etc/pki/private/key", b"secret", 0o600)
        tree.link("usr/lib/xen", "xen-4.17")
    with tarfile.open(tmp_path / "tar") as archive:
        found = {entry.name: entry for entry in archive}
    assert {(entry.uid, entry.gid) for entry in found.values()} == {(0, 0)}
    assert found["sbin/tool"].mode == 0o755
    assert found["etc/pki/private/key"].mode == 0o600
    assert found["usr/lib/xen"].linkname == "xen-4.17"
    assert found["etc/pki/private"].isdir()
    # On Debian these are links, which folders of that name in the archive would replace.
    assert not {"sbin", "etc", "usr", "usr/lib"} & found.keys()


def bzimage(payload: bytes) -> bytes:
    start, offset = 2 * 512, 64
    head = bytearray(start + offset)
    head[0x1F1] = 1
    struct.pack_into("<II", head, 0x248, offset, len(payload))
    return bytes(head) + payload + b"behind it"


def test_a_kernel_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage(gzip.compress(b"\x7fELF the kernel")))
    assert vmlinux.unpack(path) == b"\x7fELF the kernel"
    path.write_bytes(bzimage(gzip.compress(b"something else")))
    with pytest.raises(GuestBuildError, match="no ELF file"):
        vmlinux.unpack(path)
    path.write_bytes(bzimage(b"what is this"))
    with pytest.raises(GuestBuildError, match="unknown way"):
        vmlinux.unpack(path)


def test_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    keys.make(folder, ("127.0.0.1", "kvm1"))
    assert folder.stat().st_mode & 0o777 == 0o700
    secret = [path for path in folder.iterdir() if b"PRIVATE KEY" in path.read_bytes()]
    assert {path.name for path in secret} == {"serverkey.pem", "clientkey.pem", "id_ed25519"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in secret)
    assert (folder / "id_ed25519.pub").read_text().startswith("ssh-ed25519 ")
