"""The QEMU guest agent: commands, files, frozen file systems, and what the guest's system says of itself.

How a call is made, and how its failures are told apart, is in :mod:`virtd_kvm.agent_calls`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from virtd.backend.api import CallContext
from virtd.backend.capabilities import AGENT_FREEZE, AGENT_INFO
from virtd.errors import (
    AGENT_DISABLED,
    AGENT_FREEZE_FAILED,
    CancelledError,
    FailedPreconditionError,
    UnsupportedError,
    VirtdError,
    invalid_field,
)
from virtd.libvirt.guests import Guests
from virtd.model.console import (
    AgentCommand,
    AgentFileRequest,
    AgentOsInfo,
    AgentResult,
    AgentUser,
)
from virtd.model.guest import GuestAddress
from virtd_kvm import agent_exec
from virtd_kvm.agent_calls import PING_S, AgentCalls, Refused, field_of
from virtd_kvm.agent_files import GuestFile
from virtd_kvm.agent_shell import Shell, finished

_ADDRESSES_S: Final = 1
_FREEZE_S: Final = 30
_POLL_FIRST_S: Final = 0.05
_POLL_LAST_S: Final = 1.0
_THAW_TRIES: Final = 3


class Agent:
    """Guest-agent calls, on connections of their own: one stuck agent delays no other call."""

    def __init__(self, guests: Guests) -> None:
        self._calls: Final = AgentCalls(guests)
        self._shell: Final = Shell(self._calls)

    async def ping_agent(self, uuid: UUID) -> None:
        """See the SPI."""
        await self._calls.ask(uuid, "guest-ping", PING_S)

    async def run_command(self, uuid: UUID, command: AgentCommand, context: CallContext) -> AgentResult:
        """See the SPI.  The output comes at the end, at most 16 MiB of each channel."""
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
        spawned: list[int] = []

        async def spawn() -> None:
            answer = await self._calls.attempt(uuid, "guest-exec", arguments)
            spawned.append(int(field_of(answer, "pid")))

        try:
            await finished(spawn())
            return await self._wait_for(uuid, spawned[0], command, started + command.timeout_s, context)
        except Refused as error:
            # All that guest-exec itself can fail with, where it is allowed, is the program.
            words = f"{command.path} cannot be run in the guest: {error.words}"
            raise invalid_field("command.path", words) from error
        except (asyncio.CancelledError, CancelledError):
            for pid in spawned:
                await asyncio.shield(agent_exec.kill(self._shell, uuid, pid))
            raise

    async def _wait_for(
        self, uuid: UUID, pid: int, command: AgentCommand, deadline: float, context: CallContext
    ) -> AgentResult:
        """The result of a command; when its time is over, it is ended."""
        pause = _POLL_FIRST_S
        while True:
            status = await self._calls.command(uuid, "guest-exec-status", {"pid": pid})
            if field_of(status, "exited"):
                return _result(status)
            left = deadline - time.monotonic()
            if left <= 0:
                killed = await agent_exec.kill(self._shell, uuid, pid)
                raise agent_exec.too_long(command, pid, killed=killed)
            context.checkpoint()
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 1.5, _POLL_LAST_S)

    async def start_command(
        self, uuid: UUID, command: AgentCommand, context: CallContext, *, stdin: bool = False
    ) -> agent_exec.LiveProcess | agent_exec.LateProcess:
        """See the SPI."""
        context.checkpoint()
        return await agent_exec.start(
            self._calls,
            self._shell,
            uuid,
            command,
            context,
            stdin=stdin,
            whole=lambda: self.run_command(uuid, command, context),
        )

    async def open_file(self, uuid: UUID, request: AgentFileRequest, context: CallContext) -> GuestFile:
        """See the SPI."""
        context.checkpoint()
        file = GuestFile(self._calls, self._shell, uuid, request)
        await file.open()
        return file

    async def freeze(self, uuid: UUID, context: CallContext, mountpoints: Sequence[str] = ()) -> int:
        """See the SPI."""
        context.checkpoint()
        if await self.frozen(uuid):
            return 0
        name, arguments = "guest-fsfreeze-freeze", None
        if mountpoints:
            name, arguments = "guest-fsfreeze-freeze-list", {"mountpoints": list(mountpoints)}
        try:
            count = await self._calls.attempt(uuid, name, arguments, timeout_s=_FREEZE_S, capability=AGENT_FREEZE)
        except Refused as error:
            await self._thaw_after_failure(uuid)
            raise FailedPreconditionError(
                AGENT_FREEZE_FAILED,
                f"the guest's file systems cannot be frozen: {error.words}",
                native=error.error.record.native,
            ) from error
        except BaseException:
            await asyncio.shield(self._thaw_after_failure(uuid))
            raise
        if not count and not await self.frozen(uuid):
            raise FailedPreconditionError(
                AGENT_FREEZE_FAILED, "the guest has no file system, or none there, that can be frozen"
            )
        return int(count)

    async def _thaw_after_failure(self, uuid: UUID) -> None:
        """A freeze of which nobody knows how it ended: what it left is taken back, or else by the caller's thaw."""
        for _ in range(_THAW_TRIES):
            with contextlib.suppress(VirtdError):
                await self.thaw(uuid)
                return

    async def thaw(self, uuid: UUID) -> int:
        """See the SPI."""
        count = await self._calls.command(uuid, "guest-fsfreeze-thaw", timeout_s=_FREEZE_S, capability=AGENT_FREEZE)
        return int(count)

    async def frozen(self, uuid: UUID) -> bool:
        """See the SPI."""
        status = await self._calls.command(uuid, "guest-fsfreeze-status", timeout_s=PING_S, capability=AGENT_FREEZE)
        return bool(status == "frozen")

    async def os_info(self, uuid: UUID) -> AgentOsInfo:
        """See the SPI."""
        os = await self._told(uuid, "guest-get-osinfo") or {}
        host = await self._told(uuid, "guest-get-host-name") or {}
        zone = await self._told(uuid, "guest-get-timezone") or {}
        info = await self._told(uuid, "guest-info") or {}
        users = await self._told(uuid, "guest-get-users")
        return AgentOsInfo(
            id=str(os.get("id", "")),
            name=str(os.get("name", "")),
            pretty_name=str(os.get("pretty-name", "")),
            version=str(os.get("version", "")),
            version_id=str(os.get("version-id", "")),
            variant=str(os.get("variant", "")),
            machine=str(os.get("machine", "")),
            kernel_release=str(os.get("kernel-release", "")),
            kernel_version=str(os.get("kernel-version", "")),
            hostname=str(host.get("host-name", "")),
            timezone=str(zone.get("zone", "")),
            timezone_offset_s=None if "offset" not in zone else int(zone["offset"]),
            users=tuple(map(_user, users or ())),
            users_known=users is not None,
            agent_version=str(info.get("version", "")),
        )

    async def _told(self, uuid: UUID, command: str) -> Any:
        """What the agent tells; None where it does not tell this.

        :raises VirtdError: it does not answer at all.
        """
        try:
            return await self._calls.attempt(uuid, command, capability=AGENT_INFO)
        except (Refused, UnsupportedError):
            return None
        except FailedPreconditionError as error:
            if error.reason is AGENT_DISABLED:
                return None
            raise

    async def addresses(self, uuid: UUID, names: Mapping[str, str]) -> Sequence[GuestAddress]:
        """Addresses as the agent tells them; empty when it does not answer now.

        :param names: names of interfaces in the spec by MAC address.
        """
        try:
            answer = await self._calls.ask(uuid, "guest-network-get-interfaces", _ADDRESSES_S)
        except VirtdError:
            return ()
        return parse_interfaces(answer, names)


def _user(entry: Mapping[str, Any]) -> AgentUser:
    seconds = entry.get("login-time")
    return AgentUser(
        name=str(entry.get("user", "")),
        domain=str(entry.get("domain", "")),
        login_time=None if seconds is None else datetime.fromtimestamp(float(seconds), UTC),
    )


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
