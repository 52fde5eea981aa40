"""The Python client's operations: waiting, progress, cancel, ends of every kind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from google.longrunning import operations_pb2
from google.protobuf import any_pb2, empty_pb2
from virtd_client import errors

from tests.rpc.client_flavours import connect
from tests.rpc.scripted_server import AWAY, ScriptedServer, operation, status, virtd_fail
from virtd.v1 import capability_pb2, guest_pb2, guest_service_pb2, operation_pb2, snapshot_pb2

GUEST = "hosts/h/guests/g"
NAME = "operations/1"
PENDING = operation(NAME, verb="start", revision=1)
DONE = operation(NAME, verb="start", revision=9, response=guest_pb2.Guest(name=GUEST))


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        server.on("StartGuest", guest_service_pb2.StartGuestResponse(operation=PENDING))
        yield server


@pytest.fixture(params=["async", "sync"])
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def client(flavour: str, server: ScriptedServer) -> AsyncIterator[Any]:
    async with connect(flavour, server.target, timeout_s=15) as client:
        yield client


async def slowly(request: Any, _context: Any) -> operations_pb2.Operation:
    """As the daemon waits: until the caller's time is over."""
    await asyncio.sleep(request.timeout.ToTimedelta().total_seconds())
    return PENDING


async def test_waiting_gives_the_resource(server: ScriptedServer, client: Any) -> None:
    server.on("WaitOperation", PENDING, DONE)
    started = await client.guests.start(GUEST)
    assert (started.name, started.done, started.validated_only, started.error) == (NAME, False, False, None)
    assert started.metadata.verb == "start"
    guest = await started.result()
    assert isinstance(guest, guest_pb2.Guest)
    assert guest.name == GUEST
    assert started.done
    assert started.metadata.revision == 9
    waits = server.calls_of("WaitOperation")
    assert [call.request.name for call in waits] == [NAME, NAME]
    assert waits[0].request.timeout.seconds == 30
    # What is known needs no call.
    assert (await started.result()).name == GUEST
    assert len(server.calls_of("WaitOperation")) == 2


async def test_an_async_operation_is_awaitable(server: ScriptedServer) -> None:
    server.on("WaitOperation", DONE)
    async with connect("async", server.target) as client:
        assert (await (await client.guests.start(GUEST))).name == GUEST


async def test_an_end_that_came_at_once_needs_no_wait(server: ScriptedServer, client: Any) -> None:
    server.on("StartGuest", guest_service_pb2.StartGuestResponse(operation=DONE))
    assert (await (await client.guests.start(GUEST)).result()).name == GUEST
    assert len(server.calls) == 1


async def test_a_failed_operation_raises_its_error(server: ScriptedServer, client: Any) -> None:
    record = capability_pb2.ErrorRecord(
        kind="DeadlineExceeded", reason="SHUTDOWN_IGNORED", message="still running", resource=GUEST
    )
    server.on("WaitOperation", operation(NAME, error=status(4, "still running", record)))
    started = await client.guests.start(GUEST)
    for _ in range(2):
        with pytest.raises(errors.DeadlineExceeded) as caught:
            await started.result()
        # Not to be taken for this client's own time limit.
        assert not isinstance(caught.value, errors.WaitTimeout)
        assert (caught.value.reason, caught.value.resource) == ("SHUTDOWN_IGNORED", GUEST)
    assert started.done
    assert type(started.error) is errors.DeadlineExceeded


async def test_cancel(server: ScriptedServer, client: Any) -> None:
    cancelled = asyncio.Event()

    async def cancel(_request: Any, _context: Any) -> empty_pb2.Empty:
        cancelled.set()
        return empty_pb2.Empty()

    async def wait(_request: Any, _context: Any) -> operations_pb2.Operation:
        await cancelled.wait()
        return operation(NAME, error=status(1, "cancelled", capability_pb2.ErrorRecord(kind="Cancelled")))

    server.on("CancelOperation", AWAY, cancel)
    server.on("WaitOperation", wait)
    started = await client.guests.start(GUEST)
    result = asyncio.ensure_future(started.result())
    await asyncio.sleep(0.2)
    assert not result.done()
    await started.cancel()
    with pytest.raises(errors.Cancelled):
        await result
    assert {call.request.name for call in server.calls_of("CancelOperation")} == {NAME}


