"""Use cases of a guest's life: start, stop and their like.  Is it allowed, can the host do it, then an operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

from virtd.backend import capabilities as cap
from virtd.errors import UnsupportedError, invalid_field
from virtd.model.host import Capability, CapabilityLevel
from virtd.model.names import GuestName
from virtd.model.operation import Operation
from virtd.operations import Verb
from virtd.service.call import Call
from virtd.service.core import Core, once, submission
from virtd.service.verbs.base import GuestArguments
from virtd.service.verbs.lifecycle import ShutdownArguments, ShutdownGuest, StartGuest, lifecycle_verbs
from virtd.service.verbs.reboot import RebootArguments, ResetArguments, reboot_verbs

SHUTDOWN_MAX_S: Final = 24 * 3600.0
_THERE: Final = (CapabilityLevel.NATIVE, CapabilityLevel.EMULATED, CapabilityLevel.PARTIAL)


class Lifecycle:
    """The verbs that every guest has."""

    def __init__(self, core: Core) -> None:
        self._core = core
        verbs: tuple[Verb[Any], ...] = (*lifecycle_verbs(core), *reboot_verbs(core))
        self._verbs = {verb.name: verb for verb in verbs}
        for verb in self._verbs.values():
            core.engine.register(verb)

    @property
    def strategy_verbs(self) -> tuple[StartGuest, ShutdownGuest]:
        """What run strategies do."""
        start, shutdown = self._verbs["start"], self._verbs["shutdown"]
        assert isinstance(start, StartGuest)
        assert isinstance(shutdown, ShutdownGuest)
        return start, shutdown

    # ------------------------------------------------------------------------------------ reading

    async def start(self, call: Call, name: GuestName) -> Operation | None:
        """Start, or restore."""
        return await self._simple(call, name, "start")

    async def stop(self, call: Call, name: GuestName) -> Operation | None:
        """Cut the power."""
        return await self._simple(call, name, "stop")

    async def reset(self, call: Call, name: GuestName) -> Operation | None:
        """The reset button, or emulate it by stop and start."""

        def arguments(uid: UUID) -> ResetArguments:
            stated = cap.require(self._capabilities(name), cap.RESET, resource=str(name))
            return ResetArguments(name.host, name.guest, uid, emulated=stated.level is CapabilityLevel.EMULATED)

        return await self._submit(call, name, "reset", arguments)

    async def pause(self, call: Call, name: GuestName) -> Operation | None:
        """Stop the virtual CPUs."""
        return await self._simple(call, name, "pause")

    async def resume(self, call: Call, name: GuestName) -> Operation | None:
        """Continue the virtual CPUs."""
        return await self._simple(call, name, "resume")

    async def suspend(self, call: Call, name: GuestName) -> Operation | None:
        """Save to disk and stop."""
        return await self._simple(call, name, "suspend")

    async def shutdown(
        self, call: Call, name: GuestName, timeout_s: float, force_after_timeout: bool
    ) -> Operation | None:
        """Ask the guest's system to shut down."""
        if not 0 <= timeout_s <= SHUTDOWN_MAX_S:
            raise invalid_field("timeout_s", f"must be 0 (the default) to {SHUTDOWN_MAX_S:g}, not {timeout_s:g}")
        wait_s = timeout_s or self._core.options.shutdown_timeout_s
        return await self._submit(
            call,
            name,
            "shutdown",
            lambda uid: ShutdownArguments(name.host, name.guest, uid, wait_s=wait_s, force=force_after_timeout),
        )

    async def reboot(self, call: Call, name: GuestName) -> Operation | None:
        """Ask the guest's system to reboot, or emulate it by shutdown and start."""
        wait_s = self._core.options.shutdown_timeout_s
        return await self._submit(
            call,
            name,
            "reboot",
            lambda uid: RebootArguments(
                name.host, name.guest, uid, wait_s=wait_s, emulated=self._emulates_reboot(name)
            ),
            gate=lambda: self._emulates_reboot(name),
        )

    def _emulates_reboot(self, name: GuestName) -> bool:
        """Whether virtd itself reboots guests of this one's kind: a guest that can be shut down can be rebooted.

        :raises UnsupportedError: CAPABILITY_UNSUPPORTED, it can be neither.
        """
        capabilities = self._capabilities(name)
        try:
            return cap.require(capabilities, cap.REBOOT, resource=str(name)).level is CapabilityLevel.EMULATED
        except UnsupportedError:
            if any(entry.id == cap.SHUTDOWN and entry.level in _THERE for entry in capabilities):
                return True
            raise

    def _capabilities(self, name: GuestName) -> tuple[Capability, ...]:
        """What can be done with guests of this one's kind."""
        return self._core.link(name.host).capabilities_of(self._core.view(name).guest.spec.machine)

    async def adopt(self, call: Call, name: GuestName) -> Operation | None:
        """Take a foreign guest under management."""
        return await self._simple(call, name, "adopt", managed=False)

    async def release(self, call: Call, name: GuestName) -> Operation | None:
        """Let go of a guest."""
        return await self._simple(call, name, "release")

    async def discard(self, call: Call, name: GuestName) -> Operation | None:
        """Throw the saved state away."""
        return await self._simple(call, name, "discard")

    async def _simple(self, call: Call, name: GuestName, verb: str, *, managed: bool = True) -> Operation | None:
        return await self._submit(
            call, name, verb, lambda uid: GuestArguments(name.host, name.guest, uid), managed=managed
        )

    @once
    async def _submit(
        self,
        call: Call,
        name: GuestName,
        verb: str,
        make: Callable[[UUID], GuestArguments],
        *,
        managed: bool = True,
        gate: Callable[[], object] | None = None,
    ) -> Operation | None:
        await self._core.settled(name.host)
        if gate is not None:
            gate()
        view = self._core.check_verb(name, verb, managed=managed, now=not self._core.engine.current(str(name)))
        if call.validate_only:
            return None
        return await self._core.engine.submit(
            self._verbs[verb], make(view.guest.uid), submission(call, str(name), str(name))
        )
