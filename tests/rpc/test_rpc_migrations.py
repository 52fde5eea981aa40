"""Migration through the daemon's API, between two fake hosts; and what guestctl makes of it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest

from tests.rpc.guestctl_kit import Ctl
from tests.rpc.rpc_fakes import error_of
from tests.rpc.scripted_server import ScriptedServer
from tests.rpc.test_guestctl_things import answers, ctl, sent, server
from tests.rpc.test_rpc_daemon import SPEC, _ended
from virtd.config.model import Config, DiscoveryConfig, HostEntry, ServerConfig, StateConfig, StorageConfig
from virtd.daemon import Daemon
from virtd.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    guest_pb2,
    guest_service_pb2,
    guest_service_pb2_grpc,
    host_pb2,
    host_pb2_grpc,
    operation_pb2,
)
from virtd.v1 import transfer_pb2 as pb
from virtd.v1 import transfer_pb2_grpc as pb_grpc

__all__ = ["ctl", "server"]

GUEST = "hosts/lab/guests/one"
COPY = pb.MigrationOptions(target="hosts/other", copy_storage=True)


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    with tempfile.TemporaryDirectory(prefix="virtd-") as name:
        root = Path(name)
        config = Config(
            server=ServerConfig(socket=root / "virtd.sock", socket_mode=0o600, drain_timeout_s=5),
            state=StateConfig(directory=root / "state", runtime_directory=root / "run"),
            storage=StorageConfig(allowed_directories=()),
            hosts=tuple(HostEntry(id=host, uri=f"fake:///{uuid4().hex}") for host in ("lab", "other")),
            discovery=DiscoveryConfig(enabled=False),
        )
        async with Daemon(config).running(), grpc.aio.insecure_channel(f"unix:{root}/virtd.sock") as made:
            hosts = host_pb2_grpc.HostServiceStub(made)
            for _ in range(200):
                found = [
                    (await hosts.GetHost(host_pb2.GetHostRequest(name=f"hosts/{host}"))).host
                    for host in ("lab", "other")
                ]
                if all(host.state == host_pb2.HOST_STATE_CONNECTED and host.facts.hypervisor for host in found):
                    break
                await asyncio.sleep(0.05)
            guests = guest_service_pb2_grpc.GuestServiceStub(made)
            request = guest_service_pb2.CreateGuestRequest(
                parent="hosts/lab", guest_id="one", guest=guest_pb2.Guest(spec=SPEC), start=True
            )
            assert (await _ended(made, (await guests.CreateGuest(request)).operation)).HasField("response")
            yield made


async def refused(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error_of(error.value)


async def test_a_guest_moves(channel: Any) -> None:
    stub = pb_grpc.TransferServiceStub(channel)
    check = (await stub.CheckMigration(pb.CheckMigrationRequest(name=GUEST, options=COPY))).check
    assert (check.possible, check.mode, check.target) == (True, pb.MIGRATION_MODE_LIVE, "hosts/other/guests/one")
    dry = await stub.Migrate(pb.MigrateRequest(name=GUEST, options=COPY, validate_only=True))
    assert dry.check == check
    assert not dry.HasField("operation")
    request = pb.MigrateRequest(name=GUEST, options=COPY, request_id=str(uuid4()))
    started = await stub.Migrate(request)
    assert (await stub.Migrate(request)).operation.name == started.operation.name
    ended = await _ended(channel, started.operation)
    guest = guest_pb2.Guest()
    assert ended.response.Unpack(guest)
    assert guest.name == "hosts/other/guests/one"
    metadata = operation_pb2.OperationMetadata()
    ended.metadata.Unpack(metadata)
    assert (metadata.verb, metadata.result_data["downtime_ms"]) == ("migrate", "5")
    audit = audit_pb2_grpc.AuditServiceStub(channel)
    records = (await audit.ListAuditRecords(audit_pb2.ListAuditRecordsRequest())).records
    assert any(record.method.endswith("/Migrate") and record.resource == GUEST for record in records)


@pytest.mark.parametrize(
    ("options", "reason", "field"),
    [
        (pb.MigrationOptions(), "FIELD_INVALID", "options.target"),
        (pb.MigrationOptions(target="other"), "FIELD_INVALID", "options.target"),
        (pb.MigrationOptions(target="hosts/-"), "FIELD_INVALID", "options.target"),
        (pb.MigrationOptions(target="hosts/nowhere"), "HOST_NOT_FOUND", ""),
        (pb.MigrationOptions(target="hosts/lab"), "MIGRATION_BLOCKED", ""),
        (pb.MigrationOptions(target="hosts/other", pool="x"), "FIELD_INVALID", "options.pool"),
        (pb.MigrationOptions(target="hosts/other", mode=9), "FIELD_INVALID", "options.mode"),  # type: ignore[arg-type]
        (pb.MigrationOptions(target="hosts/other", bandwidth_bytes_per_s=1), "FIELD_INVALID",
         "options.bandwidth_bytes_per_s"),
        (pb.MigrationOptions(target="hosts/other", max_downtime_ms=0), "FIELD_INVALID", "options.max_downtime_ms"),
        (pb.MigrationOptions(target="hosts/other", mode=pb.MIGRATION_MODE_OFFLINE), "INVALID_STATE", ""),
    ],
)  # fmt: skip
async def test_what_is_refused(channel: Any, options: pb.MigrationOptions, reason: str, field: str) -> None:
    stub = pb_grpc.TransferServiceStub(channel)
    error = await refused(stub.Migrate(pb.MigrateRequest(name=GUEST, options=options)))
    assert error.reason == reason
    if field:
        assert [violation.field for violation in error.violations] == [field]


async def test_a_guest_that_is_not_there(channel: Any) -> None:
    stub = pb_grpc.TransferServiceStub(channel)
    nobody = "hosts/lab/guests/nobody"
    assert (await refused(stub.Migrate(pb.MigrateRequest(name=nobody, options=COPY)))).reason == "GUEST_NOT_FOUND"
    check = pb.CheckMigrationRequest(name=nobody, options=COPY)
    assert (await refused(stub.CheckMigration(check))).reason == "GUEST_NOT_FOUND"


def test_guestctl_sends_what_was_asked_for(ctl: Ctl, server: ScriptedServer) -> None:
    answers(server, "Migrate", pb.MigrateResponse, guest_pb2.Guest(name="hosts/b/guests/web"))
    result = ctl(
        "migrate", "hosts/a/guests/web", "--to", "hosts/b", "--live", "--copy-disk", "root", "--pool", "fast",
        "--bandwidth", "100MiB", "--max-downtime", "300ms", "--post-copy", "--auto-converge", "--no-queue",
    )  # fmt: skip
    assert result.code == 0, result.err
    options = sent(server, "Migrate").options
    assert options == pb.MigrationOptions(
        target="hosts/b", mode=pb.MIGRATION_MODE_LIVE, copy_storage=True, copy_disks=["root"], pool="fast",
        post_copy=True, auto_converge=True, bandwidth_bytes_per_s=100 << 20, max_downtime_ms=300,
    )  # fmt: skip


def test_guestctl_dry_run(ctl: Ctl, server: ScriptedServer) -> None:
    finding = pb.MigrationFinding(
        severity=pb.FINDING_SEVERITY_CRITICAL, reason="CPU_INCOMPATIBLE", message="no AVX there", remedy="another host"
    )
    server.on("CheckMigration", pb.CheckMigrationResponse(check=pb.MigrationCheck(findings=[finding])))
    result = ctl("migrate", "hosts/a/guests/web", "--to", "hosts/b", "--dry-run")
    assert result.code == 5
    assert "CPU_INCOMPATIBLE" in result.out
    assert "another host" in result.out
    server.on("CheckMigration", pb.CheckMigrationResponse(check=pb.MigrationCheck(possible=True, target="x")))
    assert ctl("migrate", "hosts/a/guests/web", "--to", "hosts/b", "--dry-run").code == 0
    assert ctl("migrate", "hosts/a/guests/web").code == 2
