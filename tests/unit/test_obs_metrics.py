"""Metrics: everything that is exported is in the catalogue, unknown is not zero, and the endpoint holds."""

from __future__ import annotations

import asyncio
import gzip
import threading
from datetime import UTC, datetime
from uuid import UUID

import pytest
from prometheus_client.parser import text_string_to_metric_families

from virtd.config import TcpAddress
from virtd.model.metrics import BlockMetrics, GuestMetrics, InterfaceMetrics
from virtd.obs.exporter import Exporter
from virtd.obs.metrics import CATALOGUE, GuestSample, Metrics, Reading

FULL = GuestMetrics(
    uid=UUID(int=1), sample_time=datetime(2026, 1, 1, tzinfo=UTC), cpu_time_s=1.5, vcpus=2,
    memory_assigned_bytes=3, memory_used_bytes=4, memory_rss_bytes=5,
    blocks=(BlockMetrics("vda", 6, 7, 8, 9),), interfaces=(InterfaceMetrics("net0", 10, 11, 12, 13),),
)  # fmt: skip


def everything() -> Metrics:
    """Metrics of a daemon to which everything has happened once."""
    metrics = Metrics(process=False)
    metrics.rpc_started("S/M")
    metrics.rpc_started("S/M")
    metrics.rpc_finished("S/M", "OK", 0.02)
    metrics.operation_started("start", 0.1)
    metrics.operation_finished("start", "SUCCEEDED", 2.0)
    metrics.operation_recovered("create")
    metrics.event_logged("GUEST_ADDED")
    metrics.event_delivered(0.001)
    metrics.watcher_too_slow()
    metrics.host_reconnected("h")
    metrics.resync_finished("h", 0.2, 3)
    metrics.sampled("h", 0.3)
    metrics.native_called("kvm", "virDomainCreate", "ok", 0.4)
    metrics.journal_committed(0.002)
    metrics.read_from(
        lambda: Reading(4, 5, 6, {("h", "RUNNING"): 7}, {"h": True, "dead": False}, [GuestSample("h", "g", FULL)])
    )
    return metrics


async def values(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """By name and label values; Prometheus' text has the labels in alphabetical order."""
    text = (await metrics.expose())[0].decode()
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_every_documented_metric_is_exported_and_no_other() -> None:
    text = (await everything().expose())[0].decode()
    exported = {}
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            # "_created" is prometheus_client's own companion of counters and histograms.
            if not name.endswith("_created"):
                exported[name] = kind
    assert exported == {entry.name: entry.type for entry in CATALOGUE}


async def test_every_documented_metric_has_a_sample_once_something_happened() -> None:
    names = {name for name, _ in await values(everything())}
    for entry in CATALOGUE:
        wanted = f"{entry.name}_count" if entry.type == "histogram" else entry.name
        assert wanted in names, entry.name


def test_names_and_texts() -> None:
    for entry in CATALOGUE:
        assert entry.name.startswith("virtd_")
        assert entry.name.endswith("_total") == (entry.type == "counter"), entry.name
        assert entry.help.endswith("."), entry.name
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE)


async def test_values() -> None:
    found = await values(everything())
    assert found["virtd_rpc_in_progress", ("S/M",)] == 1
    assert found["virtd_rpc_duration_seconds_count", ("OK", "S/M")] == 1
    assert found["virtd_operation_duration_seconds_sum", ("succeeded", "start")] == 2.0
    assert found["virtd_resync_differences_total", ("h",)] == 3
    assert found["virtd_operations_queued", ()] == 4
    assert found["virtd_operations_running", ()] == 5
    assert found["virtd_watchers", ()] == 6
    assert found["virtd_guests", ("h", "RUNNING")] == 7
    assert found["virtd_host_up", ("h",)] == 1
    assert found["virtd_host_up", ("dead",)] == 0
    assert found["virtd_guest_sample_timestamp_seconds", ("g", "h")] == FULL.sample_time.timestamp()
    assert found["virtd_guest_cpu_seconds_total", ("g", "h")] == 1.5
    assert [found[f"virtd_guest_{name}", ("g", "h")] for name in
            ("vcpus", "memory_assigned_bytes", "memory_used_bytes", "memory_rss_bytes")] == [2, 3, 4, 5]  # fmt: skip
    assert [found[f"virtd_guest_disk_{name}_total", ("vda", "g", "h")] for name in
            ("read_bytes", "written_bytes", "reads", "writes")] == [6, 7, 8, 9]  # fmt: skip
    assert [found[f"virtd_guest_interface_{name}_total", ("g", "h", "net0")] for name in
            ("received_bytes", "sent_bytes", "received_packets", "sent_packets")] == [10, 11, 12, 13]  # fmt: skip


