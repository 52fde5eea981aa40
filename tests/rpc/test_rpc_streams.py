"""Watches and consoles over the real server: order, ends, cancellation, draining."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.rpc.rpc_fakes import Running, batch, error_of, guest, running, until
from virtd.errors import (
    INVALID_STATE,
    RESUME_TOKEN_EXPIRED,
    WATCHER_TOO_SLOW,
    FailedPreconditionError,
    OutOfRangeError,
    ResourceExhaustedError,
)
from virtd.rpc.interceptors import RPC_ID_KEY
from virtd.service.console_hub import ConsoleChunk, ConsoleNotice
from virtd.service.events import WatchBookmark, WatchReset
from virtd.v1 import (
    console_pb2,
    console_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    guest_pb2,
    guest_service_pb2,
    guest_service_pb2_grpc,
)

GUEST = "hosts/a/guests/b"


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as made:
        made.fakes.guests_by_name[GUEST] = guest()
        yield made


def _watch(daemon: Running, **request: Any) -> Any:
    stub = event_pb2_grpc.EventServiceStub(daemon.channel)
    return stub.WatchEvents(event_pb2.WatchEventsRequest(**request))


async def _to_the_end(call: Any) -> tuple[list[Any], grpc.aio.AioRpcError]:
    """Read a stream to its end, which is an error."""
    seen: list[Any] = []
    try:
        while (answer := await call.read()) is not grpc.aio.EOF:
            seen.append(answer)
    except grpc.aio.AioRpcError as error:
        return seen, error
    raise AssertionError("the stream ended without an error")


async def _failure(call: Any) -> grpc.aio.AioRpcError:
    return (await _to_the_end(call))[1]


# ------------------------------------------------------------------------------------------- watch


async def test_watch(daemon: Running) -> None:
    call = _watch(daemon, filter="type=X", initial_state=True)
    first = await call.read()
    assert first.initial_done.resume_token == "t0"
    assert daemon.fakes.arguments("events.watch") == ("type=X", "", True, 15.0)
    daemon.fakes.watch_items.put_nowait(batch(1, 2))
    daemon.fakes.watch_items.put_nowait(WatchBookmark("t9"))
    daemon.fakes.watch_items.put_nowait(WatchReset("t10"))
    answer = await call.read()
    assert [one.revision for one in answer.events.events] == [1, 2]
    assert answer.events.resume_token == "t2"
    assert answer.events.events[0].guest.name == GUEST
    assert (await call.read()).bookmark.resume_token == "t9"
    assert (await call.read()).reset.resume_token == "t10"


async def test_watch_without_payload(daemon: Running) -> None:
    call = _watch(daemon, omit_payload=True)
    await call.read()
    daemon.fakes.watch_items.put_nowait(batch(1))
    (event,) = (await call.read()).events.events
    assert event.WhichOneof("payload") is None
    assert event.attributes["state"] == "RUNNING"


@pytest.mark.parametrize(("asked", "used"), [(0, 15.0), (0.2, 1.0), (7, 7.0), (1e9, 3600.0)])
async def test_heartbeats_have_bounds(daemon: Running, asked: float, used: float) -> None:
    await _watch(daemon, heartbeat_s=asked).read()
    assert daemon.fakes.arguments("events.watch")[3] == used


async def test_a_caller_that_goes_away_ends_its_watch(daemon: Running) -> None:
    call = _watch(daemon)
    await call.read()
    assert daemon.fakes.watchers == 1
    call.cancel()
    await until(lambda: daemon.fakes.watchers == 0)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OutOfRangeError(RESUME_TOKEN_EXPIRED, "too old"), grpc.StatusCode.OUT_OF_RANGE),
        (
            ResourceExhaustedError(WATCHER_TOO_SLOW, "slow", metadata={"resume_token": "t5"}),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ),
    ],
)
async def test_an_error_ends_a_watch(daemon: Running, error: Any, code: grpc.StatusCode) -> None:
    call = _watch(daemon)
    daemon.fakes.watch_items.put_nowait(error)
    failure = await _failure(call)
    assert failure.code() is code
    assert error_of(failure) == error.record
    assert daemon.fakes.watchers == 0


async def test_stopping_gives_watchers_their_last_token(daemon: Running) -> None:
    busy = _watch(daemon)
    await busy.read()
    daemon.fakes.watch_items.put_nowait(batch(4))
    assert (await busy.read()).events.resume_token == "t4"
    quiet = _watch(daemon)
    await quiet.read()
    stopping = asyncio.create_task(daemon.server.stop(5))
    for call, token in ((quiet, "t0"), (busy, "t4")):
        seen, failure = await _to_the_end(call)
        assert [answer.bookmark.resume_token for answer in seen] == [token]
        assert failure.code() is grpc.StatusCode.UNAVAILABLE
        assert error_of(failure).reason == "DAEMON_STOPPING"
    await asyncio.wait_for(stopping, 5)
    assert daemon.fakes.watchers == 0


async def test_a_log_that_closes_is_no_clean_end(daemon: Running) -> None:
    async def ends(*_arguments: Any) -> AsyncIterator[Any]:
        yield WatchBookmark("t3")

    daemon.fakes.hooks["events.watch"] = ends  # type: ignore[assignment]  # a generator, not an awaitable
    call = _watch(daemon)
    assert [(await call.read()).bookmark.resume_token for _ in range(2)] == ["t3", "t3"]
    failure = await _failure(call)
    assert error_of(failure).reason == "DAEMON_STOPPING"


async def test_a_watcher_that_does_not_read_holds_up_nobody(daemon: Running) -> None:
    """Flow control stops the server's writes to it; another caller is served."""
    slow = _watch(daemon)
    await slow.read()
    record = guest(GUEST, big="x" * 60_000)
    daemon.fakes.guests_by_name[GUEST] = record
    for n in range(300):
        daemon.fakes.watch_items.put_nowait(batch(*range(n * 20, n * 20 + 20)))
    stub = guest_service_pb2_grpc.GuestServiceStub(daemon.channel)
    for _ in range(20):
        answer = await stub.GetGuest(guest_service_pb2.GetGuestRequest(name=GUEST), timeout=10)
        assert answer.guest.labels["big"] == "x" * 60_000
    # What was sent meanwhile is there, in order, with nothing skipped.
    last = -1
    while last < 5999:
        for event in (await asyncio.wait_for(slow.read(), 10)).events.events:
            assert event.revision == last + 1
            last = event.revision


