"""One host's connections: kept apart so that no call waits for another, and kept alive.

Facts that shape this module (measured on libvirt 9.0):

* One connection shared by threads stalls now and then, and libvirtd works on five requests of a
  connection at a time: so each worker thread has its own, events have one, agent calls theirs.
* A stopped libvirtd hangs a call for ever, unless keep-alive is on; even ``open`` hangs.  So every
  call has a time limit, after which its thread is written off, and opens are abandoned.
* The state of libvirt's in-process test driver belongs to the connection: there all share one.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

import libvirt

from virtd.backend.observe import native_call
from virtd.errors import CONFIG_INVALID, InvalidArgumentError, UnavailableError, VirtdError
from virtd.libvirt import events
from virtd.libvirt.errors import translate, unreachable
from virtd.libvirt.lanes import Job, Lane
from virtd.libvirt.link import Link
from virtd.model.host import HostCheck

_log: Final = logging.getLogger(__name__)
_T = TypeVar("_T")

BACKOFF_FIRST_S: Final = 0.2
BACKOFF_LAST_S: Final = 30.0
# A local daemon that is silent for 1 x 4 seconds is stuck; networks get more time.
_KEEPALIVE_LOCAL: Final = (1, 4)
_KEEPALIVE_REMOTE: Final = (5, 4)
_MAX_OPENERS: Final = 3
_LOOK_S: Final = 0.5
_CLOSE_S: Final = 0.5


class LaneName(enum.Enum):
    """Kinds of calls that must not wait for each other."""

    READ = "read"
    CHANGE = "change"
    BULK = "bulk"
    AGENT = "agent"
    SAMPLE = "sample"


# Copies load the host; agents mostly make a thread wait.
_SIZES: Final = {LaneName.BULK: 4, LaneName.AGENT: 8, LaneName.SAMPLE: 1}


class ChangeCallback(Protocol):
    """Told when a host is lost or back."""

    def __call__(self, *, connected: bool, why: str) -> None:
        """``why`` is a sentence after a loss, empty otherwise."""


class Way(Protocol):
    """What is known of the way to a host of another machine, beyond libvirt.  Blocking; on worker threads."""

    def before(self) -> VirtdError | None:
        """Why an attempt to open is in vain; None: it may work."""

    def after(self, failure: VirtdError) -> VirtdError:
        """Why an attempt has failed, as far as that can be found out: a better error, or the same."""

    def checks(self, connection: Any) -> Sequence[HostCheck]:
        """How good the way is that works."""


def parse_uri(uri: str) -> tuple[str, str]:
    """Driver and transport of a libvirt URI: ``("qemu", "ssh")``.

    :raises InvalidArgumentError: CONFIG_INVALID.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise InvalidArgumentError(CONFIG_INVALID, f"{uri!r} is not a libvirt URI: {error}") from error
    driver, _, transport = parts.scheme.partition("+")
    if not driver or not (parts.path or parts.netloc):
        raise InvalidArgumentError(CONFIG_INVALID, f"{uri!r} is not a libvirt URI such as qemu:///system")
    return driver, transport or ("tls" if parts.netloc else "unix")