async def test_an_operation_that_cannot_be_cancelled(server: ScriptedServer, client: Any) -> None:
    server.on("CancelOperation", virtd_fail(9, "OPERATION_NOT_CANCELLABLE", "FailedPrecondition"))
    with pytest.raises(errors.FailedPrecondition, match="OPERATION_NOT_CANCELLABLE"):
        await (await client.guests.start(GUEST)).cancel()


async def test_a_wait_that_takes_too_long(server: ScriptedServer, client: Any) -> None:
    server.on("WaitOperation", slowly)
    started = await client.guests.start(GUEST)
    with pytest.raises(errors.WaitTimeout, match=r"operations/1 has not ended after 0\.4 s; it goes on") as caught:
        await started.result(timeout_s=0.4)
    assert (caught.value.reason, caught.value.resource) == (errors.CLIENT_TIMEOUT, NAME)
    assert not started.done
    # Waiting again is allowed.
    server.on("WaitOperation", DONE)
    assert (await started.result(timeout_s=10)).name == GUEST


async def test_a_wait_on_a_hung_daemon_ends_in_time(server: ScriptedServer, client: Any) -> None:
    async def hang(_request: Any, _context: Any) -> None:
        await asyncio.sleep(60)

    server.on("WaitOperation", hang)
    started = await client.guests.start(GUEST)
    began = time.monotonic()
    with pytest.raises(errors.WaitTimeout):
        await started.result(timeout_s=0.4)
    assert time.monotonic() - began < 20


async def test_a_wait_survives_a_restart(server: ScriptedServer, client: Any) -> None:
    server.on("WaitOperation", slowly, virtd_fail(14, "DAEMON_STOPPING", "Unavailable"), DONE)
    started = await client.guests.start(GUEST)
    result = asyncio.ensure_future(started.result(timeout_s=30))
    await asyncio.sleep(0.3)
    await asyncio.to_thread(server.stop)
    await asyncio.sleep(0.5)
    assert not result.done()
    await asyncio.to_thread(server.start)
    assert (await result).name == GUEST


async def test_a_wait_gives_up_as_the_client_was_told(flavour: str, server: ScriptedServer) -> None:
    server.on("WaitOperation", AWAY)
    async with connect(flavour, server.target, retry_s=0.3) as client:
        with pytest.raises(errors.Unavailable):
            await (await client.guests.start(GUEST)).result()
    assert len(server.calls_of("WaitOperation")) > 1


async def test_a_forgotten_operation_is_not_waited_for(server: ScriptedServer, client: Any) -> None:
    server.on("WaitOperation", virtd_fail(5, "OPERATION_NOT_FOUND", "NotFound"))
    with pytest.raises(errors.NotFound):
        await (await client.guests.start(GUEST)).result()


async def test_progress_shows_each_change_once_and_the_end(server: ScriptedServer, client: Any) -> None:
    steps = [
        operation(NAME, revision=1),
        operation(NAME, revision=2, stage="copy", fraction=0.5),
        AWAY,
        operation(NAME, revision=2, stage="copy", fraction=0.5),
        operation(NAME, revision=3, stage="define"),
        DONE,
    ]
    server.on("WaitOperation", *steps)
    started = await client.guests.start(GUEST)
    seen = [metadata async for metadata in started.progress(interval_s=0.05)]
    assert [metadata.revision for metadata in seen] == [1, 2, 3, 9]
    assert seen[1].fraction == 0.5
    assert (await started.result()).name == GUEST
    assert len(server.calls_of("WaitOperation")) == len(steps)


