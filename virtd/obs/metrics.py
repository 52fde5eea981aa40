"""Numbers of the daemon and usage of its guests, for Prometheus.

:data:`CATALOGUE` is the list of all metrics; the collectors are made from it, so that nothing is exported that
is not documented.  A :class:`Metrics` object has a registry of its own: two daemons in one process, or in one
test, do not meet.

Counters and histograms are fed as things happen.  What is a *state* (guests, hosts, queues, the last sample of
each guest) is not fed but read when somebody scrapes: :class:`Reading` is taken on the event loop in one go
and rendered in a thread, for text about 10,000 guests takes a second to write.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from virtd import __version__
from virtd.model.metrics import GuestMetrics

# A second time series beside each counter and histogram, which nobody reads and no reference lists.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types for it


class Kind(StrEnum):
    """How a metric behaves.  A STATE is a gauge, a TOTAL a counter, that are read at each scrape."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    STATE = "state"
    TOTAL = "total"


@dataclass(frozen=True, slots=True)
class Entry:
    """One metric.  ``name`` is as Prometheus shows it, counters with ``_total``."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def type(self) -> str:
        """Prometheus' own word for the kind."""
        return {Kind.STATE: "gauge", Kind.TOTAL: "counter"}.get(self.kind, self.kind.value)


_CALLS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_WORK: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
_FAST: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0)
_GUEST: Final = ("host", "guest")

# fmt: off
CATALOGUE: Final = (
    Entry("virtd_build_info", Kind.GAUGE, "1, with the daemon's version as a label.", ("version",)),
    Entry("virtd_rpc_duration_seconds", Kind.HISTOGRAM,
          "Time from a call's arrival to its end, by status code; streams count until they are closed.",
          ("method", "code"), _CALLS),
    Entry("virtd_rpc_in_progress", Kind.GAUGE, "Calls that are being worked on, open streams included.", ("method",)),
    Entry("virtd_operation_duration_seconds", Kind.HISTOGRAM,
          "Time from an operation's first step to its end, by outcome: succeeded, failed or cancelled.",
          ("verb", "outcome"), _WORK),
    Entry("virtd_operation_wait_seconds", Kind.HISTOGRAM,
          "Time that operations waited in the queue before their first step.", ("verb",), _WORK),
    Entry("virtd_operations_recovered_total", Kind.COUNTER,
          "Operations of an earlier run that were taken up again at start.", ("verb",)),
    Entry("virtd_operations_queued", Kind.STATE, "Operations that wait for their turn."),
    Entry("virtd_operations_running", Kind.STATE, "Operations at work."),
    Entry("virtd_events_total", Kind.COUNTER, "Events that were written to the event log.", ("type",)),
    Entry("virtd_event_lag_seconds", Kind.HISTOGRAM,
          "Time from the arrival of a hypervisor's event to its hand-over to the watchers.", (), _FAST),
    Entry("virtd_watchers", Kind.STATE, "Open watches."),
    Entry("virtd_watchers_too_slow_total", Kind.COUNTER, "Watches that were closed because their reader was too slow."),
    Entry("virtd_guests", Kind.STATE, "Guests, by state.", ("host", "state")),
    Entry("virtd_host_up", Kind.STATE, "1 while the host answers, 0 otherwise.", ("host",)),
    Entry("virtd_host_reconnects_total", Kind.COUNTER, "How often the connection to a host was made anew.", ("host",)),
    Entry("virtd_resync_duration_seconds", Kind.HISTOGRAM,
          "Time that comparing the inventory with the hypervisor took.", ("host",), _WORK),
    Entry("virtd_resync_differences_total", Kind.COUNTER,
          "Differences that a comparison found, which no event had told.", ("host",)),
    Entry("virtd_sample_duration_seconds", Kind.HISTOGRAM,
          "Time that sampling the usage of all guests of a host took.", ("host",), _CALLS),
    Entry("virtd_native_call_duration_seconds", Kind.HISTOGRAM,
          "Time that a call of the hypervisor's own API took, with its wait for a thread, by outcome: ok or error.",
          ("host", "call", "outcome"), _CALLS),
    Entry("virtd_journal_commit_duration_seconds", Kind.HISTOGRAM,
          "Time that one commit of the journal took, with its sync to disk.", (), _FAST),
    Entry("virtd_guest_sample_timestamp_seconds", Kind.STATE,
          "When the guest's usage was last sampled, as Unix time.", _GUEST),
    Entry("virtd_guest_cpu_seconds_total", Kind.TOTAL,
          "CPU time of the guest since its start, all virtual CPUs together.", _GUEST),
    Entry("virtd_guest_vcpus", Kind.STATE, "Virtual CPUs that are on.", _GUEST),
    Entry("virtd_guest_memory_assigned_bytes", Kind.STATE, "Memory that the guest has.", _GUEST),
    Entry("virtd_guest_memory_used_bytes", Kind.STATE, "Memory that the guest itself says it uses.", _GUEST),
    Entry("virtd_guest_memory_rss_bytes", Kind.STATE, "Memory of the host that the guest's process takes.", _GUEST),
    Entry("virtd_guest_disk_read_bytes_total", Kind.TOTAL, "Bytes read since the guest's start.", (*_GUEST, "disk")),
    Entry("virtd_guest_disk_written_bytes_total", Kind.TOTAL,
          "Bytes written since the guest's start.", (*_GUEST, "disk")),
    Entry("virtd_guest_disk_reads_total", Kind.TOTAL, "Read requests since the guest's start.", (*_GUEST, "disk")),
    Entry("virtd_guest_disk_writes_total", Kind.TOTAL, "Write requests since the guest's start.", (*_GUEST, "disk")),
    Entry("virtd_guest_interface_received_bytes_total", Kind.TOTAL,
          "Bytes that the guest received since its start.", (*_GUEST, "interface")),
    Entry("virtd_guest_interface_sent_bytes_total", Kind.TOTAL,
          "Bytes that the guest sent since its start.", (*_GUEST, "interface")),
    Entry("virtd_guest_interface_received_packets_total", Kind.TOTAL,
          "Packets that the guest received since its start.", (*_GUEST, "interface")),
    Entry("virtd_guest_interface_sent_packets_total", Kind.TOTAL,
          "Packets that the guest sent since its start.", (*_GUEST, "interface")),
)
"""Every metric of virtd, in the order of the reference.  The usual ``process_*`` metrics come besides."""
# fmt: on


