"""Small POSIX-shell programs that are run in a guest, and what they answer.

The agent itself can neither end a process nor rename a file.  A shell can, where the guest has one;
where it has none (Windows) the callers do without, and say so.  Values go in as arguments, never
into the text of a program.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import UUID

from virtd.backend.capabilities import AGENT_EXEC
from virtd.errors import DEADLINE_EXCEEDED, DeadlineExceededError
from virtd_kvm.agent_calls import AgentCalls, Refused, field_of

T = TypeVar("T")

SHELL: Final = "/bin/sh"
_FIRST_S: Final = 0.02
_LAST_S: Final = 0.3
_LIMIT_S: Final = 20.0

# A process and all that descend from it; where it leads a group of its own, the group as well.
KILL: Final = """
tree() {
    for status in $(grep -l "^PPid:[[:space:]]*$1\\$" /proc/[0-9]*/status 2>/dev/null); do
        tree "$(echo "$status" | cut -d/ -f3)"
    done
    kill -KILL "$1" 2>/dev/null
}
if [ "$2" = group ]; then kill -KILL -- "-$1" 2>/dev/null; fi
tree "$1"
exit 0
"""

# A private directory for a command's channels.  Prints "group" if the command can lead a group, and the directory.
PREPARE: Final = """
umask 077
command -v -- "$1" >/dev/null 2>&1 || exit 44
for base in "${TMPDIR:-/tmp}" /run /dev/shm; do
    d=$(mktemp -d "$base/virtd-exec.XXXXXX" 2>/dev/null) && break
    d=
done
[ -n "$d" ] || exit 45
: >"$d/out" && : >"$d/err" || exit 45
if [ "$2" = stdin ]; then mkfifo "$d/in" "$d/end" || exit 46; fi
if command -v setsid >/dev/null 2>&1; then echo group; else echo alone; fi
echo "$d"
"""

# The command itself takes the shell's place, so that its exit code and its process id are the command's own.
RUN: Final = """
d=$1; shift
lead=
if command -v setsid >/dev/null 2>&1; then lead=setsid; fi
if [ -p "$d/in" ]; then exec $lead "$@" <"$d/in" >"$d/out" 2>"$d/err"; fi
exec $lead "$@" >"$d/out" 2>"$d/err"
"""

# Keeps a command's input open until somebody opens the other pipe.
KEEP: Final = 'exec 3>"$1/in"; : <"$1/end"'
FEED: Final = 'exec cat >"$1/in"'
END: Final = ': >"$1/end"'
REMOVE: Final = 'rm -rf -- "$1"'

# What a path is: size and mode of a regular file.
LOOK: Final = """
[ -e "$1" ] || [ -L "$1" ] || exit 44
[ -d "$1" ] && exit 45
[ -f "$1" ] || exit 46
stat -L -c %s -- "$1"
"""

# A file beside the target, to be renamed over it.  Prints it, and the target with links followed.
BESIDE: Final = """
umask 077
target=$1
[ -d "$target" ] && exit 45
if [ -L "$target" ]; then target=$(readlink -f -- "$target") || exit 44; fi
if [ -e "$target" ] && [ ! -f "$target" ]; then exit 46; fi
folder=$(dirname -- "$target")
[ -d "$folder" ] || exit 44
beside=$(mktemp "$folder/.virtd-write.XXXXXX") || exit 47
echo "$beside"
echo "$target"
"""

# Owner and mode first: under its name the file is never anything but complete.
REPLACE: Final = """
if [ -e "$2" ]; then
    chown "$(stat -c %u:%g -- "$2")" -- "$1" || exit 47
    chmod "${3:-$(stat -c %a -- "$2")}" -- "$1" || exit 47
elif [ -n "$3" ]; then
    chmod "$3" -- "$1" || exit 47
fi
sync -d "$1" 2>/dev/null || sync "$1" 2>/dev/null || sync
mv -f -- "$1" "$2" || exit 47
"""
MODE: Final = 'chmod "$2" -- "$1" || exit 47'

NOT_FOUND: Final = 44
IS_DIRECTORY: Final = 45
NOT_REGULAR: Final = 46
FAILED: Final = 47


@dataclass(frozen=True, slots=True)
class Answer:
    """How a program ended."""

    code: int | None
    lines: tuple[str, ...]
    errors: str


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Await something to its end, also when the caller is cancelled meanwhile; then be cancelled.

    For what makes something in a guest: only its answer tells what there is to be removed.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise


class NoShell(Exception):  # noqa: N818 - a fact about a guest; it never leaves this backend
    """The guest has no POSIX shell."""


class Shell:
    """Runs the programs of this module."""

    def __init__(self, calls: AgentCalls) -> None:
        self._calls: Final = calls

    async def spawn(
        self,
        uuid: UUID,
        program: str,
        arguments: Sequence[str],
        *,
        environment: Sequence[str] = (),
        input_data: bytes = b"",
        capture: bool = False,
        capability: str = AGENT_EXEC,
    ) -> int:
        """Start a program; its process id.

        :raises NoShell: the guest has none.
        """
        request: dict[str, Any] = {
            "path": SHELL,
            "arg": ["-c", program, "sh", *arguments],
            "capture-output": capture,
        }
        if environment:
            request["env"] = list(environment)
        if input_data:
            request["input-data"] = base64.b64encode(input_data).decode("ascii")
        try:
            answer = await self._calls.attempt(uuid, "guest-exec", request, capability=capability)
        except Refused as refused:
            raise NoShell from refused
        return int(field_of(answer, "pid"))

    async def run(
        self,
        uuid: UUID,
        program: str,
        *arguments: str,
        environment: Sequence[str] = (),
        input_data: bytes = b"",
        limit_s: float = _LIMIT_S,
        capability: str = AGENT_EXEC,
    ) -> Answer:
        """Run a program to its end.

        :raises NoShell: the guest has none.
        :raises DeadlineExceededError: DEADLINE_EXCEEDED.
        """
        pid = await self.spawn(
            uuid,
            program,
            arguments,
            environment=environment,
            input_data=input_data,
            capture=True,
            capability=capability,
        )
        status = await self.wait(uuid, pid, limit_s)
        output = base64.b64decode(status.get("out-data", "")).decode("utf-8", "surrogateescape")
        errors = base64.b64decode(status.get("err-data", "")).decode("utf-8", "replace")
        return Answer(status.get("exitcode"), tuple(output.splitlines()), errors.strip())

    async def wait(self, uuid: UUID, pid: int, limit_s: float | None = None) -> Mapping[str, Any]:
        """Wait for the end of a process that was started by the agent.

        :raises DeadlineExceededError: DEADLINE_EXCEEDED.
        """
        loop = asyncio.get_running_loop()
        end, pause = None if limit_s is None else loop.time() + limit_s, _FIRST_S
        while True:
            status: Mapping[str, Any] = await self._calls.command(uuid, "guest-exec-status", {"pid": pid})
            if field_of(status, "exited"):
                return status
            if end is not None and loop.time() > end:
                raise DeadlineExceededError(
                    DEADLINE_EXCEEDED, f"a helper program in the guest did not end within {limit_s:g} s"
                )
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LAST_S)
