"""How many operations work at once: each host has a limit of its own."""

from __future__ import annotations

import asyncio


class Slots:
    """One bounded set of slots per host, so that a host that hangs does not stop the others.

    :param each: the number of slots of each host.
    """

    def __init__(self, each: int) -> None:
        self._each = each
        self._hosts: dict[str, asyncio.Semaphore] = {}

    async def acquire(self, target: str, cancelled: asyncio.Event) -> bool:
        """Get a slot of the target's host; False if ``cancelled`` is set before there is one.

        A cancelled operation does not wait for a slot: it has nothing left to do but to end.
        """
        slots = self._hosts.setdefault(_host_of(target), asyncio.Semaphore(self._each))
        if cancelled.is_set():
            return False
        if not slots.locked():
            return await slots.acquire()
        slot = asyncio.ensure_future(slots.acquire())
        cancel = asyncio.ensure_future(cancelled.wait())
        try:
            await asyncio.wait({slot, cancel}, return_when=asyncio.FIRST_COMPLETED)
            return slot.done()
        except asyncio.CancelledError:
            if slot.done():
                slots.release()
            raise
        finally:
            slot.cancel()
            cancel.cancel()

    def release(self, target: str) -> None:
        """Give a slot back."""
        self._hosts[_host_of(target)].release()


def _host_of(target: str) -> str:
    """The host that a target belongs to; images and the like share one set of slots."""
    collection, _, rest = target.partition("/")
    return rest.partition("/")[0] if collection == "hosts" else f"{collection}/"
