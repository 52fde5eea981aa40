"""Has cloud-init finished in a guest?  Asked of the agent: no hypervisor knows.

cloud-init writes its result into ``/run``, which is empty after each boot, at the very end of each
boot's work.  Reading that file is harmless and works with every version of cloud-init.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

from virtd.errors import VirtdError
from virtd.model.console import AgentCommand
from virtd.model.guest import ConditionStatus

if TYPE_CHECKING:
    from uuid import UUID

    from virtd.backend.api import AgentFacet
    from virtd.inventory.link import HostLink

_RESULT: Final = "/run/cloud-init/result.json"
_TIMEOUT_S: Final = 10.0


class _Context:
    """For a call outside any operation: nothing is reported, and nobody cancels."""

    operation_id = ""
    deadline_s: float | None = _TIMEOUT_S

    def progress(
        self, fraction: float | None = None, *, bytes_done: int | None = None, bytes_total: int | None = None
    ) -> None:
        """Nobody listens."""

    def note(self, message: str) -> None:
        """Nobody listens."""

    def warn(self, message: str) -> None:
        """Nobody listens."""

    def checkpoint(self) -> None:
        """Nobody cancels."""

    async def wait_cancelled(self) -> None:
        """Nobody cancels."""
        await asyncio.Event().wait()


async def cloud_init_done(link: HostLink, agent: AgentFacet, uid: UUID) -> tuple[ConditionStatus, str]:
    """Whether the work of this boot is done, and the reason.

    ``DONE``, ``DONE_WITH_ERRORS`` (the guest's ``cloud-init status --long`` tells them), ``NOT_DONE_YET``;
    UNKNOWN with the agent's reason where it cannot be asked.
    """
    command = AgentCommand("/bin/cat", (_RESULT,), timeout_s=_TIMEOUT_S)
    try:
        result = await link.call(agent.run_command(uid, command, _Context()), timeout_s=_TIMEOUT_S + 5.0)
    except VirtdError as error:
        if error.kind == "Unavailable":
            return ConditionStatus.FALSE, "NOT_DONE_YET"
        return ConditionStatus.UNKNOWN, error.reason.name
    if result.exit_code != 0:
        return ConditionStatus.FALSE, "NOT_DONE_YET"
    return ConditionStatus.TRUE, "DONE_WITH_ERRORS" if _errors(result.stdout) else "DONE"


def _errors(text: bytes) -> bool:
    try:
        found: Any = json.loads(text)
        return bool(found["v1"]["errors"])
    except (ValueError, KeyError, TypeError):
        return True
