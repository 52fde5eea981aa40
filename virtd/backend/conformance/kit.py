"""The kit's machinery: one host under test, its guests, and the decorator that makes a check."""

from __future__ import annotations

import asyncio
import difflib
import functools
import inspect
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

from virtd.backend import capabilities as caps
from virtd.backend.api import Facets, HostConfig, HostSession, NativeEvent, ResolvedGuest
from virtd.backend.conformance.context import KitContext
from virtd.backend.conformance.guard import ContractViolation, guard
from virtd.backend.conformance.provision import Bootable, GuestMaker, Provision
from virtd.backend.conformance.report import CheckRecord, Outcome, Report
from virtd.errors import (
    CAPABILITY_UNSUPPORTED,
    GUEST_NOT_FOUND,
    NotFoundError,
    Reason,
    UnsupportedError,
    VirtdError,
)
from virtd.model.guest import GuestState
from virtd.model.host import Capability, CapabilityLevel, HostFacts
from virtd.model.storage import PoolState

T = TypeVar("T")

ABSENT: Final = "ABSENT"
"""The state of a guest that is not there."""

DECLARED: Final = (CapabilityLevel.NATIVE, CapabilityLevel.EMULATED, CapabilityLevel.PARTIAL)
_POLL_S: Final = 0.02


class NotRun(Exception):  # noqa: N818 - not an error: an outcome
    """The provision gives no means to check this; the message says what is missing."""


class Undeclared(Exception):  # noqa: N818 - not an error: an outcome
    """What the check needs is a capability that the host does not declare."""

    def __init__(self, capability: str) -> None:
        super().__init__(capability)
        self.capability = capability


@dataclass(frozen=True, slots=True)
class Subject:
    """A guest that a check works on."""

    uuid: UUID
    name: str
    resolved: ResolvedGuest


