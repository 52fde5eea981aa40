"""``console``: raw on a terminal, plain in a pipe, and every way to end."""

from __future__ import annotations

import asyncio
import os
import termios
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rpc.guestctl_kit import Ctl, environment, spawn, terminal
from tests.rpc.scripted_server import Proxy, ScriptedServer, virtd_fail
from virtd.v1 import console_pb2, server_pb2


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


class Guest:
    """A guest at the other end of the console: prints a prompt, and answers each line."""

    def __init__(self, *, greeting: bytes = b"login: ", offset: int = 100, silent: bool = False) -> None:
        self.greeting = greeting
        self.offset = offset
        self.silent = silent
        self.starts: list[console_pb2.ConsoleStart] = []
        self.input = b""
        self.notice = ""

    async def __call__(self, requests: Any, _context: Any) -> AsyncIterator[Any]:
        first = await anext(requests)
        self.starts.append(first.start)
        yield console_pb2.AttachConsoleResponse(attached=console_pb2.ConsoleAttached(offset=self.offset))
        yield self.output(self.greeting)
        if self.notice:
            yield console_pb2.AttachConsoleResponse(notice=console_pb2.ConsoleNotice(kind=self.notice))
        async for request in requests:
            self.input += request.input
            if not self.silent:
                yield self.output(b"[" + request.input.replace(b"\r", b"\n") + b"]")
        await asyncio.Event().wait()

    def output(self, data: bytes) -> console_pb2.AttachConsoleResponse:
        self.offset += len(data)
        output = console_pb2.ConsoleOutput(offset=self.offset - len(data), data=data)
        return console_pb2.AttachConsoleResponse(output=output)


def test_a_pipe_is_copied_both_ways_until_the_guest_is_silent(server: ScriptedServer, tmp_path: Path) -> None:
    guest = Guest()
    server.on("AttachConsole", guest)
    (tmp_path / "in").write_bytes(b"root\n\x1d\x00")
    with (tmp_path / "in").open("rb") as stream:
        process = spawn(server, tmp_path, "console", "a/web1", "--idle", "500ms", stdin=stream)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")
    # In a pipe the escape character is a byte like any other.
    assert guest.input == b"root\n\x1d\x00"
    assert out == b"login: [root\n\x1d\x00]"
    assert guest.starts[0].name == "hosts/a/guests/web1"
    assert not guest.starts[0].HasField("offset")


def test_until_ends_at_the_match_even_across_pieces(server: ScriptedServer, tmp_path: Path) -> None:
    async def pieces(_requests: Any, _context: Any) -> AsyncIterator[Any]:
        guest = Guest()
        yield console_pb2.AttachConsoleResponse(attached=console_pb2.ConsoleAttached())
        for piece in (b"boot\nREA", b"DY 4", b"2\n"):
            yield guest.output(piece)
            await asyncio.sleep(0.05)
        await asyncio.Event().wait()

    server.on("AttachConsole", pieces)
    process = spawn(server, tmp_path, "console", "a/web1", "--until", r"READY \d\d", "--from-start")
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == b"boot\nREADY 42\n"


def test_until_in_vain_is_124_and_says_what_to_look_at(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("AttachConsole", Guest())
    result = ctl("console", "a/web1", "--until", "never", "--for", "300ms")
    assert (result.code, result.out) == (124, "login: ")
    assert "the output did not match 'never' in time" in result.err
    assert "--log" in result.err


def test_for_ends_after_its_time_with_0(ctl: Ctl, server: ScriptedServer) -> None:
    guest = Guest()
    guest.notice = "CLOSED"
    server.on("AttachConsole", guest)
    result = ctl("console", "a/web1", "--for", "300ms", "--from-start", "--read-only")
    assert (result.code, result.out, result.err) == (0, "login: ", "[the guest has stopped]\n")
    assert guest.starts[0].offset == 0
    assert guest.starts[0].HasField("offset")
    assert guest.starts[0].read_only


def test_the_log_is_printed_as_it_is(server: ScriptedServer, tmp_path: Path) -> None:
    server.on("ReadConsoleLog", console_pb2.ReadConsoleLogResponse(data=b"\x00old\xff\n"))
    process = spawn(server, tmp_path, "console", "a/web1", "--log")
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, b"\x00old\xff\n")


