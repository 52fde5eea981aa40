"""Console and agent results."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Screenshot:
    """A picture of a guest's display."""

    data: bytes
    mime_type: str


@dataclass(frozen=True, slots=True)
class AgentCommand:
    """A command for the guest agent.  ``path`` is in the guest; its arguments meet no shell."""

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


class AgentChannel(StrEnum):
    """Where a command's output went."""

    STDOUT = "STDOUT"
    STDERR = "STDERR"


@dataclass(frozen=True, slots=True)
class AgentOutput:
    """Some output of a command, in the order in which that channel gave it."""

    channel: AgentChannel
    data: bytes


@dataclass(frozen=True, slots=True)
class AgentExit:
    """How a command ended.  Exactly one of ``exit_code`` and ``signal`` is set."""

    exit_code: int | None
    signal: int | None
    stdout_truncated: bool = False
    stderr_truncated: bool = False


@dataclass(frozen=True, slots=True)
class AgentFileRequest:
    """Which file of a guest to open.

    :param path: absolute, in the guest.
    :param write: to write it; otherwise to read it.
    :param offset: begin here (bytes).  A write at an offset changes the file in its place.
    :param in_place: write: do not replace the file, write into it; implied by an offset.
    :param mode: write: permissions of a file that is replaced or made, such as 0o644; None: those of
        the file that was there, else 0o600.
    """

    path: str
    write: bool = False
    offset: int = 0
    in_place: bool = False
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class AgentUser:
    """Somebody who is logged in in a guest."""

    name: str
    domain: str = ""
    login_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class AgentOsInfo:
    """What a guest's system says of itself; empty and None are "not told".

    :param id: the system's id as in its os-release (``debian``, ``mswindows``).
    :param timezone_offset_s: seconds east of UTC.
    :param users: who is logged in, if ``users_known``.
    """

    id: str = ""
    name: str = ""
    pretty_name: str = ""
    version: str = ""
    version_id: str = ""
    variant: str = ""
    machine: str = ""
    kernel_release: str = ""
    kernel_version: str = ""
    hostname: str = ""
    timezone: str = ""
    timezone_offset_s: int | None = None
    users: tuple[AgentUser, ...] = ()
    users_known: bool = False
    agent_version: str = ""
