"""The Python client's streams: the watch that resumes by itself, and consoles.

Longer than 500 lines because the watch and the console share one scripted network that breaks.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import virtd_client
from virtd_client import ConsoleData, ConsoleNotice, InitialDone, Reset, errors

from tests.rpc.client_flavours import connect, take
from tests.rpc.scripted_server import AWAY, Fail, Proxy, ScriptedServer, forever, stream, virtd_fail
from virtd.v1 import console_pb2, event_pb2

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


def events(*revisions: int, token: str | None = None) -> event_pb2.WatchEventsResponse:
    batch = [event_pb2.Event(revision=revision) for revision in revisions]
    token = f"t{revisions[-1]}" if token is None else token
    return event_pb2.WatchEventsResponse(events=event_pb2.EventBatch(events=batch, resume_token=token))


def step(kind: str, token: str) -> event_pb2.WatchEventsResponse:
    return event_pb2.WatchEventsResponse(**{kind: event_pb2.Bookmark(resume_token=token)})


def revisions(items: list[Any]) -> list[Any]:
    return [item.revision if isinstance(item, event_pb2.Event) else item for item in items]


class EventLog:
    """A daemon's event log: serves any token without a gap, from the first event after it."""

    def __init__(self, server: ScriptedServer) -> None:
        self.last = 0
        self._server = server
        self._grown = asyncio.Condition()
        server.on("WatchEvents", self._watch)
        server.on("PullEvents", self._pull)

    async def append(self, count: int) -> None:
        async with self._grown:
            self.last += count
            self._grown.notify_all()

    async def _pull(self, _request: Any, _context: Any) -> event_pb2.PullEventsResponse:
        return event_pb2.PullEventsResponse(resume_token=f"t{self.last}")

    async def _watch(self, request: Any, _context: Any) -> AsyncIterator[Any]:
        at = int(request.resume_token[1:])
        while True:
            async with self._grown:
                while self.last <= at:
                    await self._grown.wait()
            end = min(self.last, at + 3)
            yield events(*range(at + 1, end + 1))
            at = end


# --- the watch ----------------------------------------------------------------------------------------


async def test_a_watch_begins_where_it_is_entered(server: ScriptedServer, client: Any) -> None:
    log = EventLog(server)
    server.run(log.append(5))
    async with client.events.watch("type=GUEST_ADDED", omit_payload=True, heartbeat_s=3) as watch:
        assert watch.resume_token == "t5"
        # Before anything was read, and yet it is not missed.
        server.run(log.append(2))
        assert revisions(await take(watch, 2)) == [6, 7]
        assert watch.resume_token == "t7"
    (pull,) = server.calls_of("PullEvents")
    (call,) = server.calls_of("WatchEvents")
    assert pull.request.filter == "type=GUEST_ADDED"
    assert call.request == event_pb2.WatchEventsRequest(
        filter="type=GUEST_ADDED", resume_token="t5", omit_payload=True, heartbeat_s=3
    )
    assert await asyncio.to_thread(call.ended.wait, 10)


async def test_a_watch_needs_no_context_manager(server: ScriptedServer, client: Any) -> None:
    log = EventLog(server)
    server.run(log.append(3))
    watch = client.events.watch(resume_token="t1")
    assert revisions(await take(watch, 2)) == [2, 3]
    await watch.close()
    assert not server.calls_of("PullEvents")
    with pytest.raises(StopAsyncIteration):
        await anext(watch)


async def test_no_gap_and_nothing_twice_over_restarts(server: ScriptedServer, client: Any) -> None:
    log = EventLog(server)
    seen: list[int] = []
    async with client.events.watch() as watch:
        for _ in range(4):
            server.run(log.append(2))
            seen += revisions(await take(watch, 2))
            await asyncio.to_thread(server.stop)
            # What happens while nobody can look.
            log.last += 2
            await asyncio.to_thread(server.start)
            seen += revisions(await take(watch, 2))
    assert seen == list(range(1, 17))


