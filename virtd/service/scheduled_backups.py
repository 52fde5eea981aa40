"""What a schedule does for backups: make one, and delete those of its own that are no longer kept.

Chains set a limit to what can be deleted: a backup that an increment needs stays until the increment goes.
So a chain is begun anew now and then, and the old one goes as a whole when its last member is not kept.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from virtd.errors import BACKUP_IN_USE, FailedPreconditionError, NotFoundError
from virtd.model.backup import Backup, BackupKind
from virtd.model.names import GuestName
from virtd.model.operation import Operation
from virtd.model.schedule import BackupAction
from virtd.service.backups import Backups
from virtd.service.call import Call

INCREMENTS: Final = 6
"""After so many increments the next backup is a full one, unless the schedule says otherwise."""

Finish = Callable[[Operation], Awaitable[None]]
"""Waits for an operation, and raises what it failed with."""


def backup_id(schedule_id: str, uid: UUID, due: datetime) -> str:
    """The name of a run's backup of a guest: unique in all repositories, 63 characters at most."""
    return f"{schedule_id[:38].rstrip('._-')}-{uid.hex[:6]}-{due.astimezone(UTC):%Y%m%dt%H%M%Sz}"


async def make_backup(
    backups: Backups, call: Call, name: GuestName, action: BackupAction, new_id: str, last: str, finish: Finish
) -> tuple[Operation | None, Backup]:
    """Make one, full or incremental as the chain of the last one says.

    :param last: the id of the last backup that the schedule has made, or empty.
    :returns: the operation, if it was not made by an earlier attempt; and the backup.
    """
    increments = INCREMENTS if action.increments is None else action.increments
    kind = BackupKind.FULL if await _chain_length(backups, last) > increments or not increments else BackupKind.AUTO
    started = await backups.create(
        call, name, new_id, kind, action.repository, quiesce=action.quiesce, description=f"made by {call.caller}"
    )
    if isinstance(started, Operation):
        await finish(started)
    return started, await backups.get(new_id)


async def _chain_length(backups: Backups, last: str) -> int:
    length = 0
    while last:
        try:
            found = await backups.get(last)
        except NotFoundError:
            break
        length, last = length + 1, found.parent.removeprefix("backups/")
    return length


async def delete_backups(
    backups: Backups,
    times: Mapping[str, datetime],
    keep: Collection[str],
    make_call: Callable[[str], Call],
    finish: Finish,
) -> list[str]:
    """Delete what is not kept, the newest first; what a kept increment needs stays for now.

    :param times: of each backup that the schedule has made.
    :returns: the ids that are gone.
    """
    gone = []
    for old in sorted(set(times) - set(keep), key=lambda key: times[key], reverse=True):
        try:
            started = await backups.delete(make_call(old), old, with_increments=False)
            if isinstance(started, Operation):
                await finish(started)
        except FailedPreconditionError as error:
            if error.reason is not BACKUP_IN_USE:
                raise
        except NotFoundError:
            gone.append(old)
        else:
            gone.append(old)
    return gone
