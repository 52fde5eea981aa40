"""A shell on a guest's serial console: what is asked of guests that have no agent.

The guest's kernel and other programs print between the lines, and a shell that still starts loses what is typed.  So
a command's output comes in one write, encoded, between marks, and a command is typed again until it does: it must be
one that can be repeated.
"""

from __future__ import annotations

import asyncio
import base64
import re
import shlex
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4

from virtd.model.console import AgentCommand, AgentResult

if TYPE_CHECKING:
    from virtd.backend.api import ConsoleStream
    from virtd.backend.conformance.kit import Kit

_AGAIN_S: Final = 5.0


def line_of(command: AgentCommand) -> str:
    """The command as a shell's line."""
    line = shlex.join([command.path, *command.arguments])
    if command.input_data:
        line = f"printf %s {shlex.quote(command.input_data.decode())} | {line}"
    return line


async def shell_run(kit: Kit, uuid: UUID, command: AgentCommand, timeout_s: float | None = None) -> AgentResult:
    """Run a command that can be repeated; its output is what it printed, errors included."""
    mark = uuid4().hex[:10]
    typed = (
        f"o=$({{ {line_of(command)}; }} 2>&1; echo :$?); "
        f"printf '\\n<{mark}:%s>\\n' \"$(printf %s \"$o\" | base64 | tr -d '\\n')\"\n"
    ).encode()
    wanted = re.compile(rb"<" + mark.encode() + rb":([A-Za-z0-9+/=]+)>")
    limit_s = kit.bootable().boot_timeout_s if timeout_s is None else timeout_s
    stream = await kit.facet("serial_console").open_console(uuid)
    try:
        found = await _ask(stream, typed, wanted, limit_s)
    finally:
        await stream.close()
    output, _, code = base64.b64decode(found).rpartition(b":")
    return AgentResult(exit_code=int(code), signal=None, stdout=output, stderr=b"")


async def wait_for_line(kit: Kit, uuid: UUID, line: str) -> None:
    """Wait until the guest has printed a line on its console, which is left open for nobody."""
    seen, wanted = b"", line.encode()
    stream = await kit.facet("serial_console").open_console(uuid)
    try:
        async with asyncio.timeout(kit.bootable().boot_timeout_s):
            while wanted not in seen:
                data = await stream.read()
                assert data, f"the console closed before {wanted!r} came; it printed {seen[-200:]!r}"
                seen += data
    except TimeoutError:
        raise AssertionError(f"{wanted!r} did not come; the console printed {seen[-200:]!r}") from None
    finally:
        await stream.close()


async def _ask(stream: ConsoleStream, typed: bytes, wanted: re.Pattern[bytes], limit_s: float) -> bytes:
    """Type until the answer comes."""
    seen = bytearray()

    async def type_again() -> None:
        while True:
            await stream.write(typed)
            await asyncio.sleep(_AGAIN_S)

    typist = asyncio.create_task(type_again())
    try:
        async with asyncio.timeout(limit_s):
            while (match := wanted.search(seen)) is None:
                data = await stream.read()
                assert data, f"the console closed; it printed {bytes(seen[-200:])!r}"
                seen += data
    except TimeoutError:
        raise AssertionError(f"the shell does not answer; the console printed {bytes(seen[-300:])!r}") from None
    finally:
        typist.cancel()
        await asyncio.gather(typist, return_exceptions=True)
    return match[1]
