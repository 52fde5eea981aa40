"""What the daemon tells of itself, with a real guest: metrics, traces to the libvirt call, history, logs."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.e2e.conftest import Virtd, serving
from tests.tools.promtool import promtool
from virtd.libvirt.private import PrivateLibvirt
from virtd.obs.metrics import CATALOGUE
from virtd.v1.guest_pb2 import Guest
from virtd.v1.host_pb2 import CHECK_STATUS_OK, CHECK_STATUS_PROBLEM, CHECK_STATUS_WARNING

pytestmark = pytest.mark.qemu


class Collector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]  # generated without types
    """An OTLP receiver."""

    def __init__(self) -> None:
        self.spans: list[trace_pb2.Span] = []

    def Export(  # noqa: N802 - the RPC's name
        self, request: trace_service_pb2.ExportTraceServiceRequest, _context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Collector, str]]:
    receiver = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield receiver, f"http://127.0.0.1:{port}"
    server.stop(1).wait()


@pytest.fixture(scope="module")
def virtd_process(libvirt_host: PrivateLibvirt, collector: tuple[Collector, str]) -> Iterator[Virtd]:
    """As the common one, with everything to be observed."""
    extra = f'listen = "127.0.0.1:0"\n[tracing]\nendpoint = "{collector[1]}"\n[log]\nformat = "json"\n'
    with serving(libvirt_host, extra) as virtd:
        yield virtd


@pytest.fixture
def running(virtd: Virtd) -> Iterator[Guest]:
    client = virtd.client()
    guest = client.guests.create("hosts/kvm", "observed", virtd.spec(boots=False), start=True).result(timeout_s=120)
    yield guest
    client.guests.delete(guest.name, force=True).result(timeout_s=60)


def log_of(virtd: Virtd) -> list[dict[str, object]]:
    return [json.loads(line) for line in (virtd.directory / "log").read_text().splitlines() if line.startswith("{")]


def scrape(virtd: Virtd) -> str:
    opened = [line["url"] for line in log_of(virtd) if line.get("event") == "metrics endpoint open"]
    with urllib.request.urlopen(str(opened[-1]), timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def eventually(condition: object, timeout_s: float = 30.0) -> object:
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()  # type: ignore[operator]  # a function without parameters
        if value or time.monotonic() > deadline:
            return value
        time.sleep(0.2)


def test_promtool_finds_nothing_to_complain_about(virtd: Virtd, running: Guest) -> None:
    assert eventually(lambda: f'guest="{running.name.split("/")[-1]}"' in scrape(virtd)), "no sample of the guest"
    text = scrape(virtd)
    done = subprocess.run([promtool(), "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    exported = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE virtd_")}
    documented = {entry.name for entry in CATALOGUE}
    assert exported <= documented
    assert "virtd_native_call_duration_seconds" in exported
    assert 'virtd_native_call_duration_seconds_count{call="virDomainCreate",host="kvm",outcome="ok"}' in text


def test_a_trace_leads_from_the_call_to_libvirt(virtd: Virtd, running: Guest, collector: tuple[Collector, str]) -> None:
    virtd.client().guests.pause(running.name).result(timeout_s=60)
    receiver = collector[0]

    def spans() -> dict[bytes, trace_pb2.Span]:
        return {span.span_id: span for span in receiver.spans}

    def path_of(span: trace_pb2.Span) -> list[str]:
        names, known = [span.name], spans()
        while span.parent_span_id in known:
            span = known[span.parent_span_id]
            names.append(span.name)
        return names[::-1]

    def suspend() -> trace_pb2.Span | None:
        return next((s for s in list(receiver.spans) if s.name == "virDomainSuspend" and len(path_of(s)) > 1), None)

    found = eventually(suspend)
    assert isinstance(found, trace_pb2.Span), sorted({span.name for span in receiver.spans})
    path = path_of(found)
    # The engine accepts the operation within the call, and works on it after that.
    assert path[0] == "rpc", path
    assert path[-4:] == ["operation pause", "step pause", "backend pause_guest", "virDomainSuspend"], path
    attributes = {entry.key: entry.value.string_value for entry in found.attributes}
    assert attributes["virtd.host"] == "kvm"
    virtd.client().guests.resume(running.name).result(timeout_s=60)


def test_usage_becomes_history(virtd: Virtd, running: Guest) -> None:
    client = virtd.client()
    points = eventually(lambda: [p for p in client.metrics.usage(running.name) if p.covered_s >= 3])
    assert isinstance(points, list)
    assert points, client.metrics.usage(running.name)
    assert points[-1].HasField("cpu_cores")
    assert points[-1].memory_assigned_bytes >= 32 * 2**20
    # Until the daemon is started anew, also across that.
    virtd.stop()
    virtd.start()
    now = datetime.now(UTC)
    kept = client.metrics.usage(running.name, start=now - timedelta(minutes=10))
    assert kept
    assert kept[0].covered_s >= 3
    assert client.metrics.usage(running.name, start=now - timedelta(days=40), end=now - timedelta(days=35)) == ()


def test_every_line_of_an_operation_carries_its_ids(virtd: Virtd, running: Guest) -> None:
    request = "11111111-2222-4333-8444-555555555555"
    operation = virtd.client().guests.pause(running.name, request_id=request)
    operation.result(timeout_s=60)
    ended = [line for line in log_of(virtd) if line.get("operation") == operation.name]
    assert ended, "the log does not know the operation"
    assert {line["rpc_id"] for line in ended if "rpc_id" in line}, ended


def test_the_doctor_says_what_is_wrong_with_this_host_and_what_to_do(virtd: Virtd) -> None:
    checks = {check.id: check for check in virtd.client().hosts.diagnose("hosts/kvm")}
    assert checks["connection"].status == CHECK_STATUS_OK
    assert checks["libvirt.version"].status == CHECK_STATUS_OK
    assert checks["accelerator.tcg"].status == CHECK_STATUS_OK
    host = virtd.client().hosts.get("hosts/kvm")
    usable = {status.accelerator: status.usable for status in host.facts.accelerators}
    assert (checks["accelerator.kvm"].status == CHECK_STATUS_OK) == usable["KVM"], "it repeats what the probe proved"
    for check in checks.values():
        assert check.summary
        assert bool(check.remedy) == (check.status in {CHECK_STATUS_WARNING, CHECK_STATUS_PROBLEM}), check
