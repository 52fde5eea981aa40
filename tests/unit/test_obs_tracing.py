"""Traces: nothing without configuration; parents, attributes and failures with it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tests.support.toy import Rig
from virtd.config import TracingConfig
from virtd.errors import CONFIG_INVALID, GUEST_NOT_FOUND, InvalidArgumentError, NotFoundError
from virtd.obs import tracing
from virtd.store import open_database


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    stop = tracing.configure(TracingConfig(), SimpleSpanProcessor(exporter))
    yield exporter
    stop()


def test_without_configuration_nothing_is_recorded() -> None:
    tracing.configure(TracingConfig())()
    with tracing.span("work", guest="g") as current:
        assert not current.is_recording()
        assert tracing.trace_id() == ""


def test_attributes(spans: InMemorySpanExporter) -> None:
    with tracing.span("work", guest="g", count=3, absent=None, other=(1, 2)):
        pass
    (span,) = spans.get_finished_spans()
    assert span.name == "work"
    assert dict(span.attributes or {}) == {"virtd.guest": "g", "virtd.count": 3, "virtd.other": "(1, 2)"}
    assert span.status.status_code is StatusCode.UNSET


async def test_a_task_keeps_the_span_that_started_it(spans: InMemorySpanExporter) -> None:
    go = asyncio.Event()

    async def work() -> None:
        await go.wait()
        with tracing.span("inner"):
            await asyncio.to_thread(lambda: tracing.span("thread").__enter__().end())

    with tracing.span("outer"):
        task = asyncio.create_task(work())
        trace_id = tracing.trace_id()
    with tracing.span("unrelated"):
        go.set()
        await task
    by_name = {span.name: span for span in spans.get_finished_spans()}
    assert by_name["outer"].context is not None
    assert by_name["inner"].parent is not None
    assert by_name["inner"].parent.span_id == by_name["outer"].context.span_id
    assert by_name["thread"].parent is not None
    assert by_name["inner"].context is not None
    assert by_name["thread"].parent.span_id == by_name["inner"].context.span_id
    assert f"{by_name['outer'].context.trace_id:032x}" == trace_id


def test_a_callers_trace_is_continued(spans: InMemorySpanExporter) -> None:
    carrier = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    with tracing.remote_parent(carrier), tracing.span("work"):
        assert tracing.trace_id() == "0af7651916cd43dd8448eb211c80319c"
    with tracing.remote_parent({"traceparent": "nonsense"}), tracing.span("other"):
        assert tracing.trace_id() != "0af7651916cd43dd8448eb211c80319c"


def test_a_failure_is_marked_with_its_reason_and_passes_on(spans: InMemorySpanExporter) -> None:
    with pytest.raises(NotFoundError), tracing.span("work"):
        raise NotFoundError(GUEST_NOT_FOUND, "no guest g")
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["virtd.reason"] == "GUEST_NOT_FOUND"


def test_no_secret_and_no_traceback_leaves_with_a_span(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="hunter2"), tracing.span("work"):
        raise ValueError("qemu://u:hunter2@h")
    (span,) = spans.get_finished_spans()
    assert "hunter2" not in span.to_json()
    assert not span.events


def test_stopping_brings_the_no_op_back(spans: InMemorySpanExporter) -> None:
    exporter = InMemorySpanExporter()
    stop = tracing.configure(TracingConfig(), SimpleSpanProcessor(exporter))
    stop()
    with tracing.span("work"):
        pass
    assert exporter.get_finished_spans() == ()
    assert [span.name for span in spans.get_finished_spans()] == ["work"]


def test_sampling_zero_keeps_nothing() -> None:
    exporter = InMemorySpanExporter()
    stop = tracing.configure(TracingConfig(sample=0.0), SimpleSpanProcessor(exporter))
    with tracing.span("work"):
        pass
    stop()
    assert exporter.get_finished_spans() == ()


def test_a_missing_sdk_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InvalidArgumentError, match=r"virtd\[tracing\]") as caught:
        tracing.configure(TracingConfig(endpoint="http://127.0.0.1:4317"))
    assert caught.value.reason is CONFIG_INVALID


async def test_a_queued_operation_belongs_to_the_trace_that_asked_for_it(
    spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    database = open_database(tmp_path)
    rig = Rig(database)
    try:
        with tracing.span("first"):
            first = await rig.submit("a", "ok")
        with tracing.span("second"):
            asked = tracing.trace_id()
            second = await rig.submit("a", "ok")
        await rig.end(first)
        await rig.end(second)  # launched when the first one ended, in its task
    finally:
        await rig.engine.stop(0.0)
        database.close()
    work = [span for span in spans.get_finished_spans() if span.name.startswith("operation")]
    traces = {
        str((span.attributes or {})["virtd.operation"]): f"{span.context.trace_id:032x}"
        for span in work
        if span.context
    }
    assert traces[second.name] == asked
    assert traces[first.name] != asked