async def test_draining_ends_waits_but_lets_short_calls_finish(daemon: Running) -> None:
    waiting, working = asyncio.Event(), asyncio.Event()

    async def wait(*_arguments: Any, **_named: Any) -> None:
        waiting.set()
        await asyncio.sleep(60)

    async def work(*_arguments: Any, **_named: Any) -> None:
        working.set()
        await asyncio.sleep(0.3)

    daemon.fakes.hooks["guests.wait"] = wait
    daemon.fakes.hooks["guests.start"] = work
    stub = guest_service_pb2_grpc.GuestServiceStub(daemon.channel)
    long = stub.WaitGuest(guest_service_pb2.WaitGuestRequest(name=GUEST, deleted=True))
    short = stub.StartGuest(guest_service_pb2.StartGuestRequest(name=GUEST))
    await waiting.wait()
    await working.wait()
    await asyncio.wait_for(daemon.server.stop(10), 5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await long
    assert error_of(caught.value).reason == "DAEMON_STOPPING"
    assert error_of(caught.value).retry_after_s == 1.0
    assert not (await short).HasField("operation")


# ----------------------------------------------------------------------------------------- console


def _attach(daemon: Running) -> Any:
    return console_pb2_grpc.ConsoleServiceStub(daemon.channel).AttachConsole()


def _start(**fields: Any) -> console_pb2.AttachConsoleRequest:
    return console_pb2.AttachConsoleRequest(start=console_pb2.ConsoleStart(name=GUEST, **fields))


def _input(data: bytes) -> console_pb2.AttachConsoleRequest:
    return console_pb2.AttachConsoleRequest(input=data)


async def test_console(daemon: Running) -> None:
    fakes = daemon.fakes
    call = _attach(daemon)
    await call.write(_start(offset=1))
    attached = await call.read()
    assert (attached.attached.offset, attached.attached.truncated) == (1, True)
    await call.write(_input(b"ls\r"))
    await until(lambda: bytes(fakes.console_input) == b"ls\r")
    fakes.console_output.put_nowait(ConsoleChunk(1, b"bin\r\n"))
    fakes.console_output.put_nowait(ConsoleNotice("CLOSED"))
    answer = await call.read()
    assert (answer.output.offset, answer.output.data) == (1, b"bin\r\n")
    assert (await call.read()).notice.kind == "CLOSED"
    # Half-closing ends the input; the output goes on.
    await call.done_writing()
    fakes.console_output.put_nowait(ConsoleChunk(6, b"more"))
    assert (await call.read()).output.data == b"more"
    call.cancel()
    await asyncio.wait_for(fakes.console_closed.wait(), 10)
    await until(lambda: bool(fakes.audited))
    (record,) = fakes.audited
    assert (record["method"], record["resource"]) == ("/virtd.v1.ConsoleService/AttachConsole", GUEST)


async def test_offset_zero_is_not_now(daemon: Running) -> None:
    call = _attach(daemon)
    await call.write(_start(offset=0, read_only=True))
    await call.read()
    assert daemon.fakes.arguments("consoles.attach")[2:] == (True, 0, False)
    daemon.fakes.calls.clear()
    other = _attach(daemon)
    await other.write(_start())
    await other.read()
    assert daemon.fakes.arguments("consoles.attach")[2:] == (False, None, False)


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([], "start"),
        ([_input(b"x")], "start"),
        ([console_pb2.AttachConsoleRequest()], "start"),
        ([_start(), _start()], "start"),
        ([_start(read_only=True), _input(b"x")], "input"),
        ([_start(), _input(b"x" * 65537)], "input"),
        ([console_pb2.AttachConsoleRequest(start=console_pb2.ConsoleStart(name="a/b"))], "start.name"),
        ([console_pb2.AttachConsoleRequest(start=console_pb2.ConsoleStart(name=GUEST + "\n"))], "start.name"),
    ],
)
async def test_bad_console_requests(daemon: Running, requests: list[Any], field: str) -> None:
    call = _attach(daemon)
    for request in requests:
        await call.write(request)
    await call.done_writing()
    failure = await _failure(call)
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_of(failure).violations[0].field == field
    if len(requests) == 2:
        assert daemon.fakes.console_closed.is_set()


