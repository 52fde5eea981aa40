"""Quantities, terminal safety, exit codes."""

from __future__ import annotations

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from virtd import errors
from virtd.cli.ctl import text
from virtd.cli.ctl.exits import Exit, for_error, together


@pytest.mark.parametrize(
    ("given_text", "wanted"),
    [
        ("4096", 4096),
        ("256MiB", 256 * 2**20),
        ("256 mib", 256 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("10GB", 10**10),
        ("2G", 2**31),
        ("0.5K", 512),
        ("0", 0),
    ],
)
def test_sizes(given_text: str, wanted: int) -> None:
    assert text.parse_size(given_text) == wanted


@pytest.mark.parametrize(
    "wrong", ["", "MiB", "-1", "1e3", "1 XB", "0.0001K", "9999999PiB", "1.2.3", "\u0661MiB", "1,5G"]
)
def test_wrong_sizes_are_refused_with_the_text(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"is not a|is more than"):
        text.parse_size(wrong)


@given(st.integers(min_value=0, max_value=2**60), st.sampled_from(["KiB", "MiB", "GiB"]))
def test_what_is_shown_of_a_whole_size_reads_back(count: int, unit: str) -> None:
    bytes_ = text.parse_size(f"{count % 1024}{unit}")
    assert text.parse_size(text.size(bytes_)) == bytes_


def test_unknown_is_not_zero() -> None:
    assert text.size(None) == "-"
    assert text.size(0) == "0 B"
    assert text.age(Timestamp()) == "-"


@pytest.mark.parametrize(
    ("given_text", "wanted"), [("90", 90), ("1.5", 1.5), ("500ms", 0.5), ("2m", 120), ("1h30m", 5400), ("1d", 86400)]
)
def test_durations(given_text: str, wanted: float) -> None:
    assert text.parse_duration(given_text) == wanted


@pytest.mark.parametrize("wrong", ["", "0", "0s", "-5", "5x", "m", "5m 3", "1e9", "nan", "inf"])
def test_wrong_durations_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        text.parse_duration(wrong)


@pytest.mark.parametrize(
    ("seconds", "wanted"), [(0.04, "0.0s"), (3.21, "3.2s"), (45, "45s"), (600, "10m"), (90000, "25h"), (-1, "0s")]
)
def test_durations_are_shown_short(seconds: float, wanted: str) -> None:
    assert text.duration(seconds) == wanted


@given(st.text())
def test_nothing_that_a_guest_names_itself_reaches_the_terminal_as_control(name: str) -> None:
    shown = text.clean(name)
    assert all(character.isprintable() for character in shown)
    assert text.width(shown) >= 0


def test_escape_sequences_become_visible() -> None:
    assert text.clean("a\x1b[2Jb\r\n") == "a\\x1b[2Jb\\r\\n"
    assert text.clean("Überwachung 虚拟") == "Überwachung 虚拟"
    assert text.clean("a\u202eb") == "a\\u202eb"


def test_widths_of_wide_and_combining_characters() -> None:
    assert text.width("虚拟") == 4
    assert text.width("e\u0301") == 1


def test_did_you_mean_understands_other_spellings() -> None:
    assert text.did_you_mean("memoryBytes", ["memory_bytes", "vcpus"]) == "; did you mean 'memory_bytes'?"
    assert text.did_you_mean("agent_ready", ["agent-ready"]) == "; did you mean 'agent-ready'?"
    assert text.did_you_mean("xyz", ["memory_bytes"]) == ""


def test_every_reason_has_an_exit_code_and_internal_ones_are_failed() -> None:
    codes = {reason.name: for_error(reason.kind, reason.name) for reason in errors.catalogue().values()}
    assert codes["GUEST_NOT_FOUND"] is Exit.NOT_FOUND
    assert codes["GUEST_EXISTS"] is Exit.CONFLICT
    assert codes["INVALID_STATE"] is Exit.CONFLICT
    assert codes["ETAG_MISMATCH"] is Exit.CONFLICT
    assert codes["FIELD_INVALID"] is Exit.USAGE
    assert codes["FIELD_UNSUPPORTED"] is Exit.UNSUPPORTED
    assert codes["CAPABILITY_UNSUPPORTED"] is Exit.UNSUPPORTED
    assert codes["HOST_UNREACHABLE"] is Exit.UNREACHABLE
    assert codes["ACCESS_DENIED"] is Exit.NOT_ALLOWED
    assert codes["DEADLINE_EXCEEDED"] is Exit.TIMEOUT
    assert codes["SHUTDOWN_IGNORED"] is Exit.TIMEOUT
    assert codes["STORAGE_FULL"] is Exit.FAILED
    failed = {name for name, code in codes.items() if code is Exit.FAILED}
    kinds = {errors.catalogue()[name].kind for name in failed}
    assert kinds <= {"Internal", "ResourceExhausted", "Cancelled", "Aborted"}


@pytest.mark.parametrize(
    ("codes", "wanted"),
    [
        ([], Exit.DONE),
        ([Exit.DONE, Exit.DONE], Exit.DONE),
        ([Exit.NOT_FOUND], Exit.NOT_FOUND),
        ([Exit.NOT_FOUND, Exit.NOT_FOUND], Exit.NOT_FOUND),
        ([Exit.DONE, Exit.NOT_FOUND], Exit.PARTIAL),
        ([Exit.PARTIAL], Exit.PARTIAL),
        ([Exit.CONFLICT, Exit.NOT_FOUND], Exit.FAILED),
    ],
)
def test_the_exit_code_of_several(codes: list[Exit], wanted: Exit) -> None:
    assert together(codes) is wanted