async def test_no_gap_when_the_connection_is_cut(flavour: str, server: ScriptedServer) -> None:
    log = EventLog(server)
    proxy = Proxy(server)
    proxy.mend()
    seen: list[int] = []
    async with connect(flavour, proxy.target, timeout_s=15) as client, client.events.watch() as watch:
        for _ in range(4):
            server.run(log.append(5))
            seen += revisions(await take(watch, 3))
            proxy.cut()
            server.run(log.append(1))
            proxy.mend()
            seen += revisions(await take(watch, 3))
    proxy.cut()
    assert seen == list(range(1, 25))
    assert len(server.calls_of("WatchEvents")) == 5


async def test_what_is_sent_twice_is_shown_once(server: ScriptedServer, client: Any) -> None:
    server.on("WatchEvents", stream(events(1, 2, 3), AWAY), stream(events(2, 3), events(3, 4), then=forever))
    async with client.events.watch(resume_token="t0") as watch:
        assert revisions(await take(watch, 4)) == [1, 2, 3, 4]


async def test_the_token_never_runs_ahead_of_what_was_handed_out(server: ScriptedServer, client: Any) -> None:
    server.on("WatchEvents", stream(events(1, 2), step("bookmark", "t9"), events(10, 11), then=forever))
    tokens = []
    async with client.events.watch(resume_token="t0") as watch:
        for _ in range(4):
            await take(watch, 1)
            tokens.append(watch.resume_token)
    assert tokens == ["t0", "t2", "t9", "t11"]


async def test_a_bookmark_moves_the_token(server: ScriptedServer, client: Any) -> None:
    server.on("WatchEvents", stream(step("bookmark", "t5"), AWAY), stream(events(6), then=forever))
    async with client.events.watch(resume_token="t0") as watch:
        assert revisions(await take(watch, 1)) == [6]
    assert [call.request.resume_token for call in server.calls_of("WatchEvents")] == ["t0", "t5"]


@pytest.mark.parametrize(
    "end",
    [
        None,
        AWAY,
        virtd_fail(14, "DAEMON_STOPPING", "Unavailable"),
        virtd_fail(8, "WATCHER_TOO_SLOW", "ResourceExhausted"),
        Fail(1, "cancelled by who knows whom"),
        Fail(13, "RST_STREAM"),
        Fail(2, "Stream removed"),
    ],
)
async def test_ends_after_which_it_goes_on(server: ScriptedServer, client: Any, end: Fail | None) -> None:
    ending = [end] if end else []
    server.on("WatchEvents", stream(events(1), *ending), stream(*ending), stream(events(2), then=forever))
    async with client.events.watch(resume_token="t0") as watch:
        assert revisions(await take(watch, 2)) == [1, 2]
    assert [call.request.resume_token for call in server.calls_of("WatchEvents")] == ["t0", "t1", "t1"]


@pytest.mark.parametrize(
    "end",
    [
        virtd_fail(3, "FILTER_INVALID", "InvalidArgument"),
        virtd_fail(7, "ACCESS_DENIED", "PermissionDenied"),
        virtd_fail(13, "INTERNAL_ERROR", "Internal"),
        virtd_fail(8, "LIMIT_EXCEEDED", "ResourceExhausted"),
        Fail(12, "no watching here"),
    ],
)
async def test_ends_after_which_it_does_not(server: ScriptedServer, client: Any, end: Fail) -> None:
    server.on("WatchEvents", stream(events(1), end))
    async with client.events.watch(resume_token="t0") as watch:
        assert revisions(await take(watch, 1)) == [1]
        with pytest.raises(errors.VirtdError) as caught:
            await anext(watch)
        assert caught.value.code == end.code
        with pytest.raises(StopAsyncIteration):
            await anext(watch)


async def test_a_daemon_that_only_fails_strangely_is_not_asked_for_ever(server: ScriptedServer, client: Any) -> None:
    server.on("WatchEvents", stream(Fail(2, "a defect")))
    with pytest.raises(errors.Internal, match="a defect"):
        await take(client.events.watch(resume_token="t0"), 1, timeout_s=60)
    assert len(server.calls_of("WatchEvents")) == 6


