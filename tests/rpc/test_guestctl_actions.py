"""Actions: what is sent, how their operations are waited for, and what is said of their ends.

Longer than 500 lines because all verbs are held to the same table of ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.rpc.guestctl_kit import Ctl, environment, guest, hosts, listed, spawn, started, terminal
from tests.rpc.scripted_server import ScriptedServer, operation, status, virtd_fail
from tests.tools.gen_schema import OUTPUT
from virtd.v1 import (
    agent_pb2,
    capability_pb2,
    console_pb2,
    guest_pb2,
    guest_service_pb2,
    host_pb2,
    image_pb2,
    operation_pb2,
    server_pb2,
    snapshot_pb2,
    storage_pb2,
)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as found:
        yield found


@pytest.fixture
def ctl(
    server: ScriptedServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Ctl:
    for name, value in environment(server, tmp_path).items():
        monkeypatch.setenv(name, value)
    return Ctl(server, capfd)


WEB = {"verb": "start", "target": "hosts/a/guests/web1"}


def slowly(*fields: Any, **more: Any) -> Any:
    """A step of WaitOperation that takes the time that was asked for, as the daemon's does."""

    async def step(request: Any, _context: Any) -> Any:
        await asyncio.sleep(request.timeout.ToTimedelta().total_seconds())
        return operation(*fields, **more)

    return step


BOOT = {"state": "OPERATION_STATE_RUNNING", "stage": "boot", "stages": ["define", "boot"], **WEB}
STILL = slowly("operations/1", **BOOT)
RUNNING = operation("operations/1", state="OPERATION_STATE_RUNNING", stage="boot", stages=["define", "boot"], **WEB)
DONE = operation("operations/1", state="OPERATION_STATE_SUCCEEDED", response=guest("web1"), **WEB)


def failed(code: int, kind: str, reason: str, message: str) -> Any:
    record = capability_pb2.ErrorRecord(kind=kind, reason=reason, message=message)
    return operation("operations/1", state="OPERATION_STATE_FAILED", error=status(code, message, record), **WEB)


