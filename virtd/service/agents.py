"""Use cases of the guest agent."""

from __future__ import annotations

from typing import Final

from virtd.errors import unsupported
from virtd.model.console import AgentCommand, AgentResult
from virtd.model.names import GuestName
from virtd.service.call import Call
from virtd.service.core import Core
from virtd.service.detached import DetachedContext
from virtd.service.validate import Violations

INPUT_MAX: Final = 2**20
TIMEOUT_MAX_S: Final = 3600.0
TEXT_MAX: Final = 4096
ARGUMENTS_MAX: Final = 256


class Agents:
    """Use cases of the guest agent."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def execute(self, call: Call, name: GuestName, command: AgentCommand) -> AgentResult:
        """Run a command in a guest.  Not an operation: it changes nothing that virtd answers for.

        :raises InvalidArgumentError: FIELD_INVALID.
        :raises UnavailableError: AGENT_NOT_READY.
        :raises DeadlineExceededError: it still runs.
        """
        wrong = Violations()
        if not command.path or "\0" in command.path or len(command.path) > TEXT_MAX:
            wrong.add("path", "must be a program of the guest")
        if len(command.arguments) > ARGUMENTS_MAX or any("\0" in argument for argument in command.arguments):
            wrong.add("arguments", f"must be at most {ARGUMENTS_MAX}, without NUL")
        if any("=" not in entry or "\0" in entry for entry in command.environment):
            wrong.add("environment", "each entry must have the form NAME=value")
        if len(command.input_data) > INPUT_MAX:
            wrong.add("input_data", f"must be at most {INPUT_MAX} bytes, not {len(command.input_data)}")
        if not 0 < command.timeout_s <= TIMEOUT_MAX_S:
            wrong.add("timeout_s", f"must be at most {TIMEOUT_MAX_S:g}")
        wrong.check()
        await self._core.settled(name.host)
        view = self._core.check_verb(name, "exec")
        link = self._core.link(name.host)
        agent = link.facets.agent
        if agent is None:
            raise unsupported("guest.agent.exec", "the host has no way to reach an agent", resource=str(name))
        context = DetachedContext(command.timeout_s)
        return await link.call(agent.run_command(view.guest.uid, command, context), timeout_s=command.timeout_s + 10.0)