async def test_an_expired_token_is_a_reset(server: ScriptedServer, client: Any) -> None:
    expired = virtd_fail(11, "RESUME_TOKEN_EXPIRED", "OutOfRange")
    server.on("PullEvents", event_pb2.PullEventsResponse(resume_token="t90"))
    # A new log may count from one again.
    server.on("WatchEvents", stream(events(50), AWAY), stream(expired), stream(events(3), then=forever))
    async with client.events.watch("f", resume_token="t0") as watch:
        first, reset = await take(watch, 2)
        assert first.revision == 50
        assert reset == Reset("EXPIRED", "t90")
        assert watch.resume_token == "t90"
        assert revisions(await take(watch, 1)) == [3]
    assert [call.request.resume_token for call in server.calls_of("WatchEvents")] == ["t0", "t50", "t90"]
    assert server.calls_of("PullEvents")[0].request == event_pb2.PullEventsRequest(filter="f")


async def test_a_replaced_log_is_a_reset(server: ScriptedServer, client: Any) -> None:
    server.on("WatchEvents", stream(events(50), step("reset", "n0"), events(1, token="n1"), then=forever))
    async with client.events.watch(resume_token="t0") as watch:
        assert revisions(await take(watch, 3)) == [50, Reset("LOG_REPLACED", "n0"), 1]
        assert watch.resume_token == "n1"


async def test_the_initial_state_comes_once(server: ScriptedServer, client: Any) -> None:
    initial = [events(7, 7, 3, token="x"), events(5, token=""), step("initial_done", "t7")]
    server.on("WatchEvents", stream(*initial, events(8), AWAY), stream(events(9), then=forever))
    async with client.events.watch(initial_state=True) as watch:
        assert watch.resume_token == ""
        # Revisions of a state are no order, and none of it is left out.
        assert revisions(await take(watch, 4)) == [7, 7, 3, 5]
        assert watch.resume_token == ""
        assert await take(watch, 1) == [InitialDone("t7")]
        assert watch.resume_token == "t7"
        assert revisions(await take(watch, 2)) == [8, 9]
    first, second = (call.request for call in server.calls_of("WatchEvents"))
    assert (first.initial_state, first.resume_token) == (True, "")
    assert (second.initial_state, second.resume_token) == (False, "t8")
    assert not server.calls_of("PullEvents")


async def test_an_interrupted_initial_state_is_a_reset(server: ScriptedServer, client: Any) -> None:
    initial = [events(1, 2, token="x"), step("initial_done", "t2")]
    server.on("WatchEvents", stream(AWAY), stream(events(1, token="x"), AWAY), stream(*initial, then=forever))
    async with client.events.watch(initial_state=True) as watch:
        assert revisions(await take(watch, 5)) == [1, Reset("INITIAL_INTERRUPTED", ""), 1, 2, InitialDone("t2")]
    assert all(call.request.initial_state for call in server.calls_of("WatchEvents"))


@pytest.mark.parametrize(
    ("end", "cause"),
    [(step("reset", "n0"), "LOG_REPLACED"), (virtd_fail(11, "RESUME_TOKEN_EXPIRED", "OutOfRange"), "EXPIRED")],
)
async def test_after_a_reset_the_initial_state_comes_again(
    server: ScriptedServer, client: Any, end: Any, cause: str
) -> None:
    initial = [events(1, token=""), step("initial_done", "t1")]
    again = [events(1, token=""), step("initial_done", "n1"), events(2, token="n2")]
    server.on("WatchEvents", stream(*initial, events(40), end), stream(*again, then=forever))
    async with client.events.watch(initial_state=True) as watch:
        items = revisions(await take(watch, 7))
    assert items == [1, InitialDone("t1"), 40, Reset(cause, ""), 1, InitialDone("n1"), 2]  # type: ignore[arg-type] # a word
    assert [call.request.initial_state for call in server.calls_of("WatchEvents")] == [True, True]