def test_a_console_that_is_refused(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("AttachConsole", virtd_fail(9, "CAPABILITY_UNSUPPORTED", "Unsupported", message="no console"))
    result = ctl("console", "a/web1", "--for", "5s")
    assert (result.code, result.out) == (6, "")
    assert "error: no console\nreason: CAPABILITY_UNSUPPORTED" in result.err


def test_a_lost_connection_is_taken_up_where_it_was(server: ScriptedServer, tmp_path: Path) -> None:
    guest = Guest()
    server.on("GetServerInfo", server_pb2.GetServerInfoResponse())
    server.on("AttachConsole", guest)
    proxy = Proxy(server)
    proxy.mend()
    process = spawn(server, tmp_path, "console", "a/web1", "--until", "again", "--target", proxy.target)
    assert process.stdout is not None
    seen = b""
    while b"login: " not in seen:
        seen += os.read(process.stdout.fileno(), 100)
    guest.greeting = b"again"
    proxy.cut()
    proxy.mend()
    out, err = process.communicate(timeout=30)
    proxy.cut()
    assert (process.returncode, out) == (0, b"again")
    assert b"[the connection is lost; attaching again]\n" in err
    assert guest.starts[1].offset == 100 + len(b"login: ")


def mode(descriptor: int) -> list[Any]:
    return termios.tcgetattr(descriptor)[:4]


def test_a_terminal_is_raw_and_comes_back(server: ScriptedServer, tmp_path: Path) -> None:
    guest = Guest()
    server.on("AttachConsole", guest)
    with terminal(server, tmp_path, "console", "a/web1") as tty:
        before = mode(tty.descriptor)
        tty.read_until(b"login: ")
        assert b"at the console of hosts/a/guests/web1; leave it with ^]" in tty.seen
        raw = mode(tty.descriptor)
        assert not raw[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
        # ^C is the guest's.
        tty.write(b"ab\x03")
        tty.read_until(b"\x03]")
        assert guest.input == b"ab\x03"
        tty.write(b"bye\x1dnot sent")
        tty.read_until(b"left the console")
        assert mode(tty.descriptor) == before
        assert tty.wait() == 0
    assert guest.input == b"ab\x03bye"


@pytest.mark.parametrize("key", [b"\x1d", b"\x03"])
def test_a_read_only_console_sends_nothing_and_is_left_by_either_key(
    server: ScriptedServer, tmp_path: Path, key: bytes
) -> None:
    guest = Guest()
    server.on("AttachConsole", guest)
    with terminal(server, tmp_path, "console", "a/web1", "--read-only") as tty:
        tty.read_until(b"login: ")
        tty.write(b"text")
        tty.write(key)
        assert tty.wait() == 0
    assert guest.input == b""


@pytest.mark.parametrize(
    "end", [lambda server: server.on("GetServerInfo", virtd_fail(7, "ACCESS_DENIED", "PermissionDenied"))]
)
def test_a_failure_brings_the_terminal_back(
    server: ScriptedServer, tmp_path: Path, end: Callable[[ScriptedServer], None]
) -> None:
    async def fails(requests: Any, context: Any) -> AsyncIterator[Any]:
        guest = Guest()
        yield console_pb2.AttachConsoleResponse(attached=console_pb2.ConsoleAttached())
        yield guest.output(b"\x1b[31mred")
        await anext(requests)
        await anext(requests)
        yield virtd_fail(13, "BACKEND_ERROR", "Internal", message="the console broke")

    end(server)
    server.on("AttachConsole", fails)
    with terminal(server, tmp_path, "console", "a/web1") as tty:
        before = mode(tty.descriptor)
        tty.read_until(b"red")
        tty.write(b"x")
        tty.read_until(b"reason: BACKEND_ERROR")
        assert mode(tty.descriptor) == before
        assert tty.wait() == 1
    assert b"red\x1b[0m\r\n" in tty.seen


def test_an_interrupt_from_outside_brings_the_terminal_back(server: ScriptedServer, tmp_path: Path) -> None:
    import signal

    server.on("AttachConsole", Guest())
    with terminal(server, tmp_path, "console", "a/web1") as tty:
        before = mode(tty.descriptor)
        tty.read_until(b"login: ")
        os.kill(tty.pid, signal.SIGTERM)
        code = tty.wait()
        assert code != 0
        assert mode(tty.descriptor) == before
