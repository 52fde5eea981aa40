"""Console and agent results."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Screenshot:
    """A picture of a guest's display."""

    data: bytes
    mime_type: str


@dataclass(frozen=True, slots=True)
class AgentCommand:
    """A command for the guest agent.  ``path`` is in the guest; no shell is involved."""

    path: str
    arguments: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    input_data: bytes = b""
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class AgentResult:
    """How a command ended.  Exactly one of ``exit_code`` and ``signal`` is set."""

    exit_code: int | None
    signal: int | None
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_truncated: bool = False
    stderr_truncated: bool = False
