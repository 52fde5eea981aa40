"""The QEMU guest agent: is it there, run a command, what addresses has the guest.

Four states that look alike from afar are told apart: no channel (AGENT_NOT_CONFIGURED), guest not
running (INVALID_STATE), agent not connected yet, and agent connected but stuck (AGENT_NOT_READY with
different words); a command that the agent's own configuration forbids is CAPABILITY_UNSUPPORTED.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import libvirt
import libvirt_qemu

from virtd.backend.api import CallContext
from virtd.backend.capabilities import AGENT_EXEC
from virtd.errors import (
    AGENT_NOT_CONFIGURED,
    AGENT_NOT_READY,
    BACKEND_ERROR,
    DEADLINE_EXCEEDED,
    INVALID_STATE,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    NativeError,
    UnavailableError,
    VirtdError,
    invalid_field,
    unsupported,
)
from virtd.libvirt.connections import LaneName
from virtd.libvirt.errors import native_of, translate
from virtd.libvirt.guests import Guests, is_active
from virtd.libvirt.xml.domain import Domain
from virtd.model.console import AgentCommand, AgentResult
from virtd.model.guest import GuestAddress
from virtd_kvm.designer import AGENT_CHANNEL

_PING_S: Final = 2
_ADDRESSES_S: Final = 1
_GRACE_S: Final = 0.5
_CALL_S: Final = 10
_POLL_FIRST_S: Final = 0.05
_POLL_LAST_S: Final = 1.0
# The limit of the native call is libvirt's own; ours only catches a host that hangs.
_SLACK_S: Final = 5.0
_RETRY_S: Final = 2.0


class Agent:
    """Guest-agent calls, on connections of their own: one stuck agent delays no other call."""

    def __init__(self, guests: Guests) -> None:
        self._guests: Final = guests
        self._asked: Final[dict[tuple[UUID, str], asyncio.Task[Any]]] = {}

    async def ping_agent(self, uuid: UUID) -> None:
        """Return if the agent answers now.

        :raises FailedPreconditionError: AGENT_NOT_CONFIGURED or INVALID_STATE.
        :raises UnavailableError: AGENT_NOT_READY.
        """
        await self._ask(uuid, "guest-ping", _PING_S)

    async def _ask(self, uuid: UUID, name: str, limit_s: float) -> Any:
        """A question with a short limit.

        libvirt first waits five seconds for an agent that has stopped answering to come back in
        step, whatever limit it is given.  That wait is left to itself, and while it lasts the same
        question is not asked again: stuck agents must not use up the host's threads.
        """
        key = (uuid, name)
        task = self._asked.get(key)
        if task is None:
            task = asyncio.create_task(self._command(uuid, name, timeout_s=max(1, int(limit_s))))
            self._asked[key] = task
            task.add_done_callback(lambda done: self._answered(key, done))
        try:
            return await asyncio.wait_for(asyncio.shield(task), limit_s + _GRACE_S)
        except TimeoutError:
            native = NativeError(f"virDomainQemuAgentCommand({name})", "", f"no answer within {limit_s:g} s")
            raise _not_ready("connected", native) from None

    def _answered(self, key: tuple[UUID, str], task: asyncio.Task[Any]) -> None:
        del self._asked[key]
        if not task.cancelled():
            task.exception()  # seen: there may be nobody left who waits for it

    async def run_command(self, uuid: UUID, command: AgentCommand, context: CallContext) -> AgentResult:
        """Run a command in the guest and collect its output.

        When the time is over, or the operation is cancelled, the command runs on in the guest: the
        agent has no call that would end it.
        """
        context.checkpoint()
        arguments: dict[str, Any] = {
            "path": command.path,
            "arg": list(command.arguments),
            "capture-output": True,
        }
        if command.environment:
            arguments["env"] = list(command.environment)
        if command.input_data:
            arguments["input-data"] = base64.b64encode(command.input_data).decode("ascii")
        started = time.monotonic()
        answer = await self._command(uuid, "guest-exec", arguments, program=command.path)
        pid = _field(answer, "pid")
        pause = _POLL_FIRST_S
        while True:
            status = await self._command(uuid, "guest-exec-status", {"pid": pid})
            if _field(status, "exited"):
                return _result(status)
            left = started + command.timeout_s - time.monotonic()
            if left <= 0:
                raise DeadlineExceededError(
                    DEADLINE_EXCEEDED,
                    f"{command.path} still runs in the guest (process {pid}) after {command.timeout_s:g} s",
                    metadata={"guest_pid": str(pid)},
                )
            context.checkpoint()
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 1.5, _POLL_LAST_S)

    async def addresses(self, uuid: UUID, names: Mapping[str, str]) -> Sequence[GuestAddress]:
        """Addresses as the agent tells them; empty when it does not answer now.

        :param names: names of interfaces in the spec by MAC address.
        """
        try:
            answer = await self._ask(uuid, "guest-network-get-interfaces", _ADDRESSES_S)
        except VirtdError:
            return ()
        return parse_interfaces(answer, names)

    async def _command(
        self,
        uuid: UUID,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout_s: int = _CALL_S,
        program: str = "",
    ) -> Any:
        request: dict[str, Any] = {"execute": name}
        if arguments is not None:
            request["arguments"] = arguments
        text = json.dumps(request)

        def run(domain: Any) -> str:
            try:
                return str(libvirt_qemu.qemuAgentCommand(domain, text, timeout_s, 0))
            except libvirt.libvirtError as error:
                raise _agent_error(domain, error, name, program) from error

        answer = await self._guests.on_domain(
            uuid, f"virDomainQemuAgentCommand({name})", run, lane=LaneName.AGENT, timeout_s=timeout_s + _SLACK_S
        )
        return json.loads(answer).get("return")


def _agent_error(domain: Any, error: libvirt.libvirtError, command: str, program: str) -> Exception:
    """Find out what it was; the message's text is only ever shown, never decided upon."""
    code = error.get_error_code()
    native = native_of(error, f"virDomainQemuAgentCommand({command})")
    if not is_active(domain):
        words = "the guest does not run"
        return FailedPreconditionError(INVALID_STATE, words, native=native, allowed_actions=("start",))
    channel = next((found for found in Domain.parse(domain.XMLDesc(0)).channels if found.name == AGENT_CHANNEL), None)
    if channel is None:
        words = "the guest was made without a guest-agent channel"
        return FailedPreconditionError(AGENT_NOT_CONFIGURED, words, native=native)
    if code == libvirt.VIR_ERR_OPERATION_INVALID:
        words = "the agent cannot answer while the guest is paused"
        return FailedPreconditionError(INVALID_STATE, words, native=native, allowed_actions=("resume",))
    if code in _NOT_READY:
        return _not_ready(channel.state, native)
    if code in _REFUSED or code == libvirt.VIR_ERR_NO_SUPPORT:
        return _refused(domain, command, program, native)
    return translate(error, native.call)


