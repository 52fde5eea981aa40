"""The guest agent of a real guest, through the public API: one booted guest for most of it."""

from __future__ import annotations

import contextlib
import hashlib
import random
import time
from collections.abc import Callable, Iterator

import pytest
from virtd_client import Client, errors

from tests.e2e.conftest import Virtd
from virtd.v1.guest_pb2 import CONDITION_STATUS_TRUE, CONDITION_TYPE_FILESYSTEMS_FROZEN, Guest

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

NAME = "hosts/kvm/guests/inside"
MOUNT = "/mnt"


@pytest.fixture(scope="module")
def client(virtd_process: Virtd) -> Client:
    return virtd_process.client()


@pytest.fixture(scope="module")
def guest(virtd_process: Virtd, client: Client) -> Iterator[str]:
    """A booted guest with a file system that can be frozen, and beside it one whose agent is to be got stuck."""
    names = [NAME, f"{NAME}-stuck"]
    for name in names:
        client.guests.create("hosts/kvm", name.rpartition("/")[2], virtd_process.spec(), start=True).result(90)
    for name in names:
        client.guests.wait(name, condition="agent-ready", timeout_s=120)
    sh(client, f"mke2fs /dev/vda >/dev/null 2>&1; modprobe ext4 2>/dev/null; mount -t ext4 /dev/vda {MOUNT}")
    yield NAME
    for name in names:
        with contextlib.suppress(errors.NotFound):
            client.guests.delete(name, force=True).result(60)


def sh(client: Client, script: str, name: str = NAME) -> bytes:
    done = client.agent.exec(name, "/bin/sh", ["-c", script])
    assert done.exit_code == 0, f"{script}: {done}"
    return done.stdout


def clean(client: Client) -> bool:
    """Whether helpers of virtd's leave nothing in the guest, soon after the end of what they helped with."""
    deadline = time.monotonic() + 20
    while sh(client, "ls -d /tmp/virtd-* /run/virtd-* 2>/dev/null; true"):
        if time.monotonic() > deadline:
            return False
    return True


# ------------------------------------------------------------------------------------ commands


def test_output_comes_while_the_command_runs(client: Client, guest: str) -> None:
    script = "echo one; echo two >&2; sleep 60 & wait; exit 3"
    with client.agent.start(guest, "/bin/sh", ["-c", script]) as run:
        assert run.live
        seen = [next(run), next(run)]
        assert {(item.channel, item.data) for item in seen} == {("stdout", b"one\n"), ("stderr", b"two\n")}
        sh(client, f"kill -0 {run.guest_pid}")  # it still runs
        sh(client, f"kill $(grep -l 'PPid:.{run.guest_pid}$' /proc/*/status | cut -d/ -f3)")
        assert list(run) == []
        assert (run.exit_code, run.signal) == (3, None)
    assert clean(client)


def test_input_goes_to_the_command_while_it_runs(client: Client, guest: str) -> None:
    with client.agent.start(guest, "/bin/cat", input_data=b"first\n", stdin=True) as run:
        assert next(run).data == b"first\n"
        run.write(b"second\n")
        assert next(run).data == b"second\n"
        run.close_input()
        assert list(run) == []
        assert run.exit_code == 0
    assert clean(client)


def test_much_output_is_whole_and_a_signal_is_told(client: Client, guest: str) -> None:
    script = "i=0; while [ $i -lt 30000 ]; do echo $i-abcdefghijklmnopqrstuvwxyz; i=$((i+1)); done; kill -9 $$"
    with client.agent.start(guest, "/bin/sh", ["-c", script], timeout_s=90) as run:
        data = b"".join(item.data for item in run)
        assert (run.exit_code, run.signal) == (None, 9)
    wanted = b"".join(b"%d-abcdefghijklmnopqrstuvwxyz\n" % number for number in range(30000))
    assert hashlib.sha256(data).digest() == hashlib.sha256(wanted).digest()


@pytest.mark.parametrize("streamed", [True, False])
def test_the_time_limit_ends_the_command_in_the_guest(client: Client, guest: str, streamed: bool) -> None:
    script = "sleep 4321 & sleep 1234; true"
    calls: tuple[Callable[[], object], ...] = (
        lambda: client.agent.exec(guest, "/bin/sh", ["-c", script], timeout_s=1),
        lambda: list(client.agent.start(guest, "/bin/sh", ["-c", script], timeout_s=1)),
    )
    with pytest.raises(errors.DeadlineExceeded) as late:
        calls[streamed]()
    assert late.value.reason == "DEADLINE_EXCEEDED"
    assert late.value.metadata["killed"] == "true"
    assert sh(client, "ps | grep -c '[s]leep [14]' || true") == b"0\n"


