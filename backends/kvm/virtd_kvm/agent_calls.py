"""Calls to the QEMU guest agent: one at a time per guest, bounded, and told apart when they fail.

What shapes this module (libvirt 9.0, qemu-ga 7.2):

* libvirt lets one agent call of a guest through at a time; a second one waits in a thread.  So calls
  of one guest queue here, where waiting costs nothing, and a guest never has more than one thread.
* An agent that has stopped answering costs each call a wait for "in step again", five seconds unless
  the guest's response time is set, as is done here.
* A guest that has been silent is asked again by few calls at a time (``_SUSPECTS``); the others are
  refused at once.  However many agents are stuck, threads stay free for those that answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import libvirt
import libvirt_qemu

from virtd.backend.capabilities import AGENT_EXEC
from virtd.errors import (
    AGENT_DISABLED,
    AGENT_NOT_CONFIGURED,
    AGENT_NOT_READY,
    AGENT_STUCK,
    BACKEND_ERROR,
    GUEST_FROZEN,
    INVALID_STATE,
    FailedPreconditionError,
    InternalError,
    NativeError,
    UnavailableError,
    VirtdError,
    unsupported,
)
from virtd.libvirt.connections import LaneName
from virtd.libvirt.errors import native_of, translate
from virtd.libvirt.guests import Guests, is_active
from virtd.libvirt.words import AGENT_CHANNEL
from virtd.libvirt.xml.domain import Domain

PING_S: Final = 2
CALL_S: Final = 10
_GRACE_S: Final = 0.5
_RESPONSE_S: Final = 2
# The limit of the native call is libvirt's own; ours only catches a host that hangs.
_SLACK_S: Final = 10.0
_RETRY_S: Final = 2.0
_SUSPECTS: Final = 2
_SUSPECT_FOR_S: Final = 60.0


class Refused(Exception):  # noqa: N818 - an answer; it never leaves this backend
    """The agent answered with an error of its own; who called knows what it means.

    :param error: what it is where nobody knows better.
    """

    def __init__(self, error: InternalError) -> None:
        super().__init__(error.message)
        self.error = error

    @property
    def words(self) -> str:
        """The agent's own words."""
        native = self.error.record.native
        return native.message.rpartition("': ")[2] if native is not None else self.error.message


@dataclass(slots=True)
class _Line:
    """One guest's calls."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    silent_since: float | None = None


class AgentCalls:
    """Agent calls of one host's guests."""

    def __init__(self, guests: Guests) -> None:
        self._guests: Final = guests
        self._lines: Final[dict[UUID, _Line]] = {}
        self._tasks: Final[set[asyncio.Task[Any]]] = set()
        self._suspects = 0
        self._timed: Final[dict[UUID, int]] = {}

    async def ask(self, uuid: UUID, name: str, limit_s: float) -> Any:
        """A question with a short limit: nobody waits longer, whatever libvirt still does."""
        try:
            return await asyncio.wait_for(
                self.command(uuid, name, timeout_s=max(1, int(limit_s)), queue_s=limit_s), limit_s + _GRACE_S
            )
        except TimeoutError:
            native = NativeError(f"virDomainQemuAgentCommand({name})", "", f"no answer within {limit_s:g} s")
            raise stuck(native) from None

    async def command(
        self,
        uuid: UUID,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout_s: int = CALL_S,
        queue_s: float | None = None,
        capability: str = AGENT_EXEC,
    ) -> Any:
        """One call.

        :raises VirtdError: as :mod:`virtd.backend.facets_agent` says; BACKEND_ERROR where the agent
            answered with an error.
        """
        try:
            return await self.attempt(
                uuid, name, arguments, timeout_s=timeout_s, queue_s=queue_s, capability=capability
            )
        except Refused as refused:
            raise refused.error from refused

    async def attempt(
        self,
        uuid: UUID,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout_s: int = CALL_S,
        queue_s: float | None = None,
        capability: str = AGENT_EXEC,
    ) -> Any:
        """One call.  A caller who gives up leaves it to end by itself, and the guest's line stays taken till then.

        :raises Refused: the agent answered with an error.
        :raises VirtdError: as :mod:`virtd.backend.facets_agent` says.
        """
        task = asyncio.create_task(self._in_line(uuid, name, arguments, timeout_s, queue_s, capability))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: there may be nobody left who waits for it

    async def _in_line(
        self,
        uuid: UUID,
        name: str,
        arguments: Mapping[str, Any] | None,
        timeout_s: int,
        queue_s: float | None,
        capability: str,
    ) -> Any:
        line = self._lines.setdefault(uuid, _Line())
        line.users += 1
        try:
            try:
                await asyncio.wait_for(line.lock.acquire(), queue_s or timeout_s)
            except TimeoutError:
                raise _busy(name) from None
            try:
                return await self._careful(line, uuid, name, arguments, timeout_s, capability)
            finally:
                line.lock.release()
        finally:
            line.users -= 1
            if not line.users and not self._is_suspect(line):
                self._lines.pop(uuid, None)

    def _is_suspect(self, line: _Line) -> bool:
        return line.silent_since is not None and time.monotonic() - line.silent_since < _SUSPECT_FOR_S

    async def _careful(
        self,
        line: _Line,
        uuid: UUID,
        name: str,
        arguments: Mapping[str, Any] | None,
        timeout_s: int,
        capability: str,
    ) -> Any:
        suspect = self._is_suspect(line)
        if suspect and self._suspects >= _SUSPECTS:
            raise stuck(NativeError(f"virDomainQemuAgentCommand({name})", "", "it was silent when it was asked last"))
        self._suspects += suspect
        try:
            answer = await self._call(uuid, name, arguments, timeout_s, capability)
        except UnavailableError as error:
            if error.reason is AGENT_STUCK:
                line.silent_since = time.monotonic()
            raise
        finally:
            self._suspects -= suspect
        line.silent_since = None
        return answer

    async def _call(
        self, uuid: UUID, name: str, arguments: Mapping[str, Any] | None, timeout_s: int, capability: str
    ) -> Any:
        request: dict[str, Any] = {"execute": name}
        if arguments is not None:
            request["arguments"] = arguments
        text = json.dumps(request)

        def run(domain: Any) -> str:
            try:
                self._set_response_time(uuid, domain)
                return str(libvirt_qemu.qemuAgentCommand(domain, text, timeout_s, 0))
            except libvirt.libvirtError as error:
                raise _agent_error(domain, error, name, capability) from error

        answer = await self._guests.on_domain(
            uuid, f"virDomainQemuAgentCommand({name})", run, lane=LaneName.AGENT, timeout_s=timeout_s + _SLACK_S
        )
        return json.loads(answer).get("return")

    def _set_response_time(self, uuid: UUID, domain: Any) -> None:
        """Once per start of a guest: an agent that is silent is given up soon.  On a worker."""
        number = domain.ID()
        if number < 0 or self._timed.get(uuid) == number:
            return
        with contextlib.suppress(libvirt.libvirtError, AttributeError):  # older libvirt: five seconds then
            domain.agentSetResponseTimeout(_RESPONSE_S, 0)
            self._timed[uuid] = number