class HostConnections:
    """The connections of one host.

    All coroutines belong to the loop on which :meth:`open` ran.

    :param host: the host's id, for traces and metrics.
    :param call_timeout_s: the limit of calls that name none.
    :param way: looks for the reason when the host cannot be reached.
    :param shown: the URI as people know it, for messages.
    """

    def __init__(
        self,
        uri: str,
        *,
        host: str = "",
        workers: int = 4,
        call_timeout_s: float = 30.0,
        way: Way | None = None,
        shown: str = "",
    ) -> None:
        self._host: Final = host
        self._driver, self._transport = parse_uri(uri)
        self.uri: Final = _never_ask(uri, self._transport)
        self._shown: Final = shown or uri
        self._way: Final = way
        self.call_timeout_s: Final = call_timeout_s
        self._shared: Final = self._driver == "test"
        self._on_connected: Callable[[Any], list[int]] | None = None
        self._on_change: ChangeCallback | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: Link | None = None
        self._generation = 0
        self._connected = False
        self._closed = False
        self._last_error: VirtdError | None = None
        self._lost = asyncio.Event()
        self._kick = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._openers: set[asyncio.Future[Any]] = set()
        self._lanes: Final = {
            name: Lane(name.value, _SIZES.get(name, workers), self._worker_link, self._worker_ended)
            for name in LaneName
        }

    # ------------------------------------------------------------------------------ life

    @property
    def connected(self) -> bool:
        """Whether the host answered last."""
        return self._connected

    @property
    def way(self) -> Way | None:
        """What is known of the way to the host, where it is another machine."""
        return self._way

    @property
    def local(self) -> bool:
        """Whether the daemon runs on this machine: its paths are then ours."""
        return self._shared or self._transport in ("unix", "")

    def listen(self, on_connected: Callable[[Any], list[int]], on_change: ChangeCallback) -> None:
        """Set who is told.  Before :meth:`open`.

        :param on_connected: called with each new event connection, on a thread, before it counts as
            connected: the place to (re-)register callbacks, whose ids it returns.  Blocking is allowed.
        :param on_change: called on the loop after a loss and after a re-connect.
        """
        self._on_connected = on_connected
        self._on_change = on_change

    async def open(self) -> None:
        """Connect for the first time.

        :raises UnavailableError: HOST_UNREACHABLE; nothing is left behind.
        """
        events.ensure_running()
        self._loop = asyncio.get_running_loop()
        try:
            await self._connect()
        except BaseException:
            await self.close()
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name=f"libvirt-supervisor {self.uri}")

    async def close(self) -> None:
        """Release everything; a hung connection is left to its thread.  Idempotent."""
        self._closed = True
        self._connected = False
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        for opener in self._openers:
            _discard(opener)
        self._openers.clear()
        for lane in self._lanes.values():
            lane.fail_pending(lambda: unreachable("the host's session was closed"))
            lane.close()
        link, self._main = self._main, None
        if link is not None:
            link.release()
            await asyncio.to_thread(link.wait_closed, _CLOSE_S)

    async def wait_connected(self, timeout_s: float) -> None:
        """Return when the host answers; while it is away, try at once instead of after the back-off.

        :raises UnavailableError: HOST_UNREACHABLE, it does not answer within the time.
        """
        deadline = time.monotonic() + timeout_s
        self._kick.set()
        while not self._connected:
            if self._closed or time.monotonic() > deadline:
                raise self._away()
            await asyncio.sleep(0.02)

    # ----------------------------------------------------------------------------- calls

    async def call(
        self,
        name: str,
        function: Callable[[Any], _T],
        *,
        lane: LaneName = LaneName.READ,
        timeout_s: float | None = None,
        unlimited: bool = False,
    ) -> _T:
        """Run ``function(connection)`` on a worker thread of this host.

        :param name: the native call, for error records.
        :param timeout_s: counted from when it begins to run; None for the host's own limit.
        :param unlimited: no limit but the connection's keep-alive (copies, memory to disk).
        :raises UnavailableError: HOST_UNREACHABLE: known to be away, lost on the way, or too slow.
        :raises VirtdError: what libvirt said, translated.
        """
        with native_call(self._host, name):
            return await self._call(name, function, lane, None if unlimited else (timeout_s or self.call_timeout_s))

    async def _call(self, name: str, function: Callable[[Any], _T], lane: LaneName, limit: float | None) -> _T:
        if not self._connected:
            raise self._away()
        chosen = self._lanes[lane]
        job = chosen.submit(name, function)
        waiter = asyncio.wrap_future(job.future)
        try:
            while not waiter.done():
                await asyncio.wait({waiter}, timeout=_wait_s(job, limit))
                if not waiter.done() and limit is not None and chosen.overdue(job, limit):
                    chosen.write_off(job)
                    _consume(waiter)
                    raise unreachable(f"the host did not answer {name} within {limit:g} s", call=name)
        except asyncio.CancelledError:
            # The native call runs to its end; only a call that hangs costs the lane a thread.
            job.future.cancel()
            _consume(waiter)
            asyncio.get_running_loop().call_later(limit or self.call_timeout_s, chosen.write_off, job)
            raise
        result: _T = waiter.result()
        return result

    def main(self) -> Link:
        """The event connection, for what outlives a worker's job (streams): use it alone, on worker threads.

        :raises UnavailableError: HOST_UNREACHABLE, the host is away.
        """
        link = self._main
        if link is None:
            raise self._away()
        return link

    def _away(self) -> VirtdError:
        if self._last_error is not None:
            return UnavailableError(
                self._last_error.reason,
                f"the host does not answer: {self._last_error.message}",
                native=self._last_error.record.native,
                retry_after_s=BACKOFF_FIRST_S * 5,
            )
        return unreachable("the host does not answer")

    # ----------------------------------------------------------------------- connections

    def _worker_link(self, held: Link | None) -> Link:
        """On a worker thread: the link to use for the next job."""
        if self._shared:
            link = self._main
            if link is None:
                raise unreachable("the connection is closed")
            return link
        if held is not None:
            if held.generation == self._generation and held.is_alive():
                return held
            held.release()
        return Link(self._open_blocking(), self._generation)

    def _worker_ended(self, link: Link) -> None:
        if not self._shared:
            link.release()

    def _open_blocking(self) -> Any:
        try:
            connection = libvirt.openAuth(self.uri, [[], _no_credentials, None], 0)
        except libvirt.libvirtError as error:
            raise _open_error(error, self._shown) from error
        interval, count = _KEEPALIVE_LOCAL if self.local else _KEEPALIVE_REMOTE
        with contextlib.suppress(libvirt.libvirtError):  # in-process drivers have none, and cannot hang that way
            connection.setKeepAlive(interval, count)
        return connection

    def _open_explained(self) -> Any:
        if self._way is None:
            return self._open_blocking()
        if (vain := self._way.before()) is not None:
            raise vain
        try:
            return self._open_blocking()
        except UnavailableError as error:
            raise self._way.after(error) from error

    async def _connect(self) -> None:
        """Open the event connection, abandoning what hangs, and make it the current one."""
        if len(self._openers) < _MAX_OPENERS:
            self._openers.add(_in_thread(self._open_and_prepare, f"libvirt-open {self.uri}"))
        done, _ = await asyncio.wait(self._openers, timeout=self.call_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            self._last_error = unreachable(
                f"opening {self._shown} took longer than {self.call_timeout_s:g} s", call="virConnectOpenAuth"
            )
            raise self._last_error
        self._openers.difference_update(done)
        opener, *others = sorted(done, key=lambda found: found.exception() is not None)
        try:
            link = opener.result()
        except VirtdError as error:
            self._last_error = error
            raise
        # One is enough: a second one would report every event twice.
        for other in (*others, *self._openers):
            _discard(other)
        self._openers.clear()
        self._main = link
        self._generation += 1
        link.generation = self._generation
        self._lost.clear()
        self._connected = True
        self._last_error = None
        if not link.is_alive():
            # It closed between open and here, so that the close callback found nothing to report on.
            self._note_loss(link, libvirt.VIR_CONNECT_CLOSE_REASON_ERROR)

    def _open_and_prepare(self) -> Link:
        connection = self._open_explained()
        link = Link(connection)
        try:
            self._prepare(link, connection)
        except libvirt.libvirtError as error:
            link.release()
            raise translate(error, "virConnectDomainEventRegisterAny") from error
        except BaseException:
            link.release()
            raise
        return link

    def _prepare(self, link: Link, connection: Any) -> None:
        try:
            connection.registerCloseCallback(self._closed_by_peer, link)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise
        if self._on_connected is not None:
            link.callbacks = self._on_connected(connection)

    def _closed_by_peer(self, _connection: Any, reason: int, link: Link) -> None:
        """On the event thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            with contextlib.suppress(RuntimeError):  # the loop has just closed
                loop.call_soon_threadsafe(self._note_loss, link, reason)

    def _note_loss(self, link: Link, reason: int) -> None:
        # An older connection may close after a new one has taken over.
        if self._closed or link is not self._main:
            return
        words = {
            libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "the daemon closed the connection",
            libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "the daemon no longer answers (keep-alive)",
            libvirt.VIR_CONNECT_CLOSE_REASON_ERROR: "the connection broke",
        }.get(reason, "the connection was closed")
        self._connected = False
        self._last_error = unreachable(words)
        for lane in self._lanes.values():
            lane.fail_pending(lambda: unreachable(words))
        link.release()
        self._main = None
        self._lost.set()
        _log.warning("lost the connection", extra={"uri": self._shown, "why": words})
        if self._on_change is not None:
            self._on_change(connected=False, why=words)

    async def _supervise(self) -> None:
        while True:
            await self._lost.wait()
            pause = BACKOFF_FIRST_S
            while not self._connected:
                self._kick.clear()
                with contextlib.suppress(TimeoutError):
                    # Jitter: many hosts that went away together must not come back in step.
                    await asyncio.wait_for(self._kick.wait(), pause * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
                pause = min(pause * 2, BACKOFF_LAST_S)
                try:
                    await self._connect()
                except VirtdError as error:
                    _log.debug("still away", extra={"uri": self._shown, "why": error.message})
                except Exception:
                    _log.exception("reconnecting failed", extra={"uri": self._shown})
            _log.info("connected again", extra={"uri": self._shown})
            if self._on_change is not None:
                self._on_change(connected=True, why="")


def _wait_s(job: Job, limit: float | None) -> float | None:
    """How long to wait before looking at the clock again."""
    if limit is None:
        return None
    since = job.submitted if job.started is None else job.started
    return min(_LOOK_S, max(0.01, since + limit - time.monotonic()))


def _in_thread(function: Callable[[], Any], name: str) -> asyncio.Future[Any]:
    """Run on a thread that nobody waits for at exit."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(method: str, value: Any) -> None:
        if not future.done():
            getattr(future, method)(value)
        elif method == "set_result":
            value.release()

    def run() -> None:
        try:
            method, value = "set_result", function()
        except BaseException as error:  # whatever it was, it belongs to whoever awaits
            method, value = "set_exception", error
        try:
            loop.call_soon_threadsafe(settle, method, value)
        except RuntimeError:  # the loop is closed: nobody wants it any more
            if method == "set_result":
                value.release()

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def _discard(opener: asyncio.Future[Any]) -> None:
    """Close what an abandoned open may still bring."""
    if not opener.done():
        opener.cancel()
    elif not opener.cancelled() and opener.exception() is None:
        opener.result().release()


def _consume(waiter: asyncio.Future[Any]) -> None:
    """Take the result of a call that nobody waits for, so that asyncio does not complain."""
    waiter.add_done_callback(lambda done: done.cancelled() or done.exception())


def _no_credentials(_credentials: object, _opaque: object) -> int:
    """Refuse: passwords are never typed by a daemon; certificates, keys and peer credentials only."""
    return -1


def _never_ask(uri: str, transport: str) -> str:
    """Keep ssh from waiting for a password that nobody will type."""
    if transport not in ("ssh", "libssh", "libssh2") or "no_tty=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}no_tty=1"


def _open_error(error: libvirt.libvirtError, uri: str) -> VirtdError:
    bad_uri = {libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_CONFIG_UNSUPPORTED}
    if error.get_error_code() in bad_uri:
        return InvalidArgumentError(CONFIG_INVALID, f"libvirt does not accept {uri}: {error.get_error_message()}")
    found = translate(error, "virConnectOpenAuth")
    if isinstance(found, UnavailableError):
        return found
    # Whatever else keeps an open from working, the host cannot be asked anything now.
    return UnavailableError(
        unreachable("").reason,
        f"cannot open {uri}: {error.get_error_message()}",
        native=found.record.native,
        retry_after_s=BACKOFF_FIRST_S * 5,
    )
