"""``python -m tests.bench``: how long things take here, beside something to compare with.

Each figure is the median of several runs (minimum and maximum beside it), taken in turn with a
reference command, because machines differ and drift: the ratio says more than the seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from virtd_client import Client, errors

BIN = Path(sys.executable).parent
MIB = 2**20


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Table:
    """Figures as they come."""

    def __init__(self) -> None:
        print(f"{'what':<46} {'median':>9} {'min':>9} {'max':>9}  {'beside':>9} {'ratio':>6}")

    def row(self, what: str, values: list[float], beside: list[float] | None = None, *, unit: str = "ms") -> None:
        """One figure; ``values`` in seconds, or in the unit given."""
        scale = 1000.0 if unit == "ms" else 1.0
        numbers = [value * scale for value in values]
        text = f"{what:<46} {statistics.median(numbers):>9.1f} {min(numbers):>9.1f} {max(numbers):>9.1f}"
        if beside:
            other = statistics.median(beside) * scale
            text += f"  {other:>9.1f} {statistics.median(numbers) / other:>6.2f}"
        print(f"{text}  {unit}", flush=True)


@contextlib.contextmanager
def serving(configuration: str) -> Iterator[tuple[str, float]]:
    """A daemon of its own: (target, seconds from its start until health says SERVING)."""
    state = Path(tempfile.mkdtemp(prefix="virtd-bench-"))
    (state / "virtd.toml").write_text(configuration)
    socket = state / "run" / "virtd.sock"
    command = [str(BIN / "virtd"), "serve", "--config", str(state / "virtd.toml"), "--state-dir", str(state)]
    with contextlib.suppress(errors.Unavailable), Client.connect(f"unix:{state}/none", retry_s=0) as client:
        client.server.info()  # what this process has to load is not the daemon's time
    started = time.perf_counter()
    with (state / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
    try:
        while not socket.exists():
            if process.poll() is not None:
                raise SystemExit((state / "log").read_text())
            time.sleep(0.002)
        target = f"unix:{socket}"
        with Client.connect(target, timeout_s=30) as client:
            client.server.info()
        yield target, time.perf_counter() - started
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(state, ignore_errors=True)


def run(*command: str, env: dict[str, str] | None = None) -> None:
    """A command that must succeed, its output thrown away."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)


def cold_starts(table: Table, runs: int) -> None:
    """The commands' own start."""
    with serving("[discovery]\nenabled = false\n") as (target, _):
        ours: list[float] = []
        client_only: list[float] = []
        reference: list[float] = []
        guestctl = str(BIN / "guestctl")
        run(guestctl, "--target", target, "version")  # warm the page cache
        for _ in range(runs):
            ours.append(seconds(lambda: run(guestctl, "--target", target, "version")))
            client_only.append(seconds(lambda: run(guestctl, "version", "--client")))
            reference.append(seconds(lambda: run(sys.executable, "-c", "import grpc, click")))
    table.row("guestctl version (beside: import grpc, click)", ours, reference)
    table.row("guestctl version --client", client_only, reference)


def start_to_serving(table: Table, runs: int) -> None:
    """From exec to the first answer of the API, and to SIGTERM obeyed."""
    times: list[float] = []
    reference: list[float] = []
    for _ in range(runs):
        with serving("[discovery]\nenabled = false\n") as (_, took):
            times.append(took)
        reference.append(seconds(lambda: run(sys.executable, "-c", "import grpc.aio, pydantic, structlog")))
    table.row("virtd start to SERVING (beside: its imports)", times, reference)


def reads(table: Table, guests: int, runs: int) -> None:
    """Lists and gets of many guests, from memory."""
    with (
        serving(f'[hosts.sim]\nuri = "fake:///bench?guests={guests}"\n') as (target, _),
        Client.connect(target) as client,
    ):
        deadline = time.monotonic() + 60
        while len(client.guests.list(page_size=1000).guests) < guests and time.monotonic() < deadline:
            time.sleep(0.2)
        name = client.guests.list(page_size=1).guests[0].name
        empty = [seconds(client.server.info) for _ in range(runs)]
        table.row("GetServerInfo", empty)
        table.row(
            "GetGuest (beside: GetServerInfo)", [seconds(lambda: client.guests.get(name)) for _ in range(runs)], empty
        )
        words = {"_GUESTCTL_COMPLETE": "bash_complete", "COMP_WORDS": "guestctl start ", "COMP_CWORD": "2"}
        environment = os.environ | words | {"VIRTD_TARGET": target}
        tab = [seconds(lambda: run(str(BIN / "guestctl"), env=environment)) for _ in range(runs)]
        bare = [seconds(lambda: run(sys.executable, "-c", "import grpc, click")) for _ in range(runs)]
        table.row(f"a completed name of {guests} (beside: import grpc, click)", tab, bare)
        client.guests.adopt(name).result(timeout_s=30)
        table.row(
            f"ListGuests, all {guests} in pages of 1000",
            [seconds(lambda: client.guests.list(page_size=1000)) for _ in range(runs)],
            empty,
        )
        table.row(
            "start + wait for its end (fake backend)",
            [seconds(lambda: _cycle(client, name)) / 2 for _ in range(runs)],
            empty,
        )


def _cycle(client: Client, name: str) -> None:
    client.guests.start(name).result(timeout_s=30)
    client.guests.stop(name).result(timeout_s=30)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Measure and print.")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--guests", type=int, default=2000)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} CPUs, load {load:.2f}, Python {sys.version.split()[0]}, {options.runs} runs each")
    table = Table()
    try:
        cold_starts(table, options.runs)
        start_to_serving(table, options.runs)
        reads(table, options.guests, options.runs)
    except errors.VirtdError as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 1
    print(f"load at the end {os.getloadavg()[0]:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
