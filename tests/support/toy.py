"""A verb without a hypervisor, for tests of the operations engine.

Its "world" outlives engines as a hypervisor outlives virtd: what is in ``done`` has happened.  What
each step does is in the arguments, one word a step:

=============  ===========================================================================
``ok``         it works
``fail``       it is refused, and nothing has happened
``fail-late``  it is refused after half of it has happened
``hang``       it works once the world is released; it obeys a cancel
``deaf``       as ``hang``, but looks at nothing; only being cut off ends it
``silent``     it happens, but the host falls silent before it can say so; so twice
``defect``     it hits a defect
=============  ===========================================================================
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from virtd.errors import (
    BACKEND_ERROR,
    GUEST_NOT_FOUND,
    HOST_UNREACHABLE,
    InternalError,
    NotFoundError,
    UnavailableError,
)
from virtd.model.operation import Operation
from virtd.operations import Engine, Outcome, Probe, Run, Step, Submission, Verb
from virtd.store import Database

T = TypeVar("T")


class World:
    """What is true whatever becomes of an engine."""

    def __init__(self) -> None:
        self.half: set[tuple[str, int]] = set()
        self.done: set[tuple[str, int]] = set()
        self.effects: Counter[tuple[str, int]] = Counter()
        self.undone: Counter[tuple[str, int]] = Counter()
        """How often it was undone, also where there was nothing to undo."""
        self.removed: Counter[tuple[str, int]] = Counter()
        self.silences: Counter[tuple[str, int]] = Counter()
        self.active: dict[str, str] = {}
        self.order: dict[str, list[str]] = {}
        self.overlaps: list[str] = []
        self.released = asyncio.Event()
        self.undo_refuses: set[tuple[str, int]] = set()


@dataclass(frozen=True, slots=True)
class ToyArguments:
    """What a toy does.

    ``kinds`` is one word a step; ``sure``: steps that can be probed; ``fixed``: that cannot be cancelled;
    ``lost``: of which a probe can tell nothing.
    """

    key: str
    queue: str
    kinds: tuple[str, ...] = ("ok",)
    sure: frozenset[int] = frozenset()
    fixed: frozenset[int] = frozenset()
    lost: frozenset[int] = frozenset()
    timeout_s: float = 60.0


class Toy(Verb[ToyArguments]):
    """The verb."""

    name = "toy"

    def __init__(self, world: World) -> None:
        self.world = world

    @property
    def arguments(self) -> type[ToyArguments]:
        return ToyArguments

    def timeout_s(self, arguments: ToyArguments) -> float:
        return arguments.timeout_s

    def steps(self, arguments: ToyArguments) -> Sequence[Step[ToyArguments]]:
        return [self._step(arguments, index) for index in range(len(arguments.kinds))]

    def _step(self, arguments: ToyArguments, index: int) -> Step[ToyArguments]:
        async def probe(run: Run[ToyArguments]) -> Probe:
            if index in arguments.lost:
                return Probe.LOST
            return Probe.DONE if (arguments.key, index) in self.world.done else Probe.TODO

        async def do(run: Run[ToyArguments]) -> None:
            await self._do(run, index)

        async def undo(run: Run[ToyArguments]) -> None:
            await self._undo(run, index)

        return Step(
            f"s{index}",
            do,
            probe=probe if index in arguments.sure | arguments.lost else None,
            undo=undo,
            cancellable=index not in arguments.fixed,
        )

    async def _do(self, run: Run[ToyArguments], index: int) -> None:
        arguments, world = run.arguments, self.world
        key, kind = (arguments.key, index), arguments.kinds[index]
        holder = world.active.setdefault(arguments.queue, arguments.key)
        if holder != arguments.key:
            world.overlaps.append(f"{arguments.key} works while {holder} does")
        order = world.order.setdefault(arguments.queue, [])
        if arguments.key not in order:
            order.append(arguments.key)
        await asyncio.sleep(0)
        if kind == "fail":
            raise InternalError(BACKEND_ERROR, f"{key} was told to fail")
        if kind == "defect":
            raise ZeroDivisionError
        world.half.add(key)
        await asyncio.sleep(0)
        if kind == "fail-late":
            raise InternalError(BACKEND_ERROR, f"{key} was told to fail in its middle")
        if kind == "hang":
            wait = asyncio.ensure_future(world.released.wait())
            cancelled = asyncio.ensure_future(run.wait_cancelled())
            try:
                await asyncio.wait({wait, cancelled}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                wait.cancel()
                cancelled.cancel()
            run.checkpoint()
        if kind == "deaf":
            await world.released.wait()
        world.done.add(key)
        world.half.discard(key)
        world.effects[key] += 1
        if kind == "silent" and world.silences[key] < 2:
            world.silences[key] += 1
            raise UnavailableError(HOST_UNREACHABLE, "the host has fallen silent")

    async def _undo(self, run: Run[ToyArguments], index: int) -> None:
        key = (run.arguments.key, index)
        await asyncio.sleep(0)
        if key in self.world.undo_refuses:
            raise NotFoundError(GUEST_NOT_FOUND, "it cannot be undone")
        self.world.undone[key] += 1
        self.world.removed[key] += key in self.world.done
        self.world.half.discard(key)
        self.world.done.discard(key)

    async def finish(self, run: Run[ToyArguments]) -> Outcome:
        return Outcome(run.arguments.key, data={"steps": str(len(run.arguments.kinds))})


class Fuse(Database):
    """A database that a crash of the daemon can cut off: from then on nothing is written any more."""

    def __init__(self, real: Database) -> None:  # no call of the base class: this is a wrapper
        self.real = real
        self.blown = False
        self.full = False
        self.path = real.path
        self.instance_id = real.instance_id

    def submit(self, work: Callable[[Any], T]) -> Future[T]:
        if self.blown:
            return Future()
        if self.full:
            from virtd.errors import STORAGE_FULL, ResourceExhaustedError

            failed: Future[T] = Future()
            failed.set_exception(ResourceExhaustedError(STORAGE_FULL, "no space left"))
            return failed
        return self.real.submit(work)

    async def read(self, work: Callable[[Any], T]) -> T:
        return await self.real.read(work)


@dataclass
class Rig:
    """An engine on a database that survives it, with all that it told."""

    database: Database
    world: World = field(default_factory=World)
    told: list[Operation] = field(default_factory=list)
    finished: list[Operation] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.boot()

    def boot(self) -> None:
        self.fuse = Fuse(self.database)
        self.toy = Toy(self.world)
        self.engine = Engine(self.fuse, **self.options)
        self.engine.register(self.toy)
        self.engine.on_change = self._changed
        self.engine.on_finished = self.finished.append

    def _changed(self, operation: Operation) -> None:
        if self.fuse.blown:
            return  # the process is dead: nobody hears it
        self.told.append(operation)
        if operation.state.terminal:
            queue = operation.target
            if self.world.active.get(queue) == operation.caller:
                del self.world.active[queue]

    async def submit(self, key: str, *kinds: str, queue: str = "hosts/a/guests/g", **options: Any) -> Operation:
        changes = {
            name: options.pop(name) for name in ("request_id", "fingerprint", "reject_conflict") if name in options
        }
        arguments = ToyArguments(key, queue, kinds or ("ok",), **options)
        return await self.engine.submit(
            self.toy, arguments, Submission(caller=key, target=queue, queue=queue, **changes)
        )

    async def end(self, operation: Operation | str, timeout_s: float = 10.0) -> Operation:
        name = operation if isinstance(operation, str) else operation.name
        ended = await self.engine.wait(name, timeout_s)
        assert ended.state.terminal, f"{ended.caller} has not ended: {ended}"
        return ended

    async def crash(self) -> None:
        """The daemon dies at once: nothing of it is written or heard any more.  Then it starts again."""
        self.fuse.blown = True
        runners = [t for t in asyncio.all_tasks() if t is not asyncio.current_task() and _is_engines(t)]
        for runner in runners:
            runner.cancel()
        await asyncio.gather(*runners, return_exceptions=True)
        await self.database.write(lambda _connection: None)  # what had reached the disk has reached it
        self.boot()
        await self.engine.recover()


def _is_engines(task: asyncio.Task[Any]) -> bool:
    return task.get_name().startswith(("operations/", "accept operations/"))
