"""Verbs of guests beyond power: clone, release, discard saved state; and the trash."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from virtd_client import _messages
from virtd_client._async.operation import AsyncOperation
from virtd_client._async.service import AsyncService, pages
from virtd_client.types import CloneModeName, OnConflict

if TYPE_CHECKING:
    from virtd.v1.guest_pb2 import Guest
    from virtd.v1.guest_service_pb2_grpc import GuestServiceAsyncStub
    from virtd.v1.operation_pb2 import OperationResult
    from virtd.v1.trash_pb2 import TrashEntry
    from virtd.v1.trash_pb2_grpc import TrashServiceAsyncStub

_GUEST = "virtd.v1.Guest"
_RESULT = "virtd.v1.OperationResult"


class AsyncGuestLifecycle(AsyncService):
    """What :class:`AsyncGuests` has besides power and data."""

    @cached_property
    def _guests(self) -> GuestServiceAsyncStub:
        from virtd.v1.guest_service_pb2_grpc import GuestServiceStub

        return GuestServiceStub(self._transport.channel)

    async def clone(
        self,
        name: str,
        guest_id: str,
        *,
        mode: CloneModeName = "full",
        pool: str = "",
        start: bool = False,
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[Guest]:
        """Make a new guest like a stopped one; with ``validate_only`` the operation has a ``plan``.

        :param name: the guest to clone.
        :param guest_id: id of the new guest, on the same host.
        :param mode: ``linked``: both write to overlays over the disks as they are now.
        :param pool: id of the pool for the new disks; empty: where those of the guest lie.
        :param labels: None: those of the guest that is cloned.
        """
        from virtd.v1 import guest_service_pb2 as pb

        request = pb.CloneGuestRequest(
            name=name,
            guest_id=guest_id,
            mode=_messages.clone_mode(mode),
            pool=pool,
            start=start,
            display_name=display_name,
            labels=labels or {},
            annotations=annotations or {},
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return await self._start(
            self._guests.CloneGuest,
            request,
            _GUEST,
            plan=(lambda response: response.plan) if validate_only else None,
        )

    async def release(
        self,
        name: str,
        *,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[Guest]:
        """Let go of a guest: it and its disks stay as they are, and are foreign from then on."""
        from virtd.v1 import guest_service_pb2 as pb

        request = pb.ReleaseGuestRequest(
            name=name,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return await self._start(self._guests.ReleaseGuest, request, _GUEST)

    async def discard_saved_state(
        self,
        name: str,
        *,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[Guest]:
        """Throw the saved memory of a suspended guest away."""
        from virtd.v1 import guest_service_pb2 as pb

        request = pb.DiscardSavedStateRequest(
            name=name,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return await self._start(self._guests.DiscardSavedState, request, _GUEST)


class AsyncTrash(AsyncService):
    """Deleted guests that can be brought back.  Names are ``trash/{entry}``."""

    @cached_property
    def _stub(self) -> TrashServiceAsyncStub:
        from virtd.v1.trash_pb2_grpc import TrashServiceStub

        return TrashServiceStub(self._transport.channel)

    async def list(self, parent: str = "", *, page_size: int = 0) -> tuple[TrashEntry, ...]:
        """What is in the trash, oldest first; all pages.

        :param parent: ``hosts/{host}``; empty: of all hosts.
        """
        from virtd.v1 import trash_pb2 as pb

        entries: list[TrashEntry] = []
        async for page in pages(
            lambda token: self._transport.unary(
                self._stub.ListTrash, pb.ListTrashRequest(parent=parent, page_size=page_size, page_token=token)
            )
        ):
            entries.extend(page.entries)
        return tuple(entries)

    async def get(self, name: str) -> TrashEntry:
        """One entry."""
        from virtd.v1 import trash_pb2 as pb

        return (await self._transport.unary(self._stub.GetTrashEntry, pb.GetTrashEntryRequest(name=name))).entry

    async def recover(
        self, name: str, *, guest_id: str = "", request_id: str | None = None, validate_only: bool = False
    ) -> AsyncOperation[Guest]:
        """Bring a guest back, stopped.

        :param guest_id: the id that it gets; empty: the one that it had.
        """
        from virtd.v1 import trash_pb2 as pb

        request = pb.RecoverGuestRequest(
            name=name,
            guest_id=guest_id,
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return await self._start(self._stub.RecoverGuest, request, _GUEST)

    async def purge(
        self, name: str = "trash/-", *, request_id: str | None = None, validate_only: bool = False
    ) -> AsyncOperation[OperationResult]:
        """Delete an entry and its disks for ever; by default all entries."""
        from virtd.v1 import trash_pb2 as pb

        request = pb.PurgeTrashRequest(
            name=name, request_id=_messages.new_request_id(request_id), validate_only=validate_only
        )
        return await self._start(self._stub.PurgeTrash, request, _RESULT)
