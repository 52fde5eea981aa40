"""The server itself: health, reflection, TCP, two daemons, start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from tests.rpc.rpc_fakes import Fakes, guest, running, until
from virtd.auth import Policy
from virtd.errors import FailedPreconditionError, InvalidArgumentError
from virtd.rpc.server import RpcOptions, RpcServer, _InnerSocket
from virtd.v1 import guest_service_pb2, guest_service_pb2_grpc

GUEST = "hosts/a/guests/b"
GET = guest_service_pb2.GetGuestRequest(name=GUEST)
SERVICES = {
    "virtd.v1.BackupService",
    "virtd.v1.DeviceService",
    "virtd.v1.AgentService",
    "virtd.v1.AuditService",
    "virtd.v1.ConsoleService",
    "virtd.v1.EventService",
    "virtd.v1.GuestService",
    "virtd.v1.HostService",
    "virtd.v1.ImageService",
    "virtd.v1.MetricsService",
    "virtd.v1.NetworkService",
    "virtd.v1.PoolService",
    "virtd.v1.ScheduleService",
    "virtd.v1.ServerService",
    "virtd.v1.SnapshotService",
    "virtd.v1.TrashService",
    "virtd.v1.TransferService",
    "virtd.v1.UploadService",
    "virtd.v1.VolumeService",
    "google.longrunning.Operations",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}
S = health_pb2.HealthCheckResponse


# ----------------------------------------------------------------------------------------- health


async def test_health(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        stub = health_pb2_grpc.HealthStub(daemon.channel)
        for name in ("", "virtd.v1.GuestService", "google.longrunning.Operations"):
            assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == S.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="nonsense"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        if hasattr(stub, "List"):  # the protocol got it late
            listed = (await stub.List(health_pb2.HealthListRequest())).statuses
            assert listed["virtd.v1.GuestService"].status == S.SERVING


async def test_health_is_watched_by_several_and_told_of_the_end(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        stub = health_pb2_grpc.HealthStub(daemon.channel)
        one, two, unknown = (
            stub.Watch(health_pb2.HealthCheckRequest(service=name))
            for name in ("", "virtd.v1.GuestService", "nonsense")
        )
        assert [(await call.read()).status for call in (one, two, unknown)] == [
            S.SERVING,
            S.SERVING,
            S.SERVICE_UNKNOWN,
        ]
        one.cancel()  # the others go on hearing of changes
        daemon.server.health.set_serving(False)
        assert (await two.read()).status == S.NOT_SERVING
        daemon.server.health.set_serving(True)
        assert (await two.read()).status == S.SERVING
        await asyncio.wait_for(daemon.server.stop(10), 5)
        assert (await two.read()).status == S.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await two.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


# -------------------------------------------------------------------------------------- reflection


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_and_describes_everything(tmp_path: Path, version: str) -> None:
    async with running(tmp_path) as daemon:
        call = daemon.raw.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )()

        async def ask(**question: Any) -> Any:
            await call.write(reflection_pb2.ServerReflectionRequest(**question))
            return await call.read()

        answer = await ask(list_services="")
        assert {service.name for service in answer.list_services_response.service} == SERVICES
        for name in sorted(SERVICES):
            described = await ask(file_containing_symbol=name)
            files = [
                descriptor_pb2.FileDescriptorProto.FromString(data)
                for data in described.file_descriptor_response.file_descriptor_proto
            ]
            found = {f"{file.package}.{service.name}" for file in files for service in file.service}
            assert name in found, described
        missing = await ask(file_containing_symbol="no.such.Thing")
        assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        await call.done_writing()


# --------------------------------------------------------------------------------------------- tcp


def _options(directory: Path, **options: Any) -> RpcOptions:
    return RpcOptions(**{"runtime_directory": directory, "policy": Policy(os.geteuid(), tcp=True), **options})


async def test_tcp_on_loopback(tmp_path: Path) -> None:
    fakes = Fakes(guests_by_name={GUEST: guest()})
    server = RpcServer(fakes.services(), _options(tmp_path, tcp_host="127.0.0.1"))
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.tcp_address) as channel:
            stub = guest_service_pb2_grpc.GuestServiceStub(channel)
            assert (await stub.GetGuest(GET)).guest.name == GUEST
            await stub.StartGuest(guest_service_pb2.StartGuestRequest(name=GUEST))
            assert fakes.audited[0]["caller"] == "tcp:127.0.0.1"
    finally:
        await server.stop(0)
    assert not list(tmp_path.iterdir()), "no unix socket was asked for"


async def test_tcp_callers_are_denied_unless_the_policy_says_so(tmp_path: Path) -> None:
    server = RpcServer(Fakes().services(), _options(tmp_path, tcp_host="127.0.0.1", policy=Policy(os.geteuid())))
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.tcp_address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await guest_service_pb2_grpc.GuestServiceStub(channel).GetGuest(GET)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    finally:
        await server.stop(0)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "localhost", "nonsense"])
async def test_tcp_without_tls_is_for_loopback_only(tmp_path: Path, host: str) -> None:
    server = RpcServer(Fakes().services(), _options(tmp_path, tcp_host=host))
    with pytest.raises(InvalidArgumentError) as caught:
        await server.start()
    assert caught.value.reason.name == "CONFIG_INVALID"


async def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        server = RpcServer(Fakes().services(), _options(tmp_path, tcp_host="127.0.0.1", tcp_port=port))
        with pytest.raises(FailedPreconditionError) as caught:
            await server.start()
        assert caught.value.reason.name == "ADDRESS_IN_USE"


async def test_two_daemons_do_not_share_a_port(tmp_path: Path) -> None:
    first = RpcServer(Fakes().services(), _options(tmp_path, tcp_host="127.0.0.1"))
    await first.start()
    try:
        port = int(first.tcp_address.rpartition(":")[2])
        second = RpcServer(Fakes().services(), _options(tmp_path, tcp_host="127.0.0.1", tcp_port=port))
        with pytest.raises(FailedPreconditionError):
            await second.start()
    finally:
        await first.stop(0)


# ----------------------------------------------------------------------------------- start and stop


async def test_a_second_daemon_on_the_socket_refuses_and_the_first_serves_on(tmp_path: Path) -> None:
    async with running(tmp_path, Fakes(guests_by_name={GUEST: guest()})) as daemon:
        with pytest.raises(FailedPreconditionError) as caught:
            async with running(tmp_path):
                pass
        assert caught.value.reason.name == "ADDRESS_IN_USE"
        stub = guest_service_pb2_grpc.GuestServiceStub(daemon.channel)
        assert (await stub.GetGuest(GET)).guest.name == GUEST


async def test_stopping_leaves_nothing_and_may_be_repeated(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        await daemon.server.stop(0)
        await daemon.server.stop(0)
        assert [path.name for path in tmp_path.iterdir() if path.is_socket()] == []
        assert list((tmp_path / "rpc").iterdir()) == []
    # The same path can be served again.
    async with running(tmp_path, Fakes(guests_by_name={GUEST: guest()})) as again:
        await guest_service_pb2_grpc.GuestServiceStub(again.channel).GetGuest(GET)


async def test_after_stop_nobody_can_connect(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        await daemon.server.stop(0)
        with pytest.raises(OSError, match=r"No such file|refused"):
            await asyncio.open_unix_connection(daemon.path)


async def test_large_answers_and_the_limit_of_requests(tmp_path: Path) -> None:
    record = guest(GUEST, big="x" * 3_000_000)
    async with running(tmp_path, Fakes(guests_by_name={GUEST: record}), max_message_bytes=100_000) as daemon:
        stub = guest_service_pb2_grpc.GuestServiceStub(daemon.channel)
        assert len((await stub.GetGuest(GET)).guest.labels["big"]) == 3_000_000
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetGuest(guest_service_pb2.GetGuestRequest(name="x" * 200_000))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_many_clients_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, Fakes(guests_by_name={GUEST: guest()})) as daemon:

        async def one() -> None:
            options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
            async with grpc.aio.insecure_channel(f"unix:{daemon.path}", options=options) as channel:
                stub = guest_service_pb2_grpc.GuestServiceStub(channel)
                for _ in range(3):
                    assert (await stub.GetGuest(GET)).guest.name == GUEST

        await asyncio.gather(*(one() for _ in range(50)))
        made = daemon.server._front
        assert made is not None
        await until(lambda: made.connections == 0)


# --------------------------------------------------------------------------- gRPC's own unix socket


def test_the_inner_directory_is_private_and_swept(tmp_path: Path) -> None:
    directory = tmp_path / "rpc"
    directory.mkdir(mode=0o755)
    killed, alive = directory / "1-aa.sock", directory / "2-bb.sock"
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as live:
        dead.bind(str(killed))
        dead.close()
        live.bind(str(alive))
        live.listen(1)
        made = _InnerSocket.make(tmp_path)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert not killed.exists()
        assert alive.exists(), "another daemon's"
        assert Path(made.path).parent == directory


def test_a_long_runtime_directory_is_got_around(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    made = _InnerSocket.make(deep)
    try:
        assert len(made.path) < 107
        assert stat.S_IMODE(Path(made.path).parent.stat().st_mode) == 0o700
    finally:
        made.remove()
    assert not Path(made.path).parent.exists()


def test_a_runtime_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rpc").symlink_to("/tmp")
    with pytest.raises(InvalidArgumentError):
        _InnerSocket.make(tmp_path)
    with contextlib.suppress(FileNotFoundError), pytest.raises(InvalidArgumentError):
        _InnerSocket.make(tmp_path / "missing")
