"""Logs: their form, what is bound to them, and what they never hold."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from virtd.config import LogConfig, LogFormat, LogLevel
from virtd.obs.logging import REDACTED, bound, bound_facts, configure, get_logger, redact, redacted_text


@pytest.fixture
def restored() -> Iterator[None]:
    """Logging is global to the process: put it back."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.raiseExceptions, structlog.get_config()
    yield
    root.handlers[:], root.level = before[0], before[1]
    logging.raiseExceptions = before[2]
    structlog.reset_defaults()
    structlog.configure(**before[3])
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def stream(restored: None) -> io.StringIO:
    target = io.StringIO()
    configure(LogConfig(format=LogFormat.JSON), target)
    return target


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object(stream: io.StringIO) -> None:
    get_logger("virtd.some").info("guest started", guest="hosts/a/guests/b", seconds=0.5)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "guest started", "guest": "hosts/a/guests/b", "seconds": 0.5, "level": "info", "logger": "virtd.some",
    }  # fmt: skip


def test_libraries_log_in_the_same_form(stream: io.StringIO) -> None:
    logging.getLogger("lib").warning("lost %s", "connection")
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["logger"]) == ("lost connection", "warning", "lib")


def test_levels(restored: None) -> None:
    target = io.StringIO()
    configure(LogConfig(level=LogLevel.WARNING, format=LogFormat.JSON), target)
    log = get_logger("x")
    log.info("not this")
    log.warning("this")
    logging.getLogger("lib").info("not this")
    assert [line["event"] for line in lines(target)] == ["this"]


def test_libraries_are_quiet_at_info(stream: io.StringIO) -> None:
    logging.getLogger("grpc._cython").info("not this")
    logging.getLogger("grpc._cython").warning("this")
    assert [line["event"] for line in lines(stream)] == ["this"]


async def test_what_is_bound_follows_into_tasks_and_ends_with_the_block(stream: io.StringIO) -> None:
    log = get_logger("x")

    async def work() -> None:
        await asyncio.sleep(0)
        log.info("within")

    with bound(request_id="r-1"):
        with bound(operation="o-1"):
            task = asyncio.create_task(work())
        assert dict(bound_facts()) == {"request_id": "r-1"}
        await task
    log.info("after")
    within, after = lines(stream)
    assert (within["request_id"], within["operation"]) == ("r-1", "o-1")
    assert "request_id" not in after


def test_an_exception_is_one_field_and_redacted(stream: io.StringIO) -> None:
    error = ValueError("cannot open qemu+tcp://me:hunter2@host/system")
    get_logger("x").error("open failed", exc_info=error)
    (line,) = lines(stream)
    assert "cannot open" in line["exception"]
    assert "hunter2" not in stream.getvalue()


@pytest.mark.parametrize(
    "key",
    ["password", "vnc_passwd", "client_secret", "token", "access_token", "private_key", "Authorization", "api_key"],
)
def test_keys_that_name_secrets_are_redacted(stream: io.StringIO, key: str) -> None:
    get_logger("x").info("event", **{key: "hunter2"}, deep={"list": [{key: "hunter2"}]})
    assert "hunter2" not in stream.getvalue()
    assert lines(stream)[0][key] == REDACTED


@pytest.mark.parametrize("key", ["resume_token", "page_token", "next_page_token", "tokens_left", "guest"])
def test_what_is_no_secret_stays(stream: io.StringIO, key: str) -> None:
    get_logger("x").info("event", **{key: "v"})
    assert lines(stream)[0][key] == "v"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("open qemu+ssh://u:hunter2@h/system now", f"open qemu+ssh://u:{REDACTED}@h/system now"),
        ("qemu+ssh://u@h:22/system", "qemu+ssh://u@h:22/system"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("<graphics type='vnc' passwd='hunter2' port='1'/>", f"<graphics type='vnc' passwd='{REDACTED}' port='1'/>"),
        ('<a password="hunter2"/>', f'<a password="{REDACTED}"/>'),
    ],
)
def test_passwords_in_text(text: str, clean: str) -> None:
    assert redacted_text(text) == clean


def test_objects_are_redacted_by_their_text() -> None:
    class Uri:
        def __str__(self) -> str:
            return "qemu://u:hunter2@h"

    assert redact(None, "info", {"uri": Uri(), "all": [Uri()]}) == {
        "uri": f"qemu://u:{REDACTED}@h", "all": [f"qemu://u:{REDACTED}@h"],
    }  # fmt: skip


def test_what_contains_itself_ends() -> None:
    endless: dict[str, Any] = {}
    endless["again"] = endless
    assert "..." in json.dumps(redact(None, "info", {"event": endless}))


def test_a_console_line_cannot_be_forged(restored: None) -> None:
    target = io.StringIO()
    configure(LogConfig(format=LogFormat.CONSOLE), target)
    get_logger("x").info("name\nERROR forged", guest="a\x1b[2Jb\r\x9b\u2028c")
    assert target.getvalue().count("\n") == 1
    assert not set("\x1b\r\x9b\u2028") & set(target.getvalue())


@given(st.text())
def test_json_lines_are_lines_whatever_the_text(text: str) -> None:
    rendered = structlog.processors.JSONRenderer(ensure_ascii=False)(None, "info", {"event": text})
    assert "\n" not in rendered
    assert json.loads(rendered)["event"] == text


def test_auto_is_json_where_there_is_no_terminal(restored: None) -> None:
    target = io.StringIO()
    configure(LogConfig(), target)
    get_logger("x").info("event")
    assert lines(target)


def test_auto_is_console_on_a_terminal(restored: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    target = Terminal()
    configure(LogConfig(), target)
    get_logger("x").info("event")
    assert "\x1b[" in target.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    configure(LogConfig(), plain)
    get_logger("x").info("event")
    assert "event" in plain.getvalue()
    assert "\x1b[" not in plain.getvalue()


def test_configuring_again_replaces(stream: io.StringIO) -> None:
    second = io.StringIO()
    configure(LogConfig(format=LogFormat.JSON), second)
    get_logger("x").info("event")
    assert stream.getvalue() == ""
    assert len(lines(second)) == 1


def test_a_full_disk_does_not_stop_the_daemon(restored: None, capsys: pytest.CaptureFixture[str]) -> None:
    class Full(io.StringIO):
        tried = 0

        def write(self, text: str) -> int:
            self.tried += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    full = Full()
    configure(LogConfig(format=LogFormat.JSON), full)
    get_logger("x").info("event")
    logging.getLogger("lib").error("event")
    assert full.tried == 2
    assert capsys.readouterr().err == ""
