"""The kit's machinery: one host under test, its guests, and the decorator that makes a check."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from virtd.backend import capabilities as caps
from virtd.backend.api import Facets, HostConfig, HostSession, NativeEvent, ResolvedGuest
from virtd.backend.conformance.context import KitContext, Subject
from virtd.backend.conformance.guard import ContractViolation, guard
from virtd.backend.conformance.marks import NotRun, Undeclared, check, check_name
from virtd.backend.conformance.provision import Bootable, GuestMaker, Provision
from virtd.backend.conformance.report import CheckRecord, Outcome, Report, Verdict
from virtd.backend.conformance.shell import wait_for_line
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

__all__ = ["ABSENT", "DECLARED", "Kit", "NotRun", "Subject", "Undeclared", "check", "check_name"]

ABSENT: Final = "ABSENT"
"""The state of a guest that is not there."""

DECLARED: Final = (CapabilityLevel.NATIVE, CapabilityLevel.EMULATED, CapabilityLevel.PARTIAL)
_POLL_S: Final = 0.02


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
        self.host_capabilities: tuple[Capability, ...] = ()
        self._runner = asyncio.Runner()
        self._temporary = tempfile.TemporaryDirectory(prefix="virtd-conformance-")
        self.directory = provision.directory or Path(self._temporary.name)
        self._count = 0
        self._standing: dict[str, Subject] = {}
        self._guests: list[Subject] = []
        self._foreign: list[UUID] = []
        self._volumes: list[tuple[str, str]] = []
        self._follower: asyncio.Task[None] | None = None
        self._peer: HostSession | None = None
        self._refused: set[str] = set()

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

    async def peer(self) -> HostSession:
        """A session with the second host; not watched, as a facet of it is given to the first host's."""
        if self._peer is None:
            if not self.provision.peer:
                raise NotRun("the provision names no second host")
            (directory := self.directory / "peer").mkdir(mode=0o700, exist_ok=True)
            config, options = self.config(self.provision.peer), dict(self.provision.peer_options)
            config = replace(config, id="peer", directory=str(directory), options=options)
            self._peer = await self.provision.backend.open(config)
        return self._peer

    async def _open(self) -> None:
        self.session = await self.open_session()
        try:
            whole = await self.session.probe()
            self.host_capabilities, self.facts = whole.capabilities, self.narrowed(whole)
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
            for session in (self._peer, self.session, self.session):  # close is idempotent
                if session is not None:
                    await session.close()
            if self._follower is not None:
                await asyncio.wait_for(self._follower, self.provision.event_timeout_s)

    # ---------------------------------------------------------------------------- files on the host

    def host_path(self, name: str) -> str:
        """Where a file of this name lies, or would lie, on the host."""
        files = self.provision.files
        return str(self.directory / name) if files is None else f"{files.directory}/{name}"

    async def host_file(self, name: str, data: bytes) -> str:
        """Write a file on the host; its path there."""
        if self.provision.files is None:
            (self.directory / name).write_bytes(data)
        else:
            await self.provision.files.write(name, data)
        return self.host_path(name)

    async def on_host(self, name: str) -> bool:
        """Whether the host has a file or a directory of this name there."""
        files = self.provision.files
        return (self.directory / name).exists() if files is None else await files.exists(name)

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

    def narrowed(self, facts: HostFacts) -> HostFacts:
        """The facts, with the capabilities of the kind of guests that is checked."""
        machine = self.provision.machine
        machines = [kind.machine for kind in facts.guest_kinds]
        assert not machines or machine in machines, f"the provision's machine {machine!r} is none of {machines}"
        return replace(facts, capabilities=caps.of_kind(facts, machine))

    def narrower(self, id_: str) -> bool:
        """Whether guests of the kind that is checked lack what the host has for others."""
        whole = [entry.level for entry in self.host_capabilities if entry.id == id_]
        return not self.declared(id_) and any(level in DECLARED for level in whole)

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
            assert shared or self.narrower(id_), f"{id_} is {entry.level}, yet the session has the facet {name!r}"
            # The facet is there for a sibling, or for other guests; the method that is not must refuse by itself.
            # Once is enough: the call is the same whichever check asks for it.
            if (shared or id_ in CALLS) and id_ not in self._refused:
                await CALLS[id_](self)
                self._refused.add(id_)

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

    def robustness(self) -> None:
        """Go on only if the backend is checked here for what it does when things go wrong."""
        if self.provision.robust_elsewhere:
            raise NotRun(f"this is checked of the same backend elsewhere: {self.provision.robust_elsewhere}")

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
            if make is None and self.provision.up_line:
                await wait_for_line(self, subject.uuid, self.provision.up_line)
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

    def share_as(self, key: str, resolved: ResolvedGuest) -> None:
        """What a shared guest has become."""
        self._standing[key] = replace(self._standing[key], resolved=resolved)

    def share_no_longer(self, key: str) -> None:
        """Remove a shared guest after the check."""
        self._guests.append(self._standing.pop(key))

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
        end = Verdict(Outcome.FAILED)
        try:
            end = self._runner.run(self._outcome(capabilities, body))
        except BaseException as error:
            end = Verdict(Outcome.FAILED, f"{type(error).__name__}: {error}"[:500])
            raise
        finally:
            duration_s, proof = time.monotonic() - start, proof and not end.elsewhere
            self.report.add(CheckRecord(name, capabilities, end.outcome, duration_s, end.message, proof, end.refused))

    async def _outcome(self, capabilities: tuple[str, ...], body: Callable[[], Coroutine[Any, Any, None]]) -> Verdict:
        failed = True
        heart = asyncio.create_task(self._beat())
        try:
            async with asyncio.timeout(self.provision.check_timeout_s):
                verdict = await self._judge(capabilities, body)
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
        return verdict

    async def _beat(self) -> None:
        """Notice how long the event loop was blocked: noted, not judged, because machines are busy."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _POLL_S
            await asyncio.sleep(_POLL_S)
            late = max(loop.time() - due, float(self.report.notes.get("event_loop_blocked_s", 0)))
            self.report.notes["event_loop_blocked_s"] = round(late, 3)

    async def _judge(self, capabilities: tuple[str, ...], body: Callable[[], Coroutine[Any, Any, None]]) -> Verdict:
        try:
            self.need(*capabilities)
            await body()
        except Undeclared as missing:
            await self.assert_refused(missing.capability)
            reason = self.capability(missing.capability).reason
            return Verdict(Outcome.REFUSED, f"{missing.capability}: {reason}", missing.capability)
        except NotRun as why:
            return Verdict(Outcome.NOT_RUN, str(why), elsewhere=why.elsewhere)
        except UnsupportedError as error:
            # That is what PARTIAL means: a part is refused, with the reason.  (The sweep sees to it
            # that nothing is left behind.)
            partial = [id_ for id_ in capabilities if self.capability(id_).level is CapabilityLevel.PARTIAL]
            if not partial or error.reason is not CAPABILITY_UNSUPPORTED or not error.message:
                raise
            return Verdict(Outcome.REFUSED, f"{partial[0]} is PARTIAL: {error.message}")
        return Verdict(Outcome.PASSED)

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
