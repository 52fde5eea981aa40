"""Looking at a fake host: metrics, events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from virtd.backend.api import NativeEvent
from virtd.model.host import CheckStatus, HostCheck
from virtd.model.metrics import BlockMetrics, GuestMetrics, InterfaceMetrics
from virtd.testing.fake import lowering
from virtd.testing.fake.link import Facet, Link, spi
from virtd.testing.fake.native import NativeHypervisor
from virtd.testing.fake.state import FakeGuest


class Observation(Facet):
    """See the SPI's facet for metrics."""

    @spi
    async def sample_guests(self) -> Sequence[GuestMetrics]:
        """See the SPI."""
        return [self._sample(guest) for guest in await self._native.stats()]

    @spi
    async def diagnose(self) -> Sequence[HostCheck]:
        """See the SPI."""
        await self._native.host_info()
        full = not self._native.pool_capacity_bytes
        return [
            HostCheck("fake.version", CheckStatus.OK, "the fake hypervisor is what it always is"),
            HostCheck(
                "storage.space",
                CheckStatus.WARNING if full else CheckStatus.OK,
                "the pools are full" if full else "the pools have room",
                "give them room" if full else "",
            ),
        ]

    def _sample(self, guest: FakeGuest) -> GuestMetrics:
        config = lowering.parse(guest.active)
        age_s = self._world.clock.monotonic() - guest.started_at
        return GuestMetrics(
            uid=guest.uuid,
            sample_time=self._world.clock.now(),
            cpu_time_s=age_s / 10,
            vcpus=config.vcpus,
            memory_assigned_bytes=config.memory_bytes,
            # Only the agent knows what the guest itself uses.
            memory_used_bytes=config.memory_bytes // 4 if self._native.agent_answers(guest) else None,
            memory_rss_bytes=config.memory_bytes // 2,
            blocks=tuple(BlockMetrics(disk.name, int(age_s * 4096), 0, int(age_s), 0) for disk in config.disks),
            interfaces=tuple(
                InterfaceMetrics(item.name, int(age_s * 128), int(age_s * 64), int(age_s * 2), int(age_s))
                for item in config.interfaces
            ),
        )


class EventSource(Facet):
    """See :class:`virtd.backend.api.EventSourceFacet`."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._iterators: list[_Events] = []

    def events(self) -> AsyncIterator[NativeEvent]:
        """See the SPI."""
        events = _Events(self._native)
        self._iterators.append(events)
        return events

    def end(self) -> None:
        """End all iterators."""
        for events in self._iterators:
            events.end()
        self._iterators.clear()


class _Events:
    """Subscribes when it is made, not when it is first asked: "from now on" is the call's now."""

    def __init__(self, native: NativeHypervisor) -> None:
        self._queue, self.end = native.subscribe()

    def __aiter__(self) -> _Events:
        return self

    async def __anext__(self) -> NativeEvent:
        event = await self._queue.get()
        if event is None:
            self.end()
            self._queue.put_nowait(None)
            raise StopAsyncIteration
        return event