@dataclass(frozen=True, slots=True)
class GuestSample:
    """The last sample of one guest; ``host`` and ``guest`` are ids."""

    host: str
    guest: str
    metrics: GuestMetrics


@dataclass(frozen=True, slots=True)
class Reading:
    """The daemon's state at one moment.  ``guests``: (host id, state) -> how many.  ``hosts``: id -> answers."""

    operations_queued: int = 0
    operations_running: int = 0
    watchers: int = 0
    guests: Mapping[tuple[str, str], int] = field(default_factory=dict)
    hosts: Mapping[str, bool] = field(default_factory=dict)
    samples: Sequence[GuestSample] = ()


class Metrics:
    """The daemon's metrics.  All methods are cheap and may be called from any thread, but for :meth:`expose`."""

    def __init__(self, *, process: bool = True) -> None:
        """:param process: add the usual metrics of the process (CPU, memory, descriptors)."""
        self.registry = CollectorRegistry(auto_describe=False)
        made = {
            entry.name: _made(entry, self.registry) for entry in CATALOGUE if entry.kind not in {Kind.STATE, Kind.TOTAL}
        }
        self._counters = {name: one for name, one in made.items() if isinstance(one, Counter)}
        self._gauges = {name: one for name, one in made.items() if isinstance(one, Gauge)}
        self._histograms = {name: one for name, one in made.items() if isinstance(one, Histogram)}
        self._gauges["virtd_build_info"].labels(__version__).set(1)
        self._source: Callable[[], Reading] = Reading
        self._state = _StateCollector()
        self._exposing = asyncio.Lock()
        self.registry.register(self._state)
        if process:
            ProcessCollector(registry=self.registry)

    def read_from(self, source: Callable[[], Reading]) -> None:
        """Ask ``source`` for the daemon's state at each scrape.  It is called on the event loop: no I/O, no waiting."""
        self._source = source

    # ---- what happens

    def rpc_started(self, method: str) -> None:
        """A call has arrived.  ``method`` is a known full name: ``virtd.v1.GuestService/StartGuest``."""
        self._gauges["virtd_rpc_in_progress"].labels(method).inc()

    def rpc_finished(self, method: str, code: str, seconds: float) -> None:
        """A call that was reported by :meth:`rpc_started` has ended with this status code (``OK``)."""
        self._gauges["virtd_rpc_in_progress"].labels(method).dec()
        self._histograms["virtd_rpc_duration_seconds"].labels(method, code).observe(seconds)

    def operation_started(self, verb: str, waited_s: float) -> None:
        """An operation begins its first step after so long in the queue."""
        self._histograms["virtd_operation_wait_seconds"].labels(verb).observe(waited_s)

    def operation_finished(self, verb: str, outcome: str, seconds: float) -> None:
        """An operation has ended; ``outcome`` is its terminal state in lower case."""
        self._histograms["virtd_operation_duration_seconds"].labels(verb, outcome.lower()).observe(seconds)

    def operation_recovered(self, verb: str) -> None:
        """An operation of an earlier run was taken up again."""
        self._counters["virtd_operations_recovered_total"].labels(verb).inc()

    def event_logged(self, type_: str) -> None:
        """An event was written to the log."""
        self._counters["virtd_events_total"].labels(type_).inc()

    def event_delivered(self, lag_s: float) -> None:
        """An event that came from a hypervisor was handed to the watchers after so long."""
        self._histograms["virtd_event_lag_seconds"].observe(lag_s)

    def watcher_too_slow(self) -> None:
        """A watch was closed because its reader was too slow."""
        self._counters["virtd_watchers_too_slow_total"].inc()

    def host_reconnected(self, host: str) -> None:
        """The connection to a host was made anew."""
        self._counters["virtd_host_reconnects_total"].labels(host).inc()

    def resync_finished(self, host: str, seconds: float, differences: int) -> None:
        """The inventory was compared with a host."""
        self._histograms["virtd_resync_duration_seconds"].labels(host).observe(seconds)
        self._counters["virtd_resync_differences_total"].labels(host).inc(differences)

    def sampled(self, host: str, seconds: float) -> None:
        """The usage of all guests of a host was sampled."""
        self._histograms["virtd_sample_duration_seconds"].labels(host).observe(seconds)

    def native_called(self, host: str, call: str, outcome: str, seconds: float) -> None:
        """A call of a hypervisor's API has ended; ``outcome`` is ``ok`` or ``error``."""
        self._histograms["virtd_native_call_duration_seconds"].labels(host, call, outcome).observe(seconds)

    def journal_committed(self, seconds: float) -> None:
        """The journal has committed."""
        self._histograms["virtd_journal_commit_duration_seconds"].observe(seconds)

    # ---- what is shown

    async def expose(self, accept: str = "", *, compress: bool = False) -> tuple[bytes, str]:
        """All metrics as text, and its content type.  On the event loop; the rendering runs in a thread.

        :param accept: the HTTP header, which chooses between Prometheus' and the OpenMetrics format.
        :param compress: with gzip.
        """
        encode, content_type = choose_encoder(accept)
        async with self._exposing:
            self._state.reading = self._source()

            def render() -> bytes:
                text = encode(self.registry)
                return gzip.compress(text, compresslevel=1) if compress else text

            return await asyncio.to_thread(render), content_type