def test_closing_the_session_ends_the_command(client: Client, guest: str) -> None:
    with client.agent.start(guest, "/bin/sh", ["-c", "echo here; sleep 5678"]) as run:
        assert next(run).data == b"here\n"
        pid = run.guest_pid
    deadline = time.monotonic() + 20
    while sh(client, f"[ -e /proc/{pid}/exe ] && echo there || echo gone") != b"gone\n":
        assert time.monotonic() < deadline, "the command runs on"
    assert clean(client)


def test_commands_that_cannot_be_run(client: Client, guest: str) -> None:
    for start in (
        lambda: list(client.agent.start(guest, "/bin/nothing")),
        lambda: client.agent.exec(guest, "/bin/nothing"),
        lambda: list(client.agent.start(guest, "")),
        lambda: list(client.agent.start(guest, "/bin/true", timeout_s=1e9)),
        lambda: list(client.agent.start(guest, "/bin/true", environment={"": "x"})),
    ):
        with pytest.raises(errors.InvalidArgument) as refused:
            start()
        assert refused.value.reason == "FIELD_INVALID"
    with client.agent.start(guest, "/bin/sleep", ["60"]) as run:
        run.write(b"x")
        with pytest.raises(errors.InvalidArgument, match="stdin"):
            list(run)


# --------------------------------------------------------------------------------------- files


def test_files_go_both_ways_whole(client: Client, guest: str) -> None:
    data = random.Random(1).randbytes(1_500_000)
    path = f"{MOUNT}/data ünd 'quotes'"
    written = client.agent.write_file(guest, path, data, mode=0o640)
    assert (written.size_bytes, written.atomic) == (len(data), True)
    assert client.agent.read_file(guest, path) == data
    assert client.agent.read_file(guest, path, offset=1_000_000, max_bytes=1000) == data[1_000_000:1_001_000]
    assert client.agent.read_file(guest, path, offset=len(data)) == b""
    done = client.agent.exec(guest, "/bin/stat", ["-c", "%a %s", path])
    assert done.stdout == b"640 1500000\n"
    client.agent.write_file(guest, path, b"new")  # keeps its mode
    assert client.agent.exec(guest, "/bin/stat", ["-c", "%a %s", path]).stdout == b"640 3\n"
    inside = client.agent.write_file(guest, path, b"XY", offset=1)
    assert not inside.atomic
    assert client.agent.read_file(guest, path) == b"nXY"
    client.agent.write_file(guest, f"{MOUNT}/empty", b"")
    assert client.agent.read_file(guest, f"{MOUNT}/empty") == b""
    assert client.agent.read_file(guest, "/proc/uptime")  # its size is told as 0


def test_a_link_is_followed_and_a_file_is_replaced_under_its_readers(client: Client, guest: str) -> None:
    sh(client, f"echo old >{MOUNT}/target; ln -sf target {MOUNT}/link")
    with client.agent.start(guest, "/bin/sh", ["-c", f"exec <{MOUNT}/target; echo open; sleep 1; cat"]) as run:
        assert next(run).data == b"open\n"
        client.agent.write_file(guest, f"{MOUNT}/link", b"new\n")
        assert b"".join(item.data for item in run) == b"old\n"
    assert sh(client, f"readlink {MOUNT}/link; cat {MOUNT}/target") == b"target\nnew\n"
    assert sh(client, f"ls -A {MOUNT} | grep -c virtd-write || true") == b"0\n"


def test_files_that_are_refused(client: Client, guest: str, virtd_process: Virtd) -> None:
    sh(client, f"mkfifo -m 600 {MOUNT}/pipe; mkdir -p {MOUNT}/folder; echo kept >{MOUNT}/kept")
    cases = [
        (lambda: client.agent.read_file(guest, "/no/such"), errors.NotFound, "AGENT_FILE_NOT_FOUND"),
        (lambda: client.agent.read_file(guest, f"{MOUNT}/folder"), errors.FailedPrecondition, "AGENT_FILE_REFUSED"),
        (lambda: client.agent.read_file(guest, f"{MOUNT}/pipe"), errors.FailedPrecondition, "AGENT_FILE_REFUSED"),
        (lambda: client.agent.write_file(guest, f"{MOUNT}/folder", b""), errors.FailedPrecondition,
         "AGENT_FILE_REFUSED"),
        (lambda: client.agent.write_file(guest, "/no/such/file", b""), errors.NotFound, "AGENT_FILE_NOT_FOUND"),
        (lambda: client.agent.write_file(guest, "/proc/version", b"x"), errors.FailedPrecondition,
         "AGENT_FILE_REFUSED"),
        (lambda: client.agent.read_file(guest, "relative"), errors.InvalidArgument, "FIELD_INVALID"),
        (lambda: client.agent.write_file(guest, "/x", b"", mode=0o70000), errors.InvalidArgument, "FIELD_INVALID"),
        (lambda: client.agent.read_file(guest, "/x", max_bytes=2**60), errors.InvalidArgument, "FIELD_INVALID"),
    ]  # fmt: skip
    for call, kind, reason in cases:
        with pytest.raises(kind) as refused:
            call()
        assert refused.value.reason == reason
    sh(client, f"truncate -s 200M {MOUNT}/large 2>/dev/null || dd if=/dev/zero of={MOUNT}/large bs=1 seek=200M count=0")
    with pytest.raises(errors.ResourceExhausted, match="by offset") as large:
        client.agent.read_file(guest, f"{MOUNT}/large")
    assert large.value.reason == "AGENT_FILE_TOO_LARGE"
    assert client.agent.read_file(guest, f"{MOUNT}/large", offset=2**20, max_bytes=10) == bytes(10)
    sh(client, f"rm {MOUNT}/large")


