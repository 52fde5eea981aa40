"""Every RPC over the real server: converted, passed to its service, converted back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty

from tests.rpc.rpc_fakes import REQUEST_ID, UID, Fakes, Running, error_of, finished, guest, running, until
from virtd.model.guest import ConditionType, DiskFormat, GuestSpec, GuestState
from virtd.model.names import GuestName
from virtd.model.operation import OperationState
from virtd.model.storage import Preallocation
from virtd.service.call import Call
from virtd.service.snapshots import Draft as SnapshotDraft
from virtd.v1 import (
    agent_pb2,
    audit_pb2,
    capability_pb2,
    console_pb2,
    event_pb2,
    guest_pb2,
    guest_service_pb2,
    guest_service_pb2_grpc,
    host_pb2,
    image_pb2,
    metrics_pb2,
    network_pb2,
    operation_pb2,
    server_pb2,
    snapshot_pb2,
    storage_pb2,
)

GUEST = "hosts/a/guests/b"
ME = f"unix:uid={os.geteuid()}"
NAME = GuestName("a", "b")
gs = guest_service_pb2


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as made:
        made.fakes.guests_by_name[GUEST] = guest()
        yield made


@pytest.fixture
def fakes(daemon: Running) -> Fakes:
    return daemon.fakes


def _guests(daemon: Running) -> Any:
    return guest_service_pb2_grpc.GuestServiceStub(daemon.channel)


# ------------------------------------------------------------------------------------------ guests


async def test_create(daemon: Running, fakes: Fakes) -> None:
    request = gs.CreateGuestRequest(
        parent="hosts/a",
        guest_id="b",
        guest=guest_pb2.Guest(
            spec=guest_pb2.GuestSpec(vcpus=2, disks=[guest_pb2.DiskSpec(name="root", volume="v")]),
            display_name="B",
            labels={"env": "prod"},
            annotations={"note": "n"},
            # Output only: what a client sends here is ignored, and not even looked at.
            uid="not a uuid\x00",
            status=guest_pb2.GuestStatus(state_reason="\x01"),
            generation=99,
        ),
        start=True,
        request_id=REQUEST_ID.upper(),
    )
    answer = await _guests(daemon).CreateGuest(request)
    call, host, guest_id, draft, start = fakes.arguments("guests.create")
    assert (host, guest_id, start) == ("a", "b", True)
    assert isinstance(call, Call)
    assert (call.caller, call.request_id) == (ME, REQUEST_ID)
    assert call.method == "/virtd.v1.GuestService/CreateGuest"
    assert len(call.fingerprint) == 64
    assert isinstance(draft.spec, GuestSpec)
    assert (draft.spec.vcpus, draft.spec.disks[0].volume) == (2, "v")
    assert (draft.display_name, draft.labels, draft.annotations) == ("B", {"env": "prod"}, {"note": "n"})
    assert answer.operation.name == "operations/1"
    assert not answer.HasField("plan")
    metadata = operation_pb2.OperationMetadata()
    assert answer.operation.metadata.Unpack(metadata)
    assert metadata.verb == "create"


async def test_create_validate_only_gives_the_plan(daemon: Running, fakes: Fakes) -> None:
    spec = guest_pb2.Guest(spec=guest_pb2.GuestSpec())
    answer = await _guests(daemon).CreateGuest(
        gs.CreateGuestRequest(parent="hosts/a", guest_id="b", guest=spec, validate_only=True)
    )
    assert answer.plan.native == "<domain/>"
    assert not answer.HasField("operation")
    assert not fakes.operations


async def test_get_and_list_come_from_cached_bytes(daemon: Running, fakes: Fakes) -> None:
    fakes.guests_by_name = {f"hosts/a/guests/g{n}": guest(f"hosts/a/guests/g{n}", n=str(n)) for n in range(3)}
    got = await _guests(daemon).GetGuest(gs.GetGuestRequest(name="hosts/a/guests/g1"))
    assert got.guest.labels["n"] == "1"
    assert got.guest.uid == str(UID)
    listed = await _guests(daemon).ListGuests(
        gs.ListGuestsRequest(parent="hosts/-", filter="labels.n=1", page_size=7, page_token="t")
    )
    assert fakes.arguments("guests.list") == ("-", "labels.n=1", 7, "t")
    assert [one.name for one in listed.guests] == sorted(fakes.guests_by_name)
    assert (listed.next_page_token, listed.resume_token) == ("more", "token-1")
    (error,) = listed.host_errors
    assert (error.host, error.error.reason) == ("hosts/dead", "HOST_UNREACHABLE")


@pytest.mark.parametrize("verb", ["Start", "Stop", "Reboot", "Reset", "Pause", "Resume", "Suspend", "Adopt"])
async def test_verbs(daemon: Running, fakes: Fakes, verb: str) -> None:
    request_type = getattr(gs, f"{verb}GuestRequest")
    call_verb = getattr(_guests(daemon), f"{verb}Guest")
    request = request_type(name=GUEST, request_id=REQUEST_ID)
    if verb != "Adopt":
        request.on_conflict = capability_pb2.CONFLICT_POLICY_REJECT
    answer = await call_verb(request)
    call, name = fakes.arguments(f"guests.{verb.lower()}")
    assert name == NAME
    assert call.reject_conflict == (verb != "Adopt")
    assert answer.operation.name == "operations/1"
    dry = await call_verb(request_type(name=GUEST, validate_only=True))
    assert not dry.HasField("operation")
    assert fakes.calls[-1][1][0].validate_only


async def test_the_fingerprint_tells_bodies_apart_and_ignores_the_request_id(daemon: Running, fakes: Fakes) -> None:
    stub = _guests(daemon)
    await stub.StartGuest(gs.StartGuestRequest(name=GUEST, request_id=REQUEST_ID))
    await stub.StartGuest(gs.StartGuestRequest(name=GUEST))
    await stub.StartGuest(gs.StartGuestRequest(name="hosts/a/guests/c"))
    await stub.PauseGuest(gs.PauseGuestRequest(name=GUEST))
    first, second, other, pause = (arguments[0].fingerprint for _, arguments in fakes.calls)
    assert first == second
    assert len({first, other, pause}) == 3


async def test_shutdown_delete_and_update(daemon: Running, fakes: Fakes) -> None:
    stub = _guests(daemon)
    await stub.ShutdownGuest(gs.ShutdownGuestRequest(name=GUEST, timeout_s=2.5, force_after_timeout=True))
    assert fakes.arguments("guests.shutdown")[1:] == (NAME, 2.5, True)
    await stub.DeleteGuest(gs.DeleteGuestRequest(name=GUEST, force=True, keep_disks=True, etag="e"))
    assert fakes.arguments("guests.delete")[1:] == (NAME, True, True, "e", None)
    changed = gs.UpdateGuestRequest(
        guest=guest_pb2.Guest(name=GUEST, display_name="new", labels={"a": "b"}), update_fields=["labels"], etag="e"
    )
    answer = await stub.UpdateGuest(changed)
    assert fakes.arguments("guests.update")[1:] == (NAME, None, {"a": "b"}, None, "e")
    assert dict(answer.guest.labels) == {"a": "b"}
    fakes.calls.clear()
    await stub.UpdateGuest(gs.UpdateGuestRequest(guest=guest_pb2.Guest(name=GUEST)))
    assert fakes.arguments("guests.update")[1:] == (NAME, "", {}, {}, "")


async def test_plan(daemon: Running, fakes: Fakes) -> None:
    spec = guest_pb2.Guest(spec=guest_pb2.GuestSpec())
    answer = await _guests(daemon).PlanGuest(gs.PlanGuestRequest(hosts=["hosts/a", "hosts/-"], guest=spec))
    assert fakes.arguments("guests.plan")[:2] == (["a", "-"], "plan")
    assert [plan.host for plan in answer.plans] == ["hosts/a", "hosts/-"]


async def test_wait(daemon: Running, fakes: Fakes) -> None:
    stub = _guests(daemon)
    answer = await stub.WaitGuest(gs.WaitGuestRequest(name=GUEST, state=guest_pb2.GUEST_STATE_RUNNING), timeout=30)
    name, state, condition, deleted, seconds = fakes.arguments("guests.wait")
    assert (name, state, condition, deleted) == (NAME, GuestState.RUNNING, None, False)
    assert 0 < seconds < 30, "bounded by the caller's deadline, before the default of 60"
    assert answer.guest.name == GUEST
    fakes.calls.clear()
    agent = guest_pb2.CONDITION_TYPE_AGENT_READY
    await stub.WaitGuest(gs.WaitGuestRequest(name=GUEST, condition=agent, timeout_s=5))
    assert fakes.arguments("guests.wait") == (NAME, None, ConditionType.AGENT_READY, False, 5.0)
    gone = await stub.WaitGuest(gs.WaitGuestRequest(name=GUEST, deleted=True))
    assert not gone.HasField("guest")


# ---------------------------------------------------------------------------------- other services

S = "/virtd.v1."
VOLUME = "hosts/a/pools/p/volumes/v"


@pytest.mark.parametrize(
    ("method", "request_", "answer", "service", "arguments"),
    [
        (
            "SnapshotService/CreateSnapshot",
            snapshot_pb2.CreateSnapshotRequest(parent=GUEST, snapshot_id="s", description="d", memory=True),
            snapshot_pb2.CreateSnapshotResponse,
            "snapshots.create",
            (NAME, SnapshotDraft("s", "d", memory=True)),
        ),
        (
            "SnapshotService/UpdateSnapshot",
            snapshot_pb2.UpdateSnapshotRequest(
                snapshot=snapshot_pb2.Snapshot(name=f"{GUEST}/snapshots/s", description="d")
            ),
            snapshot_pb2.UpdateSnapshotResponse,
            "snapshots.update",
            (NAME, "s", "d"),
        ),
        (
            "SnapshotService/RevertSnapshot",
            snapshot_pb2.RevertSnapshotRequest(name=f"{GUEST}/snapshots/s"),
            snapshot_pb2.RevertSnapshotResponse,
            "snapshots.revert",
            (NAME, "s"),
        ),
        (
            "SnapshotService/DeleteSnapshot",
            snapshot_pb2.DeleteSnapshotRequest(name=f"{GUEST}/snapshots/s"),
            snapshot_pb2.DeleteSnapshotResponse,
            "snapshots.delete",
            (NAME, "s", False),
        ),
        (
            "VolumeService/CreateVolume",
            storage_pb2.CreateVolumeRequest(parent="hosts/a/pools/p", volume_id="v", capacity_bytes=512),
            storage_pb2.CreateVolumeResponse,
            "storage.create_volume",
            ("a", "p", "v", 512, DiskFormat.QCOW2, Preallocation.NONE),
        ),
        (
            "VolumeService/DeleteVolume",
            storage_pb2.DeleteVolumeRequest(name=VOLUME),
            storage_pb2.DeleteVolumeResponse,
            "storage.delete_volume",
            ("a", "p", "v"),
        ),
        (
            "ImageService/ImportImage",
            image_pb2.ImportImageRequest(image_id="i", path="/x", format=guest_pb2.DISK_FORMAT_RAW),
            image_pb2.ImportImageResponse,
            "images.import_",
            ("i", "/x", DiskFormat.RAW, "", ""),
        ),
        (
            "ImageService/DeleteImage",
            image_pb2.DeleteImageRequest(name="images/i"),
            image_pb2.DeleteImageResponse,
            "images.delete",
            ("i",),
        ),
    ],
)
async def test_changes_elsewhere(
    daemon: Running, method: str, request_: Any, answer: Any, service: str, arguments: tuple[Any, ...]
) -> None:
    got = await daemon.unary(S + method, answer)(request_)
    assert daemon.fakes.arguments(service)[1:] == arguments
    assert got.operation.name == "operations/1"


@pytest.mark.parametrize(
    ("method", "request_", "answer", "field", "name"),
    [
        ("HostService/GetHost", host_pb2.GetHostRequest(name="hosts/a"), host_pb2.GetHostResponse, "host", "hosts/a"),
        (
            "HostService/ProbeHost",
            host_pb2.ProbeHostRequest(name="hosts/a"),
            host_pb2.ProbeHostResponse,
            "host",
            "hosts/a",
        ),
        (
            "HostService/AddHost",
            host_pb2.AddHostRequest(host_id="n", uri="qemu:///system"),
            host_pb2.AddHostResponse,
            "host",
            "hosts/n",
        ),
        (
            "SnapshotService/GetSnapshot",
            snapshot_pb2.GetSnapshotRequest(name=f"{GUEST}/snapshots/s"),
            snapshot_pb2.GetSnapshotResponse,
            "snapshot",
            f"{GUEST}/snapshots/s",
        ),
        (
            "PoolService/GetPool",
            storage_pb2.GetPoolRequest(name="hosts/a/pools/p"),
            storage_pb2.GetPoolResponse,
            "pool",
            "hosts/a/pools/p",
        ),
        (
            "VolumeService/GetVolume",
            storage_pb2.GetVolumeRequest(name=VOLUME),
            storage_pb2.GetVolumeResponse,
            "volume",
            VOLUME,
        ),
        (
            "NetworkService/GetNetwork",
            network_pb2.GetNetworkRequest(name="hosts/a/networks/n"),
            network_pb2.GetNetworkResponse,
            "network",
            "hosts/a/networks/n",
        ),
        (
            "ImageService/GetImage",
            image_pb2.GetImageRequest(name="images/i"),
            image_pb2.GetImageResponse,
            "image",
            "images/i",
        ),
    ],
)
async def test_single_resources(
    daemon: Running, method: str, request_: Any, answer: Any, field: str, name: str
) -> None:
    got = await daemon.unary(S + method, answer)(request_)
    assert getattr(got, field).name == name


@pytest.mark.parametrize(
    ("method", "request_", "answer", "field"),
    [
        ("HostService/ListHosts", host_pb2.ListHostsRequest(), host_pb2.ListHostsResponse, "hosts"),
        (
            "SnapshotService/ListSnapshots",
            snapshot_pb2.ListSnapshotsRequest(parent=GUEST),
            snapshot_pb2.ListSnapshotsResponse,
            "snapshots",
        ),
        (
            "PoolService/ListPools",
            storage_pb2.ListPoolsRequest(parent="hosts/a"),
            storage_pb2.ListPoolsResponse,
            "pools",
        ),
        (
            "VolumeService/ListVolumes",
            storage_pb2.ListVolumesRequest(parent="hosts/a/pools/p"),
            storage_pb2.ListVolumesResponse,
            "volumes",
        ),
        (
            "NetworkService/ListNetworks",
            network_pb2.ListNetworksRequest(parent="hosts/a"),
            network_pb2.ListNetworksResponse,
            "networks",
        ),
        ("ImageService/ListImages", image_pb2.ListImagesRequest(), image_pb2.ListImagesResponse, "images"),
        (
            "AuditService/ListAuditRecords",
            audit_pb2.ListAuditRecordsRequest(),
            audit_pb2.ListAuditRecordsResponse,
            "records",
        ),
        (
            "HostService/GetCapabilities",
            host_pb2.GetCapabilitiesRequest(name="hosts/a"),
            host_pb2.GetCapabilitiesResponse,
            "capabilities",
        ),
    ],
)
async def test_lists(daemon: Running, method: str, request_: Any, answer: Any, field: str) -> None:
    got = await daemon.unary(S + method, answer)(request_)
    assert len(getattr(got, field)) >= 1


async def test_remove_host(daemon: Running, fakes: Fakes) -> None:
    remove = daemon.unary(f"{S}HostService/RemoveHost", host_pb2.RemoveHostResponse)
    await remove(host_pb2.RemoveHostRequest(name="hosts/a", force=True))
    assert fakes.arguments("hosts.remove")[1:] == ("a", True)


async def test_server_info_says_who_calls(daemon: Running) -> None:
    info = daemon.unary(f"{S}ServerService/GetServerInfo", server_pb2.GetServerInfoResponse)
    answer = await info(server_pb2.GetServerInfoRequest())
    assert answer.server.caller == ME
    assert answer.server.backends[0].id == "kvm"


@pytest.mark.parametrize(("parent", "given"), [("hosts/-", "-"), ("hosts/a", "a"), (GUEST, NAME)])
async def test_metrics(daemon: Running, fakes: Fakes, parent: str, given: Any) -> None:
    get = daemon.unary(f"{S}MetricsService/GetMetrics", metrics_pb2.GetMetricsResponse)
    (sample,) = (await get(metrics_pb2.GetMetricsRequest(parent=parent))).metrics
    assert fakes.arguments("metrics.get") == (given,)
    assert (sample.name, sample.uid, sample.vcpus) == (GUEST, str(UID), 2)
    assert sample.HasField("cpu_time_s"), "a measured zero is not unknown"
    assert not sample.HasField("memory_rss_bytes")


async def test_exec(daemon: Running, fakes: Fakes) -> None:
    execute = daemon.unary(f"{S}AgentService/ExecCommand", agent_pb2.ExecCommandResponse)
    answer = await execute(
        agent_pb2.ExecCommandRequest(
            name=GUEST, path="/bin/sh", arguments=["-c", "\x1b[0m\n"], environment=["A=b"], input_data=b"\x00\xff"
        )
    )
    command = fakes.arguments("agents.execute")[2]
    assert (command.path, command.arguments, command.input_data) == ("/bin/sh", ("-c", "\x1b[0m\n"), b"\x00\xff")
    assert command.timeout_s == 60.0
    assert (answer.exit_code, answer.stdout) == (3, b"out")
    assert not answer.HasField("signal")


async def test_console_log_and_screenshot(daemon: Running, fakes: Fakes) -> None:
    read = daemon.unary(f"{S}ConsoleService/ReadConsoleLog", console_pb2.ReadConsoleLogResponse)
    answer = await read(console_pb2.ReadConsoleLogRequest(name=GUEST))
    assert fakes.arguments("consoles.read_log") == (NAME, None, 65536)
    assert (answer.offset, answer.data, answer.next_offset) == (5, b"hello", 10)
    take = daemon.unary(f"{S}ConsoleService/TakeScreenshot", console_pb2.TakeScreenshotResponse)
    picture = await take(console_pb2.TakeScreenshotRequest(name=GUEST))
    assert (picture.data, picture.mime_type) == (b"\x89PNG", "image/png")


async def test_pull(daemon: Running, fakes: Fakes) -> None:
    pull = daemon.unary(f"{S}EventService/PullEvents", event_pb2.PullEventsResponse)
    answer = await pull(event_pb2.PullEventsRequest(filter="f", resume_token="t", max_events=5000, wait_s=500))
    assert fakes.arguments("events.pull") == ("f", "t", 1000, 60.0)
    assert [one.revision for one in answer.events] == [1, 2]
    assert answer.events[0].guest.name == GUEST
    assert answer.resume_token == "t2"


# -------------------------------------------------------------------------------------- operations

LRO = "/google.longrunning.Operations/"


async def test_operations(daemon: Running, fakes: Fakes) -> None:
    fakes.operations = {"operations/1": finished("operations/1"), "operations/2": finished("operations/2")}
    fakes.results["operations/1"] = guest()
    get = daemon.unary(f"{LRO}GetOperation", operations_pb2.Operation)
    first = await get(operations_pb2.GetOperationRequest(name="operations/1"))
    answer = guest_pb2.Guest()
    assert first.done
    assert first.response.Unpack(answer)
    assert answer.name == GUEST
    second = await get(operations_pb2.GetOperationRequest(name="operations/2"))
    result = operation_pb2.OperationResult()
    assert second.response.Unpack(result)
    assert result.target == GUEST
    listing = daemon.unary(f"{LRO}ListOperations", operations_pb2.ListOperationsResponse)
    page = await listing(operations_pb2.ListOperationsRequest(name="operations", filter="verb=start", page_size=3))
    assert fakes.arguments("operations.list") == ("verb=start", 3, "")
    assert [one.name for one in page.operations] == ["operations/1", "operations/2"]
    cancel = daemon.unary(f"{LRO}CancelOperation", Empty)
    await cancel(operations_pb2.CancelOperationRequest(name="operations/1"))
    assert fakes.arguments("operations.cancel")[1] == "1"
    delete = daemon.unary(f"{LRO}DeleteOperation", Empty)
    await delete(operations_pb2.DeleteOperationRequest(name="operations/1"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await get(operations_pb2.GetOperationRequest(name="operations/1"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert error_of(caught.value).reason == "OPERATION_NOT_FOUND"


async def test_wait_operation_is_bounded_by_its_timeout_and_by_the_deadline(daemon: Running, fakes: Fakes) -> None:
    fakes.operations["operations/1"] = finished("operations/1", OperationState.RUNNING)
    wait = daemon.unary(f"{LRO}WaitOperation", operations_pb2.Operation)
    timeout = Duration(seconds=1, nanos=500_000_000)
    answer = await wait(operations_pb2.WaitOperationRequest(name="operations/1", timeout=timeout))
    assert fakes.arguments("operations.wait") == ("1", 1.5)
    assert not answer.done
    fakes.calls.clear()
    await wait(operations_pb2.WaitOperationRequest(name="operations/1"), timeout=20)
    assert 0 < fakes.arguments("operations.wait")[1] < 20
    fakes.calls.clear()
    await wait(operations_pb2.WaitOperationRequest(name="operations/1"))
    assert fakes.arguments("operations.wait")[1] == 3600.0


async def test_a_waiting_call_ends_with_its_caller(daemon: Running, fakes: Fakes) -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    async def hang(*_arguments: Any, **_named: Any) -> None:
        entered.set()
        try:
            await asyncio.sleep(60)
        finally:
            left.set()

    fakes.hooks["guests.wait"] = hang
    call = _guests(daemon).WaitGuest(gs.WaitGuestRequest(name=GUEST, deleted=True))
    await asyncio.wait_for(entered.wait(), 10)
    call.cancel()
    await asyncio.wait_for(left.wait(), 10)
    await until(lambda: ("finished", "/virtd.v1.GuestService/WaitGuest", "CANCELLED") in fakes.metrics)
