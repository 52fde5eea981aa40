"""The lab itself: its hosts are what they say, restore, answer in every way, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import psutil
import pytest

from tests.lab import saved
from tests.lab.hosts import Lab, LabHost, private_lab
from tests.lab.image import Image, build
from tests.lab.machine import Machine
from tests.lab.registry import HOSTS
from tests.lab.ssh import LabError

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

# A guest without a system on it: enough to see that the hypervisor runs it.
NESTED = """\
<domain type='kvm'><name>lab-nested</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os><devices/></domain>"""


def virsh(uri: str, *arguments: str, timeout_s: float = 20) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["virsh", "-q", "-c", uri, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )


@pytest.fixture(params=list(HOSTS))
def host(request: pytest.FixtureRequest, lab: Lab) -> LabHost:
    return lab.host(request.param)


@pytest.fixture(scope="module")
def second() -> Iterator[Lab]:
    """A lab beside the one of the test run."""
    with private_lab() as lab:
        yield lab


def test_a_host_is_itself(host: LabHost) -> None:
    connection = libvirt.open(host.uri)
    try:
        assert connection.getHostname() == host.name
        # libxl's driver tells no one the host's UUID.
        if host.kind == "kvm":
            assert f"<uuid>{HOSTS[host.name].uuid}</uuid>" in connection.getCapabilities()
    finally:
        connection.close()
    assert host.run("hostname").strip() == host.name
    assert host.kind == HOSTS[host.name].kind.name


def test_the_clock_is_right_although_the_host_was_saved(host: LabHost) -> None:
    before = time.time()
    there = float(host.run("date +%s.%N"))
    assert before - 3 <= there <= time.time() + 3


def test_tls_wants_a_certificate_of_this_lab(host: LabHost, tmp_path: Path) -> None:
    answer = virsh(host.tls_uri, "hostname")
    assert answer.stdout.strip() == host.name, answer.stderr

    address, _, pki = host.tls_uri.partition("?pkipath=")
    shutil.copyfile(f"{pki}/cacert.pem", tmp_path / "cacert.pem")
    refused = virsh(f"{address}?pkipath={tmp_path}", "hostname")
    assert refused.returncode, "a client without a certificate was let in"

    other = next(Path(build(kind).pki) for kind in {h.kind for h in HOSTS.values()} if str(build(kind).pki) != pki)
    for name in ("clientcert.pem", "clientkey.pem"):
        shutil.copyfile(other / name, tmp_path / name)
    refused = virsh(f"{address}?pkipath={tmp_path}", "hostname")
    assert refused.returncode, "a client with another authority's certificate was let in"


@pytest.mark.parametrize(("here", "there"), [("kvm1", "kvm2"), ("kvm2", "kvm1")])
def test_kvm_hosts_reach_each_other(lab: Lab, here: str, there: str) -> None:
    address = f"10.9.0.{HOSTS[there].link}"
    lab.host(there)
    assert lab.host(here).run(f"virsh -q -c qemu+tcp://{address}/system hostname").strip() == there
    assert lab.host(here).run(f"virsh -q -c qemu+tls://{there}/system hostname").strip() == there


def test_kvm_is_really_nested(lab_kvm1: LabHost) -> None:
    connection = libvirt.open(lab_kvm1.uri)
    try:
        domain = connection.createXML(NESTED)
        try:
            assert domain.isActive()
            pid = lab_kvm1.run("cat /run/libvirt/qemu/lab-nested.pid").strip()
            # kvm-vm is the file through which a process has a virtual machine of the kernel's.
            assert "anon_inode:kvm-vm" in lab_kvm1.run(f"ls -l /proc/{pid}/fd")
        finally:
            domain.destroy()
    finally:
        connection.close()


def test_xen_is_really_xen(lab_xen: LabHost) -> None:
    assert lab_xen.run("cat /sys/hypervisor/type").strip() == "xen"
    capabilities = lab_xen.run("xl info virt_caps").split()
    assert {"pv", "hvm", "hap"} <= set(capabilities)
    assert lab_xen.run("xl list").splitlines()[1].startswith("Domain-0 ")
    for name in ("vmlinux", "vmlinuz", "guest-initrd.img", "hvm.img", "data.img", "data2.img"):
        lab_xen.run(f"test -s /srv/guest/{name}")
    assert "192.168.100.1/24" in lab_xen.run("ip -4 address show dev xenbr0")


def test_a_failing_command_says_what_it_said(host: LabHost) -> None:
    with pytest.raises(LabError, match=r"exit code 7: to be seen"):
        host.run("echo to be seen >&2; exit 7")


def test_two_labs_side_by_side(lab: Lab, second: Lab) -> None:
    first, other = lab.host("kvm1"), second.host("kvm1")
    assert first.uri != other.uri
    other.run("touch /srv/only-here")
    with pytest.raises(LabError):
        first.run("test -e /srv/only-here")
    # The link of one lab is not the other's: kvm2 runs in the first only.
    lab.host("kvm2")
    with pytest.raises(LabError):
        other.run("timeout 5 virsh -q -c qemu+tcp://10.9.0.2/system hostname")


def test_libvirtd_is_stopped_continued_killed_and_started(second: Lab) -> None:
    host = second.host("kvm1")
    host.signal_libvirtd("STOP")
    with pytest.raises(subprocess.TimeoutExpired):
        virsh(host.uri, "hostname", timeout_s=4)
    host.signal_libvirtd("CONT")
    assert virsh(host.uri, "hostname").stdout.strip() == "kvm1"

    host.signal_libvirtd("KILL")
    assert virsh(host.uri, "hostname").returncode
    host.signal_libvirtd("start")
    deadline = time.monotonic() + 30
    while virsh(host.uri, "hostname").returncode:
        assert time.monotonic() < deadline, "libvirtd did not come back"
        time.sleep(0.5)


def test_nothing_is_left_of_a_closed_lab() -> None:
    with private_lab() as lab:
        host = lab.host("kvm2")
        machine = lab.machine("kvm2")
        process = psutil.Process(machine.pid)
        ports = list(machine.ports.values())
        assert host.directory.is_dir()
    assert not psutil.pid_exists(process.pid) or process.status() == psutil.STATUS_ZOMBIE
    assert not lab.directory.exists()
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1)


def test_a_killed_run_takes_its_hosts_with_it() -> None:
    program = (
        "from tests.lab.hosts import private_lab\nimport time\n"
        "with private_lab() as lab:\n"
        "    lab.host('xen')\n    print(lab.machine('xen').pid, lab.directory, flush=True)\n    time.sleep(600)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert run.stdout is not None
        pid, _, directory = run.stdout.readline().strip().partition(" ")
        host = psutil.Process(int(pid))
        assert host.is_running()
    finally:
        run.kill()
        run.wait()
    # A zombie, in a container whose first process reaps nobody, has ended as well.
    deadline = time.monotonic() + 10
    while psutil.pid_exists(host.pid) and host.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the host outlived its run"
        time.sleep(0.05)
    with private_lab():
        assert not Path(directory).exists()


@pytest.mark.slow
def test_a_broken_saved_state_is_made_anew(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    host = HOSTS["xen"]
    image = build(host.kind)
    # The same image with a saved state of its own.
    copy = Image(host.kind, tmp_path / "image")
    shutil.copytree(image.folder, copy.folder, copy_function=os.link, ignore=shutil.ignore_patterns("saved-*"))
    with tempfile.TemporaryDirectory(prefix="virtd-lab-test-") as name:
        machine = Machine(host, copy, Path(name) / "xen", Path(name))
        whole = saved.folder(Machine(host, image, Path(name) / "xen", Path(name)))
        broken = saved.folder(machine)
        assert broken.name == whole.name
        shutil.copytree(whole, broken)
        memory = broken / "memory.zst"
        memory.write_bytes(memory.read_bytes()[: memory.stat().st_size // 2])
        try:
            saved.start(machine)
            assert "the saved state does not work and is made anew" in capfd.readouterr().err
            assert host.kind.check(machine.ports)
            machine.stop()
            # What was made anew works.
            saved.start(machine)
            assert "anew" not in capfd.readouterr().err
            assert memory.stat().st_size > 1 << 20
        finally:
            machine.stop()


@pytest.mark.slow
def test_the_playground(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="vl-") as place:
        environ = os.environ | {"TMPDIR": place, "XDG_CONFIG_HOME": str(tmp_path), "NO_COLOR": "1"}

        def run(*command: str) -> str:
            done = subprocess.run(
                command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        def lab(*arguments: str) -> str:
            return run(sys.executable, "-m", "tests.lab", *arguments)

        try:
            assert "guestctl --context lab get guests" in lab("up", "kvm1")
            pids = _pids(place)
            assert len(pids) == 2, "QEMU and virtd"
            lab("up", "kvm1")
            assert pids == _pids(place), "what runs is left alone"
            assert "lab" in run(str(BIN / "guestctl"), "config", "get-contexts")
            run(str(BIN / "guestctl"), "--context", "lab", "get", "guests")
            hosts = run(str(BIN / "guestctl"), "--context", "lab", "get", "hosts")
            assert "kvm1" in hosts
            assert "CONNECTED" in hosts
            status = lab("status")
            assert "kvm1   process" in status
            assert "kvm2   not running" in status
        finally:
            ended = lab("down")
        assert "ended: kvm1" in ended
        assert _pids(place) == []
        assert "lab" not in (tmp_path / "virtd/guestctl.toml").read_text().replace("guestctl", "")
        assert [path.name for path in Path(place).iterdir() if path.suffix != ".lock"] == []


def _pids(place: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and any(f"{place}/" in word for word in process.cmdline()):
                found.append(process.pid)
    return sorted(found)


def test_the_image_is_never_written(lab_kvm1: LabHost, lab: Lab) -> None:
    lab_kvm1.run("echo written >/srv/written && sync")
    folder = lab.machine("kvm1").image.folder
    assert not (folder / "root.ext4").stat().st_mode & 0o222
    with private_lab() as other, pytest.raises(LabError):
        other.host("kvm1").run("test -e /srv/written")