def _made(entry: Entry, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    if entry.kind is Kind.HISTOGRAM:
        return Histogram(entry.name, entry.help, entry.labels, registry=registry, buckets=entry.buckets)
    factory = Counter if entry.kind is Kind.COUNTER else Gauge
    return factory(entry.name, entry.help, entry.labels, registry=registry)


class _StateCollector(Collector):
    """Turns the last reading into metrics.  What is unknown (None) is left out: it is not zero."""

    def __init__(self) -> None:
        self.reading = Reading()

    def describe(self) -> Iterable[Metric]:
        """The families, without samples."""
        return list(_families().values())

    def collect(self) -> Iterable[Metric]:
        """The families, with the samples of the reading."""
        reading, families = self.reading, _families()
        families["virtd_operations_queued"].add_metric((), reading.operations_queued)
        families["virtd_operations_running"].add_metric((), reading.operations_running)
        families["virtd_watchers"].add_metric((), reading.watchers)
        for (host, state), count in reading.guests.items():
            families["virtd_guests"].add_metric((host, state), count)
        for host, up in reading.hosts.items():
            families["virtd_host_up"].add_metric((host,), int(up))
        for sample in reading.samples:
            for name, labels, value in _values(sample):
                if value is not None:
                    families[name].add_metric(labels, value)
        return families.values()


def _families() -> dict[str, CounterMetricFamily | GaugeMetricFamily]:
    return {
        entry.name: (CounterMetricFamily if entry.kind is Kind.TOTAL else GaugeMetricFamily)(
            entry.name, entry.help, labels=entry.labels
        )
        for entry in CATALOGUE
        if entry.kind in {Kind.STATE, Kind.TOTAL}
    }


def _values(sample: GuestSample) -> Iterator[tuple[str, tuple[str, ...], float | None]]:
    labels, usage = (sample.host, sample.guest), sample.metrics
    yield "virtd_guest_sample_timestamp_seconds", labels, usage.sample_time.timestamp()
    yield "virtd_guest_cpu_seconds_total", labels, usage.cpu_time_s
    yield "virtd_guest_vcpus", labels, usage.vcpus
    yield "virtd_guest_memory_assigned_bytes", labels, usage.memory_assigned_bytes
    yield "virtd_guest_memory_used_bytes", labels, usage.memory_used_bytes
    yield "virtd_guest_memory_rss_bytes", labels, usage.memory_rss_bytes
    for block in usage.blocks:
        named = (*labels, block.name)
        yield "virtd_guest_disk_read_bytes_total", named, block.read_bytes
        yield "virtd_guest_disk_written_bytes_total", named, block.written_bytes
        yield "virtd_guest_disk_reads_total", named, block.read_requests
        yield "virtd_guest_disk_writes_total", named, block.write_requests
    for interface in usage.interfaces:
        named = (*labels, interface.name)
        yield "virtd_guest_interface_received_bytes_total", named, interface.received_bytes
        yield "virtd_guest_interface_sent_bytes_total", named, interface.sent_bytes
        yield "virtd_guest_interface_received_packets_total", named, interface.received_packets
        yield "virtd_guest_interface_sent_packets_total", named, interface.sent_packets
