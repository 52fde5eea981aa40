"""Daemons that hang and die: bounded calls, isolation, recovery."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from virtd_kvm.backend import KvmBackend

from tests.guests import DemoGuest
from tests.qemu.fixtures import Context, Lab, eventually, open_lab, private_libvirt
from virtd.backend.api import HostConfig
from virtd.errors import UnavailableError, VirtdError
from virtd.libvirt.private import PrivateLibvirt
from virtd.model.guest import GuestState

LIMIT_S = 3.0


@pytest.fixture
def daemon() -> Iterator[PrivateLibvirt]:
    """A daemon that a test may mistreat."""
    with private_libvirt() as started:
        yield started


@pytest.fixture
async def fragile(daemon: PrivateLibvirt, demo: DemoGuest, tmp_path: Path) -> AsyncIterator[Lab]:
    """A session on it with a short limit."""
    async with open_lab(daemon, demo, tmp_path, call_timeout_s=LIMIT_S) as opened:
        yield opened


async def _unreachable(call: object, within_s: float) -> None:
    started = time.monotonic()
    with pytest.raises(UnavailableError) as failed:
        await call  # type: ignore[misc]  # any awaitable
    assert failed.value.reason.name == "HOST_UNREACHABLE"
    assert time.monotonic() - started < within_s


def _kinds(lab: Lab) -> list[str]:
    return [event.type.value for event in lab.events.seen]


async def _lists(lab: Lab) -> bool:
    try:
        await lab.session.list_guests()
    except VirtdError:
        return False
    return True


async def test_stopped_daemon_is_unreachable_and_comes_back(fragile: Lab, lab: Lab) -> None:
    uuid = await fragile.running(fragile.empty("frozen"))
    pid = fragile.daemon.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        # Many calls at once, all bounded; meanwhile another host answers as if nothing were.
        async def others() -> float:
            worst = 0.0
            for _ in range(20):
                started = time.monotonic()
                await lab.session.list_guests()
                worst = max(worst, time.monotonic() - started)
                await asyncio.sleep(0.1)
            return worst

        hung = [_unreachable(fragile.session.get_guest(uuid), LIMIT_S + 2) for _ in range(6)]
        hung.append(_unreachable(fragile.session.list_guests(), LIMIT_S + 2))
        *_, worst = await asyncio.gather(*hung, others())
        assert worst < LIMIT_S / 2
        await eventually(lambda: "DISCONNECTED" in _kinds(fragile), 15)
        await _unreachable(fragile.session.start_guest(uuid, Context()), 1.0)
        await asyncio.sleep(LIMIT_S * 2.5)
    finally:
        os.kill(pid, signal.SIGCONT)
    await eventually(lambda: _lists(fragile), 20)
    await eventually(lambda: "CONNECTED" in _kinds(fragile), 5)
    assert await fragile.state(uuid) is GuestState.RUNNING
    await fragile.session.stop_guest(uuid, Context())
    await eventually(lambda: ("STOPPED", "DESTROYED") in fragile.events.states(uuid), 5)
    # Several opens had been tried meanwhile, and all of them succeeded in the end: one may be left.
    await asyncio.sleep(0.5)
    assert fragile.events.states(uuid).count(("STOPPED", "DESTROYED")) == 1


async def test_open_of_a_stopped_daemon_is_given_up(daemon: PrivateLibvirt, tmp_path: Path) -> None:
    pid = daemon.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        config = HostConfig("test", daemon.uri, str(tmp_path), call_timeout_s=1.0)
        await _unreachable(KvmBackend().open(config), 3.0)
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_killed_daemon_is_reconnected_with_callbacks(fragile: Lab) -> None:
    uuid = await fragile.running(fragile.empty("orphan"))
    pid = fragile.daemon.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: "DISCONNECTED" in _kinds(fragile), 5)
    await _unreachable(fragile.session.get_guest(uuid), 1.0)
    assert fragile.daemon.pid is None
    await fragile.daemon.start()
    await eventually(lambda: "CONNECTED" in _kinds(fragile), 35)
    # The guest was never touched, and its events arrive again, once each.
    assert await fragile.state(uuid) is GuestState.RUNNING
    seen = len(fragile.events.seen)
    await fragile.session.stop_guest(uuid, Context())
    await eventually(lambda: ("STOPPED", "DESTROYED") in fragile.events.states(uuid), 5)
    await asyncio.sleep(0.2)
    stops = [event for event in fragile.events.seen[seen:] if event.uuid == uuid and event.state is GuestState.STOPPED]
    assert len(stops) == 1


async def test_daemon_is_adopted_and_its_guests_survive(
    daemon: PrivateLibvirt, demo: DemoGuest, tmp_path: Path
) -> None:
    async with open_lab(daemon, demo, tmp_path) as first:
        uuid = await first.running(first.empty("survivor"))
        again = PrivateLibvirt(daemon.directory, cache=daemon.cache)
        pid = daemon.pid
        assert await again.start() == daemon.uri
        assert again.pid == pid
        await again.stop()
        assert again.pid is None and not again.answers()
        await again.stop()
        await again.start()
        assert again.pid not in (None, pid)
        async with open_lab(again, demo, tmp_path) as second:
            assert await second.state(uuid) is GuestState.RUNNING
        await eventually(lambda: _lists(first), 35)


async def test_too_long_a_directory_is_refused_with_the_limit() -> None:
    with pytest.raises(VirtdError, match="107") as refused:
        await PrivateLibvirt(Path("/tmp") / ("x" * 120)).start()
    assert refused.value.reason.name == "CONFIG_INVALID"


async def test_missing_libvirtd_names_the_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("virtd.libvirt.private._SEARCH", str(tmp_path))
    with pytest.raises(UnavailableError, match="libvirt-daemon-system") as missing:
        await PrivateLibvirt(tmp_path / "d").start()
    assert missing.value.reason.name == "LIBVIRT_MISSING"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("vbox:///session", "CONFIG_INVALID"),
        ("nonsense", "CONFIG_INVALID"),
        ("qemu:///system?socket=/nonexistent/socket", "HOST_UNREACHABLE"),
        ("qemu+tcp://127.0.0.1:1/system", "HOST_UNREACHABLE"),
        ("qemu+ssh://nobody@127.0.0.1:1/system", "HOST_UNREACHABLE"),
    ],
)
async def test_uris_that_cannot_be_opened(uri: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(VirtdError) as failed:
        await KvmBackend().open(HostConfig("test", uri, str(tmp_path), call_timeout_s=10))
    assert failed.value.reason.name == reason


@pytest.mark.parametrize("options", [{"pool_directroy": "/x"}, {"pool_directory": "x"}])
async def test_options_that_are_wrong(options: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(VirtdError, match="pool_directory") as failed:
        await KvmBackend().open(HostConfig("test", "test:///default", str(tmp_path), options=options))
    assert failed.value.reason.name == "CONFIG_INVALID"
