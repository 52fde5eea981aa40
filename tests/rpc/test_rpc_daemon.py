"""The real daemon on a fake host, over its public socket: what the fakes of the other tests stand for."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.longrunning import operations_pb2

from tests.rpc.rpc_fakes import error_of
from virtd.config.model import Config, DiscoveryConfig, HostEntry, ServerConfig, StateConfig, StorageConfig
from virtd.daemon import Daemon
from virtd.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    audit_pb2,
    audit_pb2_grpc,
    console_pb2,
    console_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    guest_pb2,
    guest_service_pb2,
    guest_service_pb2_grpc,
    host_pb2,
    host_pb2_grpc,
    snapshot_pb2,
    snapshot_pb2_grpc,
)

gs = guest_service_pb2
GUEST = "hosts/lab/guests/one"
SPEC = guest_pb2.GuestSpec(
    memory_bytes=256 << 20,
    disks=[guest_pb2.DiskSpec(name="root", blank=guest_pb2.BlankSource(capacity_bytes=1 << 30))],
)


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    with tempfile.TemporaryDirectory(prefix="virtd-") as name:
        root = Path(name)
        config = Config(
            server=ServerConfig(socket=root / "virtd.sock", socket_mode=0o600, drain_timeout_s=5),
            state=StateConfig(directory=root / "state", runtime_directory=root / "run"),
            storage=StorageConfig(allowed_directories=()),
            hosts=(HostEntry(id="lab", uri=f"fake:///{uuid4().hex}"),),
            discovery=DiscoveryConfig(enabled=False),
        )
        async with Daemon(config).running(), grpc.aio.insecure_channel(f"unix:{root}/virtd.sock") as made:
            hosts = host_pb2_grpc.HostServiceStub(made)
            for _ in range(200):
                host = (await hosts.GetHost(host_pb2.GetHostRequest(name="hosts/lab"))).host
                if host.state == host_pb2.HOST_STATE_CONNECTED:
                    break
                await asyncio.sleep(0.05)
            assert host.state == host_pb2.HOST_STATE_CONNECTED, host.last_error
            yield made


async def _ended(channel: Any, operation: operations_pb2.Operation) -> operations_pb2.Operation:
    wait = channel.unary_unary(
        "/google.longrunning.Operations/WaitOperation",
        request_serializer=operations_pb2.WaitOperationRequest.SerializeToString,
        response_deserializer=operations_pb2.Operation.FromString,
    )
    ended = await wait(operations_pb2.WaitOperationRequest(name=operation.name), timeout=30)
    assert ended.done
    return ended


async def _created(channel: Any) -> None:
    request = gs.CreateGuestRequest(parent="hosts/lab", guest_id="one", guest=guest_pb2.Guest(spec=SPEC), start=True)
    answer = await guest_service_pb2_grpc.GuestServiceStub(channel).CreateGuest(request)
    ended = await _ended(channel, answer.operation)
    guest = guest_pb2.Guest()
    assert ended.response.Unpack(guest), ended.error
    assert guest.status.state == guest_pb2.GUEST_STATE_RUNNING


async def test_a_guests_life(channel: grpc.aio.Channel) -> None:
    guests: Any = guest_service_pb2_grpc.GuestServiceStub(channel)
    events: Any = event_pb2_grpc.EventServiceStub(channel).WatchEvents(
        event_pb2.WatchEventsRequest(filter="type=GUEST_STATE_CHANGED")
    )
    assert (await events.read()).bookmark.resume_token
    await _created(channel)
    await guests.WaitGuest(gs.WaitGuestRequest(name=GUEST, condition=guest_pb2.CONDITION_TYPE_AGENT_READY), timeout=30)
    listed = await guests.ListGuests(gs.ListGuestsRequest(parent="hosts/-"))
    assert [one.name for one in listed.guests] == [GUEST]

    result = await agent_pb2_grpc.AgentServiceStub(channel).ExecCommand(
        agent_pb2.ExecCommandRequest(name=GUEST, path="/bin/echo", arguments=["hello"])
    )
    assert (result.exit_code, result.stdout) == (0, b"hello\n")

    snapshots: Any = snapshot_pb2_grpc.SnapshotServiceStub(channel)
    taken = await snapshots.CreateSnapshot(
        snapshot_pb2.CreateSnapshotRequest(parent=GUEST, snapshot_id="s", memory=True)
    )
    snapshot = snapshot_pb2.Snapshot()
    assert (await _ended(channel, taken.operation)).response.Unpack(snapshot)
    assert snapshot.kind == snapshot_pb2.SNAPSHOT_KIND_DISK_AND_MEMORY

    deleted = await guests.DeleteGuest(gs.DeleteGuestRequest(name=GUEST, force=True))
    assert not (await _ended(channel, deleted.operation)).HasField("error")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await guests.GetGuest(gs.GetGuestRequest(name=GUEST))
    assert error_of(caught.value).reason == "GUEST_NOT_FOUND"

    seen: list[str] = []
    while "STOPPED" not in seen[-1:] or "RUNNING" not in seen:
        answer = await asyncio.wait_for(events.read(), 20)
        seen += [one.attributes["state"] for one in answer.events.events if one.guest.name == GUEST]
    events.cancel()

    audit = await audit_pb2_grpc.AuditServiceStub(channel).ListAuditRecords(audit_pb2.ListAuditRecordsRequest())
    assert [record.method.rpartition("/")[2] for record in audit.records] == [
        "DeleteGuest",
        "CreateSnapshot",
        "ExecCommand",
        "CreateGuest",
    ]
    assert all(record.outcome == "OK" for record in audit.records)


async def test_a_repeated_request_is_the_same_operation(channel: grpc.aio.Channel) -> None:
    guests: Any = guest_service_pb2_grpc.GuestServiceStub(channel)
    await _created(channel)
    request = gs.PauseGuestRequest(name=GUEST, request_id=str(uuid4()))
    first = await guests.PauseGuest(request)
    again = await guests.PauseGuest(request)
    assert first.operation.name == again.operation.name
    # The same id with another body, and with another verb whose body is the same.
    for verb, body in (
        ("PauseGuest", gs.PauseGuestRequest(name="hosts/lab/guests/two", request_id=request.request_id)),
        ("ResumeGuest", gs.ResumeGuestRequest(name=GUEST, request_id=request.request_id)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(guests, verb)(body)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error_of(caught.value).reason == "REQUEST_ID_REUSED"


async def test_errors_of_a_real_daemon(channel: grpc.aio.Channel) -> None:
    guests: Any = guest_service_pb2_grpc.GuestServiceStub(channel)
    await _created(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await guests.DeleteGuest(gs.DeleteGuestRequest(name=GUEST))
    record = error_of(caught.value)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert record.reason == "INVALID_STATE"
    assert "pause" in record.allowed_actions
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await guests.UpdateGuest(gs.UpdateGuestRequest(guest=guest_pb2.Guest(name=GUEST, display_name="x"), etag="old"))
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert error_of(caught.value).reason == "ETAG_MISMATCH"
    disk = guest_pb2.DiskSpec(name="d", host_file=guest_pb2.HostFileSource(path="/etc/passwd", format=2))  # type: ignore[arg-type]  # RAW, by its number
    bad = guest_pb2.Guest(spec=guest_pb2.GuestSpec(memory_bytes=1 << 28, disks=[disk]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await guests.CreateGuest(gs.CreateGuestRequest(parent="hosts/lab", guest_id="bad", guest=bad))
    assert error_of(caught.value).reason == "PATH_NOT_ALLOWED"


async def test_the_console_of_a_real_daemon(channel: grpc.aio.Channel) -> None:
    await _created(channel)
    call: Any = console_pb2_grpc.ConsoleServiceStub(channel).AttachConsole()
    await call.write(console_pb2.AttachConsoleRequest(start=console_pb2.ConsoleStart(name=GUEST, offset=0)))
    assert (await call.read()).HasField("attached")
    printed = b""
    while b"fake: ready" not in printed:
        answer = await asyncio.wait_for(call.read(), 20)
        printed += answer.output.data
    await call.write(console_pb2.AttachConsoleRequest(input=b"echo typed\r"))
    while b"typed" not in printed:
        printed += (await asyncio.wait_for(call.read(), 20)).output.data
    call.cancel()