def _agent_error(domain: Any, error: libvirt.libvirtError, command: str, capability: str) -> Exception:
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
    if code in _SILENT:
        return stuck(native) if channel.state == "connected" else _not_ready(channel.state, native)
    if code in _REFUSED or code == libvirt.VIR_ERR_NO_SUPPORT:
        return _refused(domain, command, native, capability)
    return translate(error, native.call)


def stuck(native: NativeError) -> VirtdError:
    """AGENT_STUCK."""
    return UnavailableError(
        AGENT_STUCK,
        "the guest agent is connected but does not answer: it is busy or stuck",
        native=native,
        retry_after_s=_RETRY_S,
        metadata={"channel": "connected"},
    )


def _busy(name: str) -> VirtdError:
    return stuck(NativeError(f"virDomainQemuAgentCommand({name})", "", "an earlier call has not been answered"))


def _not_ready(channel_state: str, native: NativeError) -> VirtdError:
    return UnavailableError(
        AGENT_NOT_READY,
        "no guest agent is connected: it is not installed, not enabled, or the guest still boots",
        native=native,
        retry_after_s=_RETRY_S,
        metadata={"channel": channel_state or "unknown"},
    )


def _refused(domain: Any, command: str, native: NativeError, capability: str) -> Exception:
    """Why the agent answered with an error."""
    offered = _commands(domain)
    if offered is None or offered.get(command):
        return Refused(InternalError(BACKEND_ERROR, f"the agent refused {command}: {native.message}", native=native))
    if command not in offered:
        return unsupported(capability, f"the guest's agent has no {command}: it is too old, or of another system")
    if _is_frozen(domain):
        words = "the guest's file systems are frozen: its agent does nothing else until they are thawed"
        return FailedPreconditionError(GUEST_FROZEN, words, native=native)
    words = f"the configuration of the guest's agent forbids {command}"
    return FailedPreconditionError(AGENT_DISABLED, words, native=native, metadata={"command": command})


def _commands(domain: Any) -> Mapping[str, bool] | None:
    """The agent's commands, and whether each is enabled; None where it cannot be asked."""
    with contextlib.suppress(libvirt.libvirtError, ValueError):
        answer = libvirt_qemu.qemuAgentCommand(domain, json.dumps({"execute": "guest-info"}), PING_S, 0)
        commands = json.loads(answer)["return"]["supported_commands"]
        return {str(found.get("name")): bool(found.get("enabled", True)) for found in commands}
    return None


def _is_frozen(domain: Any) -> bool:
    with contextlib.suppress(libvirt.libvirtError, ValueError):
        answer = libvirt_qemu.qemuAgentCommand(domain, json.dumps({"execute": "guest-fsfreeze-status"}), PING_S, 0)
        return bool(json.loads(answer).get("return") == "frozen")
    return False


_SILENT: Final = frozenset(
    {libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED}
    | {getattr(libvirt, "VIR_ERR_AGENT_COMMAND_TIMEOUT", libvirt.VIR_ERR_AGENT_UNRESPONSIVE)}
)
# libvirt 9 reports what the agent refused as an internal error; newer ones have a code for it.
_REFUSED: Final = frozenset(
    {libvirt.VIR_ERR_INTERNAL_ERROR, getattr(libvirt, "VIR_ERR_AGENT_COMMAND_FAILED", libvirt.VIR_ERR_INTERNAL_ERROR)}
)


def field_of(answer: Any, name: str) -> Any:
    """A field of an answer.

    :raises InternalError: BACKEND_ERROR, the agent's answer is not what it should be.
    """
    if not isinstance(answer, dict) or name not in answer:
        raise InternalError(BACKEND_ERROR, f"the guest agent's answer has no {name}")
    return answer[name]
