"""The public socket and the front: who is who, mode before reach, splicing, two daemons."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.rpc.rpc_fakes import Fakes, error_of, guest, running, until
from virtd.auth import UNKNOWN, Peer
from virtd.errors import FailedPreconditionError, InvalidArgumentError
from virtd.rpc.front import Front, identify_tcp
from virtd.rpc.listener import PublicSocket, SocketOptions, activation_fd
from virtd.v1 import guest_service_pb2, guest_service_pb2_grpc, server_pb2

GUEST = "hosts/a/guests/b"
GET = guest_service_pb2.GetGuestRequest(name=GUEST)
INFO = "/virtd.v1.ServerService/GetServerInfo"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def front(directory: Path, handler: Handler, **options: object) -> AsyncIterator[tuple[Front, Path]]:
    """A front before a server of ours, which sees raw bytes."""
    upstream = directory / "upstream.sock"
    server = await asyncio.start_unix_server(handler, upstream)
    made = Front(replace(SocketOptions(directory / "public.sock"), **options), str(upstream))  # type: ignore[arg-type]
    await made.start()
    try:
        yield made, directory / "public.sock"
    finally:
        await made.close()
        server.close()


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


# ----------------------------------------------------------------------------------------- splicing


async def test_bytes_pass_both_ways_and_half_closing_is_kept(tmp_path: Path) -> None:
    received = bytearray()

    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello ")  # as gRPC does: it speaks first
        received.extend(await reader.read(-1))  # until the client's half is closed
        writer.write(b"and goodbye")
        await writer.drain()
        writer.close()

    async with front(tmp_path, upstream) as (made, path):
        reader, writer = await asyncio.open_unix_connection(path)
        assert await reader.readexactly(6) == b"hello "
        writer.write(b"question")
        writer.write_eof()
        assert await reader.read(-1) == b"and goodbye"
        assert received == b"question"
        writer.close()
        await until(lambda: made.connections == 0)


async def test_much_data_with_a_slow_reader_is_held_back_and_complete(tmp_path: Path) -> None:
    sent = 0
    total = 32 * 1024 * 1024

    async def upstream(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        block = bytes(range(256)) * 256
        while sent < total:
            writer.write(block)
            await writer.drain()
            sent += len(block)
        writer.close()

    async with front(tmp_path, upstream) as (_, path):
        reader, writer = await asyncio.open_unix_connection(path)
        await asyncio.sleep(0.3)
        assert sent < 4 * 1024 * 1024, "nobody reads: the front must not take it all into memory"
        received = await asyncio.wait_for(reader.read(-1), 60)
        assert len(received) == total
        assert received == bytes(range(256)) * (total // 256)
        writer.close()


async def test_many_connections_at_once(tmp_path: Path) -> None:
    async def one(path: Path, number: int) -> bool:
        reader, writer = await asyncio.open_unix_connection(path)
        message = f"{number}:".encode() * 1000
        writer.write(message)
        writer.write_eof()
        answer = await reader.read(-1)
        writer.close()
        return answer == message

    async with front(tmp_path, _echo) as (made, path):
        assert all(await asyncio.gather(*(one(path, number) for number in range(200))))
        await until(lambda: made.connections == 0)
        assert made._peers == {}


async def test_a_client_that_vanishes_is_noticed_upstream(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read(-1) == b"x"
        gone.set()
        writer.close()

    async with front(tmp_path, upstream) as (_, path):
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(b"x")
        await writer.drain()
        writer.close()
        await asyncio.wait_for(gone.wait(), 10)


async def test_a_client_is_refused_while_the_server_is_away(tmp_path: Path) -> None:
    made = Front(SocketOptions(tmp_path / "public.sock"), str(tmp_path / "nothing.sock"))
    await made.start()
    try:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "public.sock")
        with contextlib.suppress(ConnectionError):
            assert await reader.read(1) == b""
        writer.close()
        await until(lambda: made.connections == 0)
    finally:
        await made.close()


async def test_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    """A connect() to a unix socket with a full backlog fails at once; asyncio takes that for success."""
    path = str(tmp_path / "full.sock")
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(path)
        busy.listen(0)
        first.connect(path)
        made = Front(SocketOptions(tmp_path / "unused.sock"), path)
        connecting = asyncio.create_task(made.connect(Peer("unix", uid=1, gid=2, pid=3)))
        await asyncio.sleep(0.1)
        assert not connecting.done()
        busy.accept()[0].close()
        outgoing, name = await asyncio.wait_for(connecting, 10)
        assert outgoing.getsockname() == b"\0" + name.encode()
        outgoing.close()


# ----------------------------------------------------------------------------------------- identity


async def test_the_caller_is_the_one_who_connected(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        call = daemon.unary(INFO, server_pb2.GetServerInfoResponse)
        answer = await call(server_pb2.GetServerInfoRequest())
        assert answer.server.caller == f"unix:uid={os.geteuid()}"
        assert daemon.server._front is not None
        (peer,) = daemon.server._front._peers.values()
        assert peer.pid == os.getpid()
        assert (peer.uid, peer.gid) == (os.geteuid(), os.getegid())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize(("groups", "code"), [("[]", "PERMISSION_DENIED"), ("[4242]", "OK")])
async def test_another_user(groups: str, code: str) -> None:
    import tempfile

    from virtd.auth import Policy

    program = f"""