class Kit:
    """One host under test.  Made for a module, used by all of its checks."""

    def __init__(self, provision: Provision, report: Report, *, regenerate: bool = False) -> None:
        self.provision = provision
        self.report = report
        self.regenerate = regenerate
        self.tag = f"conf-{uuid4().hex[:6]}"
        self.events: list[NativeEvent] = []
        self.session: HostSession
        self.facts = HostFacts()
        self._runner = asyncio.Runner()
        self._temporary = tempfile.TemporaryDirectory(prefix="virtd-conformance-")
        self.directory = provision.directory or Path(self._temporary.name)
        self._count = 0
        self._standing: dict[str, Subject] = {}
        self._guests: list[Subject] = []
        self._foreign: list[UUID] = []
        self._volumes: list[tuple[str, str]] = []
        self._follower: asyncio.Task[None] | None = None

    # ---------------------------------------------------------------------------- open and close

    def open(self) -> None:
        """Open the session under test."""
        try:
            self._runner.run(self._open())
        except BaseException:
            self._runner.close()
            self._temporary.cleanup()
            raise

    def close(self) -> None:
        """Remove everything and close the session."""
        try:
            self._runner.run(self._close())
        finally:
            self._runner.close()
            self._temporary.cleanup()

    def config(self, uri: str = "") -> HostConfig:
        """The host's configuration."""
        return HostConfig(
            id="conformance",
            uri=uri or self.provision.uri,
            directory=str(self.directory),
            allowed_directories=(*self.provision.allowed_directories, str(self.directory), self._temporary.name),
            options=dict(self.provision.options),
            call_timeout_s=self.provision.call_timeout_s,
        )

    async def open_session(self) -> HostSession:
        """One more session with the same host, watched; the caller closes it."""
        return guard(await self.provision.backend.open(self.config()))

    async def _open(self) -> None:
        self.session = await self.open_session()
        try:
            self.facts = await self.session.probe()
        except BaseException:
            await self.session.close()
            raise
        self.report.facts = self.facts
        source = self.facets.event_source
        if source is not None and self.declared(caps.EVENTS):
            iterator = source.events()

            async def follow() -> None:
                async for event in iterator:
                    self.events.append(event)

            self._follower = asyncio.create_task(follow())

    async def _close(self) -> None:
        try:
            await self._sweep()
            for subject in self._standing.values():
                await self.dispose(subject)
        finally:
            await self.session.close()
            await self.session.close()  # idempotent
            if self._follower is not None:
                await asyncio.wait_for(self._follower, self.provision.event_timeout_s)

    # ----------------------------------------------------------------------------- capabilities

    @property
    def facets(self) -> Facets:
        """The session's facets."""
        return self.session.facets

    def facet(self, name: str) -> Any:
        """A facet that a declared capability promises."""
        facet = getattr(self.facets, name)
        assert facet is not None, f"the host declares what needs the facet {name!r}, but the session has none"
        return facet

    def capability(self, id_: str) -> Capability:
        """What the host says of a capability."""
        found = [entry for entry in self.facts.capabilities if entry.id == id_]
        assert len(found) == 1, f"the probe names {id_} {len(found)} times: every capability is there once"
        return found[0]

    def declared(self, id_: str) -> bool:
        """Whether the host says that it has the capability."""
        return self.capability(id_).level in DECLARED

    def need(self, *ids: str) -> None:
        """Go on only if the host has these capabilities; else the check is one of their refusal."""
        for id_ in ids:
            if not self.declared(id_):
                raise Undeclared(id_)

    async def assert_refused(self, id_: str) -> None:
        """An undeclared capability is refused: same reason everywhere, and nothing happens."""
        from virtd.backend.conformance.refusals import CALLS

        entry = self.capability(id_)
        assert entry.reason, f"{id_} is {entry.level} without a reason"
        try:
            caps.require(self.facts.capabilities, id_, resource="hosts/conformance")
        except UnsupportedError as error:
            assert error.reason is CAPABILITY_UNSUPPORTED
            assert error.record.metadata == {"capability": id_, "why": entry.reason}
        else:
            message = f"{id_} is {entry.level}, yet require() let it pass"
            raise ContractViolation(message)
        name = caps.FACET_OF.get(id_)
        if name is not None and getattr(self.facets, name) is not None:
            shared = any(
                self.declared(other) for other, facet in caps.FACET_OF.items() if facet == name and other != id_
            )
            assert shared, f"{id_} is {entry.level}, yet the session has the facet {name!r}"
            # The facet is there for a sibling; the method that is not must refuse by itself.
            await CALLS[id_](self)

    # ---------------------------------------------------------------------------------- guests

    def context(self, *, cancel_at: int = 0) -> KitContext:
        """A context for one call."""
        return KitContext(cancel_at=cancel_at)

    def new_name(self) -> str:
        """A native name that nobody has."""
        self._count += 1
        return f"{self.tag}-{self._count}"

    def subject(self, *, make: GuestMaker | None = None) -> Subject:
        """A guest that is not defined yet; it is removed after the check."""
        name, uuid = self.new_name(), uuid4()
        make = make or self.provision.guest
        subject = Subject(uuid, name, make(name, uuid))
        assert (subject.resolved.uuid, subject.resolved.name) == (uuid, name), "the provision changed name or UUID"
        self._guests.append(subject)
        return subject

    def bootable(self) -> Bootable:
        """The provision's bootable guest."""
        if self.provision.bootable is None:
            raise NotRun("the provision names no bootable guest")
        return self.provision.bootable

    async def new_guest(self, *, make: GuestMaker | None = None, running: bool = False) -> Subject:
        """A defined guest; it is removed after the check."""
        subject = self.subject(make=make)
        await self.session.define_guest(subject.resolved, self.context())
        if running:
            await self.session.start_guest(subject.uuid, self.context())
        return subject

    async def in_state(self, state: str) -> Subject:
        """A guest in a state.  Guests that a check has left as they were are used again."""
        if state == ABSENT:
            return self.subject()
        standing = self._standing.get(state)
        if standing is not None:
            if await self.state(standing.uuid) == state:
                return standing
            await self.dispose(self._standing.pop(state))
        subject = await self.new_guest(running=state != GuestState.STOPPED)
        if state == GuestState.PAUSED:
            self.need(caps.PAUSE)
            await self.facet("pause").pause_guest(subject.uuid, self.context())
        elif state == GuestState.SUSPENDED:
            self.need(caps.SUSPEND)
            await self.facet("suspend").suspend_guest(subject.uuid, self.context())
        await self.reaches(subject.uuid, state)
        self._guests.remove(subject)
        self._standing[state] = subject
        return subject

    async def shared(self, key: str, make: Callable[[], Awaitable[Subject]]) -> Subject:
        """A running guest that checks share because it is dear; anew when one has stopped it."""
        standing = self._standing.get(key)
        if standing is not None:
            if await self.state(standing.uuid) == GuestState.RUNNING:
                return standing
            await self.dispose(self._standing.pop(key))
        subject = await make()
        self._guests.remove(subject)
        self._standing[key] = subject
        return subject

    async def state(self, uuid: UUID) -> str:
        """The guest's state now, or ABSENT."""
        try:
            return (await self.session.get_guest(uuid)).state
        except NotFoundError as error:
            assert error.reason is GUEST_NOT_FOUND, f"{error.reason.name} for an unknown guest"
            return ABSENT

    async def reaches(self, uuid: UUID, *states: str, timeout_s: float | None = None) -> str:
        """Wait until the guest is in one of the states."""
        seen: list[str] = []

        async def there() -> bool:
            seen.append(await self.state(uuid))
            return seen[-1] in states

        await self.eventually(there, lambda: f"the guest is {seen[-1]}, not {' or '.join(states)}", timeout_s)
        return seen[-1]

    async def eventually(
        self,
        test: Callable[[], bool | Awaitable[bool]],
        what: str | Callable[[], str],
        timeout_s: float | None = None,
    ) -> None:
        """Wait until a test is true."""
        limit_s = self.provision.event_timeout_s if timeout_s is None else timeout_s
        end = time.monotonic() + limit_s
        while True:
            answer = test()
            if await answer if inspect.isawaitable(answer) else answer:
                return
            if time.monotonic() > end:
                raise AssertionError(f"after {limit_s:g} s: {what if isinstance(what, str) else what()}")
            await asyncio.sleep(_POLL_S)

    async def dispose(self, subject: Subject) -> None:
        """Remove a guest, whatever its state."""
        await self.session.stop_guest(subject.uuid, self.context())
        await self.session.undefine_guest(subject.uuid, self.context())

    def forget_later(self, *, foreign: UUID | None = None, volume: tuple[str, str] | None = None) -> None:
        """Remove it after the check."""
        if foreign is not None:
            self._foreign.append(foreign)
        if volume is not None:
            self._volumes.append(volume)

    async def _sweep(self) -> None:
        while self._guests:
            await self.dispose(self._guests.pop())
        while self._foreign:
            uuid = self._foreign.pop()
            if self.provision.outside is not None and await self.state(uuid) != ABSENT:
                await self.provision.outside.kill_guest(uuid)
                await self.provision.outside.undefine_guest(uuid)
        while self._volumes:
            pool, name = self._volumes.pop()
            if self.facets.storage is not None:
                await self.facets.storage.delete_volume(pool, name, self.context())

    # ---------------------------------------------------------------------------------- errors

    async def error(self, call: Awaitable[object], *reasons: Reason) -> VirtdError:
        """The call must fail with one of these reasons; the error is returned."""
        names = " or ".join(reason.name for reason in reasons)
        try:
            answer = await call
        except VirtdError as error:
            assert error.reason in reasons, f"{error.reason.name} ({error}) instead of {names}"
            assert error.message, f"{error.reason.name} has no message"
            return error
        raise AssertionError(f"it answered {answer!r} instead of {names}")

    async def digest(self) -> str:
        """All that the kit has on the host, as the SPI shows it (and as the provision sees it)."""
        lines = []
        for summary in sorted(await self.session.list_guests(), key=lambda item: item.name):
            if not summary.name.startswith(self.tag):
                continue
            guest = await self.session.get_guest(summary.uuid)
            lines.append(f"guest {guest.name} {guest.state} {guest.has_saved_state} {guest.spec}")
            if self.facets.snapshots is not None:
                found = await self.facets.snapshots.list_snapshots(summary.uuid)
                lines += [f"  snapshot {item.name} < {item.parent} {item.kind} {item.current}" for item in found]
        if self.facets.storage is not None:
            for pool in await self.facets.storage.list_pools():
                lines.append(f"pool {pool.name}")
                if pool.state is PoolState.ACTIVE:
                    volumes = await self.facets.storage.list_volumes(pool.name)
                    ours = [item for item in volumes if item.name.startswith(self.tag)]
                    lines += [f"  volume {item.name} {item.format} {item.capacity_bytes}" for item in ours]
        if self.provision.digest is not None:
            lines.append(self.provision.digest())
        return "\n".join(lines)

    async def unchanged(self, before: str, what: str) -> None:
        """Nothing may be different from ``before`` (see :meth:`digest`)."""
        after = await self.digest()
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", n=0, lineterm="")
        changes = "\n".join(line[:300] for line in lines)
        assert not changes, f"{what} left something behind:\n{changes}"

    # ---------------------------------------------------------------------------------- checks

    def execute(
        self, name: str, capabilities: tuple[str, ...], body: Callable[[], Coroutine[Any, Any, None]], *, proof: bool
    ) -> None:
        """Run one check and record what came of it."""
        __tracebackhide__ = True
        start = time.monotonic()
        outcome, message = Outcome.FAILED, ""
        try:
            outcome, message = self._runner.run(self._outcome(capabilities, body))
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"[:500]
            raise
        finally:
            duration_s = time.monotonic() - start
            self.report.add(CheckRecord(name, capabilities, outcome, duration_s, message, proof))

    async def _outcome(
        self, capabilities: tuple[str, ...], body: Callable[[], Coroutine[Any, Any, None]]
    ) -> tuple[Outcome, str]:
        failed = True
        heart = asyncio.create_task(self._beat())
        try:
            async with asyncio.timeout(self.provision.check_timeout_s):
                outcome = await self._judge(capabilities, body)
            failed = False
        finally:
            heart.cancel()
            # After a failure the sweep is a courtesy: its own trouble must not hide the cause.
            with suppress(*([Exception] if failed else [])):
                async with asyncio.timeout(self.provision.check_timeout_s):
                    if failed:
                        # What a failed check had in its hands is not trusted any more.
                        self._guests += self._standing.values()
                        self._standing.clear()
                    await self._sweep()
                    await self._assert_swept()
        return outcome

    async def _beat(self) -> None:
        """Notice how long the event loop was blocked: noted, not judged, because machines are busy."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _POLL_S
            await asyncio.sleep(_POLL_S)
            late = max(loop.time() - due, float(self.report.notes.get("event_loop_blocked_s", 0)))
            self.report.notes["event_loop_blocked_s"] = round(late, 3)

    async def _judge(
        self, capabilities: tuple[str, ...], body: Callable[[], Coroutine[Any, Any, None]]
    ) -> tuple[Outcome, str]:
        try:
            self.need(*capabilities)
            await body()
        except Undeclared as missing:
            await self.assert_refused(missing.capability)
            return Outcome.REFUSED, f"{missing.capability}: {self.capability(missing.capability).reason}"
        except NotRun as why:
            return Outcome.NOT_RUN, str(why)
        except UnsupportedError as error:
            # That is what PARTIAL means: a part is refused, with the reason.  (The sweep sees to it
            # that nothing is left behind.)
            partial = [id_ for id_ in capabilities if self.capability(id_).level is CapabilityLevel.PARTIAL]
            if not partial or error.reason is not CAPABILITY_UNSUPPORTED or not error.message:
                raise
            return Outcome.REFUSED, f"{partial[0]} is PARTIAL: {error.message}"
        return Outcome.PASSED, ""

    async def _assert_swept(self) -> None:
        standing = {subject.uuid for subject in self._standing.values()}
        left = [
            guest.name
            for guest in await self.session.list_guests()
            if guest.name.startswith(self.tag) and guest.uuid not in standing
        ]
        assert not left, f"guests were removed and are still there: {left}"
        if self.facets.storage is not None:
            for pool in await self.facets.storage.list_pools():
                found = await self.facets.storage.list_volumes(pool.name) if pool.state is PoolState.ACTIVE else ()
                left = [volume.name for volume in found if volume.name.startswith(self.tag)]
                assert not left, f"volumes are left in pool {pool.name}: {left}"


def check(
    *capabilities: str, proof: bool = True, about: Callable[..., str] | None = None
) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Callable[..., None]]:
    """Make a check of an async function whose argument ``kit`` is the host under test.

    :param capabilities: the check is of these; where one is not declared, its refusal is checked instead.
    :param proof: the check shows that the capability works (or else that it is robust).
    :param about: gives the capability of a parametrized check from its arguments.
    """

    def decorate(body: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
        @functools.wraps(body)
        def test(*args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True
            kit: Kit = kwargs["kit"]
            parameters = {key: value for key, value in kwargs.items() if key != "kit"}
            ids = (*capabilities, about(**parameters)) if about else capabilities
            kit.execute(
                check_name(body, parameters), tuple(filter(None, ids)), lambda: body(*args, **kwargs), proof=proof
            )

        test.__dict__["virtd_check"] = body
        return test

    return decorate


def check_name(body: Callable[..., object], parameters: dict[str, Any]) -> str:
    """A check's name in the report: ``TestVerbs.test_verb[pause-RUNNING]``."""
    ordered = [parameters[name] for name in inspect.signature(body).parameters if name in parameters]
    values = "-".join(str(value) for value in ordered)
    return f"{body.__qualname__}[{values}]" if values else body.__qualname__
