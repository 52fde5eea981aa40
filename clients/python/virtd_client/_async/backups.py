"""Backups of guests."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from virtd_client import _messages
from virtd_client._async.operation import AsyncOperation
from virtd_client._async.service import AsyncService, pages
from virtd_client.types import BackupKindName, OnConflict

if TYPE_CHECKING:
    from virtd.v1.backup_pb2 import Backup, BackupVerification, Repository
    from virtd.v1.backup_pb2_grpc import BackupServiceAsyncStub
    from virtd.v1.guest_pb2 import Guest
    from virtd.v1.operation_pb2 import OperationResult


class AsyncBackups(AsyncService):
    """Backups of guests.  Names are ``backups/{backup}``; they outlive the guest and its host."""

    @cached_property
    def _stub(self) -> BackupServiceAsyncStub:
        from virtd.v1.backup_pb2_grpc import BackupServiceStub

        return BackupServiceStub(self._transport.channel)

    async def create(
        self,
        guest: str,
        backup_id: str,
        *,
        kind: BackupKindName = "auto",
        repository: str = "",
        quiesce: bool = False,
        description: str = "",
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[Backup]:
        """Back a guest up, running or not, without stopping it.

        :param guest: the guest's name.
        :param kind: ``"auto"``: incremental where that is possible, else full with a warning that says why.
        :param repository: where to; the daemon's own by default.
        :param quiesce: freeze the guest's file systems, by its agent, for the moment that the content is of.
        """
        from virtd.v1 import backup_pb2 as pb

        request = pb.CreateBackupRequest(
            guest=guest,
            backup_id=backup_id,
            kind=_messages.backup_kind(kind),
            repository=repository,
            quiesce=quiesce,
            description=description,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return await self._start(self._stub.CreateBackup, request, "virtd.v1.Backup")

    async def get(self, name: str) -> Backup:
        """One backup."""
        from virtd.v1 import backup_pb2 as pb

        return (await self._transport.unary(self._stub.GetBackup, pb.GetBackupRequest(name=name))).backup

    async def list(
        self,
        source: str = "",
        *,
        repository: str = "",
        filter: str = "",  # noqa: A002 - the API's name
        page_size: int = 0,
    ) -> tuple[Backup, ...]:
        """Backups, oldest first.

        :param source: a guest's or a host's name: of this source only, also when it is gone.
        """
        from virtd.v1 import backup_pb2 as pb

        found: tuple[Backup, ...] = ()
        async for page in pages(
            lambda token: self._transport.unary(
                self._stub.ListBackups,
                pb.ListBackupsRequest(
                    source=source, repository=repository, filter=filter, page_size=page_size, page_token=token
                ),
            )
        ):
            found += tuple(page.backups)
        return found

    async def verify(
        self,
        name: str,
        *,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[BackupVerification]:
        """Read a backup and all that it depends on, and compare digests.

        The operation succeeds whatever it finds: look at the result's ``valid`` and ``problems``.
        """
        from virtd.v1 import backup_pb2 as pb

        request = pb.VerifyBackupRequest(
            name=name,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return await self._start(self._stub.VerifyBackup, request, "virtd.v1.BackupVerification")

    async def restore(
        self,
        name: str,
        guest_id: str,
        *,
        parent: str = "",
        display_name: str = "",
        pool: str = "",
        start: bool = False,
        keep_identity: bool = False,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[Guest]:
        """Make a new guest of a backup.

        :param guest_id: id of the new guest; one that exists is never overwritten.
        :param parent: the host; the source's by default.
        :param keep_identity: keep uid and MAC addresses; refused while somebody has them.
        """
        from virtd.v1 import backup_pb2 as pb

        request = pb.RestoreBackupRequest(
            name=name,
            parent=parent,
            guest_id=guest_id,
            display_name=display_name,
            pool=pool,
            start=start,
            keep_identity=keep_identity,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return await self._start(self._stub.RestoreBackup, request, "virtd.v1.Guest")

    async def delete(
        self,
        name: str,
        *,
        with_increments: bool = False,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[OperationResult]:
        """Delete a backup, and where asked all that depend on it."""
        from virtd.v1 import backup_pb2 as pb

        request = pb.DeleteBackupRequest(
            name=name,
            with_increments=with_increments,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return await self._start(self._stub.DeleteBackup, request, "virtd.v1.OperationResult")

    async def repositories(self) -> tuple[Repository, ...]:
        """The repositories, by name."""
        from virtd.v1 import backup_pb2 as pb

        answer = await self._transport.unary(self._stub.ListRepositories, pb.ListRepositoriesRequest())
        return tuple(answer.repositories)