async def test_a_daemon_that_never_answered_ends_the_watch(flavour: str, server: ScriptedServer) -> None:
    server.stop()
    async with connect(flavour, server.target, timeout_s=0.5) as client:
        for watch in (client.events.watch(), client.events.watch(resume_token="t0")):
            with pytest.raises(errors.Unavailable) as caught:
                await take(watch, 1)
            assert caught.value.reason == errors.DAEMON_UNREACHABLE


async def test_a_watch_gives_up_as_the_client_was_told(flavour: str, server: ScriptedServer) -> None:
    server.on("WatchEvents", stream(events(1), AWAY), stream(AWAY))
    async with connect(flavour, server.target, retry_s=0.5) as client, client.events.watch(resume_token="t0") as watch:
        await take(watch, 1)
        with pytest.raises(errors.Unavailable):
            await take(watch, 1)


async def test_closing_ends_a_reader_elsewhere(server: ScriptedServer, client: Any) -> None:
    server.on("WatchEvents", stream(then=forever))
    watch = client.events.watch(resume_token="t0")
    reader = asyncio.ensure_future(take(watch, 1))
    await asyncio.to_thread(_until, lambda: server.calls_of("WatchEvents"))
    await watch.close()
    with pytest.raises(StopAsyncIteration):
        await reader
    assert await asyncio.to_thread(server.calls_of("WatchEvents")[0].ended.wait, 10)


async def test_closing_the_client_ends_its_watches(server: ScriptedServer, client: Any) -> None:
    server.on("WatchEvents", stream(then=forever))
    reader = asyncio.ensure_future(take(client.events.watch(resume_token="t0"), 1))
    await asyncio.to_thread(_until, lambda: server.calls_of("WatchEvents"))
    await client.close()
    with pytest.raises(StopAsyncIteration):
        await reader


async def test_a_token_and_the_initial_state_exclude_each_other(client: Any) -> None:
    with pytest.raises(ValueError, match="not both"):
        client.events.watch(resume_token="t", initial_state=True)


async def test_pull(server: ScriptedServer, client: Any) -> None:
    event = event_pb2.Event(revision=4)
    server.on("PullEvents", AWAY, event_pb2.PullEventsResponse(events=[event], resume_token="t4"))
    page = await client.events.pull("t3", filter="f", max_events=10, wait_s=2)
    assert (page.events, page.resume_token) == ((event,), "t4")
    assert server.calls[0].request == event_pb2.PullEventsRequest(
        filter="f", resume_token="t3", max_events=10, wait_s=2
    )


async def test_giving_up_on_the_next_item_loses_nothing(server: ScriptedServer) -> None:
    log = EventLog(server)
    async with connect("async", server.target) as client, client.events.watch() as watch:
        for n in (1, 2, 3):
            with pytest.raises(TimeoutError):
                await take(watch, 1, timeout_s=0.2)
            server.run(log.append(1))
            assert revisions(await take(watch, 1)) == [n]


async def test_a_watch_that_is_left_keeps_no_stream(server: ScriptedServer) -> None:
    server.on("WatchEvents", stream(events(1), then=forever))
    gc.disable()  # it must not be by the cycle collector that the stream ends
    try:
        async with connect("async", server.target) as client:
            async for _ in client.events.watch(resume_token="t0"):
                break
            assert await asyncio.to_thread(server.calls[0].ended.wait, 10)
        with virtd_client.Client.connect(server.target) as sync_client:

            def leave() -> None:
                for _ in sync_client.events.watch(resume_token="t0"):
                    break

            await asyncio.to_thread(leave)
            assert await asyncio.to_thread(server.calls[1].ended.wait, 10)
    finally:
        gc.enable()


