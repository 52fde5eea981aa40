"""Create, change, start, stop and delete pools."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from virtd.backend import capabilities as cap
from virtd.backend.api import PoolFacet, PoolRequest
from virtd.errors import POOL_EXISTS, unsupported
from virtd.inventory import HostLink
from virtd.model.storage import PoolKind
from virtd.operations import Outcome, Run, Step, Verb
from virtd.service.core import Core, is_local
from virtd.service.verbs.base import patience

if TYPE_CHECKING:
    from virtd.service.pools import Pools


@dataclass(frozen=True, slots=True)
class PoolArguments:
    """Which pool."""

    host: str
    pool: str

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"hosts/{self.host}/pools/{self.pool}"


@dataclass(frozen=True, slots=True)
class CreatePoolArguments(PoolArguments):
    """What it is made of: see :class:`virtd.backend.api.PoolRequest`."""

    kind: PoolKind = PoolKind.DIR
    path: str = ""
    server: str = ""
    export: str = ""
    volume_group: str = ""
    autostart: bool = False

    @property
    def request(self) -> PoolRequest:
        """As the SPI takes it."""
        return PoolRequest(
            self.pool, self.kind, self.path, self.server, self.export, self.volume_group, autostart=self.autostart
        )


@dataclass(frozen=True, slots=True)
class UpdatePoolArguments(PoolArguments):
    """What becomes of it; None: as it is."""

    autostart: bool | None = None


@dataclass(frozen=True, slots=True)
class DeletePoolArguments(PoolArguments):
    """What goes with it."""

    remove_directory: bool = False


P = TypeVar("P", bound=PoolArguments)


class PoolVerb(Verb[P]):
    """A verb that works on one pool and answers with it."""

    def __init__(self, core: Core, pools: Pools) -> None:
        self.core = core
        self.pools = pools

    def link(self, run: Run[P]) -> HostLink:
        """The link of the pool's host."""
        return self.core.link(run.arguments.host)

    def facet(self, run: Run[P]) -> PoolFacet:
        """What changes pools."""
        facet = self.link(run).facets.pools
        if facet is None:
            raise unsupported(cap.POOL_MANAGE, "the host does not offer it", resource=f"hosts/{run.arguments.host}")
        return facet

    async def finish(self, run: Run[P]) -> Outcome:
        """The pool."""
        pool = await self.pools.get(run.arguments.host, run.arguments.pool)
        return Outcome(pool.name, pool)


class CreatePool(PoolVerb[CreatePoolArguments]):
    """Define, start.  After the check, a pool of this name is this operation's own."""

    name = "pool-create"

    @property
    def arguments(self) -> type[CreatePoolArguments]:
        """Journalled."""
        return CreatePoolArguments

    def steps(self, arguments: CreatePoolArguments) -> Sequence[Step[CreatePoolArguments]]:
        """Defining and starting are idempotent."""
        return [
            Step("check", self._check, weight=0.1),
            Step("define", self._define, undo=self._undo),
            Step("start", self._start),
        ]

    async def _check(self, run: Run[CreatePoolArguments]) -> None:
        arguments = run.arguments
        await self.pools.check_new(arguments)
        # Taken back is only what was made: a directory that was there before stays, also where that cannot be seen.
        if arguments.kind is not PoolKind.LOGICAL and is_local(self.link(run).config):
            was_there = await asyncio.to_thread(Path(arguments.path).exists)
            run.scratch["directory"] = "kept" if was_there else "made"

    async def _define(self, run: Run[CreatePoolArguments]) -> None:
        await self.link(run).call(self.facet(run).define_pool(run.arguments.request, run))

    async def _start(self, run: Run[CreatePoolArguments]) -> None:
        await self.link(run).call(self.facet(run).start_pool(run.arguments.pool, run), timeout_s=patience(run))

    async def _undo(self, run: Run[CreatePoolArguments]) -> None:
        error = run.operation.error
        if error is not None and error.reason == POOL_EXISTS.name:
            return  # somebody else's; and what is not defined has made nothing
        facet, arguments = self.facet(run), run.arguments
        remove = run.scratch.get("directory") == "made"
        await self.link(run).call(facet.delete_pool(arguments.pool, run, remove_directory=remove))


