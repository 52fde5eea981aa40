"""A small daemon behind the real gRPC server: services in memory, and a client's view of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import grpc
from google.rpc import status_pb2

from virtd.auth import Policy
from virtd.errors import GUEST_NOT_FOUND, OPERATION_NOT_FOUND, ErrorRecord, NotFoundError
from virtd.inventory import GuestView
from virtd.model.audit import AuditRecord
from virtd.model.console import AgentResult, Screenshot
from virtd.model.event import Event, EventType
from virtd.model.guest import Guest, GuestSpec, GuestState, GuestStatus
from virtd.model.host import Capability, CapabilityLevel, CapabilityProvenance, Host
from virtd.model.metrics import GuestMetrics
from virtd.model.names import GuestName
from virtd.model.network import DhcpLease, Network
from virtd.model.operation import Operation, OperationState
from virtd.model.schedule import Schedule
from virtd.model.server import BackendInfo, ServerInfo
from virtd.model.snapshot import Snapshot
from virtd.model.storage import Image, Pool, Volume
from virtd.rpc.convert import ENCODERS
from virtd.rpc.listener import SocketOptions
from virtd.rpc.server import RpcOptions, RpcServer
from virtd.rpc.status import DETAILS_KEY, from_status
from virtd.service import Services
from virtd.service.call import Call, Page
from virtd.service.console_hub import ConsoleChunk, ConsoleNotice
from virtd.service.consoles import LogPart
from virtd.service.events import WatchBatch, WatchBookmark, WatchInitialDone, WatchItem
from virtd.service.guests import GuestPage, HostPlan
from virtd.service.snapshots import SnapshotPage

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
UID = UUID("11111111-2222-4333-8444-555555555555")
REQUEST_ID = "99999999-8888-4777-8666-555555555555"


def guest(name: str = "hosts/a/guests/b", **labels: str) -> Guest:
    return Guest(name, UID, GuestSpec(vcpus=2), GuestStatus(GuestState.RUNNING), labels=labels)


def view(record: Guest) -> GuestView:
    return GuestView(record, ENCODERS.guest(record))


@dataclass
class Fakes:
    """Services in memory.  ``calls`` holds what the servicers asked for: (service.method, arguments)."""

    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    guests_by_name: dict[str, Guest] = field(default_factory=dict)
    operations: dict[str, Operation] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    audited: list[dict[str, str]] = field(default_factory=list)
    hooks: dict[str, Callable[..., Awaitable[Any]]] = field(default_factory=dict)
    watch_items: asyncio.Queue[WatchItem | BaseException] = field(default_factory=asyncio.Queue)
    watchers: int = 0
    console_input: bytearray = field(default_factory=bytearray)
    console_output: asyncio.Queue[ConsoleChunk | ConsoleNotice | None] = field(default_factory=asyncio.Queue)
    console_closed: asyncio.Event = field(default_factory=asyncio.Event)
    console_error: Exception | None = None
    metrics: list[tuple[str, ...]] = field(default_factory=list)

    def arguments(self, method: str) -> tuple[Any, ...]:
        """What the only call of a method was given."""
        ((_, arguments),) = [entry for entry in self.calls if entry[0] == method]
        return arguments

    # CallMetrics
    def rpc_started(self, method: str) -> None:
        self.metrics.append(("started", method))

    def rpc_finished(self, method: str, code: str, seconds: float) -> None:
        assert seconds >= 0
        self.metrics.append(("finished", method, code))

    def services(self) -> Services:
        names = (
            "server hosts guests snapshots schedules storage networks images consoles agents operations events metrics"
            " audit"
        )
        return cast("Services", SimpleNamespace(**{name: _Service(self, name) for name in names.split()}))

    # -- answers: one method for each of the services' methods, named service_method

    def server_info(self, caller: str) -> ServerInfo:
        return ServerInfo("0.1.0", ("virtd.v1",), ("f",), (BackendInfo("kvm"),), "instance", NOW, caller)

    async def hosts_add(
        self, call: Call, host_id: str, uri: str, labels: dict[str, str], options: dict[str, str]
    ) -> Host:
        return Host(f"hosts/{host_id}", "kvm", uri, labels=labels)

    def hosts_get(self, host_id: str) -> Host:
        return Host(f"hosts/{host_id}", "kvm", "qemu:///system")

    async def hosts_list(self, page_size: int, page_token: str) -> Page[Host]:
        return Page((self.hosts_get("a"), self.hosts_get("b")), "next")

    async def hosts_remove(self, call: Call, host_id: str, force: bool) -> None:
        return None

    async def hosts_probe(self, host_id: str) -> Host:
        return self.hosts_get(host_id)

    def hosts_capabilities(self, host_id: str, **_of: object) -> tuple[Capability, ...]:
        return (Capability("guest.pause", CapabilityLevel.PARTIAL, CapabilityProvenance.PROBED, "why"),)

    def guests_get(self, name: GuestName) -> GuestView:
        if str(name) not in self.guests_by_name:
            raise NotFoundError(GUEST_NOT_FOUND, f"there is no guest {name.guest}", resource=str(name))
        return view(self.guests_by_name[str(name)])

    async def guests_list(self, host: str, filter_: str, page_size: int, page_token: str) -> GuestPage:
        views = tuple(view(one) for _, one in sorted(self.guests_by_name.items()))
        error = ErrorRecord("Unavailable", "HOST_UNREACHABLE", "no answer")
        return GuestPage(views, "more", (("hosts/dead", error),), "token-1")

    async def guests_plan_one(self, host: str, guest_id: str, draft: Any, caller: str = "") -> HostPlan:
        return HostPlan(f"hosts/{host}", "<domain/>", "libvirt-xml")

    async def guests_plan(self, hosts: list[str], guest_id: str, draft: Any) -> list[HostPlan]:
        return [HostPlan(f"hosts/{host}", "<domain/>", "libvirt-xml") for host in hosts]

    async def guests_update(self, call: Call, name: GuestName, **changes: Any) -> GuestView:
        changes.pop("etag")
        record = self.guests_get(name).guest
        return view(replace(record, **{key: value for key, value in changes.items() if value is not None}))

    async def guests_wait(self, name: GuestName, **conditions: Any) -> GuestView | None:
        return None if conditions["deleted"] else self.guests_get(name)

    async def snapshots_get(self, name: GuestName, snapshot_id: str) -> Snapshot:
        return Snapshot(f"{name}/snapshots/{snapshot_id}")

    async def snapshots_list(self, host: str, guest: str, page_size: int, page_token: str) -> SnapshotPage:
        return SnapshotPage((Snapshot(f"hosts/{host}/guests/{guest}/snapshots/one"),))

    async def schedules_create(self, call: Call, schedule_id: str, draft: Schedule) -> Schedule:
        return replace(draft, name=f"schedules/{schedule_id}")

    def schedules_get(self, schedule_id: str) -> Schedule:
        return Schedule(f"schedules/{schedule_id}")

    def schedules_list(self, page_size: int, page_token: str) -> Page[Schedule]:
        return Page((Schedule("schedules/one"),), "")

    async def schedules_update(
        self, call: Call, schedule_id: str, draft: Schedule, changed: Any, etag: str = ""
    ) -> Schedule:
        return replace(draft, name=f"schedules/{schedule_id}", description=",".join(changed))

    async def schedules_run_now(self, schedule_id: str) -> Schedule:
        return Schedule(f"schedules/{schedule_id}")

    async def storage_get_pool(self, host: str, pool: str) -> Pool:
        return Pool(f"hosts/{host}/pools/{pool}")

    async def storage_list_pools(self, host: str, page_size: int, page_token: str) -> Page[Pool]:
        return Page((Pool(f"hosts/{host}/pools/p"),), "")

    async def storage_get_volume(self, host: str, pool: str, volume: str) -> Volume:
        return Volume(f"hosts/{host}/pools/{pool}/volumes/{volume}")

    async def storage_list_volumes(self, host: str, pool: str, page_size: int, page_token: str) -> Page[Volume]:
        return Page((Volume(f"hosts/{host}/pools/{pool}/volumes/v"),), "")

    async def networks_get(self, host: str, network: str) -> Network:
        return Network(f"hosts/{host}/networks/{network}")

    async def networks_list(self, host: str, page_size: int, page_token: str) -> Page[Network]:
        return Page((Network(f"hosts/{host}/networks/n"),), "")

    async def networks_leases(self, host: str, network: str, page_size: int, page_token: str) -> Page[DhcpLease]:
        return Page((DhcpLease("52:54:00:00:00:01", "10.0.0.2", 24, "g", NOW, f"hosts/{host}/guests/g"),), "more")

    async def images_get(self, image_id: str) -> Image:
        return Image(f"images/{image_id}")

    async def images_list(self, page_size: int, page_token: str) -> Page[Image]:
        return Page((Image("images/i"),), "")

    async def agents_execute(self, call: Call, name: GuestName, command: Any) -> AgentResult:
        return AgentResult(3, None, b"out", b"err")

    async def consoles_attach(
        self, call: Call, name: GuestName, *, read_only: bool, offset: int | None, take: bool = False
    ) -> _Console:
        return _Console(self, offset)

    async def consoles_read_log(self, name: GuestName, offset: int | None, max_bytes: int) -> LogPart:
        return LogPart(5, b"hello", 10, truncated=False, start_offset=3)

    async def consoles_screenshot(self, name: GuestName) -> Screenshot:
        return Screenshot(b"\x89PNG", "image/png")

    async def operations_get(self, operation_id: str) -> Operation:
        name = f"operations/{operation_id}"
        if name not in self.operations:
            raise NotFoundError(OPERATION_NOT_FOUND, f"there is no {name}", resource=name)
        return self.operations[name]

    async def operations_list(self, filter_: str, page_size: int, page_token: str) -> Page[Operation]:
        return Page(tuple(self.operations.values()), "next")

    async def operations_cancel(self, call: Call, operation_id: str) -> Operation:
        return await self.operations_get(operation_id)

    async def operations_delete(self, call: Call, operation_id: str) -> None:
        del self.operations[f"operations/{operation_id}"]

    async def operations_wait(self, operation_id: str, timeout_s: float) -> Operation:
        return await self.operations_get(operation_id)

    async def operations_response(self, operation: Operation) -> Any:
        return self.results.get(operation.name)

    async def events_watch(
        self, filter_: str, resume_token: str, initial_state: bool, heartbeat_s: float
    ) -> AsyncIterator[WatchItem]:
        self.watchers += 1
        try:
            if initial_state:
                yield WatchInitialDone("t0")
            else:
                yield WatchBookmark("t0")
            while True:
                item = await self.watch_items.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.watchers -= 1

    async def events_pull(
        self, filter_: str, resume_token: str, max_events: int, wait_s: float
    ) -> tuple[tuple[Event, ...], str]:
        return (event(1), event(2)), "t2"

    async def metrics_get(self, parent: str | GuestName) -> list[tuple[str, GuestMetrics]]:
        return [("hosts/a/guests/b", GuestMetrics(UID, NOW, cpu_time_s=0.0, vcpus=2))]

    async def audit_list(self, page_size: int, page_token: str) -> Page[AuditRecord]:
        return Page((AuditRecord(1, NOW, "unix:uid=0", "/m", "r", "", "OK"),), "")

    def audit_record(self, **fields: str) -> None:
        self.audited.append(fields)

    async def changing(self, method: str, *arguments: Any, **_named: Any) -> Operation | None:
        """Every verb that changes something: an operation, or None for validate_only."""
        call = arguments[0]
        assert isinstance(call, Call)
        if call.validate_only:
            return None
        operation = Operation(
            f"operations/{len(self.operations) + 1}", method.split("_", 1)[1], "x", request_id=call.request_id
        )
        self.operations[operation.name] = operation
        return operation


class _Service:
    def __init__(self, fakes: Fakes, name: str) -> None:
        self._fakes, self._name = fakes, name

    def __getattr__(self, method: str) -> Any:
        full = f"{self._name}_{method}"

        def call(*arguments: Any, **named: Any) -> Any:
            if full != "audit_record":
                self._fakes.calls.append((f"{self._name}.{method}", (*arguments, *named.values())))
            hook = self._fakes.hooks.get(f"{self._name}.{method}")
            if hook is not None:
                return hook(*arguments, **named)
            answer = getattr(self._fakes, full, None)
            if answer is None:
                return self._fakes.changing(full, *arguments, **named)
            return answer(*arguments, **named)

        return call


class _Console:
    def __init__(self, fakes: Fakes, offset: int | None) -> None:
        self._fakes = fakes
        self.offset = offset or 0
        self.truncated = offset == 1
        self.writer = ""

    async def read(self) -> ConsoleChunk | ConsoleNotice | None:
        return await self._fakes.console_output.get()

    async def write(self, data: bytes) -> None:
        if self._fakes.console_error is not None:
            raise self._fakes.console_error
        self._fakes.console_input += data

    async def close(self) -> None:
        self._fakes.console_closed.set()


def event(revision: int, type_: EventType = EventType.GUEST_STATE_CHANGED) -> Event:
    payload = ENCODERS.guest(guest()) if type_.value.startswith("GUEST") else b""
    return Event(revision, NOW, type_, "hosts/a/guests/b", str(UID), payload, {"state": "RUNNING"})


def batch(*revisions: int) -> WatchBatch:
    return WatchBatch(tuple(event(revision) for revision in revisions), f"t{revisions[-1]}")


def finished(name: str, state: OperationState = OperationState.SUCCEEDED) -> Operation:
    return Operation(name, "start", "hosts/a/guests/b", state)


# ------------------------------------------------------------------------------------ a running one


@dataclass
class Running:
    """A server that runs, and a channel to its public socket."""

    fakes: Fakes
    server: RpcServer
    channel: grpc.aio.Channel
    path: Path

    @property
    def raw(self) -> Any:
        """The channel, for calls whose messages are bytes (which gRPC's stubs have no type for)."""
        return self.channel

    def unary(self, method: str, answer: Any) -> Any:
        """A callable for a unary method; ``answer`` is the class of its response."""
        return self.channel.unary_unary(
            method, request_serializer=lambda m: m.SerializeToString(), response_deserializer=answer.FromString
        )


@asynccontextmanager
async def running(directory: Path, fakes: Fakes | None = None, **options: Any) -> AsyncIterator[Running]:
    """Serve ``fakes`` on a socket below ``directory``; everything is gone afterwards."""
    fakes = fakes or Fakes()
    path = directory / "virtd.sock"
    settings: dict[str, Any] = {
        "runtime_directory": directory,
        "policy": Policy(own_uid=os.geteuid()),
        "socket": SocketOptions(path),
        **options,
    }
    server = RpcServer(fakes.services(), RpcOptions(**settings), fakes)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            yield Running(fakes, server, channel, path)
    finally:
        await server.stop(0)


def error_of(error: grpc.aio.AioRpcError) -> ErrorRecord:
    """The record that an RPC's error carries."""
    details = dict(error.trailing_metadata() or ())[DETAILS_KEY]
    assert isinstance(details, bytes)
    return from_status(status_pb2.Status.FromString(details))


async def until(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    """Return when the condition holds; fail after ``limit_s``."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)
