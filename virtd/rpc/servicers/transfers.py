"""virtd.v1.TransferService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from virtd.model.migration import MigrationCheck, MigrationMode, MigrationRequest
from virtd.model.names import parse_guest, parse_host
from virtd.rpc.context import Context
from virtd.rpc.convert import to_message
from virtd.rpc.servicers.base import Servicer, call_of, required
from virtd.v1 import transfer_pb2 as pb


class TransferServicer(Servicer):
    """Guests that go from one host to another."""

    async def Migrate(self, request: pb.MigrateRequest, _context: Context) -> pb.MigrateResponse:
        """Move a guest."""
        name, wanted = parse_guest(request.name), _request(request.options)
        answer = await self.services.migrations.migrate(call_of(request), name, wanted)
        if isinstance(answer, MigrationCheck):
            return pb.MigrateResponse(check=to_message(answer, pb.MigrationCheck))
        return pb.MigrateResponse(operation=await self.started(answer))

    async def CheckMigration(self, request: pb.CheckMigrationRequest, _context: Context) -> pb.CheckMigrationResponse:
        """What Migrate would do."""
        found = await self.services.migrations.check(parse_guest(request.name), _request(request.options))
        return pb.CheckMigrationResponse(check=to_message(found, pb.MigrationCheck))


_MODES = {
    pb.MIGRATION_MODE_LIVE: MigrationMode.LIVE,
    pb.MIGRATION_MODE_OFFLINE: MigrationMode.OFFLINE,
}


def _request(options: pb.MigrationOptions) -> MigrationRequest:
    """The options, with the target's bare id."""
    target = parse_host(required(options.target, "options.target"), "options.target")
    return MigrationRequest(
        target_host=target,
        mode=_MODES.get(options.mode, MigrationMode.AUTO),
        copy_storage=options.copy_storage,
        copy_disks=tuple(options.copy_disks),
        pool=options.pool,
        post_copy=options.post_copy,
        auto_converge=options.auto_converge,
        bandwidth_bytes_per_s=options.bandwidth_bytes_per_s if options.HasField("bandwidth_bytes_per_s") else None,
        max_downtime_ms=options.max_downtime_ms if options.HasField("max_downtime_ms") else None,
        discard_saved_state=options.discard_saved_state,
    )
