"""A backend whose guests are ``sleep`` processes.

The operating system knows what runs and what is stopped; this module only remembers which process
belongs to which guest.
"""

from __future__ import annotations

import atexit
import json
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

from virtd.backend.api import (
    BackendDescriptor,
    CallContext,
    Facets,
    Fidelity,
    FieldVerdict,
    GuestSummary,
    HostCandidate,
    HostConfig,
    HostSession,
    NativeGuest,
    NativePlan,
    ResolvedGuest,
)
from virtd.backend.capabilities import LIFECYCLE, PAUSE, complete, native
from virtd.backend.needs import missing_of, rejected_fields
from virtd.errors import (
    BACKEND_ERROR,
    CONFIG_INVALID,
    FIELD_UNSUPPORTED,
    GUEST_EXISTS,
    GUEST_NOT_FOUND,
    HOST_UNREACHABLE,
    INVALID_STATE,
    AlreadyExistsError,
    FailedPreconditionError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    NativeError,
    NotFoundError,
    UnavailableError,
)
from virtd.model.guest import Accelerator, GuestSpec, GuestState
from virtd.model.host import AcceleratorStatus, HostFacts

VERSION = "0.1.0"
CAPABILITIES = complete((native(LIFECYCLE), native(PAUSE)))
# A guest that nobody stops ends by itself.
COMMAND = ("sleep", "600")
_STATE_AFTER = {
    signal.SIGSTOP: GuestState.PAUSED,
    signal.SIGCONT: GuestState.RUNNING,
    signal.SIGKILL: GuestState.STOPPED,
}


@dataclass
class Machine:
    """One guest: its configuration, and its process while it has one."""

    guest: ResolvedGuest
    process: subprocess.Popen[bytes] | None = None

    @property
    def state(self) -> GuestState:
        """As the operating system sees it."""
        if self.process is None or self.process.poll() is not None:
            return GuestState.STOPPED
        # The third field, after the name in parentheses: T is stopped by a signal.
        stat = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii", errors="replace")
        return GuestState.PAUSED if stat.rpartition(")")[2].split()[0] == "T" else GuestState.RUNNING

    def start(self) -> None:
        """Start the process.

        :raises InternalError: BACKEND_ERROR.
        """
        try:
            self.process = subprocess.Popen(COMMAND, stdin=subprocess.DEVNULL)
        except OSError as error:
            said = NativeError("exec", str(error.errno), str(error))
            raise InternalError(BACKEND_ERROR, f"the guest does not start: {error}", native=said) from error

    def send(self, number: signal.Signals) -> None:
        """Send a signal and wait until it has had its effect."""
        assert self.process is not None
        self.process.send_signal(number)
        after = _STATE_AFTER[number]
        # The kernel needs microseconds; a real backend would wait on a thread of its own.
        while self.state is not after:
            time.sleep(0)

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            if self.process.poll() is None:
                self.send(signal.SIGKILL)
            self.process = None


class Hypervisor:
    """All guests of one host; there is one for each path of a URI in a process."""

    def __init__(self) -> None:
        self.machines: dict[UUID, Machine] = {}
        atexit.register(self.end)

    def end(self) -> None:
        """End every guest: processes must not outlive the one that knows them."""
        for machine in self.machines.values():
            machine.stop()