async def test_a_cancelled_task_ends_the_stream(server: ScriptedServer) -> None:
    server.on("WatchEvents", stream(then=forever))
    async with connect("async", server.target) as client:
        reader = asyncio.ensure_future(take(client.events.watch(resume_token="t0"), 1))
        await asyncio.to_thread(_until, lambda: server.calls_of("WatchEvents"))
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert await asyncio.to_thread(server.calls_of("WatchEvents")[0].ended.wait, 10)


_INTERRUPTED = """
import os, signal, sys, threading, traceback
import virtd_client

main = threading.main_thread().ident

def interrupt():
    # When the main thread waits for the next item, and neither before nor after.
    while not any(frame.filename.endswith("grpc/_common.py")
                  for frame in traceback.extract_stack(sys._current_frames()[main])):
        pass
    os.kill(os.getpid(), signal.SIGINT)

with virtd_client.Client.connect(sys.argv[1]) as client:
    try:
        if sys.argv[2] == "watch":
            kept = client.events.watch(resume_token="t0")
            next(kept)
        else:
            kept = client.console.attach("g")
            kept.open()
        threading.Thread(target=interrupt).start()
        for item in kept:
            pass
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.stdin.read()  # until the test has looked: the call must have ended, the process not
"""


@pytest.mark.parametrize("what", ["watch", "console"])
def test_ctrl_c_ends_the_call_of_a_sync_iterator(server: ScriptedServer, what: str) -> None:
    server.on("WatchEvents", stream(events(1), then=forever))
    server.on("AttachConsole", stream(attached(0), then=forever))
    command = [sys.executable, "-c", _INTERRUPTED, server.target, what]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "interrupted\n"
            assert server.calls[-1].ended.wait(10)
            process.communicate("", timeout=20)
            assert process.returncode == 0
        finally:
            process.kill()


# --- consoles -----------------------------------------------------------------------------------------


def attached(offset: int, *, truncated: bool = False) -> console_pb2.AttachConsoleResponse:
    return console_pb2.AttachConsoleResponse(attached=console_pb2.ConsoleAttached(offset=offset, truncated=truncated))


def output(offset: int, data: bytes) -> console_pb2.AttachConsoleResponse:
    return console_pb2.AttachConsoleResponse(output=console_pb2.ConsoleOutput(offset=offset, data=data))


class Echo:
    """A guest that prints what it is sent."""

    def __init__(self) -> None:
        self.start: console_pb2.ConsoleStart | None = None
        self.sizes: list[int] = []

    async def __call__(self, requests: Any, _context: Any) -> AsyncIterator[Any]:
        at = 100
        async for request in requests:
            if request.HasField("start"):
                self.start = request.start
                yield attached(at, truncated=True)
            else:
                self.sizes.append(len(request.input))
                yield output(at, request.input)
                at += len(request.input)


async def test_a_console_echoes(server: ScriptedServer, client: Any) -> None:
    echo = Echo()
    server.on("AttachConsole", echo)
    async with client.console.attach(GUEST, offset=7) as session:
        assert echo.start == console_pb2.ConsoleStart(name=GUEST, offset=7)
        assert (session.offset, session.truncated) == (100, True)
        await session.write(b"ls\n")
        assert await take(session, 1) == [ConsoleData(100, b"ls\n")]
        await session.write(b"exit\n")
        assert await take(session, 1) == [ConsoleData(103, b"exit\n")]
        assert session.offset == 108
    assert await asyncio.to_thread(server.calls[0].ended.wait, 10)
    with pytest.raises(ValueError, match="closed"):
        await session.write(b"x")


async def test_much_input_goes_in_pieces(server: ScriptedServer, client: Any) -> None:
    echo = Echo()
    server.on("AttachConsole", echo)
    data = os.urandom(150_000)
    async with client.console.attach(GUEST) as session:
        await session.write(data)
        pieces = await take(session, 3)
    assert b"".join(piece.data for piece in pieces) == data
    assert echo.sizes == [65536, 65536, 18928]
    assert not echo.start.HasField("offset")  # type: ignore[union-attr] # it was started


