"""OpenTelemetry traces: a no-op until :func:`configure` is given an endpoint.

``with span("operation", verb="start", guest=name):`` works anywhere.  The current span follows the work
through ``await`` and into tasks (contextvars); it does not follow into executor threads by itself: use
``contextvars.copy_context().run``, as ``asyncio.to_thread`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from opentelemetry import context, propagate, trace
from opentelemetry.trace import Span, Status, StatusCode, Tracer

from virtd import __version__
from virtd.config.model import TracingConfig
from virtd.errors import CONFIG_INVALID, FieldViolation, InvalidArgumentError, VirtdError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

_NAME: Final = "virtd"


class _Current:
    """The tracer in use.  Spans are ambient by their nature, so this one thing is global to the process."""

    tracer: Tracer = trace.get_tracer(_NAME, __version__)


@contextmanager
def span(name: str, **attributes: object) -> Iterator[Span]:
    """A span around the block.  An exception marks it as failed and passes on.

    :param attributes: facts; None is left out, and what OpenTelemetry has no type for becomes text.
        Keys are prefixed with ``virtd.``.
    """
    with _Current.tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as current:
        if current.is_recording():
            for key, value in attributes.items():
                if value is not None:
                    plain = value if isinstance(value, bool | int | float | str) else str(value)
                    current.set_attribute(f"virtd.{key}", plain)
        try:
            yield current
        except BaseException as error:
            _mark_failed(current, error)
            raise


@contextmanager
def remote_parent(carrier: Mapping[str, str]) -> Iterator[None]:
    """Make the caller's span (``traceparent`` in the call's metadata) the parent of spans within."""
    token = context.attach(propagate.extract(carrier))
    try:
        yield
    finally:
        context.detach(token)


def trace_id() -> str:
    """The current trace's id as 32 hexadecimal digits, for logs; ``""`` when there is none."""
    current = trace.get_current_span().get_span_context()
    return trace.format_trace_id(current.trace_id) if current.is_valid else ""


def configure(config: TracingConfig, processor: SpanProcessor | None = None) -> Callable[[], None]:
    """Start to export spans, if an endpoint is configured; a no-op otherwise.

    :param processor: takes the spans instead of the OTLP exporter (for tests).
    :returns: stops exporting; sends what is left, for at most a few seconds.  Blocking.
    :raises InvalidArgumentError: CONFIG_INVALID, when the extra ``tracing`` is not installed.
    """
    if not config.endpoint and processor is None:
        return lambda: None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

        if processor is None:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

            plain = config.endpoint.startswith("http://")
            processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=config.endpoint, insecure=plain))
    except ImportError as error:
        message = "tracing.endpoint is set, but OpenTelemetry's SDK and exporter are not installed"
        hint = "pip install 'virtd[tracing]', or leave tracing.endpoint empty"
        raise InvalidArgumentError(
            CONFIG_INVALID, f"{message}: {hint}", violations=[FieldViolation("tracing.endpoint", hint)]
        ) from error
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(config.sample),
        resource=Resource.create({"service.name": _NAME, "service.version": __version__}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(processor)
    before, _Current.tracer = _Current.tracer, provider.get_tracer(_NAME, __version__)

    def stop() -> None:
        _Current.tracer = before
        provider.shutdown()

    return stop


def _mark_failed(current: Span, error: BaseException) -> None:
    if not current.is_recording():
        return
    from virtd.obs.logging import redacted_text

    if isinstance(error, VirtdError):
        current.set_attribute("virtd.reason", error.reason.name)
    else:
        current.set_attribute("virtd.exception", type(error).__qualname__)
    # Not record_exception: a traceback's text can hold what must not leave this machine.
    current.set_status(Status(StatusCode.ERROR, redacted_text(str(error))[:200]))
