"""How the KVM backend queues calls to agents: one a guest, and stuck ones never use up the threads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from virtd_kvm import agent_calls
from virtd_kvm.agent_calls import AgentCalls

from virtd.errors import AGENT_STUCK, NativeError, VirtdError

THREADS = 8


class _Host:
    """A host whose agents answer at once, but for those that are stuck: these take a while to say nothing."""

    def __init__(self) -> None:
        self.stuck: set[UUID] = set()
        self.busy: dict[UUID, int] = {}
        self.most = 0
        self.most_of_one = 0
        self.slots = asyncio.Semaphore(THREADS)
        self.calls = 0
        self.silence_s = 0.2
        self.held: asyncio.Event | None = None
        """With it, the stuck ones say nothing until it is set."""

    async def on_domain(self, uuid: UUID, _name: str, _function: Callable[[Any], Any], **_options: object) -> str:
        self.calls += 1
        async with self.slots:
            self.busy[uuid] = self.busy.get(uuid, 0) + 1
            self.most = max(self.most, sum(self.busy.values()))
            self.most_of_one = max(self.most_of_one, self.busy[uuid])
            try:
                if uuid in self.stuck:
                    await (asyncio.sleep(self.silence_s) if self.held is None else self.held.wait())
                    raise agent_calls.stuck(NativeError("guest-ping", "86", "silent"))
                return json.dumps({"return": {}})
            finally:
                self.busy[uuid] -= 1


async def _refused(calls: AgentCalls, uuid: UUID) -> None:
    with pytest.raises(VirtdError) as error:
        await calls.command(uuid, "guest-ping")
    assert error.value.reason is AGENT_STUCK


async def test_stuck_agents_leave_threads_to_the_others() -> None:
    host = _Host()
    calls = AgentCalls(host)  # type: ignore[arg-type]  # as much of it as is used
    stuck, well = [uuid4() for _ in range(40)], uuid4()
    host.stuck.update(stuck)
    await asyncio.gather(*(_refused(calls, uuid) for uuid in stuck))  # nobody knew of them before
    host.most = 0
    for _ in range(3):
        host.held = asyncio.Event()
        again = asyncio.gather(*(_refused(calls, uuid) for uuid in stuck for _ in range(3)))
        while sum(host.busy.values()) < min(agent_calls._SUSPECTS, THREADS):
            await asyncio.sleep(0)
        # None of the stuck ones ends before it has answered.
        await asyncio.wait_for(calls.command(well, "guest-ping"), 30)
        host.held.set()
        await again
    assert host.most <= agent_calls._SUSPECTS + 1
    assert host.most_of_one == 1


async def test_a_guest_that_answers_again_is_believed_at_once() -> None:
    host = _Host()
    calls = AgentCalls(host)  # type: ignore[arg-type]  # as much of it as is used
    uuid = uuid4()
    host.stuck.add(uuid)
    await _refused(calls, uuid)
    host.stuck.clear()
    await calls.command(uuid, "guest-ping")
    await asyncio.gather(*(calls.command(uuid, "guest-ping") for _ in range(5)))
    assert host.most_of_one == 1
    assert not calls._lines, "nothing is kept of a guest that is well"


async def test_a_caller_who_gives_up_leaves_the_line_in_order() -> None:
    host = _Host()
    calls = AgentCalls(host)  # type: ignore[arg-type]  # as much of it as is used
    uuid = uuid4()
    host.stuck.add(uuid)
    first = asyncio.create_task(calls.command(uuid, "guest-ping"))
    await asyncio.sleep(0.02)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    host.stuck.clear()
    await calls.command(uuid, "guest-ping")
    assert host.most_of_one == 1  # it waited for the call that nobody wanted any more
