"""Use cases of the trash."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from virtd.backend import capabilities as cap
from virtd.model.names import WILDCARD, GuestName, check_new_id, parse_guest
from virtd.model.operation import Operation
from virtd.model.trash import TrashEntry
from virtd.operations import Submission, joined
from virtd.service.call import Call, Page, page_of
from virtd.service.core import Core, once
from virtd.service.trashcan import PREFIX, Trashed, order
from virtd.service.verbs.trash import PurgeArguments, PurgeTrash, RecoverArguments, RecoverGuest

if TYPE_CHECKING:
    from virtd.service.guests import Guests

CALLER: Final = "trash"
"""Who purges what has been kept long enough."""


class Trash:
    """Use cases of the trash.  ``entry_id`` is the id without ``trash/``."""

    def __init__(self, core: Core, guests: Guests) -> None:
        self._core = core
        self._guests = guests
        self._recover = RecoverGuest(core)
        self._purge = PurgeTrash(core)
        core.engine.register(self._recover)
        core.engine.register(self._purge)

    def get(self, entry_id: str) -> TrashEntry:
        """One entry.

        :raises NotFoundError: TRASH_ENTRY_NOT_FOUND.
        """
        return self._core.trash.get(entry_id).entry

    def list(self, host: str, page_size: int, page_token: str) -> Page[TrashEntry]:
        """What is in the trash, of one host or of all with ``-``, oldest first.

        :raises NotFoundError: HOST_NOT_FOUND.
        """
        if host != WILDCARD:
            self._core.link(host)
        found = [trashed.entry for trashed in self._core.trash.list(None if host == WILDCARD else host)]
        return page_of(found, page_size, page_token, order)

    @once
    async def recover(self, call: Call, entry_id: str, guest_id: str) -> Operation | None:
        """Bring a guest back; see the RPC's documentation for the errors."""
        trashed = self._core.trash.get(entry_id)
        old = parse_guest(trashed.entry.guest.name)
        if guest_id:
            check_new_id(guest_id, "guest_id")
        name = GuestName(old.host, guest_id or old.guest)
        await self._core.settled(name.host)
        link = self._core.link(name.host)
        cap.require(link.capabilities, cap.TRASH, resource=f"hosts/{name.host}")
        _ = link.session  # reachable?
        with self._guests.claimed(name.host, name.guest, new=bool(guest_id)):
            if call.validate_only:
                return None
            arguments = RecoverArguments(
                name.host, name.guest, trashed.entry.guest.uid, entry=entry_id, renamed=name.guest != old.guest
            )
            return await self._core.engine.submit(
                self._recover,
                arguments,
                _submission(call.caller, call, str(name), joined(str(name), PREFIX + entry_id)),
            )

    @once
    async def purge(self, call: Call, entry_id: str) -> Operation | None:
        """Delete an entry, or all with ``-``, for ever."""
        chosen = self._core.trash.list() if entry_id == WILDCARD else [self._core.trash.get(entry_id)]
        if call.validate_only:
            return None
        return await self._submit_purge(chosen, PREFIX + entry_id, call.caller, call)

    async def purge_expired(self) -> int:
        """Begin to purge what has been kept long enough; how many."""
        now = datetime.now(UTC)
        expired = [
            trashed
            for trashed in self._core.trash.list()
            if trashed.entry.purge_time is not None
            and trashed.entry.purge_time <= now
            and not self._core.engine.current(trashed.entry.name)
        ]
        for trashed in expired:
            await self._submit_purge([trashed], trashed.entry.name, CALLER, None)
        return len(expired)

    async def _submit_purge(self, chosen: Sequence[Trashed], target: str, caller: str, call: Call | None) -> Operation:
        names = [trashed.entry.name for trashed in chosen]
        arguments = PurgeArguments(tuple(name.removeprefix(PREFIX) for name in names))
        return await self._core.engine.submit(
            self._purge, arguments, _submission(caller, call, target, joined(*names) or target)
        )


def _submission(caller: str, call: Call | None, target: str, queue: str) -> Submission:
    if call is None:
        return Submission(caller=caller, target=target, queue=queue)
    return Submission(
        caller=caller,
        target=target,
        queue=queue,
        request_id=call.request_id,
        fingerprint=call.fingerprint,
        reject_conflict=call.reject_conflict,
    )
