"""The Python client's unary calls: errors, repetition, pages, time limits.

Longer than 500 lines because every way in which a call can end is here, beside the others.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import pytest
import virtd_client
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from virtd_client import errors

from tests.rpc.client_flavours import connect
from tests.rpc.scripted_server import AWAY, Fail, ScriptedServer, operation, virtd_fail
from virtd import errors as daemon_errors
from virtd.v1 import (
    agent_pb2,
    audit_pb2,
    capability_pb2,
    guest_pb2,
    guest_service_pb2,
    host_pb2,
    image_pb2,
    metrics_pb2,
    network_pb2,
    server_pb2,
    snapshot_pb2,
    storage_pb2,
)

GUEST = "hosts/h/guests/g"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture(params=["async", "sync"])
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def client(flavour: str, server: ScriptedServer) -> AsyncIterator[Any]:
    async with connect(flavour, server.target, timeout_s=15) as client:
        yield client


def guest_answer(name: str = GUEST) -> guest_service_pb2.GetGuestResponse:
    return guest_service_pb2.GetGuestResponse(guest=guest_pb2.Guest(name=name))


# --- errors -----------------------------------------------------------------------------------------

_CODES = {
    "InvalidArgument": 3,
    "NotFound": 5,
    "AlreadyExists": 6,
    "FailedPrecondition": 9,
    "Unsupported": 9,
    "Conflict": 10,
    "Aborted": 10,
    "ResourceExhausted": 8,
    "OutOfRange": 11,
    "Unavailable": 14,
    "PermissionDenied": 7,
    "DeadlineExceeded": 4,
    "Cancelled": 1,
    "Internal": 13,
}


def test_every_kind_of_the_daemon_has_a_class() -> None:
    kinds = {reason.kind for reason in daemon_errors.catalogue().values()}
    assert kinds == set(_CODES)
    for kind in kinds:
        assert errors.KINDS[kind] is getattr(errors, kind)
        assert errors.KINDS[kind].default_code == _CODES[kind]


# DAEMON_STOPPING is an outage: it has a test of its own.
@pytest.mark.parametrize("reason", [r for r in daemon_errors.catalogue().values() if r.name != "DAEMON_STOPPING"])
async def test_every_reason_raises_its_class_at_once(server: ScriptedServer, reason: daemon_errors.Reason) -> None:
    server.on("GetGuest", virtd_fail(_CODES[reason.kind], reason.name, reason.kind))
    async with connect("async", server.target, timeout_s=15) as client:
        with pytest.raises(errors.VirtdError) as caught:
            await client.guests.get(GUEST)
    assert type(caught.value) is errors.KINDS[reason.kind]
    assert caught.value.reason == reason.name
    assert caught.value.code == _CODES[reason.kind]
    assert len(server.calls) == 1


async def test_the_record_wins_and_everything_in_it_arrives(server: ScriptedServer, client: Any) -> None:
    record = capability_pb2.ErrorRecord(
        kind="InvalidArgument",
        reason="FIELD_UNSUPPORTED",
        message="no such bus",
        metadata={"host": "h"},
        violations=[capability_pb2.FieldViolation(field="bus", description="bad", alternatives=["SATA", "IDE"])],
        native=capability_pb2.NativeError(call="virDomainDefine", code="1", message="boom"),
        resource=GUEST,
        retry_after_s=1.5,
        allowed_actions=["stop"],
    )
    info = error_details_pb2.ErrorInfo(reason="OTHER", domain="virtd")
    server.on("GetGuest", Fail(3, "shorter", (info, record)))
    with pytest.raises(errors.InvalidArgument, match=r"^FIELD_UNSUPPORTED: no such bus$") as caught:
        await client.guests.get(GUEST)
    error = caught.value
    assert error.metadata == {"host": "h"}
    assert error.violations == (errors.FieldViolation("bus", "bad", ("SATA", "IDE")),)
    assert error.alternatives == ("SATA", "IDE")
    assert error.native == errors.NativeError("virDomainDefine", "1", "boom")
    assert (error.resource, error.retry_after_s, error.allowed_actions) == (GUEST, 1.5, ("stop",))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.__dict__ == error.__dict__


async def test_standard_details_are_enough(server: ScriptedServer, client: Any) -> None:
    violation = error_details_pb2.PreconditionFailure.Violation
    server.on(
        "GetGuest",
        Fail(
            9,
            "wrong state",
            (
                error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=2, nanos=500_000_000)),
                error_details_pb2.ResourceInfo(resource_name=GUEST),
                error_details_pb2.PreconditionFailure(
                    violations=[
                        violation(type="STATE", subject=GUEST),
                        violation(type="ALLOWED_ACTION", subject="start"),
                        violation(type="ALLOWED_ACTION", subject="delete"),
                    ]
                ),
                error_details_pb2.BadRequest(
                    field_violations=[error_details_pb2.BadRequest.FieldViolation(field="f", description="d")]
                ),
                error_details_pb2.ErrorInfo(reason="INVALID_STATE", domain="virtd", metadata={"state": "STOPPED"}),
                guest_pb2.Guest(name="something that no client knows as a detail"),
            ),
        ),
    )
    with pytest.raises(errors.FailedPrecondition) as caught:
        await client.guests.get(GUEST)
    error = caught.value
    assert error.reason == "INVALID_STATE"
    assert error.metadata == {"state": "STOPPED"}
    assert error.allowed_actions == ("start", "delete")
    assert error.violations == (errors.FieldViolation("f", "d"),)
    assert (error.resource, error.retry_after_s) == (GUEST, 2.5)


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (9, "CAPABILITY_UNSUPPORTED", "Unsupported"),
        (9, "INVALID_STATE", "FailedPrecondition"),
        (10, "OPERATION_INTERRUPTED", "Aborted"),
        (10, "ETAG_MISMATCH", "Conflict"),
    ],
)
async def test_a_reason_tells_kinds_of_one_code_apart(
    server: ScriptedServer, client: Any, code: int, reason: str, kind: str
) -> None:
    server.on("GetGuest", Fail(code, "no", (error_details_pb2.ErrorInfo(reason=reason, domain="virtd"),)))
    with pytest.raises(errors.VirtdError) as caught:
        await client.guests.get(GUEST)
    assert type(caught.value) is errors.KINDS[kind]


async def test_a_stranger_s_error_keeps_its_code(server: ScriptedServer, client: Any) -> None:
    stranger = error_details_pb2.ErrorInfo(reason="QUOTA", domain="proxy.example")
    server.on("GetGuest", Fail(8, "too much", (stranger,)), Fail(16, "who?"), Fail(2, "oops"), Fail(12, "what?"))
    for expected, reason in (
        (errors.ResourceExhausted, "GRPC_RESOURCE_EXHAUSTED"),
        (errors.Unauthenticated, "GRPC_UNAUTHENTICATED"),
        (errors.Internal, "GRPC_UNKNOWN"),
        (errors.Unimplemented, "GRPC_UNIMPLEMENTED"),
    ):
        with pytest.raises(expected) as caught:
            await client.guests.get(GUEST)
        assert caught.value.reason == reason


async def test_damaged_details_do_not_hide_the_error(server: ScriptedServer, client: Any) -> None:
    async def damaged(_request: Any, context: Any) -> None:
        import grpc

        await context.abort(grpc.StatusCode.NOT_FOUND, "gone", (("grpc-status-details-bin", b"\xff\xff\xff"),))

    server.on("GetGuest", damaged)
    with pytest.raises(errors.NotFound, match="gone"):
        await client.guests.get(GUEST)


def test_an_error_beside_a_list_is_an_error_too() -> None:
    record = capability_pb2.ErrorRecord(kind="Unavailable", reason="HOST_UNREACHABLE", message="dead")
    error = virtd_client.from_record(record)
    assert type(error) is errors.Unavailable
    assert (error.reason, error.code) == ("HOST_UNREACHABLE", errors.Code.UNAVAILABLE)


# --- repetition and time limits -----------------------------------------------------------------------


async def test_a_mutation_is_repeated_with_its_request_id(server: ScriptedServer, client: Any) -> None:
    answer = guest_service_pb2.StartGuestResponse(operation=operation("operations/1"))
    server.on("StartGuest", AWAY, virtd_fail(14, "DAEMON_STOPPING", "Unavailable"), answer)
    assert (await client.guests.start(GUEST)).name == "operations/1"
    first, second, third = (call.request.request_id for call in server.calls)
    assert first == second == third
    assert UUID(first).version == 4

    server.on("StartGuest", answer)
    await client.guests.start(GUEST)
    await client.guests.start(GUEST, request_id="mine")
    *_, other, mine = (call.request.request_id for call in server.calls)
    assert other != first
    assert mine == "mine"


async def test_the_daemon_says_when_to_come_back(server: ScriptedServer, client: Any) -> None:
    server.on("GetGuest", virtd_fail(14, "DAEMON_STOPPING", "Unavailable", retry_after_s=0.7), guest_answer())
    began = time.monotonic()
    await client.guests.get(GUEST)
    assert time.monotonic() - began >= 0.7


async def test_what_could_happen_twice_is_not_repeated(server: ScriptedServer, client: Any) -> None:
    server.on("ExecCommand", AWAY)
    server.on("DeleteOperation", AWAY)
    with pytest.raises(errors.Unavailable):
        await client.agent.exec(GUEST, "/bin/true")
    with pytest.raises(errors.Unavailable):
        await client.operations.delete("operations/1")
    assert len(server.calls) == 2


async def test_a_call_finds_the_restarted_daemon(server: ScriptedServer, client: Any) -> None:
    server.on("GetGuest", guest_answer())
    await client.guests.get(GUEST)
    server.stop()
    call = asyncio.ensure_future(client.guests.get(GUEST))
    await asyncio.sleep(0.5)
    assert not call.done()
    server.start()
    assert (await call).name == GUEST


async def test_the_time_limit_holds_for_all_attempts_together(flavour: str, server: ScriptedServer) -> None:
    server.on("GetGuest", AWAY)
    async with connect(flavour, server.target, timeout_s=0.8) as client:
        began = time.monotonic()
        with pytest.raises(errors.Unavailable) as caught:
            await client.guests.get(GUEST)
    assert caught.value.reason == errors.DAEMON_UNREACHABLE
    assert caught.value.metadata["target"] == server.target
    assert time.monotonic() - began < 5
    assert len(server.calls) > 1


async def test_patience_with_an_absent_daemon_can_be_shorter(flavour: str, server: ScriptedServer) -> None:
    server.stop()
    async with connect(flavour, server.target, timeout_s=60, retry_s=0.3) as client:
        began = time.monotonic()
        with pytest.raises(errors.Unavailable) as caught:
            await client.guests.get(GUEST)
    assert caught.value.reason == errors.DAEMON_UNREACHABLE
    assert str(server.path) in caught.value.message
    assert time.monotonic() - began < 20


async def test_a_daemon_that_does_not_answer(server: ScriptedServer, client: Any) -> None:
    async def hang(_request: Any, _context: Any) -> None:
        await asyncio.sleep(60)

    server.on("GetGuest", hang)
    with pytest.raises(errors.WaitTimeout) as caught:
        await client.with_timeout(0.3).guests.get(GUEST)
    assert isinstance(caught.value, errors.DeadlineExceeded)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.reason == errors.CLIENT_TIMEOUT
    # It did not sit there after the client had gone.
    assert await asyncio.to_thread(server.calls[0].ended.wait, 10)


async def test_every_call_has_a_deadline(server: ScriptedServer, client: Any) -> None:
    left: list[float] = []

    async def look(_request: Any, context: Any) -> guest_service_pb2.GetGuestResponse:
        left.append(context.time_remaining())
        return guest_answer()

    server.on("GetGuest", look)
    await client.guests.get(GUEST)
    assert 0 < left[0] <= 16  # the header is rounded up


async def test_the_token_is_sent(flavour: str, server: ScriptedServer) -> None:
    server.on("GetGuest", guest_answer())
    async with connect(flavour, server.target, token="s3cret") as client:
        await client.guests.get(GUEST)
    assert server.calls[0].metadata["authorization"] == "Bearer s3cret"


async def test_a_large_answer_passes(server: ScriptedServer, client: Any) -> None:
    large = guest_pb2.Guest(name=GUEST, annotations={"a": "x" * (20 << 20)})
    server.on("GetGuest", guest_service_pb2.GetGuestResponse(guest=large))
    assert len((await client.guests.get(GUEST)).annotations["a"]) == 20 << 20


async def test_a_closed_client_says_so(server: ScriptedServer, client: Any) -> None:
    server.on("GetGuest", guest_answer())
    await client.guests.get(GUEST)
    await client.close()
    for call in (
        client.guests.get(GUEST),
        client.hosts.list(),
        client.events.pull(),
        client.console.attach(GUEST).open(),
    ):
        with pytest.raises(RuntimeError, match="this client is closed"):
            await call


async def test_closing_the_client_ends_a_call_under_way(server: ScriptedServer, client: Any) -> None:
    arrived = threading.Event()

    async def hang(_request: Any, _context: Any) -> None:
        arrived.set()
        await asyncio.sleep(60)

    server.on("GetGuest", hang)
    call = asyncio.ensure_future(client.guests.get(GUEST))
    assert await asyncio.to_thread(arrived.wait, 10)
    await client.close()
    # In the async flavour this must not look as if the waiting task was cancelled.
    with pytest.raises(errors.Cancelled):
        await call


# --- guests -----------------------------------------------------------------------------------------


def list_page(*names: str, token: str = "", resume: str = "", dead: tuple[str, ...] = ()) -> Any:
    return guest_service_pb2.ListGuestsResponse(
        guests=[guest_pb2.Guest(name=name) for name in names],
        next_page_token=token,
        resume_token=resume,
        host_errors=[guest_service_pb2.HostError(host=host) for host in dead],
    )


async def test_a_list_reads_all_pages(server: ScriptedServer, client: Any) -> None:
    server.on(
        "ListGuests",
        list_page("a", "b", token="p2", resume="r1", dead=("hosts/x",)),
        AWAY,
        list_page("c", token="p3", resume="r2", dead=("hosts/x", "hosts/y")),
        list_page(resume="r3"),
    )
    found = await client.guests.list("hosts/-", filter="labels.a=b", page_size=2)
    assert [guest.name for guest in found] == ["a", "b", "c"]
    assert len(found) == 3
    assert found[0].name == "a"
    assert [error.host for error in found.host_errors] == ["hosts/x", "hosts/y"]
    # Only the first page's token misses nothing of what changed while the others were read.
    assert found.resume_token == "r1"
    requests = [call.request for call in server.calls]
    assert [request.page_token for request in requests] == ["", "p2", "p2", "p3"]
    assert {(r.parent, r.filter, r.page_size) for r in requests} == {("hosts/-", "labels.a=b", 2)}


async def test_each_verb_sends_its_request(server: ScriptedServer, client: Any) -> None:
    verbs = ("start", "stop", "reboot", "reset", "pause", "resume", "suspend")
    for verb in verbs:
        method = f"{verb.capitalize()}Guest"
        response = getattr(guest_service_pb2, f"{method}Response")
        server.on(method, response(operation=operation("operations/1", verb=verb)))
        started = await getattr(client.guests, verb)(GUEST, on_conflict="reject")
        assert started.metadata.verb == verb
        request = server.calls[-1].request
        assert server.calls[-1].method == method
        assert (request.name, request.on_conflict) == (GUEST, capability_pb2.CONFLICT_POLICY_REJECT)
        assert not request.validate_only


async def test_guest_methods_carry_their_arguments(server: ScriptedServer, client: Any) -> None:
    pb = guest_service_pb2
    made = operation("operations/1")
    spec = guest_pb2.Guest(name=GUEST, spec=guest_pb2.GuestSpec(vcpus=2))
    server.on("CreateGuest", pb.CreateGuestResponse(operation=made))
    server.on("UpdateGuest", pb.UpdateGuestResponse(guest=spec))
    server.on("DeleteGuest", pb.DeleteGuestResponse(operation=made))
    server.on("ShutdownGuest", pb.ShutdownGuestResponse(operation=made))
    server.on("AdoptGuest", pb.AdoptGuestResponse(operation=made))
    server.on("PlanGuest", pb.PlanGuestResponse(plans=[pb.HostPlan(host="hosts/h")]))
    queue = capability_pb2.CONFLICT_POLICY_QUEUE

    await client.guests.create("hosts/h", "g", spec, start=True, request_id="r")
    await client.guests.update(spec, ["labels"], etag="e", request_id="r")
    await client.guests.delete(GUEST, force=True, keep_disks=True, etag="e", request_id="r")
    await client.guests.shutdown(GUEST, timeout_s=9, force_after_timeout=True, request_id="r")
    await client.guests.adopt(GUEST, request_id="r", validate_only=True)
    plans = await client.guests.plan(["hosts/h"], spec, guest_id="g")

    assert [plan.host for plan in plans] == ["hosts/h"]
    assert [call.request for call in server.calls] == [
        pb.CreateGuestRequest(parent="hosts/h", guest_id="g", guest=spec, start=True, request_id="r"),
        pb.UpdateGuestRequest(guest=spec, update_fields=["labels"], etag="e", request_id="r"),
        pb.DeleteGuestRequest(name=GUEST, force=True, keep_disks=True, etag="e", request_id="r", on_conflict=queue),
        pb.ShutdownGuestRequest(name=GUEST, timeout_s=9, force_after_timeout=True, request_id="r", on_conflict=queue),
        pb.AdoptGuestRequest(name=GUEST, request_id="r", validate_only=True),
        pb.PlanGuestRequest(hosts=["hosts/h"], guest=spec, guest_id="g"),
    ]


async def test_validate_only_gives_a_plan_and_no_operation(server: ScriptedServer, client: Any) -> None:
    plan = guest_service_pb2.HostPlan(host="hosts/h", native="<domain/>")
    server.on("CreateGuest", guest_service_pb2.CreateGuestResponse(plan=plan))
    checked = await client.guests.create("hosts/h", "g", guest_pb2.Guest(), validate_only=True)
    assert server.calls[0].request.validate_only
    assert checked.validated_only
    assert checked.done
    assert checked.name == ""
    assert checked.plan == plan
    with pytest.raises(ValueError, match="only validated"):
        await checked.result()


async def test_waiting_for_a_guest_survives_a_restart(server: ScriptedServer, client: Any) -> None:
    server.on("WaitGuest", AWAY, guest_service_pb2.WaitGuestResponse(guest=guest_pb2.Guest(name=GUEST)))
    assert (await client.guests.wait(GUEST, condition="agent-ready", timeout_s=10)).name == GUEST
    first, second = (call.request for call in server.calls)
    assert first.condition == guest_pb2.CONDITION_TYPE_AGENT_READY
    assert second.timeout_s < first.timeout_s <= 10

    server.on("WaitGuest", guest_service_pb2.WaitGuestResponse())
    assert await client.guests.wait(GUEST, deleted=True) is None
    server.on("WaitGuest", virtd_fail(4, "DEADLINE_EXCEEDED", "DeadlineExceeded"))
    with pytest.raises(errors.DeadlineExceeded) as caught:
        await client.guests.wait(GUEST, state="RUNNING")
    assert caught.value.reason == "DEADLINE_EXCEEDED"
    assert server.calls[-1].request.state == guest_pb2.GUEST_STATE_RUNNING


async def test_waiting_for_a_guest_ends_while_the_daemon_is_away(server: ScriptedServer, client: Any) -> None:
    server.on("WaitGuest", AWAY)
    with pytest.raises((errors.WaitTimeout, errors.Unavailable)):
        await client.guests.wait(GUEST, state="RUNNING", timeout_s=0.5)


@pytest.mark.parametrize("arguments", [{}, {"state": "RUNNING", "deleted": True}, {"state": "FLYING"}])
async def test_waiting_for_nonsense(server: ScriptedServer, client: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        await client.guests.wait(GUEST, **arguments)
    assert not server.calls


# --- the other resources --------------------------------------------------------------------------------


async def test_lists_of_the_other_resources_read_all_pages(server: ScriptedServer, client: Any) -> None:
    def script(method: str, response: Any, field: str, item: Any) -> None:
        server.on(
            method, response(**{field: [item(name="1")], "next_page_token": "t"}), response(**{field: [item(name="2")]})
        )

    script("ListHosts", host_pb2.ListHostsResponse, "hosts", host_pb2.Host)
    script("ListSnapshots", snapshot_pb2.ListSnapshotsResponse, "snapshots", snapshot_pb2.Snapshot)
    script("ListPools", storage_pb2.ListPoolsResponse, "pools", storage_pb2.Pool)
    script("ListVolumes", storage_pb2.ListVolumesResponse, "volumes", storage_pb2.Volume)
    script("ListNetworks", network_pb2.ListNetworksResponse, "networks", network_pb2.Network)
    script("ListImages", image_pb2.ListImagesResponse, "images", image_pb2.Image)
    for found in (
        await client.hosts.list(page_size=1),
        await client.snapshots.list(GUEST, page_size=1),
        await client.pools.list("hosts/h", page_size=1),
        await client.volumes.list("hosts/h/pools/p", page_size=1),
        await client.networks.list("hosts/h", page_size=1),
        await client.images.list(page_size=1),
    ):
        assert [item.name for item in found] == ["1", "2"]
    assert [call.request.page_token for call in server.calls] == ["", "t"] * 6
    assert {call.request.page_size for call in server.calls} == {1}


async def test_the_audit_list_stops_at_its_limit(server: ScriptedServer, client: Any) -> None:
    records = [audit_pb2.AuditRecord(sequence=n) for n in (9, 8)]
    server.on("ListAuditRecords", audit_pb2.ListAuditRecordsResponse(records=records, next_page_token="more"))
    assert [record.sequence for record in await client.audit.list(limit=3)] == [9, 8, 9]
    assert len(server.calls) == 2


async def test_the_other_methods_carry_their_arguments(server: ScriptedServer, client: Any) -> None:
    made = operation("operations/1")
    queue = capability_pb2.CONFLICT_POLICY_QUEUE
    server.on("GetServerInfo", server_pb2.GetServerInfoResponse(server=server_pb2.ServerInfo(version="1")))
    server.on("GetHost", host_pb2.GetHostResponse(host=host_pb2.Host(name="hosts/h")))
    server.on("AddHost", host_pb2.AddHostResponse(host=host_pb2.Host(name="hosts/n")))
    server.on("RemoveHost", host_pb2.RemoveHostResponse())
    server.on("ProbeHost", host_pb2.ProbeHostResponse(host=host_pb2.Host(name="hosts/h")))
    server.on(
        "GetCapabilities", host_pb2.GetCapabilitiesResponse(capabilities=[capability_pb2.Capability(id="guest.pause")])
    )
    server.on("CreateSnapshot", snapshot_pb2.CreateSnapshotResponse(operation=made))
    server.on("GetSnapshot", snapshot_pb2.GetSnapshotResponse(snapshot=snapshot_pb2.Snapshot(name="s")))
    server.on("RevertSnapshot", snapshot_pb2.RevertSnapshotResponse(operation=made))
    server.on("DeleteSnapshot", snapshot_pb2.DeleteSnapshotResponse(operation=made))
    server.on("GetPool", storage_pb2.GetPoolResponse(pool=storage_pb2.Pool(name="p")))
    server.on("CreateVolume", storage_pb2.CreateVolumeResponse(operation=made))
    server.on("GetVolume", storage_pb2.GetVolumeResponse(volume=storage_pb2.Volume(name="v")))
    server.on("DeleteVolume", storage_pb2.DeleteVolumeResponse(operation=made))
    server.on("GetNetwork", network_pb2.GetNetworkResponse(network=network_pb2.Network(name="n")))
    server.on("ImportImage", image_pb2.ImportImageResponse(operation=made))
    server.on("GetImage", image_pb2.GetImageResponse(image=image_pb2.Image(name="i")))
    server.on("DeleteImage", image_pb2.DeleteImageResponse(operation=made))
    server.on("GetMetrics", metrics_pb2.GetMetricsResponse(metrics=[metrics_pb2.GuestMetrics(name=GUEST)]))
    server.on("ExecCommand", agent_pb2.ExecCommandResponse(exit_code=0, stdout=b"hi"))

    assert (await client.server.info()).version == "1"
    assert (await client.hosts.get("hosts/h")).name == "hosts/h"
    assert (await client.hosts.add("n", "qemu:///system", labels={"a": "b"}, request_id="r")).name == "hosts/n"
    assert await client.hosts.remove("hosts/n", force=True, request_id="r") is None
    assert (await client.hosts.probe("hosts/h")).name == "hosts/h"
    assert [c.id for c in await client.hosts.capabilities("hosts/h")] == ["guest.pause"]
    await client.snapshots.create(GUEST, "s", description="d", memory=True, request_id="r")
    assert (await client.snapshots.get("s")).name == "s"
    await client.snapshots.revert("s", request_id="r")
    await client.snapshots.delete("s", request_id="r")
    assert (await client.pools.get("p")).name == "p"
    await client.volumes.create("p", "v", 512, format="raw", request_id="r")
    assert (await client.volumes.get("v")).name == "v"
    await client.volumes.delete("v", request_id="r")
    assert (await client.networks.get("n")).name == "n"
    await client.images.import_("i", "/i.qcow2", "qcow2", request_id="r")
    assert (await client.images.get("i")).name == "i"
    await client.images.delete("i", request_id="r")
    assert [m.name for m in await client.metrics.get()] == [GUEST]
    ran = await client.agent.exec(GUEST, "/bin/ls", ["-l"], environment={"A": "1"}, input_data=b"x", timeout_s=7)
    assert ran.stdout == b"hi"

    assert [call.request for call in server.calls] == [
        server_pb2.GetServerInfoRequest(),
        host_pb2.GetHostRequest(name="hosts/h"),
        host_pb2.AddHostRequest(host_id="n", uri="qemu:///system", labels={"a": "b"}, request_id="r"),
        host_pb2.RemoveHostRequest(name="hosts/n", force=True, request_id="r"),
        host_pb2.ProbeHostRequest(name="hosts/h"),
        host_pb2.GetCapabilitiesRequest(name="hosts/h"),
        snapshot_pb2.CreateSnapshotRequest(
            parent=GUEST,
            snapshot_id="s",
            description="d",
            memory=True,
            request_id="r",
            on_conflict=queue,
            location=snapshot_pb2.SNAPSHOT_LOCATION_AUTO,
        ),
        snapshot_pb2.GetSnapshotRequest(name="s"),
        snapshot_pb2.RevertSnapshotRequest(name="s", request_id="r", on_conflict=queue),
        snapshot_pb2.DeleteSnapshotRequest(name="s", request_id="r", on_conflict=queue),
        storage_pb2.GetPoolRequest(name="p"),
        storage_pb2.CreateVolumeRequest(
            parent="p", volume_id="v", capacity_bytes=512, format=guest_pb2.DISK_FORMAT_RAW, request_id="r"
        ),
        storage_pb2.GetVolumeRequest(name="v"),
        storage_pb2.DeleteVolumeRequest(name="v", request_id="r"),
        network_pb2.GetNetworkRequest(name="n"),
        image_pb2.ImportImageRequest(image_id="i", path="/i.qcow2", format=guest_pb2.DISK_FORMAT_QCOW2, request_id="r"),
        image_pb2.GetImageRequest(name="i"),
        image_pb2.DeleteImageRequest(name="i", request_id="r"),
        metrics_pb2.GetMetricsRequest(parent="hosts/-"),
        agent_pb2.ExecCommandRequest(
            name=GUEST, path="/bin/ls", arguments=["-l"], environment=["A=1"], input_data=b"x", timeout_s=7
        ),
    ]