def _not_ready(channel_state: str, native: NativeError) -> VirtdError:
    if channel_state == "connected":
        words = "the guest agent is connected but does not answer: it is busy or stuck"
    else:
        words = "no guest agent is connected: it is not installed, not enabled, or the guest still boots"
    return UnavailableError(
        AGENT_NOT_READY,
        words,
        native=native,
        retry_after_s=_RETRY_S,
        metadata={"channel": channel_state or "unknown"},
    )


def _refused(domain: Any, command: str, program: str, native: NativeError) -> VirtdError:
    """The agent answered with an error: the command is switched off, or the program was at fault."""
    if not _offered(domain, command):
        return unsupported(AGENT_EXEC, f"the guest's agent does not offer {command}, or its configuration forbids it")
    if command == "guest-exec":
        # All that guest-exec itself can fail with, where it is allowed, is the program.
        return invalid_field("command.path", f"{program} cannot be run in the guest: {native.message}")
    return InternalError(BACKEND_ERROR, f"the guest agent refused {command}: {native.message}", native=native)


def _offered(domain: Any, command: str) -> bool:
    """Whether the agent says that it does this command; True where it cannot be asked."""
    try:
        answer = libvirt_qemu.qemuAgentCommand(domain, json.dumps({"execute": "guest-info"}), _PING_S, 0)
    except libvirt.libvirtError:
        return True
    commands = json.loads(answer).get("return", {}).get("supported_commands", [])
    return any(found.get("name") == command and found.get("enabled", True) for found in commands)


_NOT_READY: Final = frozenset(
    {libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED}
    | {getattr(libvirt, "VIR_ERR_AGENT_COMMAND_TIMEOUT", libvirt.VIR_ERR_AGENT_UNRESPONSIVE)}
)
# libvirt 9 reports what the agent refused as an internal error; newer ones have a code for it.
_REFUSED: Final = frozenset(
    {libvirt.VIR_ERR_INTERNAL_ERROR, getattr(libvirt, "VIR_ERR_AGENT_COMMAND_FAILED", libvirt.VIR_ERR_INTERNAL_ERROR)}
)


def _field(answer: Any, name: str) -> Any:
    if not isinstance(answer, dict) or name not in answer:
        raise InternalError(BACKEND_ERROR, f"the guest agent's answer has no {name}")
    return answer[name]


def _result(status: Mapping[str, Any]) -> AgentResult:
    signal = status.get("signal")
    return AgentResult(
        exit_code=None if signal is not None else status.get("exitcode"),
        signal=signal,
        stdout=base64.b64decode(status.get("out-data", "")),
        stderr=base64.b64decode(status.get("err-data", "")),
        stdout_truncated=bool(status.get("out-truncated", False)),
        stderr_truncated=bool(status.get("err-truncated", False)),
    )


def parse_interfaces(answer: Any, names: Mapping[str, str]) -> Sequence[GuestAddress]:
    """``guest-network-get-interfaces``, without loopback.

    An interface that is not one of the guest's devices (a bridge or tunnel inside it) is listed
    under the guest's own name for it.
    """
    found = []
    for interface in answer if isinstance(answer, list) else ():
        mac = str(interface.get("hardware-address", "")).lower()
        for address in interface.get("ip-addresses", ()):
            text = str(address.get("ip-address", ""))
            if not text or interface.get("name") == "lo":
                continue
            found.append(
                GuestAddress(
                    interface=names.get(mac) or str(interface.get("name", "")),
                    mac=mac,
                    address=text,
                    prefix_length=int(address.get("prefix", 0)),
                    source="AGENT",
                )
            )
    return tuple(found)