class SampleSession:
    """Level 0 and the facet for pausing."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._machines = hypervisor.machines
        self._closed = False
        self._facets = Facets(pause=self)

    @property
    def facets(self) -> Facets:
        return self._facets

    async def close(self) -> None:
        self._closed = True

    async def probe(self) -> HostFacts:
        self._check_open()
        return HostFacts(
            hypervisor="sleep",
            default_accelerator=Accelerator.TCG,
            accelerators=(AcceleratorStatus(Accelerator.TCG, usable=True, reason="a process is a process"),),
            capabilities=CAPABILITIES,
        )

    async def list_guests(self) -> Sequence[GuestSummary]:
        self._check_open()
        return [
            GuestSummary(uuid, machine.guest.name, machine.state, native_state=machine.state.lower())
            for uuid, machine in self._machines.items()
        ]

    async def get_guest(self, uuid: UUID) -> NativeGuest:
        machine = self._find(uuid)
        spec = GuestSpec(
            vcpus=machine.guest.vcpus,
            memory_bytes=machine.guest.memory_bytes,
            accelerator=machine.guest.accelerator,
            firmware=machine.guest.firmware,
        )
        state = machine.state
        return NativeGuest(
            uuid=uuid, name=machine.guest.name, state=state, spec=spec, native_state=state.lower(), native_ref=str(uuid)
        )

    def lower(self, guest: ResolvedGuest) -> NativePlan:
        # What needs a capability is refused with the reason of that capability.
        verdicts = list(rejected_fields(guest, missing_of(CAPABILITIES)))
        for field, asked in (
            ("spec.accelerator", guest.accelerator is not Accelerator.TCG),
            ("spec.disks", bool(guest.disks)),
            ("spec.interfaces", bool(guest.interfaces)),
            ("spec.graphics", guest.graphics is not None),
            ("spec.backend_options", bool(guest.backend_options)),
        ):
            if asked:
                verdicts.append(FieldVerdict(field, Fidelity.REJECTED, "a sleeping process has no such thing"))
        for field, asked in (("spec.serial_console", guest.serial_console), ("spec.guest_agent", guest.guest_agent)):
            if asked:
                verdicts.append(FieldVerdict(field, Fidelity.IGNORED, "a sleeping process has none"))
        native_form = json.dumps({"command": COMMAND, "guest": asdict(guest)}, default=str, sort_keys=True, indent=2)
        return NativePlan(native_form, tuple(verdicts))

    async def define_guest(self, guest: ResolvedGuest, context: CallContext) -> NativeGuest:
        self._check_open()
        rejected = [item for item in self.lower(guest).verdicts if item.fidelity is Fidelity.REJECTED]
        if rejected:
            raise InvalidArgumentError(
                FIELD_UNSUPPORTED,
                "; ".join(f"{item.field}: {item.reason}" for item in rejected),
                violations=[FieldViolation(item.field, item.reason) for item in rejected],
            )
        for uuid, machine in self._machines.items():
            if machine.guest.name == guest.name and uuid != guest.uuid:
                raise AlreadyExistsError(GUEST_EXISTS, f"another guest is called {guest.name}")
        context.checkpoint()
        if guest.uuid in self._machines:
            self._machines[guest.uuid].guest = guest
        else:
            self._machines[guest.uuid] = Machine(guest)
        return await self.get_guest(guest.uuid)

    async def undefine_guest(self, uuid: UUID, context: CallContext) -> None:
        self._check_open()
        context.checkpoint()
        machine = self._machines.get(uuid)
        if machine is None:
            return
        if machine.state is not GuestState.STOPPED:
            raise FailedPreconditionError(INVALID_STATE, "the guest runs", allowed_actions=("stop",))
        del self._machines[uuid]

    async def start_guest(self, uuid: UUID, context: CallContext) -> None:
        machine = self._find(uuid)
        context.checkpoint()
        if machine.state is GuestState.STOPPED:
            machine.start()

    async def stop_guest(self, uuid: UUID, context: CallContext) -> None:
        self._check_open()
        context.checkpoint()
        if uuid in self._machines:
            self._machines[uuid].stop()

    async def pause_guest(self, uuid: UUID, context: CallContext) -> None:
        machine = self._active(uuid, context)
        if machine.state is GuestState.RUNNING:
            machine.send(signal.SIGSTOP)

    async def resume_guest(self, uuid: UUID, context: CallContext) -> None:
        machine = self._active(uuid, context)
        if machine.state is GuestState.PAUSED:
            machine.send(signal.SIGCONT)

    def _active(self, uuid: UUID, context: CallContext) -> Machine:
        machine = self._find(uuid)
        context.checkpoint()
        if machine.state is GuestState.STOPPED:
            raise FailedPreconditionError(INVALID_STATE, "the guest does not run", allowed_actions=("start",))
        return machine

    def _find(self, uuid: UUID) -> Machine:
        self._check_open()
        if uuid not in self._machines:
            raise NotFoundError(GUEST_NOT_FOUND, f"there is no guest {uuid}")
        return self._machines[uuid]

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError(HOST_UNREACHABLE, "the session is closed")


class SampleBackend:
    """Takes ``sample:///NAME``."""

    def __init__(self) -> None:
        self._hypervisors: dict[str, Hypervisor] = {}

    @property
    def descriptor(self) -> BackendDescriptor:
        return BackendDescriptor(
            id="sample",
            title="Sleeping processes",
            version=VERSION,
            uri_schemes=("sample",),
            capabilities=CAPABILITIES,
            native_format="json",
        )

    async def discover(self) -> Sequence[HostCandidate]:
        return ()

    async def open(self, config: HostConfig) -> HostSession:
        parts = urlsplit(config.uri)
        if parts.scheme != "sample" or parts.netloc:
            raise InvalidArgumentError(CONFIG_INVALID, "a sample host's URI is sample:///NAME")
        return SampleSession(self._hypervisors.setdefault(parts.path, Hypervisor()))
