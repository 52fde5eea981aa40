"""virtd.v1.TrashService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from typing import Final

from virtd.model.names import WILDCARD, parse, parse_host
from virtd.rpc.context import Context
from virtd.rpc.convert import to_message
from virtd.rpc.servicers.base import Servicer, call_of
from virtd.v1 import trash_pb2 as pb

ENTRY: Final = "trash/{entry}"


class TrashServicer(Servicer):
    """Deleted guests that can be brought back."""

    async def ListTrash(self, request: pb.ListTrashRequest, _context: Context) -> pb.ListTrashResponse:
        """What is in the trash."""
        host = parse_host(request.parent, "parent", wildcard=True) if request.parent else WILDCARD
        page = self.services.trash.list(host, request.page_size, request.page_token)
        entries = [to_message(entry, pb.TrashEntry) for entry in page.items]
        return pb.ListTrashResponse(entries=entries, next_page_token=page.next_page_token)

    async def GetTrashEntry(self, request: pb.GetTrashEntryRequest, _context: Context) -> pb.GetTrashEntryResponse:
        """One entry."""
        entry = self.services.trash.get(parse(request.name, ENTRY)["entry"])
        return pb.GetTrashEntryResponse(entry=to_message(entry, pb.TrashEntry))

    async def RecoverGuest(self, request: pb.RecoverGuestRequest, _context: Context) -> pb.RecoverGuestResponse:
        """Bring a guest back."""
        entry = parse(request.name, ENTRY)["entry"]
        operation = await self.services.trash.recover(call_of(request), entry, request.guest_id)
        return pb.RecoverGuestResponse(operation=await self.started(operation))

    async def PurgeTrash(self, request: pb.PurgeTrashRequest, _context: Context) -> pb.PurgeTrashResponse:
        """Delete an entry, or all, for ever."""
        entry = parse(request.name, ENTRY, wildcard=True)["entry"]
        operation = await self.services.trash.purge(call_of(request), entry)
        return pb.PurgeTrashResponse(operation=await self.started(operation))