async def test_reading_and_writing_at_once(server: ScriptedServer, client: Any) -> None:
    server.on("AttachConsole", Echo())
    async with client.console.attach(GUEST) as session:
        reader = asyncio.ensure_future(take(session, 50))
        for n in range(50):
            await session.write(b"%d " % n)
        assert b"".join(item.data for item in await reader) == b"".join(b"%d " % n for n in range(50))


async def test_a_console_of_a_guest_that_stops(server: ScriptedServer, client: Any) -> None:
    notice = console_pb2.AttachConsoleResponse(notice=console_pb2.ConsoleNotice(kind="CLOSED"))

    async def short(requests: Any, _context: Any) -> AsyncIterator[Any]:
        await anext(requests)
        for response in (attached(0), output(0, b"bye"), notice):
            yield response

    server.on("AttachConsole", short)
    async with client.console.attach(GUEST, read_only=True) as session:
        assert [item async for item in session] == [ConsoleData(0, b"bye"), ConsoleNotice("CLOSED")]
        # The daemon has ended the dialogue; input must not vanish silently.
        with pytest.raises(errors.Unavailable):
            await session.write(b"x")


async def test_a_console_that_is_refused(server: ScriptedServer, client: Any) -> None:
    server.on("AttachConsole", virtd_fail(9, "CAPABILITY_UNSUPPORTED", "Unsupported"))
    with pytest.raises(errors.Unsupported):
        await client.console.attach(GUEST).open()
    with pytest.raises(errors.Unsupported):
        async with client.console.attach(GUEST):
            pass


async def test_the_reason_of_a_refusal_is_never_lost(server: ScriptedServer) -> None:
    """The start is written while the refusal arrives: grpc.aio loses the status now and then."""
    server.on("AttachConsole", virtd_fail(9, "CAPABILITY_UNSUPPORTED", "Unsupported"))
    async with connect("async", server.target) as client:
        for _ in range(200):
            with pytest.raises(errors.Unsupported):
                await client.console.attach(GUEST).open()


async def test_a_console_that_is_lost(flavour: str, server: ScriptedServer) -> None:
    server.on("AttachConsole", Echo())
    proxy = Proxy(server)
    proxy.mend()
    async with connect(flavour, proxy.target) as client, client.console.attach(GUEST) as session:
        await session.write(b"a")
        await take(session, 1)
        proxy.cut()
        with pytest.raises(errors.Unavailable) as caught:
            await take(session, 1)
        assert caught.value.reason == errors.DAEMON_UNREACHABLE
        with pytest.raises(errors.Unavailable):
            await session.write(b"x")
        assert session.offset == 101


async def test_closing_a_console_ends_its_reader(server: ScriptedServer, client: Any) -> None:
    server.on("AttachConsole", Echo())
    async with client.console.attach(GUEST) as session:
        reader = asyncio.ensure_future(take(session, 1))
        await asyncio.sleep(0.2)
        await session.close()
        with pytest.raises(StopAsyncIteration):
            await reader
        await session.close()


async def test_log_and_screenshot(server: ScriptedServer, client: Any) -> None:
    log = console_pb2.ReadConsoleLogResponse(offset=5, data=b"boot", next_offset=9)
    picture = console_pb2.TakeScreenshotResponse(data=b"\x89PNG", mime_type="image/png")
    server.on("ReadConsoleLog", log)
    server.on("TakeScreenshot", picture)
    assert await client.console.read_log(GUEST, offset=0, max_bytes=10) == log
    assert await client.console.read_log(GUEST) == log
    assert await client.console.screenshot(GUEST) == picture
    assert [call.request for call in server.calls] == [
        console_pb2.ReadConsoleLogRequest(name=GUEST, offset=0, max_bytes=10),
        console_pb2.ReadConsoleLogRequest(name=GUEST),
        console_pb2.TakeScreenshotRequest(name=GUEST),
    ]


def _until(condition: Any, timeout_s: float = 10) -> None:
    import time

    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
