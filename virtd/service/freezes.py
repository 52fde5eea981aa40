"""Frozen file systems, and the promise that they are thawed again.

A row in the database says when; it is written before the guest is frozen and deleted after it was
thawed.  So a guest that virtd froze is thawed when its time is over, also after virtd was killed and
started again, and also when the answer to the freeze was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog

from virtd.backend.api import AgentFacet, CallContext
from virtd.backend.capabilities import AGENT_FREEZE
from virtd.errors import (
    AGENT_NOT_CONFIGURED,
    INVALID_STATE,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnsupportedError,
    VirtdError,
    unsupported,
)
from virtd.inventory import HostLink, Inventory
from virtd.model.guest import ConditionStatus, ConditionType, GuestState
from virtd.store import Database

log = structlog.get_logger(__name__)

CALL_S: Final = 45.0
"""So long a freeze itself may take: the guest writes everything out first."""
RETRY_FIRST_S: Final = 1.0
RETRY_LAST_S: Final = 15.0
TIMEOUT_MAX_S: Final = 600.0
_ACTIVE: Final = (GuestState.RUNNING, GuestState.PAUSED, GuestState.STARTING, GuestState.STOPPING, GuestState.UNKNOWN)
_DOWN: Final = (GuestState.STOPPED, GuestState.CRASHED)
_NOTHING_FROZEN: Final = (UnsupportedError, InvalidArgumentError, NotFoundError, FailedPreconditionError)
"""What a freeze raises of which it is certain that nothing is frozen."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """A guest's file systems are frozen.  ``frozen_count``: by this call."""

    frozen_count: int
    thaw_time: datetime


