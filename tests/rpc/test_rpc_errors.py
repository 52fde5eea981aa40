"""Bad input and failures: each gets its row of the error table, and nothing leaks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
import structlog
from google.longrunning import operations_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from structlog.testing import capture_logs

from tests.rpc.rpc_fakes import REQUEST_ID, Running, error_of, guest, running, until
from virtd import errors
from virtd.auth import Policy
from virtd.model.names import GuestName
from virtd.rpc.interceptors import RPC_ID_KEY
from virtd.v1 import (
    agent_pb2,
    capability_pb2,
    event_pb2,
    guest_pb2,
    guest_service_pb2,
    guest_service_pb2_grpc,
    host_pb2,
    image_pb2,
    metrics_pb2,
    network_pb2,
    snapshot_pb2,
    storage_pb2,
)

GUEST = "hosts/a/guests/b"
GET_GUEST = "/virtd.v1.GuestService/GetGuest"
gs = guest_service_pb2
SPEC = guest_pb2.Guest(spec=guest_pb2.GuestSpec())
UNKNOWN = cast("Any", 77)


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path, max_concurrent_calls=3) as made:
        made.fakes.guests_by_name[GUEST] = guest()
        yield made


async def _fails(daemon: Running, method: str, request: Any, **options: Any) -> grpc.aio.AioRpcError:
    call = daemon.raw.unary_unary(method, request_serializer=lambda m: m.SerializeToString())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(request, **options)
    return caught.value


# --------------------------------------------------------------------------------------- bad input

LONG = "hosts/" + "h" * 100_000
BAD_NAMES = [
    "",
    "b",
    "hosts/a",
    "hosts/a/guests/",
    "hosts/a/guests/b/c",
    "hosts/a/guests/../b",
    "/hosts/a/guests/b",
    "hosts/a/guests/b\n",
    "hosts/a/guests/b\x00",
    "hosts/a/guests/<b/>",
    "hosts/a/guests/<b>",
    "hosts/-/guests/b",
    "hosts/a/guests/-",
    "Hosts/a/guests/b",
    "hosts/a/guests/\u202eb",
    f"{LONG}/guests/b",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=range(len(BAD_NAMES)))
async def test_malformed_names(daemon: Running, name: str) -> None:
    failure = await _fails(daemon, GET_GUEST, gs.GetGuestRequest(name=name))
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    record = error_of(failure)
    assert record.reason == "FIELD_INVALID"
    assert record.violations[0].field == "name"
    # What stands in a message can be shown anywhere.
    assert record.message.isprintable()
    assert record.message.isascii()
    assert len(record.message) < 400
    assert not daemon.fakes.calls


def _disk(**fields: Any) -> guest_pb2.Guest:
    return guest_pb2.Guest(
        spec=guest_pb2.GuestSpec(disks=[guest_pb2.DiskSpec(name="ok"), guest_pb2.DiskSpec(**fields)])
    )


def _create(**fields: Any) -> gs.CreateGuestRequest:
    return gs.CreateGuestRequest(**{"parent": "hosts/a", "guest_id": "b", "guest": SPEC, **fields})


V = "/virtd.v1."
CREATE = f"{V}GuestService/CreateGuest"
START = f"{V}GuestService/StartGuest"
BAD_REQUESTS: list[tuple[str, Message, str]] = [
    (CREATE, gs.CreateGuestRequest(parent="hosts/a", guest_id="b"), "guest"),
    (CREATE, _create(guest=guest_pb2.Guest(display_name="x")), "guest.spec"),
    (CREATE, _create(parent="hosts/-"), "parent"),
    (CREATE, _create(guest_id=""), "guest_id"),
    (CREATE, _create(guest_id="UPPER"), "guest_id"),
    (CREATE, _create(guest_id="a/b"), "guest_id"),
    (CREATE, _create(guest_id="a\n"), "guest_id"),
    (CREATE, _create(guest_id="x" * 64), "guest_id"),
    (CREATE, _create(request_id="not-a-uuid"), "request_id"),
    (CREATE, _create(request_id=REQUEST_ID + "0"), "request_id"),
    (CREATE, _create(guest=_disk(name="d", bus=UNKNOWN)), "guest.spec.disks[1].bus"),
    (CREATE, _create(guest=_disk(name="d\x00")), "guest.spec.disks[1].name"),
    (
        CREATE,
        _create(guest=_disk(name="d", host_file=guest_pb2.HostFileSource(path="/x"))),
        "guest.spec.disks[1].host_file.format",
    ),
    (CREATE, _create(guest=guest_pb2.Guest(spec=guest_pb2.GuestSpec(firmware=UNKNOWN))), "guest.spec.firmware"),
    (CREATE, _create(guest=guest_pb2.Guest(spec=guest_pb2.GuestSpec(), display_name="\x07")), "guest.display_name"),
    (CREATE, _create(guest=guest_pb2.Guest(spec=guest_pb2.GuestSpec(), labels={"k": "\x00"})), "guest.labels['k']"),
    (CREATE, _create(guest=guest_pb2.Guest(spec=guest_pb2.GuestSpec(), labels={"\x00": "v"})), "guest.labels"),
    (START, gs.StartGuestRequest(name=GUEST, on_conflict=UNKNOWN), "on_conflict"),
    (START, gs.StartGuestRequest(name=GUEST, request_id="{" + REQUEST_ID + "}"), "request_id"),
    (f"{V}GuestService/ShutdownGuest", gs.ShutdownGuestRequest(name=GUEST, timeout_s=-1), "timeout_s"),
    (f"{V}GuestService/ShutdownGuest", gs.ShutdownGuestRequest(name=GUEST, timeout_s=float("nan")), "timeout_s"),
    (f"{V}GuestService/ShutdownGuest", gs.ShutdownGuestRequest(name=GUEST, timeout_s=float("inf")), "timeout_s"),
    (f"{V}GuestService/ListGuests", gs.ListGuestsRequest(parent="hosts/a", page_size=-1), "page_size"),
    (f"{V}GuestService/ListGuests", gs.ListGuestsRequest(), "parent"),
    (f"{V}GuestService/UpdateGuest", gs.UpdateGuestRequest(), "guest.name"),
    (
        f"{V}GuestService/UpdateGuest",
        gs.UpdateGuestRequest(guest=guest_pb2.Guest(name=GUEST), update_fields=["labels", "status"]),
        "update_fields[1]",
    ),
    (f"{V}GuestService/PlanGuest", gs.PlanGuestRequest(guest=SPEC), "hosts"),
    (f"{V}GuestService/PlanGuest", gs.PlanGuestRequest(hosts=["hosts/a", "x"], guest=SPEC), "hosts[1]"),
    (f"{V}GuestService/WaitGuest", gs.WaitGuestRequest(name=GUEST), "target"),
    (f"{V}GuestService/WaitGuest", gs.WaitGuestRequest(name=GUEST, state=cast("Any", 0)), "state"),
    (f"{V}GuestService/WaitGuest", gs.WaitGuestRequest(name=GUEST, condition=UNKNOWN), "condition"),
    (f"{V}HostService/AddHost", host_pb2.AddHostRequest(host_id="a"), "uri"),
    (f"{V}HostService/AddHost", host_pb2.AddHostRequest(host_id="a b", uri="x:///"), "host_id"),
    (f"{V}HostService/GetHost", host_pb2.GetHostRequest(name="hosts/-"), "name"),
    (f"{V}SnapshotService/CreateSnapshot", snapshot_pb2.CreateSnapshotRequest(parent=GUEST), "snapshot_id"),
    (f"{V}SnapshotService/GetSnapshot", snapshot_pb2.GetSnapshotRequest(name=GUEST), "name"),
    (f"{V}PoolService/GetPool", storage_pb2.GetPoolRequest(name="hosts/a/pools/../x"), "name"),
    (
        f"{V}VolumeService/CreateVolume",
        storage_pb2.CreateVolumeRequest(parent="hosts/a/pools/p", volume_id="../x"),
        "volume_id",
    ),
    (
        f"{V}VolumeService/CreateVolume",
        storage_pb2.CreateVolumeRequest(parent="hosts/a/pools/p", volume_id="x", format=UNKNOWN),
        "format",
    ),
    (f"{V}NetworkService/GetNetwork", network_pb2.GetNetworkRequest(name="networks/n"), "name"),
    (f"{V}ImageService/ImportImage", image_pb2.ImportImageRequest(image_id="i", path="/x"), "format"),
    (f"{V}ImageService/ImportImage", image_pb2.ImportImageRequest(image_id="i"), "path"),
    (f"{V}ImageService/GetImage", image_pb2.GetImageRequest(name="images/a/b"), "name"),
    (f"{V}MetricsService/GetMetrics", metrics_pb2.GetMetricsRequest(parent="guests/b"), "parent"),
    (f"{V}AgentService/ExecCommand", agent_pb2.ExecCommandRequest(name=GUEST), "path"),
    (
        f"{V}AgentService/ExecCommand",
        agent_pb2.ExecCommandRequest(name=GUEST, path="/x", arguments=["\x00"]),
        "arguments[0]",
    ),
    (
        f"{V}AgentService/ExecCommand",
        agent_pb2.ExecCommandRequest(name=GUEST, path="/x", environment=["=v"]),
        "environment[0]",
    ),
    (
        f"{V}AgentService/ExecCommand",
        agent_pb2.ExecCommandRequest(name=GUEST, path="/x", input_data=b"x" * (2**20 + 1)),
        "input_data",
    ),
    (f"{V}EventService/PullEvents", event_pb2.PullEventsRequest(max_events=-1), "max_events"),
    (f"{V}EventService/PullEvents", event_pb2.PullEventsRequest(wait_s=float("-inf")), "wait_s"),
    ("/google.longrunning.Operations/GetOperation", operations_pb2.GetOperationRequest(name="operations/a/b"), "name"),
    ("/google.longrunning.Operations/ListOperations", operations_pb2.ListOperationsRequest(name="x"), "name"),
    ("/google.longrunning.Operations/ListOperations", operations_pb2.ListOperationsRequest(page_size=-3), "page_size"),
    (
        "/google.longrunning.Operations/WaitOperation",
        operations_pb2.WaitOperationRequest(name="operations/1", timeout=Duration(seconds=-5)),
        "timeout",
    ),
]


@pytest.mark.parametrize(
    ("method", "request_", "field"), BAD_REQUESTS, ids=[f"{m.rpartition('/')[2]}-{f}" for m, _, f in BAD_REQUESTS]
)
async def test_bad_requests_name_their_field(daemon: Running, method: str, request_: Any, field: str) -> None:
    failure = await _fails(daemon, method, request_)
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT, failure.details()
    record = error_of(failure)
    assert record.reason == "FIELD_INVALID"
    assert record.violations[0].field == field
    assert record.message.isprintable()
    assert not daemon.fakes.calls, "no service was asked"


async def test_all_violations_are_reported_at_once(daemon: Running) -> None:
    failure = await _fails(daemon, CREATE, _create(request_id="x", guest=_disk(name="\x01", bus=UNKNOWN)))
    assert {violation.field for violation in error_of(failure).violations} == {
        "request_id",
        "guest.spec.disks[1].name",
        "guest.spec.disks[1].bus",
    }


async def test_unknown_fields_are_refused(daemon: Running) -> None:
    """A newer client must not be told that something was done which this daemon does not know."""
    newer = guest_pb2.GuestSpec.FromString(b"\xc0\x3e\x01")  # field 1000 = 1
    failure = await _fails(daemon, CREATE, _create(guest=guest_pb2.Guest(spec=newer)))
    (violation,) = error_of(failure).violations
    assert violation.field == "guest.spec"
    assert "1000" in violation.description
    assert "virtd.v1.GuestSpec" in violation.description


async def test_a_request_that_is_no_message(daemon: Running) -> None:
    call = daemon.raw.unary_unary(GET_GUEST)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_of(caught.value).reason == "FIELD_INVALID"


async def test_tabs_and_newlines_are_text(daemon: Running) -> None:
    daemon.fakes.hooks.clear()
    stub = guest_service_pb2_grpc.GuestServiceStub(daemon.channel)
    await stub.CreateGuest(_create(guest=guest_pb2.Guest(spec=guest_pb2.GuestSpec(), annotations={"k": "a\tb\nc é"})))
    assert daemon.fakes.arguments("guests.create")[3].annotations == {"k": "a\tb\nc é"}


async def test_an_unknown_method_is_unimplemented(daemon: Running) -> None:
    failure = await _fails(daemon, "/virtd.v1.GuestService/DelGuest", gs.GetGuestRequest())
    assert failure.code() is grpc.StatusCode.UNIMPLEMENTED


# ----------------------------------------------------------------------------------------- failures


async def test_a_contract_error_arrives_whole(daemon: Running) -> None:
    error = errors.FailedPreconditionError(
        errors.INVALID_STATE, "it is stopped", resource=GUEST, allowed_actions=("start",), metadata={"state": "STOPPED"}
    )

    async def refuse(*_arguments: Any) -> None:
        raise error

    daemon.fakes.hooks["guests.pause"] = refuse
    failure = await _fails(daemon, f"{V}GuestService/PauseGuest", gs.PauseGuestRequest(name=GUEST))
    assert failure.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert failure.details() == "it is stopped"
    assert error_of(failure) == error.record
    assert daemon.fakes.audited[0]["outcome"] == "INVALID_STATE"


async def test_an_enormous_error_still_arrives(daemon: Running) -> None:
    """More than 8 KiB of trailers would reach the client as RESOURCE_EXHAUSTED without the cause."""
    violations = [errors.FieldViolation(f"guest.spec.disks[{n}]", "é" * 500, ("x" * 100,) * 20) for n in range(200)]
    error = errors.InvalidArgumentError(errors.FIELD_UNSUPPORTED, "\u2028é" * 5000, violations=violations)

    async def refuse(*_arguments: Any) -> None:
        raise error

    daemon.fakes.hooks["guests.start"] = refuse
    failure = await _fails(daemon, START, gs.StartGuestRequest(name=GUEST))
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_of(failure).reason == "FIELD_UNSUPPORTED"
    assert error_of(failure).violations[0].field == "guest.spec.disks[0]"


@pytest.mark.parametrize("error", [RuntimeError("a secret"), KeyError("a secret"), asyncio.CancelledError("a secret")])
async def test_a_defect_shows_its_id_and_not_its_text(daemon: Running, error: BaseException) -> None:
    async def broken(*_arguments: Any) -> None:
        raise error

    daemon.fakes.hooks["guests.start"] = broken
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        failure = await _fails(daemon, START, gs.StartGuestRequest(name=GUEST))
    assert failure.code() is grpc.StatusCode.INTERNAL
    record = error_of(failure)
    assert record.reason == "INTERNAL_ERROR"
    rpc_id = dict(failure.trailing_metadata() or ())[RPC_ID_KEY]
    assert isinstance(rpc_id, str)
    assert record.metadata["rpc_id"] == rpc_id
    assert rpc_id in record.message
    (line,) = [line for line in logs if line["log_level"] == "error"]
    assert line["exc_info"], "the log has the traceback"
    assert (line["rpc_id"], line["method"], line["caller"]) == (rpc_id, START, f"unix:uid={os.geteuid()}")
    assert "secret" not in f"{failure.details()}{failure.trailing_metadata()}{failure.debug_error_string()}"
    assert daemon.fakes.audited[0]["outcome"] == "INTERNAL_ERROR"


async def test_a_call_without_a_deadline_is_bounded(tmp_path: Path) -> None:
    async def hang(*_arguments: Any) -> None:
        await asyncio.sleep(60)

    async with running(tmp_path, max_call_s=0.2) as daemon:
        daemon.fakes.hooks["hosts.probe"] = hang
        failure = await _fails(daemon, f"{V}HostService/ProbeHost", host_pb2.ProbeHostRequest(name="hosts/a"))
        assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert error_of(failure).reason == "DEADLINE_EXCEEDED"


async def test_a_timeout_inside_a_service_is_a_defect_not_the_callers_deadline(daemon: Running) -> None:
    async def broken(*_arguments: Any) -> None:
        raise TimeoutError

    daemon.fakes.hooks["hosts.probe"] = broken
    failure = await _fails(daemon, f"{V}HostService/ProbeHost", host_pb2.ProbeHostRequest(name="hosts/a"))
    assert failure.code() is grpc.StatusCode.INTERNAL


async def test_the_callers_deadline_ends_the_call(daemon: Running) -> None:
    ended = asyncio.Event()

    async def hang(*_arguments: Any) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    daemon.fakes.hooks["hosts.probe"] = hang
    request = host_pb2.ProbeHostRequest(name="hosts/a")
    failure = await _fails(daemon, f"{V}HostService/ProbeHost", request, timeout=0.1)
    assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(ended.wait(), 10)


async def test_too_many_calls_are_refused_but_health_is_not(daemon: Running) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    entered = 0

    async def hang(*_arguments: Any, **_named: Any) -> None:
        nonlocal entered
        entered += 1
        await asyncio.sleep(60)

    daemon.fakes.hooks["guests.wait"] = hang
    stub = guest_service_pb2_grpc.GuestServiceStub(daemon.channel)
    waits = [stub.WaitGuest(gs.WaitGuestRequest(name=GUEST, deleted=True)) for _ in range(3)]
    await until(lambda: entered == 3)
    failure = await _fails(daemon, GET_GUEST, gs.GetGuestRequest(name=GUEST))
    assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error_of(failure).reason == "LIMIT_EXCEEDED"
    health = health_pb2_grpc.HealthStub(daemon.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
    for wait in waits:
        wait.cancel()
    await until(lambda: ("finished", "/virtd.v1.GuestService/WaitGuest", "CANCELLED") in daemon.fakes.metrics)


# --------------------------------------------------------------------------- authorisation and audit


async def test_everybody_else_may_ask_for_health_only(tmp_path: Path) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    class Nobody(Policy):
        def permissions(self, peer: Any) -> frozenset[Any]:
            return frozenset()

    async with running(tmp_path, policy=Nobody(own_uid=os.geteuid())) as daemon:
        health = health_pb2_grpc.HealthStub(daemon.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        # Before existence, before the form of the name, and also for what cannot be decoded.
        for name in (GUEST, "no such form\x00<b>"):
            failure = await _fails(daemon, START, gs.StartGuestRequest(name=name, request_id=REQUEST_ID))
            assert failure.code() is grpc.StatusCode.PERMISSION_DENIED
            assert error_of(failure).reason == "ACCESS_DENIED"
        call = daemon.raw.unary_unary(GET_GUEST)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff\xff")
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert not daemon.fakes.calls
        assert [record["outcome"] for record in daemon.fakes.audited] == ["ACCESS_DENIED"] * 3
        assert daemon.fakes.audited[0]["resource"] == GUEST
        assert daemon.fakes.audited[1]["resource"] == "no such form\\x00<b>"
        watch = daemon.raw.unary_stream("/virtd.v1.EventService/WatchEvents")(b"")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watch.read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_what_is_audited(daemon: Running) -> None:
    stub, fakes = guest_service_pb2_grpc.GuestServiceStub(daemon.channel), daemon.fakes
    await stub.GetGuest(gs.GetGuestRequest(name=GUEST))
    await stub.StartGuest(gs.StartGuestRequest(name=GUEST, validate_only=True))
    assert fakes.audited == [], "reads and checks change nothing"
    await stub.StartGuest(gs.StartGuestRequest(name=GUEST, request_id=REQUEST_ID))
    await stub.CreateGuest(_create(guest_id="new"))
    started, created = fakes.audited
    assert started == {
        "caller": f"unix:uid={os.geteuid()}",
        "method": START,
        "resource": GUEST,
        "request_id": REQUEST_ID,
        "outcome": "OK",
        "operation": "operations/1",
    }
    assert (created["resource"], created["operation"]) == ("hosts/a/guests/new", "operations/2")


async def test_metrics_and_the_rpc_id_of_a_success(daemon: Running) -> None:
    stub = guest_service_pb2_grpc.GuestServiceStub(daemon.channel)
    call = stub.GetGuest(gs.GetGuestRequest(name=GUEST))
    await call
    rpc_id = dict(await call.trailing_metadata())[RPC_ID_KEY]
    assert len(str(rpc_id)) == 16
    assert daemon.fakes.metrics == [("started", GET_GUEST), ("finished", GET_GUEST, "OK")]
    await _fails(daemon, GET_GUEST, gs.GetGuestRequest(name="hosts/a/guests/none"))
    assert daemon.fakes.metrics[-1] == ("finished", GET_GUEST, "NOT_FOUND")
    assert str(GuestName("a", "none")) == "hosts/a/guests/none"
    assert capability_pb2.CONFLICT_POLICY_REJECT == 2
