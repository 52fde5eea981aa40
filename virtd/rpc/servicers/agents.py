"""virtd.v1.AgentService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from typing import Final

from virtd.errors import invalid_field
from virtd.model.console import AgentCommand
from virtd.model.names import parse_guest, shown
from virtd.rpc.context import Context
from virtd.rpc.convert import to_message
from virtd.rpc.servicers.base import Servicer, call_of, required
from virtd.v1 import agent_pb2 as pb

_MAX_INPUT: Final = 1024 * 1024
_DEFAULT_TIMEOUT_S: Final = 60.0


class AgentServicer(Servicer):
    """The guest agent."""

    async def ExecCommand(self, request: pb.ExecCommandRequest, _context: Context) -> pb.ExecCommandResponse:
        """Run a command in a guest."""
        guest = parse_guest(request.name)
        result = await self.services.agents.execute(call_of(request), guest, _command(request))
        return to_message(result, pb.ExecCommandResponse)


def _command(request: pb.ExecCommandRequest) -> AgentCommand:
    if len(request.input_data) > _MAX_INPUT:
        raise invalid_field("input_data", f"has {len(request.input_data)} bytes; {_MAX_INPUT} are the most")
    for index, variable in enumerate(request.environment):
        if "=" not in variable[1:]:
            raise invalid_field(f"environment[{index}]", f"{shown(variable)} is not of the form NAME=value")
    return AgentCommand(
        path=required(request.path, "path"),
        arguments=tuple(request.arguments),
        environment=tuple(request.environment),
        input_data=request.input_data,
        timeout_s=request.timeout_s or _DEFAULT_TIMEOUT_S,
    )