class UpdatePool(PoolVerb[UpdatePoolArguments]):
    """Change what may be changed."""

    name = "pool-update"

    @property
    def arguments(self) -> type[UpdatePoolArguments]:
        """Journalled."""
        return UpdatePoolArguments

    def steps(self, arguments: UpdatePoolArguments) -> Sequence[Step[UpdatePoolArguments]]:
        """One step, idempotent."""
        return [Step("update", self._do, cancellable=False)]

    async def _do(self, run: Run[UpdatePoolArguments]) -> None:
        if run.arguments.autostart is not None:
            work = self.facet(run).set_pool_autostart(run.arguments.pool, autostart=run.arguments.autostart)
            await self.link(run).call(work)


class StartPool(PoolVerb[PoolArguments]):
    """Make its volumes usable."""

    name = "pool-start"

    @property
    def arguments(self) -> type[PoolArguments]:
        """Journalled."""
        return PoolArguments

    def steps(self, arguments: PoolArguments) -> Sequence[Step[PoolArguments]]:
        """One step, idempotent."""
        return [Step("start", self._do, cancellable=False)]

    async def _do(self, run: Run[PoolArguments]) -> None:
        await self.link(run).call(self.facet(run).start_pool(run.arguments.pool, run), timeout_s=patience(run))


class StopPool(PoolVerb[PoolArguments]):
    """Let it go.  Checked once more when its turn comes."""

    name = "pool-stop"

    @property
    def arguments(self) -> type[PoolArguments]:
        """Journalled."""
        return PoolArguments

    def steps(self, arguments: PoolArguments) -> Sequence[Step[PoolArguments]]:
        """One step, idempotent."""
        return [Step("stop", self._do, cancellable=False)]

    async def _do(self, run: Run[PoolArguments]) -> None:
        await self.pools.check_unused(run.arguments.host, run.arguments.pool, also_by_stopped=False)
        await self.link(run).call(self.facet(run).stop_pool(run.arguments.pool, run), timeout_s=patience(run))


class RefreshPool(PoolVerb[PoolArguments]):
    """Look again."""

    name = "pool-refresh"

    @property
    def arguments(self) -> type[PoolArguments]:
        """Journalled."""
        return PoolArguments

    def steps(self, arguments: PoolArguments) -> Sequence[Step[PoolArguments]]:
        """One step, idempotent."""
        return [Step("refresh", self._do, cancellable=False)]

    async def _do(self, run: Run[PoolArguments]) -> None:
        await self.link(run).call(self.facet(run).refresh_pool(run.arguments.pool, run), timeout_s=patience(run))


class DeletePool(PoolVerb[DeletePoolArguments]):
    """Forget it; its volumes stay.  Checked once more when its turn comes."""

    name = "pool-delete"

    @property
    def arguments(self) -> type[DeletePoolArguments]:
        """Journalled."""
        return DeletePoolArguments

    def steps(self, arguments: DeletePoolArguments) -> Sequence[Step[DeletePoolArguments]]:
        """One step, idempotent."""
        return [Step("delete", self._do, cancellable=False)]

    async def _do(self, run: Run[DeletePoolArguments]) -> None:
        arguments = run.arguments
        await self.pools.check_unused(arguments.host, arguments.pool, also_by_stopped=True, missing_ok=True)
        work = self.facet(run).delete_pool(arguments.pool, run, remove_directory=arguments.remove_directory)
        await self.link(run).call(work, timeout_s=patience(run))

    async def finish(self, run: Run[DeletePoolArguments]) -> Outcome:
        """Nothing is left to show."""
        return Outcome()
