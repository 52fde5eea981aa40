"""virtd.v1.BackupService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from virtd.model.backup import BackupKind
from virtd.model.names import GuestName, check_new_id, parse, parse_guest, parse_host
from virtd.rpc.context import Context
from virtd.rpc.convert import enum_member, to_message
from virtd.rpc.servicers.base import Servicer, call_of
from virtd.v1 import backup_pb2 as pb

BACKUP = "backups/{backup}"


class BackupServicer(Servicer):
    """Backups."""

    async def CreateBackup(self, request: pb.CreateBackupRequest, _context: Context) -> pb.CreateBackupResponse:
        """Back a guest up."""
        operation = await self.services.backups.create(
            call_of(request),
            parse_guest(request.guest, "guest"),
            check_new_id(request.backup_id, "backup_id"),
            enum_member(request, "kind", BackupKind) or BackupKind.AUTO,
            request.repository,
            quiesce=request.quiesce,
            description=request.description,
        )
        return pb.CreateBackupResponse(operation=await self.started(operation))

    async def GetBackup(self, request: pb.GetBackupRequest, _context: Context) -> pb.GetBackupResponse:
        """One backup."""
        backup = await self.services.backups.get(_backup(request.name))
        return pb.GetBackupResponse(backup=to_message(backup, pb.Backup))

    async def ListBackups(self, request: pb.ListBackupsRequest, _context: Context) -> pb.ListBackupsResponse:
        """All backups, or those of a source."""
        source: GuestName | str = ""
        if request.source:
            guest = "/guests/" in request.source
            source = parse_guest(request.source, "source") if guest else parse_host(request.source, "source")
        page = await self.services.backups.list(
            source, request.repository, request.filter, request.page_size, request.page_token
        )
        backups = [to_message(backup, pb.Backup) for backup in page.items]
        return pb.ListBackupsResponse(backups=backups, next_page_token=page.next_page_token)

    async def VerifyBackup(self, request: pb.VerifyBackupRequest, _context: Context) -> pb.VerifyBackupResponse:
        """Look for damage."""
        operation = await self.services.backups.verify(call_of(request), _backup(request.name))
        return pb.VerifyBackupResponse(operation=await self.started(operation))

    async def RestoreBackup(self, request: pb.RestoreBackupRequest, _context: Context) -> pb.RestoreBackupResponse:
        """Make a new guest of a backup."""
        operation = await self.services.backups.restore(
            call_of(request),
            _backup(request.name),
            parse_host(request.parent, "parent") if request.parent else "",
            check_new_id(request.guest_id, "guest_id"),
            display_name=request.display_name,
            pool=request.pool,
            start=request.start,
            keep_identity=request.keep_identity,
        )
        return pb.RestoreBackupResponse(operation=await self.started(operation))

    async def DeleteBackup(self, request: pb.DeleteBackupRequest, _context: Context) -> pb.DeleteBackupResponse:
        """Delete a backup."""
        operation = await self.services.backups.delete(
            call_of(request), _backup(request.name), with_increments=request.with_increments
        )
        return pb.DeleteBackupResponse(operation=await self.started(operation))

    async def ListRepositories(
        self, _request: pb.ListRepositoriesRequest, _context: Context
    ) -> pb.ListRepositoriesResponse:
        """The repositories."""
        found = await self.services.backups.repositories()
        return pb.ListRepositoriesResponse(repositories=[to_message(entry, pb.Repository) for entry in found])


def _backup(name: str) -> str:
    # An id that virtd would not give out is a path that must not be looked at.
    return check_new_id(parse(name, BACKUP)["backup"], "name")