def test_a_full_disk_and_a_broken_upload_leave_the_old_file(client: Client, guest: str) -> None:
    from virtd.v1 import agent_pb2 as pb

    sh(client, f"echo kept >{MOUNT}/kept; dd if=/dev/zero of={MOUNT}/filler bs=1M 2>/dev/null; true")
    sh(client, f"truncate -s -100k {MOUNT}/filler; sync")
    with pytest.raises(errors.FailedPrecondition) as full:
        client.agent.write_file(guest, f"{MOUNT}/kept", bytes(1 << 20))
    sh(client, f"rm {MOUNT}/filler")
    assert full.value.reason == "AGENT_FILE_REFUSED"
    assert sh(client, f"cat {MOUNT}/kept; ls -A {MOUNT} | grep virtd-write; true") == b"kept\n"
    for wait_s in (0.05, 0.2, 1.0):  # while it is opened, and while it is written
        call = client.agent._transport.bidi(client.agent._stub.WriteFile)
        call.write(pb.WriteFileRequest(start=pb.WriteFileStart(name=guest, path=f"{MOUNT}/kept")))
        call.write(pb.WriteFileRequest(data=b"half"))
        time.sleep(wait_s)
        call.cancel()
    deadline = time.monotonic() + 20
    while sh(client, f"ls -A {MOUNT} | grep virtd-write; true"):
        assert time.monotonic() < deadline, "what was half-written is left"
    assert sh(client, f"cat {MOUNT}/kept") == b"kept\n"


def test_os_info(client: Client, guest: str) -> None:
    info = client.agent.os_info(guest)
    assert (info.id, info.pretty_name, info.hostname, info.machine) == ("demo", "Demo guest", "demo", "x86_64")
    assert info.kernel_release == sh(client, "uname -r").decode().strip()
    assert info.HasField("timezone_offset_s")
    assert info.agent_version


# -------------------------------------------------------------------------------------- freeze


def frozen(guest: Guest | None) -> bool:
    assert guest is not None
    return any(
        condition.type == CONDITION_TYPE_FILESYSTEMS_FROZEN and condition.status == CONDITION_STATUS_TRUE
        for condition in guest.status.conditions
    )


def _writer(client: Client) -> None:
    """A process in the guest that says on the console when its write has gone through."""
    sh(client, f"(sleep 1; echo x >{MOUNT}/new; sync; say written-$((6*7))) >/dev/null 2>&1 &")


def _console(client: Client, offset: int) -> bytes:
    return client.console.read_log(NAME, offset=offset).data


