"""The lab as a playground: hosts that stay, a virtd that manages them, a context of guestctl for it."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import psutil
from virtd_client import Client, errors

from tests.lab import saved, state
from tests.lab.image import build, say
from tests.lab.kind import NotReadyError
from tests.lab.machine import Machine, is_ours
from tests.lab.registry import HOSTS
from tests.lab.ssh import LabError
from tests.lab.state import State
from virtd.cli.ctl import contexts

CONTEXT = "lab"
_SERVING_S = 60.0
_STOP_S = 45.0
_PARALLEL = 2  # each host that starts keeps a core busy


class Playground:
    """The lab of one clone."""

    def __init__(self, place: Path | None = None) -> None:
        self.place = place or state.directory()

    @property
    def target(self) -> str:
        """Where its virtd listens."""
        return f"unix:{self.place}/virtd/run/virtd.sock"

    def up(self, names: list[str]) -> None:
        """Start those of the hosts that do not run, and a virtd that manages all that do."""
        with state.locked(self.place):
            now = state.load(self.place)
            state.save(self.place, now)
            missing = [name for name in names if not self._runs(now, name)]
            with ThreadPoolExecutor(_PARALLEL) as pool:
                started = {name: pool.submit(self._start, name) for name in missing}
                failures = []
                for name, future in started.items():
                    try:
                        machine = future.result()
                    except Exception as error:  # the others are to be written down first
                        failures.append(error)
                        continue
                    now.hosts[name] = state.HostState(machine.pid, machine.ports, str(machine.image.folder))
                    state.save(self.place, now)
            if missing or not is_ours(now.virtd, self.place):
                self._serve(now)
            if failures:
                raise failures[0]

    def down(self, names: list[str]) -> list[str]:
        """End those hosts, and with the last one all the rest; return the names of those that ran."""
        with state.locked(self.place):
            now = state.load(self.place)
            ended = [name for name in names if name in now.hosts]
            for name in ended:
                self._machine(now, name).stop()
                del now.hosts[name]
                shutil.rmtree(self.place / name, ignore_errors=True)
                state.save(self.place, now)
            if now.hosts and ended:
                self._serve(now)
            elif not now.hosts:
                self._stop_virtd(now)
                self._forget_context(now)
                shutil.rmtree(self.place, ignore_errors=True)
        return ended

    def status(self) -> str:
        """What runs, for a person."""
        now = state.load(self.place)
        lines = []
        for name in HOSTS:
            lines.append(f"{name:6} {self._condition(now, name)}")
            if self._runs(now, name):
                machine = self._machine(now, name)
                kind = machine.host.kind
                lines += [
                    f"       {kind.uri(machine.ports)}",
                    f"       {kind.tls_uri(machine.ports, machine.image.pki)}",
                    f"       {' '.join(machine.ssh.command(10))}",
                    f"       console: {machine.console_log}",
                ]
        if is_ours(now.virtd, self.place):
            lines += [
                f"virtd  process {now.virtd}, {self.target}",
                f"       guestctl --context {now.context} get guests",
            ]
        else:
            lines.append("virtd  not running")
        return "\n".join(lines)

    def _condition(self, now: State, name: str) -> str:
        if name not in now.hosts:
            return "not running"
        if not self._runs(now, name):
            return "ended by itself (make lab-up starts it again)"
        machine = self._machine(now, name)
        try:
            answer = machine.host.kind.check(machine.ports).splitlines()
        except NotReadyError as error:
            return f"process {machine.pid}, does not answer: {error}"
        return f"process {machine.pid}, {answer[-2].partition(': ')[2] if len(answer) > 1 else answer[0]}"

    def _machine(self, now: State, name: str) -> Machine:
        return now.hosts[name].machine(HOSTS[name], self.place)

    def _runs(self, now: State, name: str) -> bool:
        return name in now.hosts and self._machine(now, name).alive()

    def _start(self, name: str) -> Machine:
        host = HOSTS[name]
        machine = Machine(host, build(host.kind), self.place / name, self.place)
        saved.start(machine, detached=True)
        say(f"{name} runs")
        return machine

    def _serve(self, now: State) -> None:
        """Start a virtd for the hosts that run, in place of the one that is there."""
        self._stop_virtd(now)
        known = {point.name for point in entry_points(group="virtd.backends")}
        lines = []
        for name in sorted(now.hosts):
            machine = self._machine(now, name)
            if machine.host.kind.name in known:
                lines += [f"[hosts.{name}]", f'uri = "{machine.host.kind.uri(machine.ports)}"', ""]
            else:
                say(f"{name}: virtd has no backend for {machine.host.kind.name}, and does not manage it")
        # Paths in a guest's specification are the host's.
        lines += ["[storage]", 'allowed_directories = ["/srv/guest"]', ""]
        home = self.place / "virtd"
        home.mkdir(mode=0o700, exist_ok=True)
        config = self.place / "virtd.toml"
        config.write_text("\n".join(lines))
        command = [sys.executable, "-m", "virtd.cli.daemon", "serve", "--config", str(config), "--state-dir", str(home)]
        with (self.place / "virtd.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=state.ROOT
            )
        now.virtd = process.pid
        now.context = self._write_context(now.context)
        state.save(self.place, now)
        self._wait_serving(process)

    def _wait_serving(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _SERVING_S
        while True:
            if process.poll() is not None:
                raise LabError(f"virtd ended:\n{(self.place / 'virtd.log').read_text()[-2000:]}")
            # A new client each time: one that was refused waits longer and longer before it tries again.
            with (
                contextlib.suppress(errors.Unavailable),
                Client.connect(self.target, timeout_s=_SERVING_S, retry_s=0) as client,
            ):
                client.server.info()
                return
            if time.monotonic() > deadline:
                raise LabError(f"virtd does not serve after {_SERVING_S:.0f} s; see {self.place}/virtd.log")
            time.sleep(0.1)

    def _stop_virtd(self, now: State) -> None:
        if is_ours(now.virtd, self.place):
            process = psutil.Process(now.virtd)
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(_STOP_S)
                except psutil.TimeoutExpired:
                    process.kill()
                    process.wait(_STOP_S)
        now.virtd = 0

    def _write_context(self, before: str) -> str:
        """Write guestctl's context, without taking another clone's away; return its name."""
        name = before or CONTEXT

        def edit(known: contexts.Contexts) -> contexts.Contexts:
            nonlocal name
            there = known.entries.get(name)
            if there and there.target != self.target and _answers(there.target):
                name = f"{CONTEXT}-{self.place.name.rpartition('-')[2]}"
            return contexts.set_entry(known, name, {"target": self.target})

        contexts.change(edit)
        return name

    def _forget_context(self, now: State) -> None:
        def edit(known: contexts.Contexts) -> contexts.Contexts:
            entries = {name: entry for name, entry in known.entries.items() if entry.target != self.target}
            return replace(known, current=known.current if known.current in entries else "", entries=entries)

        if now.context:
            contexts.change(edit)


def _answers(target: str) -> bool:
    """Whether something listens at a unix socket's address."""
    return target.startswith("unix:") and Path(target.removeprefix("unix:")).exists()
