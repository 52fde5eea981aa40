"""Worker threads with a connection each, which can be written off when they hang.

``concurrent.futures`` will not do: its threads are joined at exit, so one call that hangs for ever
would keep the daemon from ending, and a hung thread keeps its place in the pool.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

import libvirt

from virtd.errors import VirtdError
from virtd.libvirt.errors import translate
from virtd.libvirt.link import Link

NativeCall = Callable[[Any], Any]
"""A function that is given a ``virConnect`` and makes native calls on it."""


@dataclass(slots=True, eq=False)
class Job:
    """One call: its name for errors, the function, and how it went."""

    name: str
    function: NativeCall
    future: Future[Any] = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    worker: Worker | None = None


class Lane:
    """A queue and up to ``size`` threads.  Threads start when they are needed.

    :param connect: given the link that a worker has (or None), gives the one to use (blocking; it
        may hang).
    :param disconnect: called when a worker ends, with its link; must not block.
    """

    def __init__(
        self,
        name: str,
        size: int,
        connect: Callable[[Link | None], Link],
        disconnect: Callable[[Link], None],
    ) -> None:
        self.name = name
        self.size: Final = max(1, size)
        self.connect: Final = connect
        self.disconnect: Final = disconnect
        self.queue: Final[queue.SimpleQueue[Job | None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._workers: set[Worker] = set()
        self._closed = False
        self._idle = 0
        self._last_write_off = 0.0

    def overdue(self, job: Job, limit_s: float) -> bool:
        """Whether a call has had its time.

        The clock runs while it is worked on, not while it waits for its turn - except when another
        call had to be written off meanwhile: then the host hangs, and waiting has no end.
        """
        now = time.monotonic()
        if self._last_write_off > job.submitted:
            return now >= job.submitted + limit_s
        return job.started is not None and now >= job.started + limit_s

    def submit(self, name: str, function: NativeCall) -> Job:
        """Queue a call."""
        job = Job(name, function)
        self.queue.put(job)
        self._ensure_worker()
        return job

    def take(self) -> Job | None:
        """The next call, for a worker; None: end."""
        with self._lock:
            self._idle += 1
        try:
            return self.queue.get()
        finally:
            with self._lock:
                self._idle -= 1

    def write_off(self, job: Job) -> None:
        """Give up the thread that is stuck in ``job``; another takes its place when one is needed."""
        self._last_write_off = time.monotonic()
        if job.future.cancel():
            return  # it had not begun
        worker = job.worker
        if worker is None or job.future.done():
            return
        worker.written_off = True
        with self._lock:
            self._workers.discard(worker)
        if not self.queue.empty():
            self._ensure_worker()

    def fail_pending(self, error: Callable[[], VirtdError]) -> None:
        """Fail every call that has not begun."""
        while True:
            try:
                job = self.queue.get_nowait()
            except queue.Empty:
                return
            if job is not None and job.future.set_running_or_notify_cancel():
                job.future.set_exception(error())

    def close(self) -> None:
        """Let the threads end after what they do now.  Does not wait for them."""
        with self._lock:
            self._closed = True
            count = len(self._workers)
        for _ in range(count):
            self.queue.put(None)

    def forget(self, worker: Worker) -> None:
        """A worker has ended."""
        with self._lock:
            self._workers.discard(worker)

    def _ensure_worker(self) -> None:
        with self._lock:
            if self._closed or self._idle >= self.queue.qsize() or len(self._workers) >= self.size:
                return
            worker = Worker(self)
            self._workers.add(worker)
        worker.start()


class Worker(threading.Thread):
    """One thread of a lane."""

    def __init__(self, lane: Lane) -> None:
        super().__init__(name=f"libvirt-{lane.name}", daemon=True)
        self._lane = lane
        self._link: Link | None = None
        self.written_off = False

    def run(self) -> None:
        """Work until the lane closes or this thread is written off."""
        try:
            while not self.written_off:
                job = self._lane.take()
                if job is None:
                    break
                if job.future.set_running_or_notify_cancel():
                    self._do(job)
        finally:
            self._lane.forget(self)
            if self._link is not None:
                self._lane.disconnect(self._link)

    def _do(self, job: Job) -> None:
        job.worker = self
        job.started = time.monotonic()
        try:
            self._link = self._lane.connect(self._link)
            # By ssh the way there can take longer than the call may: it has a time of its own, as long.
            job.started = time.monotonic()
            with self._link.use() as connection:
                result = job.function(connection)
        except libvirt.libvirtError as error:
            job.future.set_exception(translate(error, job.name, connection_alive=self._alive()))
        except BaseException as error:  # whatever it was, it belongs to the caller
            job.future.set_exception(error)
        else:
            job.future.set_result(result)

    def _alive(self) -> bool:
        # Without a link the open failed, and the error itself says why.
        return self._link is None or self._link.is_alive()