async def test_progress_does_not_raise_the_operation_s_error(server: ScriptedServer, client: Any) -> None:
    server.on("WaitOperation", operation(NAME, revision=2, error=status(13, "boom")))
    started = await client.guests.start(GUEST)
    assert [m.revision async for m in started.progress()] == [1, 2]
    with pytest.raises(errors.Internal, match="boom"):
        await started.result()


async def test_progress_of_a_daemon_that_does_not_wait_is_no_busy_loop(server: ScriptedServer, client: Any) -> None:
    server.on("WaitOperation", *[PENDING] * 4, DONE)
    started = await client.guests.start(GUEST)
    began = time.monotonic()
    assert [m.revision async for m in started.progress(interval_s=0.1)] == [1, 9]
    assert time.monotonic() - began >= 0.4


async def test_progress_of_what_has_ended(server: ScriptedServer, client: Any) -> None:
    server.on("GetOperation", DONE)
    ended = await client.operations.get(NAME)
    assert [m.revision async for m in ended.progress()] == [9]


async def test_refresh(server: ScriptedServer, client: Any) -> None:
    server.on("GetOperation", operation(NAME, revision=2), DONE)
    started = await client.guests.start(GUEST)
    assert (await started.refresh()).revision == 2
    assert (await started.refresh()).revision == 9
    assert started.done
    assert (await started.refresh()).revision == 9
    assert len(server.calls_of("GetOperation")) == 2


@pytest.mark.parametrize(
    "response",
    [snapshot_pb2.Snapshot(name="s"), empty_pb2.Empty(), any_pb2.Any(type_url="x/virtd.v1.Guest", value=b"\xff")],
)
async def test_a_response_of_the_wrong_type_is_an_error(server: ScriptedServer, client: Any, response: Any) -> None:
    wrong = operation(NAME, response=response)
    if isinstance(response, any_pb2.Any):
        wrong.response.CopyFrom(response)
    server.on("WaitOperation", wrong)
    with pytest.raises(errors.Internal, match=r"virtd\.v1\.Guest|does not know"):
        await (await client.guests.start(GUEST)).result()


async def test_operations_by_name(server: ScriptedServer, client: Any) -> None:
    result = operation_pb2.OperationResult(target=GUEST)
    server.on("GetOperation", PENDING)
    server.on("WaitOperation", operation(NAME, response=result))
    server.on("CancelOperation", empty_pb2.Empty())
    server.on("DeleteOperation", empty_pb2.Empty())
    server.on(
        "ListOperations",
        operations_pb2.ListOperationsResponse(operations=[PENDING, DONE], next_page_token="t"),
        operations_pb2.ListOperationsResponse(operations=[DONE]),
    )
    assert (await client.operations.get(NAME)).name == NAME
    assert await client.operations.wait(NAME) == result
    await client.operations.cancel(NAME)
    await client.operations.delete(NAME)
    assert [op.done for op in await client.operations.list(filter="done=false", page_size=2)] == [False, True, True]
    requests = [call.request for call in server.calls_of("ListOperations")]
    assert [(r.filter, r.page_size, r.page_token) for r in requests] == [("done=false", 2, ""), ("done=false", 2, "t")]
    assert server.calls_of("CancelOperation")[0].request.name == NAME
    assert server.calls_of("DeleteOperation")[0].request.name == NAME


async def test_a_cancelled_task_does_not_cancel_the_operation(server: ScriptedServer) -> None:
    server.on("WaitOperation", slowly)
    async with connect("async", server.target) as client:
        waiting = asyncio.ensure_future((await client.guests.start(GUEST)).result())
        await asyncio.sleep(0.2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await asyncio.to_thread(server.calls_of("WaitOperation")[0].ended.wait, 10)
    assert not server.calls_of("CancelOperation")


def test_threads_share_a_sync_client(server: ScriptedServer) -> None:
    import virtd_client

    server.on("WaitOperation", DONE)
    names: list[str] = []
    with virtd_client.Client.connect(server.target) as client:

        def work() -> None:
            names.append(client.guests.start(GUEST).result().name)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert names == [GUEST] * 8
