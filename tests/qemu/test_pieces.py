"""Parts that need no host: errors by code, states, pictures, lanes."""

from __future__ import annotations

import errno
import struct
import threading
import time
import zlib
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import libvirt
import pytest
from virtd_kvm.agent import parse_interfaces

from virtd.backend.pictures import to_png
from virtd.errors import VirtdError
from virtd.libvirt.errors import translate
from virtd.libvirt.facts import version
from virtd.libvirt.lanes import Lane
from virtd.libvirt.link import Link
from virtd.libvirt.metrics import sample
from virtd.libvirt.states import state_of
from virtd.libvirt.storage_objects import look_again
from virtd.libvirt.xml.build import parse, scaled
from virtd.model.guest import GuestState


def native(code: int, domain: int = libvirt.VIR_FROM_QEMU, number: int = -1) -> libvirt.libvirtError:
    error = libvirt.libvirtError("x")
    error.err = (code, domain, "said so", 2, "", None, None, number, -1)
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (native(libvirt.VIR_ERR_NO_DOMAIN), "GUEST_NOT_FOUND"),
        (native(libvirt.VIR_ERR_OPERATION_INVALID), "INVALID_STATE"),
        (native(libvirt.VIR_ERR_NO_SUPPORT), "CAPABILITY_UNSUPPORTED"),
        (native(libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_FROM_REMOTE), "CAPABILITY_UNSUPPORTED"),
        (native(libvirt.VIR_ERR_AGENT_UNRESPONSIVE), "AGENT_NOT_READY"),
        (native(libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_STORAGE, errno.ENOSPC), "STORAGE_FULL"),
        (native(libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_STORAGE, errno.EACCES), "BACKEND_ERROR"),
        (native(libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC, errno.EPIPE), "HOST_UNREACHABLE"),
        (native(libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC), "HOST_UNREACHABLE"),
        (native(libvirt.VIR_ERR_INTERNAL_ERROR), "BACKEND_ERROR"),
        (native(libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_FROM_NONE), "HOST_UNREACHABLE"),
        (native(987654), "BACKEND_ERROR"),
        (libvirt.libvirtError("no details at all"), "BACKEND_ERROR"),
    ],
)
def test_errors_by_code(error: libvirt.libvirtError, reason: str) -> None:
    found = translate(error, "virSomething")
    assert found.reason.name == reason
    assert found.record.native is not None and found.record.native.call == "virSomething"


def test_not_found_on_a_broken_connection_is_unreachable() -> None:
    """Nobody can be sure that a guest is gone who cannot see the host."""
    found = translate(native(libvirt.VIR_ERR_NO_DOMAIN), "x", connection_alive=False)
    assert found.reason.name == "HOST_UNREACHABLE"


@pytest.mark.parametrize(
    ("state", "reason", "saved", "expected"),
    [
        (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, False, (GuestState.CRASHED, "CRASHED")),
        (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_FAILED, False, (GuestState.STOPPED, "FAILED")),
        (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SAVED, True, (GuestState.SUSPENDED, "SAVED")),
        (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SAVED, False, (GuestState.STOPPED, "SAVED")),
        (libvirt.VIR_DOMAIN_SHUTOFF, 0, False, (GuestState.STOPPED, "")),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_CRASHED, False, (GuestState.CRASHED, "CRASHED")),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP, False, (GuestState.STARTING, "STARTING_UP")),
        (libvirt.VIR_DOMAIN_CRASHED, 1, False, (GuestState.CRASHED, "PANICKED")),
        (99, 7, False, (GuestState.UNKNOWN, "")),
    ],
)
def test_states(state: int, reason: int, saved: bool, expected: tuple[GuestState, str]) -> None:
    found = state_of(state, reason, saved=saved)
    assert (found.state, found.reason) == expected
    assert found.native


def test_ppm_becomes_png() -> None:
    pixels = bytes(range(18))
    png = to_png(b"P6\n# a comment\n3 2\n255\n" + pixels, "image/x-portable-pixmap")
    assert struct.unpack(">II", png[16:24]) == (3, 2)
    start = png.index(b"IDAT") + 4
    length = struct.unpack(">I", png[start - 8 : start - 4])[0]
    assert zlib.decompress(png[start : start + length]) == b"\0" + pixels[:9] + b"\0" + pixels[9:]


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"P6", b"P6 3 2 255\n\0", b"P6 3 2 65535\n" + bytes(36)])
def test_broken_pictures_are_errors(data: bytes) -> None:
    with pytest.raises(VirtdError) as failed:
        to_png(data, "image/unknown")
    assert failed.value.reason.name == "BACKEND_ERROR"


def test_entities_in_native_xml_are_not_expanded() -> None:
    root = parse('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a><b>&x;</b></a>')
    assert "root:" not in "".join(root.itertext())


