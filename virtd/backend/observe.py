"""Native calls, seen from outside: a backend says when one begins and ends, and how it went.

The daemon turns that into a span of the operation's trace and into
``virtd_native_call_duration_seconds``.  A backend wraps each call of its hypervisor's API::

    with native_call(host_id, "virDomainCreate"):
        await ...

Without a daemon (in tests, in a stranger's process) it costs next to nothing and does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Observer = Callable[[str, str], AbstractContextManager[object]]
"""Given the host's id and the call's name, a context that lasts as long as the call."""


def _nobody(_host: str, _call: str) -> AbstractContextManager[object]:
    return nullcontext()


class _Current:
    """Calls are made deep inside of sessions; who looks on is a matter of the process, so this is global to it."""

    observer: Observer = _nobody


@contextmanager
def native_call(host: str, name: str) -> Iterator[None]:
    """Around one native call, on the event loop; the time that it waits for a thread is part of it.

    :param host: the host's id.
    :param name: the hypervisor's own name of the call: few different ones, no arguments in it.
    """
    with _Current.observer(host, name):
        yield


def observe_with(observer: Observer) -> Callable[[], None]:
    """Let ``observer`` see every native call from now on.

    :returns: puts back who saw them before.
    """
    before, _Current.observer = _Current.observer, observer

    def stop() -> None:
        _Current.observer = before

    return stop