import os, sys
import grpc
grpc.insecure_channel("unix:/nowhere").close()  # imports the rest while the files can be read
os.setgroups({groups}); os.setgid(65534); os.setuid(65534)
with grpc.insecure_channel("unix:" + sys.argv[1]) as channel:
    try:
        channel.unary_unary({INFO!r})(b"", timeout=20)
        print("OK")
    except grpc.RpcError as error:
        print(error.code().name, error.details())
"""
    with tempfile.TemporaryDirectory() as name:  # pytest's own directory cannot be entered by others
        directory = Path(name)
        directory.chmod(0o755)
        policy = Policy(own_uid=0, gids=frozenset({4242}))
        options = SocketOptions(directory / "virtd.sock", mode=0o666)
        async with running(directory, policy=policy, socket=options):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", program, str(directory / "virtd.sock"), stdout=subprocess.PIPE
            )
            output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert output.decode().startswith(code), output
    if code != "OK":
        assert b"unix:uid=65534 may not call" in output


async def test_grpcs_own_socket_is_out_of_reach_and_proves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        inner = Path(daemon.server._inner.path)  # type: ignore[union-attr]
        assert stat.S_IMODE(inner.parent.stat().st_mode) == 0o700
        async with grpc.aio.insecure_channel(f"unix:{inner}") as direct:
            call: Any = direct.unary_unary(INFO)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"")
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "unknown may not call" in error_of(caught.value).message


async def test_an_invented_name_proves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        made = daemon.server._front
        assert made is not None
        call = daemon.unary(INFO, server_pb2.GetServerInfoResponse)
        await call(server_pb2.GetServerInfoRequest())
        (real,) = made._peers
        prefix, _, _ = real.rpartition("/uid=")
        invented = f"{prefix[:-1]}x/uid=0,gid=0,pid=1"
        with socket.socket(socket.AF_UNIX) as forger, pytest.raises(OSError, match="in use"):
            forger.bind("\0" + real)  # the name of a live connection cannot be had
        assert made.identify(f"unix-abstract:{real}") is not None
        for peer in (f"unix-abstract:{invented}", f"unix:{real}", "unix:", "", "unix-abstract:"):
            assert made.identify(peer) is None
    assert made.identify(f"unix-abstract:{real}") is None, "the connection has ended"


@pytest.mark.parametrize(
    ("peer", "caller"),
    [
        ("ipv4:127.0.0.1:5555", "tcp:127.0.0.1"),
        ("ipv6:[::1]:5555", "tcp:::1"),
        ("ipv6:%5B::1%5D:5555", "tcp:::1"),
        ("unix:", "unknown"),
        ("", "unknown"),
    ],
)
def test_tcp_peers(peer: str, caller: str) -> None:
    assert identify_tcp(peer).caller == caller
    assert identify_tcp("unix-abstract:ipv4:1.2.3.4:5") is UNKNOWN


# ------------------------------------------------------------------------------------ the file


def test_mode_and_owner_are_set_before_anybody_can_connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    seen: list[str] = []
    real_chmod, real_listen = Path.chmod, socket.socket.listen

    def look(step: str) -> None:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
                seen.append(f"{step}: open")
            except OSError as error:
                seen.append(f"{step}: {stat.S_IMODE(path.stat().st_mode):o} {error.errno}")

    def chmod(self: Path, mode: int) -> None:
        look("before chmod")
        real_chmod(self, mode)

    def listen(self: socket.socket, backlog: int) -> None:
        look("before listen")
        real_listen(self, backlog)

    monkeypatch.setattr(Path, "chmod", chmod)
    monkeypatch.setattr(socket.socket, "listen", listen)
    before = os.umask(0)
    try:
        public = PublicSocket.open(SocketOptions(path, mode=0o660, owner=os.geteuid(), group=os.getegid()))
    finally:
        os.umask(before)
    refused = 111
    assert seen == [f"before chmod: 600 {refused}", f"before listen: 660 {refused}"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    public.close()
    public.close()
    assert not path.exists()


def test_two_daemons_on_one_path(tmp_path: Path) -> None:
    options = SocketOptions(tmp_path / "s")
    first = PublicSocket.open(options)
    with pytest.raises(FailedPreconditionError) as caught:
        PublicSocket.open(options)
    assert caught.value.reason.name == "ADDRESS_IN_USE"
    assert first.listener.getsockname() == str(options.path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(options.path))  # the first one is as it was
    first.close()
    PublicSocket.open(options).close()


def test_a_socket_that_a_killed_daemon_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
        killed.listen(1)
    public = PublicSocket.open(SocketOptions(path))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    public.close()


def test_a_strangers_live_socket_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stranger, socket.socket(socket.AF_UNIX) as client:
        stranger.bind(str(path))
        stranger.listen(1)  # holds two: the first probe's connection, and the client's
        with pytest.raises(FailedPreconditionError):
            PublicSocket.open(SocketOptions(path))
        client.connect(str(path))
        with pytest.raises(FailedPreconditionError):  # also with a full backlog
            PublicSocket.open(SocketOptions(path))
        assert stranger.accept()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_what_is_no_socket_is_not_removed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidArgumentError) as caught:
        PublicSocket.open(SocketOptions(path))
    assert caught.value.reason.name == "CONFIG_INVALID"
    assert path.is_symlink() or path.exists()


def test_a_path_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="107"):
        PublicSocket.open(SocketOptions(tmp_path / ("x" * 120)))
    with pytest.raises(InvalidArgumentError, match="No such file"):
        PublicSocket.open(SocketOptions(Path("/nonexistent/s")))


def test_a_failure_after_bind_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_named: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(InvalidArgumentError, match="not permitted"):
        PublicSocket.open(SocketOptions(tmp_path / "s", owner=12))
    assert not (tmp_path / "s").exists()
    monkeypatch.undo()
    PublicSocket.open(SocketOptions(tmp_path / "s")).close()


def test_a_file_that_is_ours_no_longer_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    public = PublicSocket.open(SocketOptions(path))
    path.unlink()
    path.write_text("somebody else's")
    public.close()
    assert path.read_text() == "somebody else's"


# --------------------------------------------------------------------------------- socket activation


async def test_a_passed_socket_is_served_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "activated.sock"
    with socket.socket(socket.AF_UNIX) as manager:
        manager.bind(str(path))
        manager.listen(5)
        before = stat.S_IMODE(path.stat().st_mode)
        fakes = Fakes(guests_by_name={GUEST: guest()})
        options = SocketOptions(tmp_path / "ignored.sock", mode=0o600, fd=os.dup(manager.fileno()))
        async with running(tmp_path, fakes, socket=options), grpc.aio.insecure_channel(f"unix:{path}") as channel:
            stub = guest_service_pb2_grpc.GuestServiceStub(channel)
            assert (await stub.GetGuest(GET)).guest.name == GUEST
        assert path.exists(), "it is the service manager's"
        assert stat.S_IMODE(path.stat().st_mode) == before
        assert not (tmp_path / "ignored.sock").exists()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))  # and it goes on listening for the next start


@pytest.mark.parametrize("kind", ["file", "tcp", "not listening"])
def test_a_passed_descriptor_of_another_kind(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        fd = os.open(tmp_path / "f", os.O_CREAT | os.O_RDWR)
    else:
        made = socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_UNIX)
        if kind == "tcp":
            made.listen(1)
        fd = made.detach()
    with pytest.raises(InvalidArgumentError, match="not a listening unix stream socket"):
        PublicSocket.open(SocketOptions(tmp_path / "s", fd=fd))
    if kind == "file":
        os.close(fd)


@pytest.mark.parametrize(
    ("environment", "fd"),
    [
        ({"LISTEN_PID": "42", "LISTEN_FDS": "1"}, 3),
        ({"LISTEN_PID": "42", "LISTEN_FDS": "2"}, 3),
        ({"LISTEN_PID": "43", "LISTEN_FDS": "1"}, None),
        ({"LISTEN_PID": "42", "LISTEN_FDS": "0"}, None),
        ({"LISTEN_PID": "42"}, None),
        ({"LISTEN_PID": "x", "LISTEN_FDS": "1"}, None),
        ({}, None),
    ],
)
def test_activation(environment: dict[str, str], fd: int | None) -> None:
    assert activation_fd(environment, 42) == fd
