"""Structured logs on standard error: JSON for machines, one coloured line for people.

Use :func:`get_logger`, write a short constant event in lower case and give the facts as keywords::

    log = get_logger(__name__)
    log.info("guest started", guest=name, accelerator="tcg")

What belongs to a whole call or operation is bound once with :func:`bound` and follows the work through
``await`` and into tasks (contextvars).  Values of keys that name secrets, and passwords in URIs and XML,
never reach the log: :func:`redact` is the last processor before rendering.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from virtd.config.model import LogConfig, LogFormat

REDACTED: Final = "[redacted]"

_SECRET_KEY: Final = re.compile(
    r"passw(or)?d|passphrase|secret|private_?key|credential|authorization|cookie|api_?key|(^|_)token$", re.IGNORECASE
)
# Positions in lists and event streams are called tokens as well, but open nothing.
_NO_SECRET: Final = frozenset({"resume_token", "page_token", "next_page_token"})
_URI_PASSWORD: Final = re.compile(r"(?P<keep>\b[a-z][a-z0-9+.-]*://[^\s/:@'\"]*:)[^\s/@'\"]+(?=@)", re.IGNORECASE)
_XML_PASSWORD: Final = re.compile(r"(?P<keep>\bpassw(?:or)?d=)(?P<quote>['\"]).*?(?P=quote)", re.IGNORECASE | re.DOTALL)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\x80-\x9f\u2028\u2029]")
_DEPTH: Final = 6

get_logger = structlog.stdlib.get_logger
"""``get_logger(__name__)``: the logger of a module."""


def bound(**facts: object) -> AbstractContextManager[None]:
    """Add facts to every line that is logged within, also by tasks that are started there.

    The usual ones are ``request_id``, ``method``, ``caller``, ``operation``, ``host`` and ``guest``.
    """
    return structlog.contextvars.bound_contextvars(**facts)


def bound_facts() -> Mapping[str, Any]:
    """The facts that :func:`bound` has added here."""
    return structlog.contextvars.get_contextvars()


def configure(config: LogConfig, stream: TextIO | None = None) -> None:
    """Send all logs of the process, also those of libraries, to ``stream`` (standard error).

    May be called again, and then replaces what it did before.  A stream that cannot be written to (a full
    disk, a closed pipe) loses lines and nothing else.
    """
    target = stream if stream is not None else sys.stderr
    level = getattr(logging, config.level.value.upper())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redact,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(config.format, target)],
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in root.handlers[:]:
        if getattr(old, "_virtd", False):
            root.removeHandler(old)
    handler._virtd = True  # type: ignore[attr-defined]  # noqa: SLF001 -- our own mark, to find it again
    root.addHandler(handler)
    root.setLevel(level)
    # Libraries say at INFO what concerns their authors.
    for name in ("asyncio", "grpc", "opentelemetry", "urllib3"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    # A log that cannot be written must not fill standard error with tracebacks about that.
    logging.raiseExceptions = False


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Processor: replace what must not be read by whoever may read the log."""
    return {key: _clean(value, key, _DEPTH) for key, value in event.items()}


def redacted_text(text: str) -> str:
    """``text`` without the passwords of URIs and XML attributes in it."""
    if "://" in text:
        text = _URI_PASSWORD.sub(rf"\g<keep>{REDACTED}", text)
    if "passw" in text.lower():
        text = _XML_PASSWORD.sub(rf"\g<keep>\g<quote>{REDACTED}\g<quote>", text)
    return text


def _clean(value: Any, key: object, depth: int) -> Any:
    if isinstance(key, str) and key not in _NO_SECRET and _SECRET_KEY.search(key):
        return REDACTED
    if value is None or isinstance(value, bool | int | float) or (isinstance(key, str) and key.startswith("_")):
        return value  # "_record" and "_from_structlog" are structlog's own
    if isinstance(value, Mapping) and depth:
        return {str(name): _clean(inner, name, depth - 1) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth:
        return [_clean(inner, key, depth - 1) for inner in value]
    return redacted_text(str(value)) if depth else "..."


def _renderers(form: LogFormat, stream: TextIO) -> list[Processor]:
    terminal = stream.isatty()
    if form is LogFormat.CONSOLE or (form is LogFormat.AUTO and terminal):
        colours = terminal and not os.environ.get("NO_COLOR")
        # Without pretty frames: a traceback is data (and redacted) by the time it comes here.
        return [_one_line, structlog.dev.ConsoleRenderer(colors=colours)]
    return [structlog.processors.JSONRenderer(sort_keys=False, ensure_ascii=False)]


def _one_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Processor: a line break or escape sequence from outside must not forge lines or move the cursor."""
    return {
        key: _CONTROL.sub(lambda match: ascii(match[0])[1:-1], value)
        if isinstance(value, str) and key not in {"exception", "stack"}
        else value
        for key, value in event.items()
    }