def _wait_console(client: Client, offset: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while b"written-42" not in _console(client, offset):
        assert time.monotonic() < deadline, "the write did not go through"
        time.sleep(0.1)


def test_frozen_file_systems_hold_a_write_until_they_are_thawed(client: Client, guest: str) -> None:
    offset = client.console.read_log(guest).next_offset
    _writer(client)
    answer = client.agent.freeze(guest, timeout_s=120)
    assert answer.frozen_count == 1
    try:
        assert frozen(client.guests.get(guest))
        assert client.agent.freeze(guest, timeout_s=120).frozen_count == 0
        time.sleep(3)
        assert b"written-42" not in _console(client, offset)
        with pytest.raises(errors.FailedPrecondition) as refused:
            client.agent.exec(guest, "/bin/true")
        assert refused.value.reason == "GUEST_FROZEN"
    finally:
        assert client.agent.thaw(guest) == 1
    _wait_console(client, offset, 15)
    assert client.agent.thaw(guest) == 0
    assert not frozen(client.guests.get(guest))


def test_a_freeze_ends_by_itself(client: Client, guest: str) -> None:
    offset = client.console.read_log(guest).next_offset
    _writer(client)
    client.agent.freeze(guest, mountpoints=[MOUNT], timeout_s=3)
    _wait_console(client, offset, 20)
    assert not frozen(client.guests.get(guest))


def test_a_freeze_ends_also_when_virtd_was_killed(client: Client, guest: str, virtd_process: Virtd) -> None:
    sh(client, f"(sleep 1; echo x >{MOUNT}/new; sync; touch /run/went-through) >/dev/null 2>&1 &")
    client.agent.freeze(guest, timeout_s=4)
    virtd_process.kill()
    time.sleep(4)
    virtd_process.start()
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(errors.VirtdError):
            if client.agent.exec(guest, "/bin/ls", ["/run/went-through"]).exit_code == 0:
                break
        assert time.monotonic() < deadline, "the guest is frozen for ever"
        time.sleep(0.3)
    assert not frozen(client.guests.get(guest))


def test_freezes_that_are_refused(client: Client, guest: str) -> None:
    for arguments in ({"timeout_s": 601}, {"timeout_s": -1}, {"mountpoints": ["relative"]}):
        with pytest.raises(errors.InvalidArgument):
            client.agent.freeze(guest, **arguments)  # type: ignore[arg-type]  # a table of keywords
    with pytest.raises(errors.FailedPrecondition) as nothing:
        client.agent.freeze(guest, mountpoints=["/no/such"], timeout_s=5)
    assert nothing.value.reason == "AGENT_FREEZE_FAILED"
    assert not frozen(client.guests.get(guest))


# ------------------------------------------------------------------------------ told apart


def test_absent_not_ready_disabled_and_stuck_are_told_apart(client: Client, guest: str, virtd_process: Virtd) -> None:
    spec = virtd_process.spec(boots=False, disk=False)
    client.guests.create("hosts/kvm", "silent", spec, start=True).result(60)
    spec.spec.guest_agent = False
    client.guests.create("hosts/kvm", "absent", spec, start=True).result(60)
    with pytest.raises(errors.FailedPrecondition) as absent:
        client.agent.os_info("hosts/kvm/guests/absent")
    assert absent.value.reason == "AGENT_NOT_CONFIGURED"
    with pytest.raises(errors.Unavailable) as silent:
        client.agent.exec("hosts/kvm/guests/silent", "/bin/true")
    assert silent.value.reason == "AGENT_NOT_READY"

    # The agent's own block list.
    other = f"{NAME}-stuck"
    options = "echo --blacklist guest-file-open,guest-exec,guest-get-osinfo >/run/qga.options"
    sh(client, f"{options}; (sleep 0.5; kill $(pidof qemu-ga)) >/dev/null 2>&1 &", other)
    _eventually_refused(client, other, "AGENT_DISABLED")
    with pytest.raises(errors.FailedPrecondition, match="guest-file-open") as disabled:
        client.agent.read_file(other, "/etc/passwd")
    assert disabled.value.reason == "AGENT_DISABLED"
    assert client.agent.os_info(other).hostname == "demo"  # what is not forbidden is told

    # Stopped in its tracks: connected, and silent.
    with client.console.attach(other) as console:
        console.write(b"kill -STOP $(pidof qemu-ga); echo stopped-$((6*7))\n")
        _until(console, b"stopped-42")
    _eventually_refused(client, other, "AGENT_STUCK")
    # It costs its own callers a moment, and nobody else anything.
    for _ in range(3):
        started = time.monotonic()
        with pytest.raises(errors.Unavailable) as stuck:
            client.agent.os_info(other)
        assert stuck.value.reason == "AGENT_STUCK"
        assert client.agent.exec(guest, "/bin/echo", ["quick"]).stdout == b"quick\n"
        assert time.monotonic() - started < 10
    with client.console.attach(other) as console:
        console.write(b"rm /run/qga.options; kill -KILL $(pidof qemu-ga); echo again-$((6*7))\n")
        _until(console, b"again-42")
    client.guests.wait(other, condition="agent-ready", timeout_s=60)
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(errors.Unavailable, errors.FailedPrecondition):
            assert client.agent.exec(other, "/bin/true").exit_code == 0
            break
        assert time.monotonic() < deadline, "the agent was restarted and is not found again"
        time.sleep(0.3)


def _eventually_refused(client: Client, name: str, reason: str) -> None:
    deadline, seen = time.monotonic() + 30, ""
    while seen != reason:
        assert time.monotonic() < deadline, f"{seen} instead of {reason}"
        try:
            client.agent.exec(name, "/bin/true", timeout_s=5)
            seen = "success"
        except errors.VirtdError as error:
            seen = error.reason
        time.sleep(0.2)


def _until(session: object, wanted: bytes) -> None:
    seen, deadline = b"", time.monotonic() + 30
    for item in session:  # type: ignore[attr-defined]  # a console session
        seen += getattr(item, "data", b"")
        if wanted in seen:
            return
        assert time.monotonic() < deadline, seen