async def test_typing_at_a_stopped_guest_does_not_end_the_session(daemon: Running) -> None:
    fakes = daemon.fakes
    fakes.console_error = FailedPreconditionError(INVALID_STATE, "the guest is down")
    call = _attach(daemon)
    await call.write(_start())
    await call.read()
    await call.write(_input(b"lost"))
    fakes.console_output.put_nowait(ConsoleNotice("OPENED"))
    assert (await call.read()).notice.kind == "OPENED"
    fakes.console_error = None
    await call.write(_input(b"kept"))
    await until(lambda: bytes(fakes.console_input) == b"kept")
    call.cancel()


async def test_a_defect_in_the_console_ends_it_without_its_text(daemon: Running) -> None:
    daemon.fakes.console_error = RuntimeError("secret text")
    call = _attach(daemon)
    await call.write(_start())
    await call.read()
    await call.write(_input(b"x"))
    failure = await _failure(call)
    assert failure.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in f"{failure.details()}{failure.trailing_metadata()}"
    assert daemon.fakes.console_closed.is_set()


async def test_stopping_ends_consoles(daemon: Running) -> None:
    call = _attach(daemon)
    await call.write(_start())
    await call.read()
    await asyncio.wait_for(daemon.server.stop(10), 5)
    failure = await _failure(call)
    assert error_of(failure).reason == "DAEMON_STOPPING"
    assert RPC_ID_KEY in dict(failure.trailing_metadata() or ())
    assert daemon.fakes.console_closed.is_set()


def test_the_fake_guest_runs() -> None:
    # What test_watch reads as a payload is a real encoding.
    assert guest_pb2.GuestState.Name(guest_pb2.GUEST_STATE_RUNNING) == f"GUEST_STATE_{guest().status.state.value}"