def test_sizes_with_units() -> None:
    root = parse("<a><m unit='MiB'>2</m><k>3</k><x unit='parsec'>1</x><n unit='B'>many</n></a>")
    assert [scaled(root, name) for name in ("m", "k", "x", "n", "none")] == [2 << 20, 3 << 10, None, None, None]


def test_metrics_that_are_not_known_are_none() -> None:
    found = sample(UUID(int=1), datetime.now(UTC), {"state.state": 1, "block.count": 1})
    assert found.cpu_time_s is None and found.memory_used_bytes is None and found.interfaces == ()
    assert found.blocks[0].read_bytes is None


def test_agent_interfaces() -> None:
    def address(text: str, prefix: int) -> dict[str, object]:
        return {"ip-address": text, "prefix": prefix}

    answer = [
        {"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1", "prefix": 8}]},
        {"name": "eth0", "hardware-address": "52:54:00:AA:00:01", "ip-addresses": [address("10.1.2.3", 24)]},
        {"name": "docker0", "hardware-address": "02:00:00:00:00:01", "ip-addresses": [address("172.17.0.1", 16)]},
        {"name": "eth1", "hardware-address": "52:54:00:aa:00:02"},
    ]
    found = parse_interfaces(answer, {"52:54:00:aa:00:01": "net"})
    assert [(entry.interface, entry.address) for entry in found] == [("net", "10.1.2.3"), ("docker0", "172.17.0.1")]
    assert parse_interfaces("nonsense", {}) == ()


def test_versions() -> None:
    assert (version(9000000), version(7002022), version(None), version(0)) == ("9.0.0", "7.2.22", "", "")


class _Connection:
    """Enough of a connection for a lane."""

    closed = False

    def isAlive(self) -> bool:  # noqa: N802 - libvirt's name
        return not self.closed

    def unregisterCloseCallback(self) -> None:  # noqa: N802 - libvirt's name
        """Nothing was registered."""

    def close(self) -> None:
        self.closed = True


def _lane(size: int, made: list[_Connection]) -> Lane:
    def connect(held: Link | None) -> Link:
        if held is None:
            made.append(_Connection())
            held = Link(made[-1])
        return held

    return Lane("test", size, connect, lambda link: link.release())


def test_hung_call_is_written_off_and_its_thread_is_replaced() -> None:
    made: list[_Connection] = []
    lane, release = _lane(1, made), threading.Event()

    def hang(_connection: Any) -> None:
        release.wait(20)

    hung = lane.submit("hang", hang)
    while hung.started is None:
        time.sleep(0.001)
    waiting = lane.submit("next", lambda _connection: "answer")
    lane.write_off(hung)
    assert waiting.future.result(5) == "answer"
    assert not hung.future.done() and len(made) == 2
    release.set()
    hung.future.result(5)
    deadline = time.monotonic() + 5
    while not made[0].closed:  # the written-off thread ends, and takes its connection along
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lane.close()


class _BusyPool:
    """It is busy for so many looks."""

    def __init__(self, busy: int, error: libvirt.libvirtError) -> None:
        self.looks = 0
        self._busy = busy
        self._error = error

    def refresh(self, _flags: int) -> None:
        self.looks += 1
        if self.looks <= self._busy:
            raise self._error


def test_a_pool_in_which_others_work_is_waited_for() -> None:
    busy = native(libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_STORAGE)
    pool = _BusyPool(2, busy)
    look_again(pool)
    assert pool.looks == 3
    with pytest.raises(libvirt.libvirtError):
        look_again(_BusyPool(9, busy), 0.0)
    broken = _BusyPool(1, native(libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_STORAGE))
    with pytest.raises(libvirt.libvirtError):
        look_again(broken)
    assert broken.looks == 1


def test_the_way_to_the_host_does_not_count_as_the_calls_own_time() -> None:
    opened, free = [], threading.Event()

    def connect(_held: Link | None) -> Link:
        free.wait(20)
        opened.append(time.monotonic())
        return Link(_Connection())

    lane = Lane("test", 1, connect, lambda link: link.release())
    job = lane.submit("call", lambda _connection: job.started)
    while job.started is None:
        time.sleep(0.001)
    assert lane.overdue(job, 0.0), "but a way without an end has one"
    free.set()
    assert job.future.result(5) >= opened[0]
    lane.close()


def test_connection_stays_open_while_it_is_used() -> None:
    connection = _Connection()
    link = Link(connection)
    with link.use():
        link.release()
        link.release()
        assert not link.wait_closed(0.1) and not connection.closed
        with pytest.raises(VirtdError), link.use():
            pass
    assert link.wait_closed(5) and connection.closed
    assert not link.is_alive()
