"""What a shop would try on the first day, on a real libvirt with real QEMU guests.

Bounds in seconds are the product's promises (issue text, README); they are wide of what is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from virtd_client import Client, errors

from tests.e2e.conftest import Virtd
from tests.e2e.demo import qemu_pid
from virtd.v1.event_pb2 import Event
from virtd.v1.guest_pb2 import (
    GUEST_STATE_CRASHED,
    GUEST_STATE_RUNNING,
    GUEST_STATE_STOPPED,
    ORIGIN_FOREIGN,
    ORIGIN_MANAGED,
    Guest,
)
from virtd.v1.operation_pb2 import OPERATION_STATE_SUCCEEDED

pytestmark = pytest.mark.qemu

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schema"


def foreign_xml(name: str, uid: str) -> str:
    return f"""<domain type='qemu'><name>{name}</name><uuid>{uid}</uuid><memory unit='MiB'>32</memory>
    <vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"""


@contextlib.contextmanager
def foreign(virtd: Virtd, name: str) -> Iterator[str]:
    """A guest that virsh has defined."""
    uid = str(uuid.uuid4())
    path = virtd.directory / f"{name}.xml"
    path.write_text(foreign_xml(name, uid))
    virtd.virsh("define", str(path))
    try:
        yield uid
    finally:
        with contextlib.suppress(Exception):
            virtd.virsh("destroy", name)
        with contextlib.suppress(Exception):
            virtd.virsh("undefine", name)


def first_event(client: Client, token: str, filter_: str, wait_s: float) -> Event:
    pulled = client.events.pull(resume_token=token, filter=filter_, wait_s=wait_s)
    assert pulled.events, f"no event for {filter_} within {wait_s} s"
    return pulled.events[0]


def test_a_guest_defined_by_virsh_appears_within_a_second(virtd: Virtd) -> None:
    client = virtd.client()
    client.hosts.probe("hosts/kvm")
    token = client.events.pull().resume_token
    with foreign(virtd, f"outside-{uuid.uuid4().hex[:6]}") as uid:
        defined = time.monotonic()
        first_event(client, token, f"type=GUEST_ADDED AND uid={uid}", 10.0)
        seen = time.monotonic()
        assert seen - defined < 1.0, f"{seen - defined:.2f} s after virsh had returned"
        (guest,) = [g for g in client.guests.list("hosts/kvm").guests if g.uid == uid]
        assert guest.status.origin == ORIGIN_FOREIGN
        assert list(guest.status.allowed_actions) == ["adopt"]
    first_event(client, token, f"type=GUEST_REMOVED AND uid={uid}", 10.0)


def test_a_foreign_guest_is_never_touched_before_it_is_adopted(virtd: Virtd) -> None:
    client = virtd.client()
    name = f"mine-{uuid.uuid4().hex[:6]}"
    with foreign(virtd, name) as uid:
        guest_name = f"hosts/kvm/guests/{name}"
        client.guests.wait(guest_name, state="stopped", timeout_s=10)
        before = virtd.virsh("dumpxml", name)
        for verb in (client.guests.start, client.guests.stop, client.guests.delete, client.guests.pause):
            with pytest.raises(errors.FailedPrecondition) as refused:
                verb(guest_name)
            assert refused.value.reason == "GUEST_NOT_ADOPTED"
            assert "adopt" in refused.value.allowed_actions
        assert virtd.virsh("dumpxml", name) == before
        adopted = client.guests.adopt(guest_name).result(timeout_s=30)
        assert adopted.uid == uid
        assert adopted.status.origin == ORIGIN_MANAGED
        client.guests.start(guest_name).result(timeout_s=60)
        assert "running" in virtd.virsh("domstate", name)
        client.guests.delete(guest_name, force=True).result(timeout_s=60)
        assert name not in virtd.virsh("list", "--all", "--name").split()


def test_a_killed_qemu_reaches_a_watcher_within_two_seconds(virtd: Virtd) -> None:
    client = virtd.client()
    created = client.guests.create("hosts/kvm", "victim", virtd.spec(boots=False), start=True).result(timeout_s=90)
    token = client.events.pull().resume_token
    pid = qemu_pid(created.uid)
    started = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    event = first_event(client, token, f"type=GUEST_STATE_CHANGED AND uid={created.uid}", 20.0)
    took = time.monotonic() - started
    assert event.attributes["state"] == "CRASHED"
    assert event.guest.status.state == GUEST_STATE_CRASHED
    # libvirt itself needs 1.3 to 1.5 s for it here (measured without virtd); virtd adds milliseconds.
    assert took < 2.0, f"{took:.2f} s"


def test_a_watcher_that_was_away_resumes_without_a_gap(virtd: Virtd) -> None:
    client = virtd.client()
    everything = client.events.pull().resume_token
    with client.events.watch() as watch:
        client.guests.create("hosts/kvm", "a", virtd.spec(boots=False)).result(timeout_s=90)
        seen = []
        for item in watch:
            assert isinstance(item, Event)
            seen.append(item.revision)
            if item.operation.verb == "create" and item.operation.state == OPERATION_STATE_SUCCEEDED:
                break
        token = watch.resume_token
    # The watcher is away; things happen, and the daemon dies in between.
    client.guests.start("hosts/kvm/guests/a").result(timeout_s=60)
    virtd.kill()
    virtd.virsh("destroy", "a")  # behind virtd's back, while it is dead
    virtd.start()
    client.guests.wait("hosts/kvm/guests/a", state="stopped", timeout_s=30)
    client.guests.delete("hosts/kvm/guests/a").result(timeout_s=60)
    with client.events.watch(resume_token=token) as watch:
        for item in watch:
            assert isinstance(item, Event), f"a reset instead of events: {item}"
            seen.append(item.revision)
            if item.operation.verb == "delete" and item.operation.state == OPERATION_STATE_SUCCEEDED:
                break
    logged: list[int] = []
    while len(logged) < len(seen):
        page = client.events.pull(resume_token=everything, max_events=1000)
        assert page.events
        logged += [event.revision for event in page.events]
        everything = page.resume_token
    assert seen == logged[: len(seen)]
    assert seen == list(range(seen[0], seen[0] + len(seen))), "revisions have a gap"


def test_guestctl_json_fits_its_schema(virtd: Virtd) -> None:
    virtd.client().guests.create("hosts/kvm", "shown", virtd.spec(boots=False)).result(timeout_s=90)
    done = virtd.guestctl("get", "guests", "-o", "json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, json.loads((SCHEMAS / "GuestList.json").read_text()))
    assert [item["name"] for item in document["items"]] == ["hosts/kvm/guests/shown"]


def test_the_whole_life_of_a_booted_guest(virtd: Virtd) -> None:
    client = virtd.client()
    name = client.guests.create("hosts/kvm", "life", virtd.spec(), start=True).result(timeout_s=90).name
    client.guests.wait(name, condition="agent-ready", timeout_s=120)
    console = client.console.read_log(name)
    assert b"demo: ready" in console.data
    assert client.agent.exec(name, "/bin/hostname").exit_code == 0
    paused = client.guests.pause(name).result(timeout_s=30)
    assert paused.status.state != GUEST_STATE_RUNNING
    assert "paused" in virtd.virsh("domstate", "life")
    client.guests.resume(name).result(timeout_s=30)
    picture = client.console.screenshot(name)
    assert picture.data.startswith(b"\x89PNG")
    deadline = time.monotonic() + 20
    while not client.metrics.get(name) and time.monotonic() < deadline:
        time.sleep(0.2)
    (sample,) = client.metrics.get(name)
    assert sample.cpu_time_s > 0
    client.guests.reset(name).result(timeout_s=30)
    offset = client.console.read_log(name).next_offset
    _console_says(client, name, b"demo: ready", offset=offset - 1, timeout_s=120)
    client.guests.wait(name, condition="agent-ready", timeout_s=60)
    stopped = client.guests.shutdown(name, timeout_s=90).result(timeout_s=120)
    assert stopped.status.state == GUEST_STATE_STOPPED
    assert stopped.status.state_reason == "SHUTDOWN"
    volume = stopped.status.disks[0].path
    client.guests.delete(name).result(timeout_s=60)
    assert not Path(volume).exists()
    assert "life" not in virtd.virsh("list", "--all", "--name").split()


def test_a_stop_overtakes_a_shutdown_that_the_guest_ignores(virtd: Virtd) -> None:
    client = virtd.client()
    # Nothing is booted, so nobody hears the power button.
    name = client.guests.create("hosts/kvm", "deaf", virtd.spec(boots=False), start=True).result(timeout_s=90).name
    shutdown = client.guests.shutdown(name, timeout_s=300)
    client.guests.stop(name).result(timeout_s=60)
    with pytest.raises(errors.Cancelled):
        client.operations.get(shutdown.name).result(timeout_s=30)
    assert client.guests.get(name).status.state == GUEST_STATE_STOPPED
    client.guests.start(name).result(timeout_s=60)
    with pytest.raises(errors.DeadlineExceeded) as ignored:
        client.guests.shutdown(name, timeout_s=4).result(timeout_s=60)
    assert ignored.value.reason == "SHUTDOWN_IGNORED"
    assert client.guests.get(name).status.state == GUEST_STATE_RUNNING
    forced = client.guests.shutdown(name, timeout_s=2, force_after_timeout=True).result(timeout_s=60)
    assert forced.status.state == GUEST_STATE_STOPPED


def test_two_writers_share_one_console(virtd: Virtd) -> None:
    client = virtd.client()
    name = client.guests.create("hosts/kvm", "shared", virtd.spec(), start=True).result(timeout_s=90).name
    client.guests.wait(name, condition="agent-ready", timeout_s=120)
    with client.console.attach(name) as first, client.console.attach(name, read_only=True) as second:
        first.write(b"echo mark-$((6*7))\n")
        assert b"mark-42" in _until(second, b"mark-42")
        assert b"mark-42" in _until(first, b"mark-42")
        second.write(b"x")
        with pytest.raises(errors.InvalidArgument):
            for _ in second:
                pass


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"memory_bytes": 0}, "FIELD_INVALID", "guest.spec.memory_bytes"),
        ({"vcpus": 100_000}, "FIELD_INVALID", "guest.spec.vcpus"),
        ({"kernel": "/etc/shadow"}, "PATH_NOT_ALLOWED", "guest.spec.direct_kernel_boot.kernel_path"),
        ({"machine": "no-such-machine"}, "FIELD_UNSUPPORTED", "guest.spec.machine"),
        ({"accelerator": 2}, "FIELD_UNSUPPORTED", "guest.spec.accelerator"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(
    virtd: Virtd, change: dict[str, object], reason: str, field: str
) -> None:
    client = virtd.client()
    client.hosts.probe("hosts/kvm")  # its test guests come and go: not during the comparison below
    if "accelerator" in change:
        accelerators = {a.accelerator.lower(): a.usable for a in client.hosts.probe("hosts/kvm").facts.accelerators}
        if accelerators["kvm"]:
            # Where KVM works it is no bad input: then the same spec must be accepted.
            guest = virtd.spec()
            _apply(guest, change)
            assert client.guests.create("hosts/kvm", "good", guest, validate_only=True).validated_only
            return
    guest = virtd.spec()
    _apply(guest, change)
    before = virtd.virsh("list", "--all", "--name"), sorted(p.name for p in virtd.directory.rglob("*.qcow2"))
    with pytest.raises(errors.InvalidArgument) as refused:
        client.guests.create("hosts/kvm", "bad", guest).result(timeout_s=60)
    assert refused.value.reason == reason
    assert field in [violation.field for violation in refused.value.violations]
    assert (virtd.virsh("list", "--all", "--name"), sorted(p.name for p in virtd.directory.rglob("*.qcow2"))) == before
    assert [g.name for g in client.guests.list("hosts/kvm").guests if g.name.endswith("/bad")] == []


def _apply(guest: Guest, change: dict[str, object]) -> None:
    for key, value in change.items():
        if key == "kernel":
            guest.spec.direct_kernel_boot.kernel_path = str(value)
        else:
            setattr(guest.spec, key, value)


def _until(session: object, wanted: bytes) -> bytes:
    seen = b""
    timer = threading.Timer(30.0, session.close)  # type: ignore[attr-defined]  # a console session
    timer.start()
    try:
        for item in session:  # type: ignore[attr-defined]
            seen += getattr(item, "data", b"")
            if wanted in seen:
                return seen
    finally:
        timer.cancel()
    return seen


def _console_says(client: Client, name: str, wanted: bytes, *, offset: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if wanted in client.console.read_log(name, offset=offset, max_bytes=200_000).data:
            return
        time.sleep(0.2)
    raise AssertionError(f"the console does not say {wanted!r}")


def test_guestctl_and_reflection_list_every_service(virtd: Virtd) -> None:
    """As grpcurl does it: ask reflection by hand, and compare with the files of proto/."""
    import grpc
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from grpc_reflection.v1alpha import reflection_pb2 as pb
    from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

    declared = set()
    for file in (SCHEMAS.parents[1] / "proto" / "virtd" / "v1").glob("*.proto"):
        for line in file.read_text().splitlines():
            if line.startswith("service "):
                declared.add(f"virtd.v1.{line.split()[1]}")
    assert len(declared) >= 13
    with grpc.insecure_channel(virtd.target) as channel:
        requests = [pb.ServerReflectionRequest(list_services="")]
        (answer,) = list(ServerReflectionStub(channel).ServerReflectionInfo(iter(requests), timeout=20))
        listed = {entry.name for entry in answer.list_services_response.service}
        assert declared | {"google.longrunning.Operations", "grpc.health.v1.Health"} <= listed
        for name in sorted(listed):
            ask = [pb.ServerReflectionRequest(file_containing_symbol=name)]
            (answer,) = list(ServerReflectionStub(channel).ServerReflectionInfo(iter(ask), timeout=20))
            files = [
                FileDescriptorProto.FromString(raw) for raw in answer.file_descriptor_response.file_descriptor_proto
            ]
            assert any(f"{file.package}.{service.name}" == name for file in files for service in file.service)
    done = virtd.guestctl("services", "-o", "json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, json.loads((SCHEMAS / "ServiceList.json").read_text()))
    assert {item["name"] for item in document["items"]} == listed
    assert all(item["methods"] for item in document["items"])
