"""The gRPC server: all services, the public unix socket, TCP on request, a graceful end."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from google.longrunning import operations_pb2
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2

from virtd.auth import UNKNOWN, Peer, Policy
from virtd.errors import ADDRESS_IN_USE, CONFIG_INVALID, FailedPreconditionError, InvalidArgumentError
from virtd.obs.logging import get_logger
from virtd.rpc.front import Front, identify_tcp
from virtd.rpc.interceptors import CallMetrics, Pipeline
from virtd.rpc.listener import SocketOptions
from virtd.rpc.registry import handlers
from virtd.rpc.servicers import reflection
from virtd.rpc.servicers.agents import AgentServicer
from virtd.rpc.servicers.audit import AuditServicer
from virtd.rpc.servicers.backups import BackupServicer
from virtd.rpc.servicers.consoles import ConsoleServicer
from virtd.rpc.servicers.devices import DeviceServicer
from virtd.rpc.servicers.events import EventServicer
from virtd.rpc.servicers.guests import GuestServicer
from virtd.rpc.servicers.health import HealthServicer
from virtd.rpc.servicers.hosts import HostServicer
from virtd.rpc.servicers.images import ImageServicer
from virtd.rpc.servicers.metrics import MetricsServicer
from virtd.rpc.servicers.networks import NetworkServicer
from virtd.rpc.servicers.operations import OperationsServicer
from virtd.rpc.servicers.schedules import ScheduleServicer
from virtd.rpc.servicers.server import ServerServicer
from virtd.rpc.servicers.snapshots import SnapshotServicer
from virtd.rpc.servicers.storage import PoolServicer, VolumeServicer
from virtd.rpc.servicers.transfers import TransferServicer
from virtd.rpc.servicers.trash import TrashServicer
from virtd.rpc.servicers.uploads import UploadServicer
from virtd.service import Services
from virtd.v1 import (
    agent_pb2,
    audit_pb2,
    backup_pb2,
    console_pb2,
    device_pb2,
    event_pb2,
    guest_service_pb2,
    host_pb2,
    image_pb2,
    metrics_pb2,
    network_pb2,
    schedule_pb2,
    server_pb2,
    snapshot_pb2,
    storage_pb2,
    transfer_pb2,
    trash_pb2,
    upload_pb2,
)

log = get_logger(__name__)

_PATH_MAX: Final = 107
_KEEPALIVE_MS: Final = 30_000
_LEAST_PING_INTERVAL_MS: Final = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcOptions:
    """How the API is served.

    :param socket: the public unix socket; None for none.
    :param tcp_host: numeric loopback address to listen on without TLS; ``""`` for none.  Whether its
        callers may do anything is the policy's business.
    :param tcp_port: 0 for any free one.
    :param runtime_directory: where gRPC's own socket is put, in a directory of mode 0700.
    :param max_message_bytes: the longest request that is accepted.
    :param max_call_s: bound of short calls whose caller set no deadline.
    """

    runtime_directory: Path
    policy: Policy
    socket: SocketOptions | None = None
    tcp_host: str = ""
    tcp_port: int = 0
    max_message_bytes: int = 16 * 1024 * 1024
    max_concurrent_calls: int = 10_000
    max_call_s: float = 300.0


def own_services(services: Services) -> list[tuple[ServiceDescriptor, object]]:
    """Every service of the API and its servicer."""
    return [
        (_service(server_pb2, "ServerService"), ServerServicer(services)),
        (_service(host_pb2, "HostService"), HostServicer(services)),
        (_service(guest_service_pb2, "GuestService"), GuestServicer(services)),
        (_service(device_pb2, "DeviceService"), DeviceServicer(services)),
        (_service(snapshot_pb2, "SnapshotService"), SnapshotServicer(services)),
        (_service(schedule_pb2, "ScheduleService"), ScheduleServicer(services)),
        (_service(backup_pb2, "BackupService"), BackupServicer(services)),
        (_service(storage_pb2, "PoolService"), PoolServicer(services)),
        (_service(storage_pb2, "VolumeService"), VolumeServicer(services)),
        (_service(upload_pb2, "UploadService"), UploadServicer(services)),
        (_service(network_pb2, "NetworkService"), NetworkServicer(services)),
        (_service(image_pb2, "ImageService"), ImageServicer(services)),
        (_service(console_pb2, "ConsoleService"), ConsoleServicer(services)),
        (_service(agent_pb2, "AgentService"), AgentServicer(services)),
        (_service(event_pb2, "EventService"), EventServicer(services)),
        (_service(metrics_pb2, "MetricsService"), MetricsServicer(services)),
        (_service(audit_pb2, "AuditService"), AuditServicer(services)),
        (_service(trash_pb2, "TrashService"), TrashServicer(services)),
        (_service(transfer_pb2, "TransferService"), TransferServicer(services)),
        (_service(operations_pb2, "Operations"), OperationsServicer(services)),
    ]


class RpcServer:
    """Serves the API.  Started and stopped once, from the event loop."""

    def __init__(self, services: Services, options: RpcOptions, metrics: CallMetrics | None = None) -> None:
        self._options = options
        own = own_services(services)
        names = [descriptor.full_name for descriptor, _ in own]
        self.health = HealthServicer(names)
        health, alpha = _service(health_pb2, "Health"), reflection.descriptor()
        v1 = reflection.describe_v1()
        described = reflection.servicer((*names, health.full_name, v1, alpha.full_name))
        self.served: Mapping[str, tuple[ServiceDescriptor, object]] = {
            **{descriptor.full_name: (descriptor, servicer) for descriptor, servicer in own},
            health.full_name: (health, self.health),
            v1: (alpha, described),
            alpha.full_name: (alpha, described),
        }
        """Every service by the name under which it is served: its descriptor and its servicer."""
        self._pipeline = Pipeline(
            self._identify,
            options.policy,
            services.audit,
            metrics,
            options.max_call_s,
            options.max_concurrent_calls,
        )
        self._server: Any = None
        self._front: Front | None = None
        self._inner: _InnerSocket | None = None
        self._tcp_port = 0

    async def start(self) -> None:
        """Serve; health says SERVING when this returns.

        :raises FailedPreconditionError: ADDRESS_IN_USE.
        :raises InvalidArgumentError: CONFIG_INVALID: the socket's path, or a TCP address that is not
            loopback.
        """
        self._server = grpc.aio.server(interceptors=(self._pipeline,), options=self._channel_options())
        self._server.add_generic_rpc_handlers(
            [handlers(descriptor, servicer, name) for name, (descriptor, servicer) in self.served.items()]
        )
        try:
            if self._options.tcp_host:
                self._tcp_port = self._listen_tcp()
            if self._options.socket is not None:
                self._inner = _InnerSocket.make(self._options.runtime_directory)
                self._server.add_insecure_port(f"unix:{self._inner.path}")
                self._front = Front(self._options.socket, self._inner.path)
            await self._server.start()
            if self._front is not None:
                await self._front.start()
        except BaseException:
            await self.stop(0)
            raise
        self.health.set_serving(True)

    async def stop(self, grace_s: float) -> None:
        """End.  Idempotent.

        No new connections from now on; waiting calls and streams are ended at once, the others have
        ``grace_s`` seconds to end by themselves.
        """
        self.health.set_serving(False)
        if self._front is not None:
            self._front.stop_accepting()
        self._pipeline.drain()
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None
        if self._front is not None:
            await self._front.close()
            self._front = None
        if self._inner is not None:
            self._inner.remove()
            self._inner = None

    @property
    def tcp_address(self) -> str:
        """Where TCP is served (``127.0.0.1:4711``), or ``""``."""
        if not self._tcp_port:
            return ""
        return _authority(self._options.tcp_host, self._tcp_port)

    def _identify(self, peer: str) -> Peer:
        found = self._front.identify(peer) if self._front is not None else None
        if found is not None:
            return found
        return identify_tcp(peer) if self._tcp_port else UNKNOWN

    def _listen_tcp(self) -> int:
        host, port = self._options.tcp_host, self._options.tcp_port
        try:
            loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise InvalidArgumentError(
                CONFIG_INVALID, f"server.tcp_listen: {host!r} is not a loopback address, and there is no TLS"
            )
        try:
            return int(self._server.add_insecure_port(_authority(host, port)))
        except RuntimeError as error:
            raise FailedPreconditionError(
                ADDRESS_IN_USE, f"another process listens on {_authority(host, port)}, or it cannot be used"
            ) from error

    def _channel_options(self) -> list[tuple[str, Any]]:
        return [
            ("grpc.max_receive_message_length", self._options.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            # Two daemons on one port would share the connections between them, silently.
            ("grpc.so_reuseport", 0),
            # Find dead TCP peers, and let clients do the same, also between calls.
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", _LEAST_PING_INTERVAL_MS),
        ]


@dataclass(frozen=True, slots=True)
class _InnerSocket:
    """gRPC's own socket, where nobody but this user can reach it."""

    path: str
    directory: Path | None

    @classmethod
    def make(cls, runtime_directory: Path) -> _InnerSocket:
        directory = runtime_directory / "rpc"
        name = f"{os.getpid()}-{secrets.token_hex(4)}.sock"
        if len(os.fsencode(directory / name)) > _PATH_MAX:
            short = Path(tempfile.mkdtemp(prefix="virtd-"))  # mode 0700
            return cls(str(short / name), short)
        _private(directory)
        _sweep(directory)
        return cls(str(directory / name), None)

    def remove(self) -> None:
        Path(self.path).unlink(missing_ok=True)
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)


def _private(directory: Path) -> None:
    """Make a directory that only this user can enter, or check that it is one."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise InvalidArgumentError(CONFIG_INVALID, f"{directory}: {error.strerror}") from error
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise InvalidArgumentError(CONFIG_INVALID, f"{directory} is not a directory of this user")
    if found.st_mode & 0o077:
        directory.chmod(0o700)


def _sweep(directory: Path) -> None:
    """Remove the sockets of daemons that were killed."""
    for path in directory.glob("*.sock"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                with contextlib.suppress(OSError):
                    path.unlink()
            except OSError:
                continue


def _service(module: Any, name: str) -> ServiceDescriptor:
    descriptor: ServiceDescriptor = module.DESCRIPTOR.services_by_name[name]
    return descriptor


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