class Freezes:
    """All frozen guests of the daemon."""

    def __init__(self, database: Database, inventory: Inventory, link: Callable[[str], HostLink]) -> None:
        self._database = database
        self._inventory = inventory
        self._link = link
        self._timers: dict[UUID, asyncio.Task[None]] = {}
        self._locks: dict[UUID, asyncio.Lock] = {}
        self._stopped = False

    async def start(self) -> None:
        """Take up what an earlier run of the daemon has left."""
        rows = await self._database.read(lambda connection: connection.execute("SELECT * FROM freezes").fetchall())
        for uid, host, caller, thaw_at in rows:
            # The clock may have been set meanwhile: no wait is longer than a freeze could have been.
            at = min(float(thaw_at), time.time() + TIMEOUT_MAX_S)
            log.info("thaw_taken_up", uid=uid, host=host, caller=caller, in_s=round(max(0.0, at - time.time()), 1))
            self._arm(UUID(uid), host, at)

    def is_frozen(self, uid: UUID) -> bool:
        """Whether the guest's file systems are, or may be, frozen by virtd."""
        return uid in self._timers

    async def stop(self) -> None:
        """End the timers; the rows stay for the next start."""
        self._stopped = True
        timers = list(self._timers.values())
        for timer in timers:
            timer.cancel()
        await asyncio.gather(*timers, return_exceptions=True)

    async def freeze(
        self,
        host: str,
        uid: UUID,
        context: CallContext,
        *,
        caller: str,
        timeout_s: float,
        mountpoints: Sequence[str] = (),
    ) -> Frozen:
        """Freeze, for so many seconds at most.  Repeated, the time begins anew.

        :raises VirtdError: as the SPI says; a guest of which it is not known whether it is frozen is
            thawed as soon as it can be.
        """
        agent = self._agent(host)
        async with self._lock(uid):
            # The row first: whatever becomes of us now, the guest will be thawed.
            await self._write(uid, host, caller, time.time() + CALL_S + timeout_s)
            self._arm(uid, host, time.time() + CALL_S + timeout_s)
            try:
                count = await self._link(host).call(agent.freeze(uid, context, mountpoints), timeout_s=CALL_S)
            except _NOTHING_FROZEN:
                await self._forget(uid)
                raise
            except BaseException:
                self._arm(uid, host, 0.0)
                raise
            thaw_at = time.time() + timeout_s
            await self._write(uid, host, caller, thaw_at)
            self._arm(uid, host, thaw_at)
            thaw_time = datetime.fromtimestamp(thaw_at, UTC)
            self._inventory.observe_condition(
                uid,
                ConditionType.FILESYSTEMS_FROZEN,
                ConditionStatus.TRUE,
                "FROZEN_BY_VIRTD",
                f"asked for by {caller}; thawed at {thaw_time:%Y-%m-%dT%H:%M:%SZ} at the latest",
            )
            return Frozen(count, thaw_time)

    async def thaw(self, host: str, uid: UUID) -> int:
        """Thaw; how many file systems were frozen.  Idempotent."""
        agent = self._agent(host)
        async with self._lock(uid):
            count = await self._link(host).call(agent.thaw(uid), timeout_s=CALL_S)
            await self._forget(uid)
            return count

    @contextlib.asynccontextmanager
    async def held(
        self, host: str, uid: UUID, context: CallContext, *, caller: str, timeout_s: float
    ) -> AsyncIterator[Frozen]:
        """Frozen while the block runs: for a snapshot or a backup.  The thaw is tried again until it succeeds."""
        frozen = await self.freeze(host, uid, context, caller=caller, timeout_s=timeout_s)
        try:
            yield frozen
        finally:
            try:
                await asyncio.shield(self.thaw(host, uid))
            except VirtdError as error:
                log.warning("thaw_delayed", uid=str(uid), error=error.message)
                self._arm(uid, host, 0.0)

    def _agent(self, host: str) -> AgentFacet:
        agent = self._link(host).facets.agent
        if agent is None:
            raise unsupported(AGENT_FREEZE, "the host has no way to reach an agent")
        return agent

    def _lock(self, uid: UUID) -> asyncio.Lock:
        return self._locks.setdefault(uid, asyncio.Lock())

    async def _write(self, uid: UUID, host: str, caller: str, thaw_at: float) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO freezes (uid, host, caller, thaw_at) VALUES (?, ?, ?, ?)",
                (str(uid), host, caller, thaw_at),
            )

        await self._database.write(work)

    async def _forget(self, uid: UUID) -> None:
        """Nothing is frozen any more."""
        await self._database.write(lambda connection: _delete(connection, uid))
        self._inventory.observe_condition(uid, ConditionType.FILESYSTEMS_FROZEN, ConditionStatus.FALSE, "THAWED")
        timer = self._timers.pop(uid, None)
        if timer is not None and timer is not asyncio.current_task():
            timer.cancel()

    def _arm(self, uid: UUID, host: str, at: float) -> None:
        """Thaw at this time of the clock, instead of when it was planned before."""
        old = self._timers.pop(uid, None)
        if old is not None:
            old.cancel()
        if not self._stopped:
            self._timers[uid] = asyncio.create_task(self._thaw_at(uid, host, at), name=f"thaw-{uid}")

    async def _thaw_at(self, uid: UUID, host: str, at: float) -> None:
        await asyncio.sleep(max(0.0, at - time.time()))
        pause = RETRY_FIRST_S
        while True:
            try:
                if await self._thawed(uid, host):
                    log.info("thawed", uid=str(uid), host=host)
                    return
            except VirtdError as error:
                log.warning("thaw_failed", uid=str(uid), host=host, error=error.message)
            except Exception:
                log.exception("thaw_defect", uid=str(uid), host=host)
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_LAST_S)

    async def _thawed(self, uid: UUID, host: str) -> bool:
        """Whether nothing is frozen any more: a guest that stopped, or is gone, has nothing frozen."""
        view = self._inventory.by_uid(uid)
        status = None if view is None else view.guest.status
        if status is not None and (status.stale_since is not None or status.state not in (*_ACTIVE, *_DOWN)):
            return False  # it cannot be seen; or it is suspended, and what is frozen is kept with its memory
        if status is not None and status.state not in _DOWN:
            try:
                await self.thaw(host, uid)
            except FailedPreconditionError as error:
                if error.reason is INVALID_STATE:
                    return False  # paused, or it has just gone down
                if error.reason is not AGENT_NOT_CONFIGURED:
                    raise
            else:
                return True
        async with self._lock(uid):
            await self._forget(uid)
        return True


def _delete(connection: sqlite3.Connection, uid: UUID) -> None:
    connection.execute("DELETE FROM freezes WHERE uid = ?", (str(uid),))
