"""Guests that go from one host to another."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from virtd_client import _messages
from virtd_client._async.service import AsyncService

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtd.v1.guest_pb2 import Guest
    from virtd.v1.transfer_pb2 import MigrationCheck, MigrationOptions
    from virtd.v1.transfer_pb2_grpc import TransferServiceAsyncStub
    from virtd_client._async.operation import AsyncOperation
    from virtd_client.types import MigrationModeName, OnConflict

_GUEST = "virtd.v1.Guest"


class AsyncMigrations(AsyncService):
    """Migration between two hosts of one hypervisor.  ``target`` is ``hosts/{host}``."""

    @cached_property
    def _stub(self) -> TransferServiceAsyncStub:
        from virtd.v1.transfer_pb2_grpc import TransferServiceStub

        return TransferServiceStub(self._transport.channel)

    async def check(
        self,
        name: str,
        target: str,
        *,
        mode: MigrationModeName = "auto",
        copy_storage: bool = False,
        copy_disks: Sequence[str] = (),
        pool: str = "",
        post_copy: bool = False,
        auto_converge: bool = False,
        bandwidth_bytes_per_s: int | None = None,
        max_downtime_ms: int | None = None,
        discard_saved_state: bool = False,
    ) -> MigrationCheck:
        """What :meth:`migrate` would do with these options, and what is in its way.  No side effect."""
        from virtd.v1 import transfer_pb2 as pb

        options = _options(
            target, mode, copy_storage, copy_disks, pool, post_copy, auto_converge, bandwidth_bytes_per_s,
            max_downtime_ms, discard_saved_state,
        )  # fmt: skip
        request = pb.CheckMigrationRequest(name=name, options=options)
        return (await self._transport.unary(self._stub.CheckMigration, request)).check

    async def migrate(
        self,
        name: str,
        target: str,
        *,
        mode: MigrationModeName = "auto",
        copy_storage: bool = False,
        copy_disks: Sequence[str] = (),
        pool: str = "",
        post_copy: bool = False,
        auto_converge: bool = False,
        bandwidth_bytes_per_s: int | None = None,
        max_downtime_ms: int | None = None,
        discard_saved_state: bool = False,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[Guest]:
        """Move a guest to another host; it has another name then, and the same UUID.

        :param mode: ``auto``: live where the guest runs.
        :param copy_storage: copy the disks along; without it both hosts must see them.
        :param copy_disks: only these, by name; empty: all.
        :param pool: id of the target's pool for them; empty: virtd's own.
        :param post_copy: let the guest run on the target before all of its memory is there.
        :param auto_converge: slow the guest down where it changes memory faster than it is sent.
        :param bandwidth_bytes_per_s: at most, 1 MiB or more; None: no limit.
        :param max_downtime_ms: how long it may stand still at the end; None: the hypervisor's own.
        :param discard_saved_state: throw the saved memory of a suspended guest away.
        """
        from virtd.v1 import transfer_pb2 as pb

        options = _options(
            target, mode, copy_storage, copy_disks, pool, post_copy, auto_converge, bandwidth_bytes_per_s,
            max_downtime_ms, discard_saved_state,
        )  # fmt: skip
        request = pb.MigrateRequest(
            name=name,
            options=options,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return await self._start(self._stub.Migrate, request, _GUEST)


def _options(
    target: str,
    mode: MigrationModeName,
    copy_storage: bool,
    copy_disks: Sequence[str],
    pool: str,
    post_copy: bool,
    auto_converge: bool,
    bandwidth_bytes_per_s: int | None,
    max_downtime_ms: int | None,
    discard_saved_state: bool,
) -> MigrationOptions:
    from virtd.v1 import transfer_pb2 as pb

    return pb.MigrationOptions(
        target=target,
        mode=_messages.migration_mode(mode),
        copy_storage=copy_storage,
        copy_disks=copy_disks,
        pool=pool,
        post_copy=post_copy,
        auto_converge=auto_converge,
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
        max_downtime_ms=max_downtime_ms,
        discard_saved_state=discard_saved_state,
    )
