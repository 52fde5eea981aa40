"""The dialogue with a serial console: raw mode, two directions, and the ways to end."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from virtd.cli.ctl import kinds
from virtd.cli.ctl.errors import CtlError, explain
from virtd.cli.ctl.exits import Exit
from virtd.cli.ctl.session import RIDE_OUT_S, Session

if TYPE_CHECKING:
    from virtd_client import ConsoleSession

ESCAPE: Final = b"\x1d"
"""Control and ``]``, as in virsh, telnet and podman machine."""
_INTERRUPT: Final = b"\x03"
_WINDOW: Final = 64 * 1024
"""How much output a match of ``--until`` can span."""
_CHUNK: Final = 64 * 1024
_LAST_WORDS_S: Final = 0.2


class Dialogue:
    """One run of ``console``.

    The main thread waits for what ends it; one thread copies the guest's output, and one this
    side's input.  A lost connection is taken up again where it was, by the console's offset.

    :param until: end when the output matches; None: never.
    :param seconds: end after so long; with ``until`` that is a failure, without it the plan.
    :param take: take the right to write from whoever has it.
    :param idle_s: in a pipe, how long the guest may be silent after the end of the input.
    """

    def __init__(
        self, session: Session, name: str, *, read_only: bool, offset: int | None,
        until: re.Pattern[bytes] | None, seconds: float | None, idle_s: float, take: bool = False,
    ) -> None:  # fmt: skip
        self._session = session
        self._name = name
        self._read_only = read_only
        self._take = take
        self._offset = offset
        self._until = until
        self._seconds = seconds
        self._idle_s = idle_s
        self._stdin = _descriptor()
        typed = self._stdin is not None and os.isatty(self._stdin)
        self._raw = typed and sys.stdout.isatty()
        # Somebody at a terminal whose output goes to a file has no way to see what they type.
        self._reads_input = self._raw or (self._stdin is not None and not typed and not read_only)
        self._console: ConsoleSession | None = None
        self._ends: queue.SimpleQueue[BaseException | str] = queue.SimpleQueue()
        self._over = threading.Event()
        self._signal = 0
        self._last_output = time.monotonic()
        self._input_ended = not self._reads_input and not self._raw and until is None and seconds is None
        self._stop_r, self._stop_w = os.pipe()

    def run(self) -> None:
        """Until it is left, ends or fails.

        :raises CtlError: TIMEOUT, when ``until`` did not match in time.
        :raises VirtdError: the console was refused or lost.
        """
        self._attach(self._session.client())
        if self._raw:
            self._session.say(f"at the console of {self._name}; leave it with ^]")
        with self._terminal():
            # Never joined: a write to a reader that has stopped reading cannot be broken off.
            output = threading.Thread(target=self._guard, args=(self._copy_output,), daemon=True)
            output.start()
            if self._reads_input:
                threading.Thread(target=self._guard, args=(self._copy_input,), daemon=True).start()
            try:
                end = self._wait()
            finally:
                self._over.set()
                os.write(self._stop_w, b"x")
                if self._console is not None:
                    self._console.close()
        if self._signal:
            os.kill(os.getpid(), self._signal)
        if self._raw:
            self._session.say("left the console")
        if isinstance(end, BaseException):
            raise end
        if end == "time" and self._until is not None:
            raise CtlError(
                f"the output did not match {self._until.pattern.decode()!r} in time", Exit.TIMEOUT, "CLIENT_TIMEOUT",
                f"See what came: guestctl console {kinds.last(self._name)} --log",
            )  # fmt: skip

    def _wait(self) -> BaseException | str:
        deadline = None if self._seconds is None else time.monotonic() + self._seconds
        while True:
            with contextlib.suppress(queue.Empty):
                return self._ends.get(timeout=0.05)
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return "time"
            # With --until or --for it is said when to end; else the end of the input begins it.
            silent = now - self._last_output >= self._idle_s
            if self._input_ended and silent and not self._raw and self._until is None and self._seconds is None:
                return "idle"

    def _guard(self, copy: Any) -> None:
        try:
            copy()
        except BaseException as error:
            if not self._over.is_set():
                self._ends.put(error)

    @contextlib.contextmanager
    def _terminal(self) -> Iterator[None]:
        """Raw mode, and back whatever happens."""
        if not self._raw:
            yield
            return
        import termios
        import tty

        assert self._stdin is not None
        before = termios.tcgetattr(self._stdin)
        # A kill must not leave a raw terminal behind: it ends the dialogue, and then this process.
        handlers = {number: signal.signal(number, self._killed) for number in (signal.SIGTERM, signal.SIGHUP)}
        tty.setraw(self._stdin)
        try:
            yield
        finally:
            with contextlib.suppress(OSError, termios.error):  # the terminal may be gone
                # The guest may have left colours on and the line half written.
                os.write(sys.stdout.fileno(), b"\x1b[0m\r\n")
                termios.tcsetattr(self._stdin, termios.TCSADRAIN, before)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _killed(self, number: int, _frame: object) -> None:
        self._signal = number
        self._ends.put("killed")

    def _attach(self, client: Any) -> None:
        console = client.console.attach(self._name, read_only=self._read_only, offset=self._offset, take=self._take)
        console.open()
        self._console = console
        if console.truncated:
            self._tell("some of the output is no longer held by the daemon")

    def _copy_output(self) -> None:
        window = b""
        while not self._over.is_set():
            assert self._console is not None
            try:
                for item in self._console:
                    if not hasattr(item, "data"):
                        self._tell(_said(item))
                        continue
                    self._last_output = time.monotonic()
                    self._write(item.data)
                    window = (window + item.data)[-_WINDOW:]
                    if self._until is not None and self._until.search(window):
                        self._ends.put("match")
                        return
            except Exception as error:
                if self._over.is_set():
                    return
                if explain(error).reason not in {"DAEMON_UNREACHABLE", "DAEMON_STOPPING", "GRPC_UNAVAILABLE"}:
                    raise
                self._again()
            else:
                self._ends.put("closed")
                return

    def _again(self) -> None:
        """Attach again, where the output was broken off."""
        assert self._console is not None
        self._offset = self._console.offset
        self._tell("the connection is lost; attaching again")
        client = self._session.client(ride_out_s=RIDE_OUT_S)
        client.server.info()  # rides out a restart; a stream would not
        self._attach(client)
        self._tell("attached again")

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(sys.stdout.fileno(), view) :]

    def _copy_input(self) -> None:
        assert self._stdin is not None
        while not self._over.is_set():
            readable, _, _ = select.select([self._stdin, self._stop_r], [], [])
            if self._stop_r in readable:
                return
            data = os.read(self._stdin, _CHUNK)
            if not data:
                self._last_output = time.monotonic()
                self._input_ended = True
                if self._raw:
                    self._ends.put("left")
                return
            leave = self._raw and (ESCAPE in data or (self._read_only and _INTERRUPT in data))
            if self._raw:
                data = data.partition(ESCAPE)[0]
            if data and not self._read_only:
                self._send(data)
            if leave:
                if data and not self._read_only:
                    # gRPC sends on a thread of its own, and closing would overtake it.
                    time.sleep(_LAST_WORDS_S)
                self._ends.put("left")
                return

    def _send(self, data: bytes) -> None:
        try:
            assert self._console is not None
            self._console.write(data)
        except Exception as error:
            # The thread that reads sees the same loss, and attaches again; what was typed is lost.
            if explain(error).reason not in {"DAEMON_UNREACHABLE", "DAEMON_STOPPING", "GRPC_UNAVAILABLE"}:
                raise

    def _tell(self, message: str) -> None:
        """A remark between the guest's lines; a raw terminal needs the carriage return."""
        if not self._session.quiet:
            text = f"\r\n[{message}]\r\n" if self._raw else f"[{message}]\n"
            sys.stderr.write(text)
            sys.stderr.flush()


def _said(notice: Any) -> str:
    """A notice of the daemon in words."""
    words: dict[str, str] = {
        "CLOSED": "the guest has stopped",
        "OPENED": "the guest runs again",
        "TAKEN": f"{notice.caller} has taken the console: you can read; --take takes it back",
        "RELEASED": "the console is free again: what you type is sent",
        "DROPPED": f"not sent: {notice.caller} has taken the console",
    }
    return words.get(notice.kind, str(notice.kind).lower())


def _descriptor() -> int | None:
    """Standard input; None where there is none (closed by the caller)."""
    try:
        return sys.stdin.fileno()
    except (AttributeError, ValueError):
        return None