async def test_unknown_is_left_out_and_a_measured_zero_is_not() -> None:
    metrics = Metrics(process=False)
    bare = GuestMetrics(uid=UUID(int=1), sample_time=FULL.sample_time, vcpus=0, blocks=(BlockMetrics("vda"),))
    metrics.read_from(lambda: Reading(samples=[GuestSample("h", "g", bare)]))
    names = {name for name, labels in await values(metrics) if labels[-2:] == ("g", "h")}
    assert names == {"virtd_guest_sample_timestamp_seconds", "virtd_guest_vcpus"}


async def test_a_guest_that_is_gone_is_gone_from_the_next_scrape() -> None:
    metrics = everything()
    assert ("virtd_guest_vcpus", ("g", "h")) in await values(metrics)
    metrics.read_from(Reading)
    assert ("virtd_guest_vcpus", ("g", "h")) not in await values(metrics)


async def test_two_daemons_in_one_process_do_not_meet() -> None:
    first, second = Metrics(process=False), Metrics(process=False)
    first.event_logged("X")
    assert ("virtd_events_total", ("X",)) not in await values(second)


async def test_the_state_is_read_on_the_event_loop() -> None:
    seen: list[int] = []
    metrics = Metrics(process=False)

    def source() -> Reading:
        asyncio.get_running_loop()
        seen.append(threading.get_ident())
        return Reading()

    metrics.read_from(source)
    await metrics.expose()
    assert seen == [threading.get_ident()]


async def test_process_metrics_come_besides() -> None:
    assert b"process_open_fds" in (await Metrics().expose())[0]


# --------------------------------------------------------------------------------------- endpoint


async def request(port: int, text: bytes) -> tuple[str, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    return first, dict(line.split(": ", 1) for line in rest), body


async def test_get() -> None:
    async with Exporter(everything(), TcpAddress("127.0.0.1", 0)) as exporter:
        status, headers, body = await request(exporter.port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status == "HTTP/1.1 200 OK"
        assert headers["Content-Type"].startswith("text/plain")
        assert int(headers["Content-Length"]) == len(body)
        assert b'virtd_guests{host="h",state="RUNNING"} 7.0' in body


async def test_head_gzip_and_openmetrics() -> None:
    async with Exporter(everything(), TcpAddress("127.0.0.1", 0)) as exporter:
        _, headers, body = await request(exporter.port, b"HEAD /metrics HTTP/1.1\r\n\r\n")
        assert (body, int(headers["Content-Length"]) > 1000) == (b"", True)
        _, headers, body = await request(exporter.port, b"GET /metrics HTTP/1.1\r\nAccept-Encoding: gzip\r\n\r\n")
        assert headers["Content-Encoding"] == "gzip"
        assert b"virtd_watchers 6.0" in gzip.decompress(body)
        accept = b"GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text; version=1.0.0\r\n\r\n"
        _, headers, body = await request(exporter.port, accept)
        assert headers["Content-Type"].startswith("application/openmetrics-text")
        assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
        (b"GET /metrics/../x HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"),
        (b"\r\n\r\n", "HTTP/1.1 404 Not Found"),
        (b"GET /" + b"x" * 100_000, ""),
    ],
)
async def test_other_requests(text: bytes, status: str) -> None:
    async with Exporter(everything(), TcpAddress("127.0.0.1", 0)) as exporter:
        try:
            answer = (await request(exporter.port, text))[0]
        except ConnectionError:
            answer = ""  # refused while it was still being sent
        assert answer == status
        assert (await request(exporter.port, b"GET /metrics HTTP/1.1\r\n\r\n"))[0] == "HTTP/1.1 200 OK"


async def test_a_source_that_fails_does_not_end_the_endpoint() -> None:
    metrics = Metrics(process=False)
    calls: list[int] = []

    def source() -> Reading:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("defect")
        return Reading()

    metrics.read_from(source)
    async with Exporter(metrics, TcpAddress("127.0.0.1", 0)) as exporter:
        assert (await request(exporter.port, b"GET /metrics HTTP/1.1\r\n\r\n"))[0].startswith("HTTP/1.1 500")
        assert (await request(exporter.port, b"GET /metrics HTTP/1.1\r\n\r\n"))[0] == "HTTP/1.1 200 OK"


async def test_closing_does_not_wait_for_an_idle_connection() -> None:
    async with asyncio.timeout(3):
        async with Exporter(everything(), TcpAddress("127.0.0.1", 0)) as exporter:
            _, writer = await asyncio.open_connection("127.0.0.1", exporter.port)
            await asyncio.sleep(0.05)
        writer.close()


async def test_a_taken_port_is_an_error_at_once() -> None:
    async with Exporter(everything(), TcpAddress("127.0.0.1", 0)) as exporter:
        with pytest.raises(OSError, match="in use"):
            await Exporter(everything(), TcpAddress("127.0.0.1", exporter.port)).__aenter__()