def test_start_waits_and_says_what_happened(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("StartGuest", started(state="OPERATION_STATE_PENDING", **WEB))
    server.on("WaitOperation", STILL, STILL, DONE)
    server.on("GetOperation", RUNNING)
    result = ctl("start", "a/web1")
    assert (result.code, result.out) == (0, "")
    lines = result.err.splitlines()
    assert lines[0] == "start hosts/a/guests/web1: boot"
    assert lines[1].startswith("hosts/a/guests/web1 started (")
    request = server.calls_of("StartGuest")[0].request
    assert request.name == "hosts/a/guests/web1"
    assert request.on_conflict == capability_pb2.CONFLICT_POLICY_QUEUE
    assert len(request.request_id) == 36


def test_what_waits_for_its_host_says_so(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("StartGuest", started(state="OPERATION_STATE_PENDING", **WEB))
    server.on("WaitOperation", STILL, STILL, STILL, DONE)
    server.on("GetOperation", operation("operations/1", waiting_for="hosts/a", **BOOT), RUNNING)
    lines = ctl("start", "a/web1").err.splitlines()
    assert lines[:2] == [f"start hosts/a/guests/web1: boot{more}" for more in (", waiting for hosts/a", "")]


def test_quiet_says_nothing_and_a_format_prints_the_result(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("StartGuest", started(state="OPERATION_STATE_PENDING", **WEB))
    server.on("WaitOperation", DONE)
    result = ctl("start", "a/web1", "-q", "-o", "json")
    assert (result.code, result.err) == (0, "")
    jsonschema.validate(result.json, yaml.safe_load((OUTPUT / "GuestList.json").read_text()))
    assert ctl("start", "a/web1", "-q", "-o", "name").out == "hosts/a/guests/web1\n"


def test_without_waiting_the_operation_is_printed(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("StartGuest", started(state="OPERATION_STATE_PENDING", **WEB))
    result = ctl("start", "a/web1", "--no-wait", "-o", "name")
    assert (result.code, result.out) == (0, "operations/1\n")
    assert server.calls_of("WaitOperation") == []


@pytest.mark.parametrize(
    ("arguments", "method", "fields"),
    [
        (["stop", "a/web1"], "StopGuest", {}),
        (["reboot", "a/web1"], "RebootGuest", {}),
        (["reset", "a/web1"], "ResetGuest", {}),
        (["pause", "a/web1", "--no-queue"], "PauseGuest", {"on_conflict": 2}),
        (["resume", "a/web1"], "ResumeGuest", {"on_conflict": 1}),
        (["suspend", "a/web1"], "SuspendGuest", {}),
        (["adopt", "a/web1"], "AdoptGuest", {}),
        (["shutdown", "a/web1"], "ShutdownGuest", {"timeout_s": 0.0, "force_after_timeout": False}),
        (["shutdown", "a/web1", "--timeout-s", "2m", "--force-after"], "ShutdownGuest",
         {"timeout_s": 120.0, "force_after_timeout": True}),
        (["delete", "a/web1"], "DeleteGuest", {"force": False, "keep_disks": False}),
        (["delete", "a/web1", "--force", "--keep-disks"], "DeleteGuest", {"force": True, "keep_disks": True}),
    ],
)  # fmt: skip
def test_each_verb_sends_its_request(
    ctl: Ctl, server: ScriptedServer, arguments: list[str], method: str, fields: dict[str, Any]
) -> None:
    response: Any = getattr(guest_service_pb2, f"{method}Response")
    done = DONE
    if method == "DeleteGuest":
        done = operation("operations/1", response=operation_pb2.OperationResult(target=WEB["target"]), **WEB)
    server.on(method, response(operation=done))
    result = ctl(*arguments)
    assert result.code == 0, result.err
    request = server.calls_of(method)[0].request
    assert request.name == "hosts/a/guests/web1"
    assert {name: getattr(request, name) for name in fields} == fields


def test_several_guests_are_started_side_by_side(ctl: Ctl, server: ScriptedServer) -> None:
    server.on(
        "StartGuest", started("operations/1", state="OPERATION_STATE_PENDING"),
        virtd_fail(9, "INVALID_STATE", "FailedPrecondition", message="it runs", allowed_actions=["stop"]),
        started("operations/3", state="OPERATION_STATE_PENDING"),
    )  # fmt: skip
    server.on("WaitOperation", DONE)
    result = ctl("start", "a/x", "a/y", "a/z", "a/x")
    assert result.code == 8
    assert "error: hosts/a/guests/y: it runs\n  allowed now: stop\nreason: INVALID_STATE\n" in result.err
    order = [call.method for call in server.calls if call.method in {"StartGuest", "WaitOperation"}]
    assert order == ["StartGuest"] * 3 + ["WaitOperation"] * 2


def test_all_failing_alike_keep_their_code(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("StartGuest", virtd_fail(9, "INVALID_STATE", "FailedPrecondition"))
    assert ctl("start", "a/x", "a/y").code == 5


def test_one_name_that_is_nowhere_does_not_stop_the_others(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("ListHosts", hosts("a", "b"))
    server.on("ListGuests", listed(guest("web1")))
    server.on("StartGuest", started(response=guest("web1"), **WEB))
    result = ctl("start", "nowhere", "web1")
    assert result.code == 8
    assert "there is no guest 'nowhere'" in result.err
    assert "hosts/a/guests/web1 started" in result.err


@pytest.mark.parametrize(
    ("end", "code", "reason"),
    [
        (failed(13, "Internal", "BACKEND_ERROR", "boom"), 1, "BACKEND_ERROR"),
        (failed(4, "DeadlineExceeded", "SHUTDOWN_IGNORED", "it runs on"), 124, "SHUTDOWN_IGNORED"),
        (failed(8, "ResourceExhausted", "STORAGE_FULL", "full"), 1, "STORAGE_FULL"),
        (failed(10, "Aborted", "OPERATION_INTERRUPTED", "died"), 1, "OPERATION_INTERRUPTED"),
        (failed(1, "Cancelled", "OPERATION_CANCELLED", "cancelled"), 1, "OPERATION_CANCELLED"),
    ],
)
def test_an_operation_that_fails(ctl: Ctl, server: ScriptedServer, end: Any, code: int, reason: str) -> None:
    server.on("StartGuest", started(state="OPERATION_STATE_PENDING", **WEB))
    server.on("WaitOperation", STILL, end)
    server.on("GetOperation", RUNNING)
    result = ctl("start", "a/web1")
    assert (result.code, result.out) == (code, "")
    assert f"reason: {reason}\nnext: " in result.err


def test_a_time_limit_ends_the_waiting_not_the_work(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("StartGuest", started(state="OPERATION_STATE_PENDING", **WEB))
    server.on("WaitOperation", STILL)
    server.on("GetOperation", RUNNING)
    result = ctl("start", "a/web1", "--timeout", "700ms")
    assert result.code == 124
    assert "operations/1 has not ended in time; it goes on" in result.err
    assert "guestctl operations cancel 1" in result.err
    assert server.calls_of("CancelOperation") == []


def test_a_daemon_that_restarts_is_waited_for(ctl: Ctl, server: ScriptedServer) -> None:
    async def restart(_request: Any, _context: Any) -> Any:
        asyncio.get_running_loop().create_task(bounce())
        await asyncio.Event().wait()

    async def bounce() -> None:
        await server._stop()
        await asyncio.sleep(0.5)
        await server._start()

    server.on("StartGuest", started(state="OPERATION_STATE_PENDING", **WEB))
    server.on("WaitOperation", STILL, restart, DONE)
    server.on("GetOperation", RUNNING)
    result = ctl("start", "a/web1", "-v")
    assert result.code == 0, result.err
    assert "the daemon is away; waiting for it" in result.err
    assert "hosts/a/guests/web1 started" in result.err


def test_warnings_and_notes(ctl: Ctl, server: ScriptedServer) -> None:
    said = {"warnings": ["kvm does not work here: using tcg"], "notes": [operation_pb2.OperationNote(message="probed")]}
    noted = operation("operations/1", state="OPERATION_STATE_SUCCEEDED", response=guest("web1"), **WEB, **said)
    server.on("StartGuest", started(state="OPERATION_STATE_PENDING", **WEB))
    server.on("WaitOperation", noted)
    assert "warning: kvm does not work here: using tcg\n" in ctl("start", "a/web1", "-q").err
    assert "probed" in ctl("start", "a/web1", "-v").err


CREATE = ["create", "guest", "web1", "--host", "a", "--memory", "256MiB"]


def created(server: ScriptedServer, *arguments: str) -> guest_service_pb2.CreateGuestRequest:
    found: guest_service_pb2.CreateGuestRequest = server.calls_of("CreateGuest")[-1].request
    return found


def test_create_from_options(ctl: Ctl, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    server.on("CreateGuest", guest_service_pb2.CreateGuestResponse(operation=DONE))
    result = ctl(*CREATE, "--vcpus", "2", "--kernel", "vmlinuz", "--initrd", "/boot/i", "--cmdline", "console=ttyS0",
                 "--disk", "name=root,size=1GiB", "--network", "user", "--accelerator", "tcg", "--firmware", "bios",
                 "--run-strategy", "rerun-on-failure", "--label", "env=prod", "--backend-option", "cpu=max",
                 "--display-name", "Web", "--start", "-o", "name")  # fmt: skip
    assert (result.code, result.out) == (0, "hosts/a/guests/web1\n"), result.err
    request = created(server)
    assert (request.parent, request.guest_id, request.start) == ("hosts/a", "web1", True)
    assert not request.validate_only
    spec = request.guest.spec
    assert (spec.vcpus, spec.memory_bytes) == (2, 256 * 2**20)
    # The daemon is on this machine: a relative path is meant from here.
    assert spec.direct_kernel_boot.kernel_path == f"{tmp_path}/vmlinuz"
    assert spec.direct_kernel_boot.initrd_path == "/boot/i"
    assert spec.disks[0].blank.capacity_bytes == 2**30
    assert spec.accelerator == guest_pb2.ACCELERATOR_TCG
    assert spec.run_strategy == guest_pb2.RUN_STRATEGY_RERUN_ON_FAILURE
    assert request.guest.labels == {"env": "prod"}
    assert spec.backend_options == {"cpu": "max"}


def test_create_from_a_file_and_from_stdin(
    ctl: Ctl, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = "apiVersion: virtd.v1\nkind: Guest\nmetadata: {name: %s, host: b}\nspec: {memory_bytes: 64MiB}\n"
    file = tmp_path / "guests.yaml"
    file.write_text(document % "one" + "---\n" + document % "two")
    server.on("CreateGuest", guest_service_pb2.CreateGuestResponse(operation=DONE))
    assert ctl("create", "-f", str(file)).code == 0
    requests = [call.request for call in server.calls_of("CreateGuest")]
    assert [(r.parent, r.guest_id) for r in requests] == [("hosts/b", "one"), ("hosts/b", "two")]
    with file.open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert ctl("create", "guest", "-f", "-", "--host", "c", "--label", "x=y").code == 0
    assert created(server).parent == "hosts/c"
    assert created(server).guest.labels == {"x": "y"}
    several = ctl("create", "guest", "name", "-f", str(file))
    assert (several.code, "holds 2 guests" in several.err) == (2, True)
    file.write_text(document % "one" + "---\n" + document % "one")
    assert "two documents are for the same guest" in ctl("create", "-f", str(file)).err
    file.write_text("apiVersion: virtd.v1\nkind: Guest\nspec: {memry_bytes: 1}\n")
    wrong = ctl("create", "-f", str(file))
    assert (wrong.code, "guests.yaml:3: spec.memry_bytes: unknown field" in wrong.err) == (2, True)
    file.write_bytes(b"\xff\xfe")
    assert "this is not text in UTF-8" in ctl("create", "-f", str(file)).err


@pytest.mark.parametrize(
    ("fidelity", "code"),
    [(None, 0), ("EMULATED", 0), ("DEGRADED", 10), ("IGNORED", 10), ("REJECTED", 6)],
)
def test_a_dry_run_says_what_would_become_of_it(
    ctl: Ctl, server: ScriptedServer, fidelity: str | None, code: int
) -> None:
    plan = guest_service_pb2.HostPlan(host="hosts/a", native="<domain/>", warnings=["slow"])
    if fidelity:
        plan.verdicts.add(field="spec.disks[0].bus", fidelity=f"FIDELITY_{fidelity}", reason="no such bus",
                          alternatives=["virtio"])  # fmt: skip
    server.on("CreateGuest", guest_service_pb2.CreateGuestResponse(plan=plan))
    result = ctl(*CREATE, "--dry-run")
    assert result.code == code, result.err
    assert created(server).validate_only
    assert "warning: slow" in result.err
    if fidelity:
        assert result.out.splitlines()[1].split() == ["a", "spec.disks[0].bus", fidelity, "no", "such", "bus", "virtio"]
    assert "<domain/>" in ctl(*CREATE, "--dry-run", "-v").out
    document = ctl(*CREATE, "--dry-run", "-o", "json").json
    jsonschema.validate(document, yaml.safe_load((OUTPUT / "HostPlanList.json").read_text()))


def test_a_dry_run_of_what_is_wrong_is_an_error(ctl: Ctl, server: ScriptedServer) -> None:
    plan = guest_service_pb2.HostPlan(host="hosts/a")
    plan.error.kind, plan.error.reason, plan.error.message = (
        "InvalidArgument",
        "PATH_NOT_ALLOWED",
        "/etc is not allowed",
    )
    server.on("CreateGuest", guest_service_pb2.CreateGuestResponse(plan=plan))
    result = ctl(*CREATE, "--dry-run")
    assert result.code == 2
    assert "/etc is not allowed\nreason: PATH_NOT_ALLOWED" in result.err


def test_the_host_must_be_chosen_when_there_are_several(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("ListHosts", hosts("a", "b"))
    result = ctl("create", "guest", "x", "--memory", "1G")
    assert result.code == 2
    assert "there are 2 hosts: a, b\nnext: Choose one with --host." in result.err
    server.on("ListHosts", hosts())
    assert ctl("create", "guest", "x", "--memory", "1G").code == 3


def test_snapshots(ctl: Ctl, server: ScriptedServer) -> None:
    name = "hosts/a/guests/web1/snapshots/one"
    snapshot = snapshot_pb2.Snapshot(name=name, kind="SNAPSHOT_KIND_DISK")
    made = operation("operations/1", response=snapshot)
    gone = operation("operations/1", response=operation_pb2.OperationResult(target=name))
    server.on("CreateSnapshot", snapshot_pb2.CreateSnapshotResponse(operation=made))
    server.on("RevertSnapshot", snapshot_pb2.RevertSnapshotResponse(operation=DONE))
    server.on("DeleteSnapshot", snapshot_pb2.DeleteSnapshotResponse(operation=gone))
    server.on("GetSnapshot", snapshot_pb2.GetSnapshotResponse(snapshot=snapshot))
    server.on("ListSnapshots", snapshot_pb2.ListSnapshotsResponse(snapshots=[snapshot]))
    server.on("ListHosts", hosts("a"))
    assert (
        ctl("snapshot", "create", "a/web1", "one", "--memory", "--description", "before", "-o", "name").out
        == f"{name}\n"
    )
    request = server.calls_of("CreateSnapshot")[0].request
    assert (request.parent, request.snapshot_id, request.memory) == ("hosts/a/guests/web1", "one", True)
    assert request.description == "before"
    for form in (["web1", "one"], ["web1/one"], ["a/web1/one"], [name]):
        assert ctl("snapshot", "revert", *form).code == 0
    assert {call.request.name for call in server.calls_of("RevertSnapshot")} == {name}
    assert ctl("snapshot", "describe", "web1", "one").out.splitlines()[0] == f"name: {name}"
    assert ctl("snapshot", "list", "web1", "-o", "name").out == f"{name}\n"
    assert ctl("get", "snapshots", "--guest", "web1", "-o", "name").out == f"{name}\n"
    assert ctl("snapshot", "delete", "web1", "one").code == 0
    assert server.calls_of("DeleteSnapshot")[0].request.name == name


def test_labels_are_changed_on_what_was_read(ctl: Ctl, server: ScriptedServer) -> None:
    found = guest("web1", labels={"a": "1", "b": "2"}, etag="e1")
    server.on("GetGuest", guest_service_pb2.GetGuestResponse(guest=found))
    server.on("UpdateGuest", guest_service_pb2.UpdateGuestResponse(guest=found))
    assert ctl("label", "a/web1", "c=3", "a-").code == 0
    request = server.calls_of("UpdateGuest")[0].request
    assert request.guest.labels == {"b": "2", "c": "3"}
    assert (request.etag, list(request.update_fields)) == ("e1", ["labels"])
    server.on("UpdateGuest", virtd_fail(10, "ETAG_MISMATCH", "Conflict"))
    assert ctl("label", "a/web1", "c=3").code == 5


@pytest.mark.parametrize(
    ("goal", "field", "value"),
    [
        ("running", "state", guest_pb2.GUEST_STATE_RUNNING),
        ("stopped", "state", guest_pb2.GUEST_STATE_STOPPED),
        ("agent-ready", "condition", guest_pb2.CONDITION_TYPE_AGENT_READY),
        ("Network-Ready", "condition", guest_pb2.CONDITION_TYPE_NETWORK_READY),
        ("deleted", "deleted", True),
    ],
)
def test_waiting_for_a_goal(ctl: Ctl, server: ScriptedServer, goal: str, field: str, value: Any) -> None:
    server.on("GetServerInfo", server_pb2.GetServerInfoResponse())
    server.on("WaitGuest", guest_service_pb2.WaitGuestResponse(guest=guest("web1")))
    assert ctl("wait", "a/web1", "--for", goal, "--timeout", "7s").code == 0
    request = server.calls_of("WaitGuest")[0].request
    assert request.WhichOneof("target") == field
    assert getattr(request, field) == value
    assert 0 < request.timeout_s <= 7


def test_waiting_in_vain_is_124(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("GetServerInfo", server_pb2.GetServerInfoResponse())
    server.on("WaitGuest", virtd_fail(4, "DEADLINE_EXCEEDED", "DeadlineExceeded", message="not yet"))
    assert ctl("wait", "a/web1", "--for", "running", "--timeout", "1").code == 124


def test_waiting_for_the_end_of_what_is_gone_already(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("ListHosts", hosts("a", "b"))
    server.on("ListGuests", listed(), listed(silent=("b",)))
    assert ctl("wait", "web1", "--for", "deleted").code == 0
    # A host that is silent may have it: that is not "deleted".
    assert ctl("wait", "web1", "--for", "deleted").code == 7


def test_operations_are_followed_and_cancelled(ctl: Ctl, server: ScriptedServer) -> None:
    cancelled = failed(1, "Cancelled", "OPERATION_CANCELLED", "cancelled")
    server.on("GetOperation", RUNNING)
    server.on("WaitOperation", DONE)
    server.on("CancelOperation", empty())
    server.on("GetOperation", RUNNING, DONE)
    assert ctl("operations", "watch", "1").code == 0
    server.on("GetOperation", RUNNING)
    server.on("WaitOperation", cancelled)
    result = ctl("operations", "cancel", "operations/1")
    assert (result.code, result.err.splitlines()[-1]) == (0, "operations/1 cancelled")
    assert server.calls_of("CancelOperation")[0].request.name == "operations/1"
    server.on("WaitOperation", DONE)
    assert ctl("operations", "cancel", "1").code == 5
    server.on("CancelOperation", virtd_fail(9, "OPERATION_NOT_CANCELLABLE", "FailedPrecondition"))
    assert ctl("operations", "cancel", "1").code == 5
    server.on("GetOperation", virtd_fail(5, "OPERATION_NOT_FOUND", "NotFound"))
    assert ctl("operations", "watch", "2").code == 3


def empty() -> Any:
    from google.protobuf import empty_pb2

    return empty_pb2.Empty()


def test_hosts_volumes_and_images(ctl: Ctl, server: ScriptedServer) -> None:
    host = host_pb2.Host(name="hosts/k", state="HOST_STATE_CONNECTING")
    server.on("AddHost", host_pb2.AddHostResponse(host=host))
    server.on("RemoveHost", host_pb2.RemoveHostResponse())
    server.on("ProbeHost", host_pb2.ProbeHostResponse(host=host))
    volume = storage_pb2.Volume(name="hosts/a/pools/p/volumes/v")
    server.on("CreateVolume", storage_pb2.CreateVolumeResponse(operation=operation("operations/1", response=volume)))
    result = operation_pb2.OperationResult()
    server.on("DeleteVolume", storage_pb2.DeleteVolumeResponse(operation=operation("operations/1", response=result)))
    image = image_pb2.Image(name="images/i")
    server.on("ImportImage", image_pb2.ImportImageResponse(operation=operation("operations/1", response=image)))
    server.on("DeleteImage", image_pb2.DeleteImageResponse(operation=operation("operations/1", response=result)))
    assert ctl("host", "add", "k", "fake:///", "--label", "a=b").err == "hosts/k added; it is connecting\n"
    assert server.calls_of("AddHost")[0].request.labels == {"a": "b"}
    assert ctl("host", "remove", "k", "--force").code == 0
    assert server.calls_of("RemoveHost")[0].request.force
    assert "CONNECTING" in ctl("host", "probe", "k").out
    assert (
        ctl("volume", "create", "a/p", "v", "--size", "1GiB", "--format", "raw", "-o", "name").out == f"{volume.name}\n"
    )
    request = server.calls_of("CreateVolume")[0].request
    assert (request.parent, request.capacity_bytes, request.format) == ("hosts/a/pools/p", 2**30, 2)
    assert ctl("volume", "delete", "a/p/v").code == 0
    assert server.calls_of("DeleteVolume")[0].request.name == volume.name
    assert ctl("image", "import", "i", "/x.qcow2", "--format", "qcow2").code == 0
    assert server.calls_of("ImportImage")[0].request.path == "/x.qcow2"
    assert ctl("image", "delete", "i").code == 0


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        (["-e", "A=b", "a/web1", "--", "ls", "-l"], ["ls", "-l"]),
        (["a/web1", "-e", "A=b", "--timeout", "5", "--", "ls", "--timeout", "7"], ["ls", "--timeout", "7"]),
        (["a/web1", "ls", "-e", "x"], ["ls", "-e", "x"]),
        (["a/web1", "sh", "-c", "--help"], ["sh", "-c", "--help"]),
        (["a/web1", "--", "--strange", "--", "x"], ["--strange", "--", "x"]),
    ],
)
def test_which_words_are_the_command_of_the_guest(
    ctl: Ctl, server: ScriptedServer, arguments: list[str], sent: list[str]
) -> None:
    server.on("ExecCommand", agent_pb2.ExecCommandResponse(exit_code=3))
    assert ctl("exec", *arguments).code == 3
    request = server.calls_of("ExecCommand")[0].request
    assert [request.path, *request.arguments] == sent


def test_exec_sends_what_was_asked(ctl: Ctl, server: ScriptedServer) -> None:
    response = agent_pb2.ExecCommandResponse(exit_code=3, stdout=b"out\n", stderr=b"err\n", stdout_truncated=True)
    server.on("ExecCommand", response)
    result = ctl("exec", "--timeout", "5", "-e", "A=b", "a/web1", "--", "sh", "-c", "exit 3")
    assert (result.code, result.out) == (3, "out\n")
    assert result.err == "err\nwarning: the agent cut the output: there was more\n"
    request = server.calls_of("ExecCommand")[0].request
    assert (request.path, list(request.arguments), list(request.environment)) == ("sh", ["-c", "exit 3"], ["A=b"])
    assert request.timeout_s == 5
    document = ctl("exec", "-o", "json", "a/web1", "ls", "-l")
    assert document.code == 3
    jsonschema.validate(document.json, yaml.safe_load((OUTPUT / "ExecResult.json").read_text()))
    assert list(server.calls_of("ExecCommand")[1].request.arguments) == ["-l"]
    server.on("ExecCommand", agent_pb2.ExecCommandResponse(signal=9))
    assert ctl("exec", "a/web1", "sleep").code == 137
    server.on("ExecCommand", virtd_fail(14, "AGENT_NOT_READY", "Unavailable"))
    away = ctl("exec", "a/web1", "ls")
    assert (away.code, "reason: AGENT_NOT_READY\nnext: Wait with" in away.err) == (7, True)


def test_exec_gives_the_command_its_input(server: ScriptedServer, tmp_path: Path) -> None:
    server.on("ExecCommand", agent_pb2.ExecCommandResponse(exit_code=0))
    (tmp_path / "in").write_bytes(b"\x00binary\xff")
    with (tmp_path / "in").open("rb") as stream:
        process = spawn(server, tmp_path, "exec", "-i", "a/web1", "cat", stdin=stream)
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert server.calls_of("ExecCommand")[0].request.input_data == b"\x00binary\xff"


def test_screenshots(ctl: Ctl, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    server.on("TakeScreenshot", console_pb2.TakeScreenshotResponse(data=b"\x89PNG..", mime_type="image/png"))
    assert ctl("screenshot", "a/web1").out == f"{tmp_path}/web1.png\n"
    assert (tmp_path / "web1.png").read_bytes() == b"\x89PNG.."
    assert ctl("screenshot", "a/web1", "-f", "sub/x.png").code == 1
    assert ctl("screenshot", "a/web1", "-f", "x.png").out == f"{tmp_path}/x.png\n"
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["web1.png", "x.png"]
    assert list(tmp_path.glob(".guestctl-*")) == []
    process = spawn(server, tmp_path, "screenshot", "a/web1", "-f", "-")
    out, _ = process.communicate(timeout=30)
    assert out == b"\x89PNG.."


def never_ending(server: ScriptedServer) -> None:
    fields = {**BOOT, "stage": "copy", "fraction": 0.42, "bytes_done": 2**20, "bytes_total": 2**21}
    server.on("StartGuest", started(state="OPERATION_STATE_PENDING", **WEB))
    server.on("WaitOperation", slowly("operations/1", **fields))
    server.on("GetOperation", operation("operations/1", **fields))


def test_an_interrupted_wait_says_that_the_operation_goes_on(server: ScriptedServer, tmp_path: Path) -> None:
    never_ending(server)
    process = spawn(server, tmp_path, "start", "a/web1")
    assert process.stderr is not None
    seen = b""
    while b"copy" not in seen:
        seen += os.read(process.stderr.fileno(), 4096)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"the operation goes on: follow it with `guestctl operations watch 1`" in err
    assert b"cancel it with `guestctl operations cancel 1`" in err
    assert b"Traceback" not in err
    assert server.calls_of("CancelOperation") == []


def test_a_terminal_gets_a_bar_that_disappears(server: ScriptedServer, tmp_path: Path) -> None:
    never_ending(server)
    with terminal(server, tmp_path, "start", "a/web1") as tty:
        seen = tty.read_until(b"42%")
        assert b"copy 1 MiB of 2 MiB" in seen
        assert b"\x1b[" in seen
        server.on("WaitOperation", DONE)
        tty.read_until(b"hosts/a/guests/web1 started")
        assert tty.wait() == 0
    assert b"\x1b[?25h" in tty.seen, "the cursor is shown again"


def test_an_interrupted_bar_leaves_the_terminal_whole(server: ScriptedServer, tmp_path: Path) -> None:
    never_ending(server)
    with terminal(server, tmp_path, "start", "a/web1") as tty:
        tty.read_until(b"42%")
        tty.write(b"\x03")
        tty.read_until(b"the operation goes on")
        assert tty.wait() == 130
    assert tty.seen.rindex(b"\x1b[?25h") > tty.seen.rindex(b"\x1b[?25l")


@pytest.mark.parametrize(("extra", "colour"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_only_where_they_are_wanted(
    server: ScriptedServer, tmp_path: Path, extra: dict[str, str], colour: bool
) -> None:
    server.on("ListGuests", listed(guest("web1")))
    with terminal(server, tmp_path, "get", "guests", **extra) as tty:
        assert tty.wait() == 0
    assert (b"\x1b[32mRUNNING\x1b[0m" in tty.seen) is colour


def test_the_installed_command_runs(server: ScriptedServer, tmp_path: Path) -> None:
    import subprocess

    installed = Path(sys.executable).parent / "guestctl"
    done = subprocess.run([installed, "version", "--client"], capture_output=True, check=True, timeout=30)
    assert done.stdout.startswith(b"guestctl  ")
