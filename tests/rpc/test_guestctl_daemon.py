"""guestctl as a person uses it, against a real daemon with simulated hosts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.rpc.guestctl_kit import COMMAND
from tests.tools.gen_schema import OUTPUT

CONFIG = """
[hosts.a]
uri = "fake:///a?persist=1&latency=0.01"
[hosts.b]
uri = "fake:///b?persist=1&guests=1&without=guest.pause&boot=0.2"
"""


class Daemon:
    """One daemon with its own directory, and guestctl for it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "virtd.sock"
        (directory / "virtd.toml").write_text(CONFIG)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = [sys.executable, "-m", "virtd.cli.daemon", "serve", "--config", str(self.directory / "virtd.toml")]
        options = ["--state-dir", str(self.directory / "state"), "--socket", str(self.socket)]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen([*program, *options], stdout=log, stderr=log)
        deadline = time.monotonic() + 40
        while self.run("version").returncode != 0:
            assert self._process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline, (self.directory / "log").read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def environment(self) -> dict[str, str]:
        home = str(self.directory)
        return {**os.environ, "VIRTD_TARGET": f"unix:{self.socket}", "XDG_CONFIG_HOME": home, "HOME": home}

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False,
            env=self.environment(), **{"stdin": subprocess.DEVNULL, **options},
        )  # fmt: skip

    def ok(self, *arguments: str, **options: Any) -> str:
        done = self.run(*arguments, **options)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    def document(self, *arguments: str) -> Any:
        data = json.loads(self.ok(*arguments, "-o", "json"))
        jsonschema.validate(data, json.loads((OUTPUT / f"{data['kind']}.json").read_text()))
        return data


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="virtd-") as name:
        found = Daemon(Path(name))
        try:
            found.start()
            yield found
        finally:
            found.kill()


CREATE = ("--memory", "64MiB", "--disk", "name=root,size=1GiB", "--network", "user")


def test_the_life_of_a_guest(daemon: Daemon) -> None:
    daemon.ok("create", "guest", "web", "--host", "a", *CREATE, "--label", "env=prod", "--start")
    daemon.ok("wait", "web", "--for", "agent-ready", "--timeout", "20s")
    (guest,) = daemon.document("get", "guests", "--filter", "labels.env=prod")["items"]
    assert guest["name"] == "hosts/a/guests/web"
    assert guest["status"]["state"] == "GUEST_STATE_RUNNING"
    assert daemon.ok("exec", "web", "--", "/bin/echo", "hello") == "hello\n"
    assert daemon.run("exec", "web", "--", "/bin/false").returncode == 1
    assert "fake: ready" in daemon.ok("console", "web", "--until", "fake: ready", "--from-start", "--for", "20s")
    assert "fake: ready" in daemon.ok("console", "web", "--log")
    daemon.ok("snapshot", "create", "web", "one", "--memory")
    assert daemon.ok("snapshot", "list", "web", "-o", "name") == "hosts/a/guests/web/snapshots/one\n"
    daemon.ok("pause", "web")
    wrong = daemon.run("start", "web")
    assert wrong.returncode == 5
    assert "reason: INVALID_STATE" in wrong.stderr
    daemon.ok("snapshot", "revert", "web/one")
    daemon.ok("wait", "web", "--for", "running", "--timeout", "20s")
    picture = daemon.directory / "web.png"
    assert daemon.ok("screenshot", "web", "-f", str(picture)) == f"{picture}\n"
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert daemon.run("delete", "web").returncode == 5
    daemon.ok("shutdown", "web")
    daemon.ok("delete", "web")
    assert daemon.run("describe", "guest", "a/web").returncode == 3
    daemon.ok("wait", "a/web", "--for", "deleted", "--timeout", "5s")
    verbs = [item["verb"] for item in daemon.document("operations", "list")["items"]]
    assert {"create", "snapshot-create", "shutdown", "delete"} <= set(verbs)


def test_documents_of_every_type_are_valid(daemon: Daemon) -> None:
    daemon.ok("create", "guest", "docs", "--host", "a", *CREATE, "--start")
    daemon.ok("snapshot", "create", "a/docs", "one")
    for word in (
        "guests",
        "hosts",
        "snapshots",
        "pools",
        "volumes",
        "networks",
        "images",
        "operations",
        "metrics",
        "audit",
    ):
        document = daemon.document("get", word)
        assert document["items"] or word in {"images", "metrics"}, word
    assert len(daemon.document("capabilities", "a")["items"]) > 10
    assert daemon.document("version")["server"]["version"]
    assert daemon.document("describe", "guest", "a/docs")["item"]["name"] == "hosts/a/guests/docs"
    result = json.loads(daemon.ok("exec", "a/docs", "-o", "json", "--", "/bin/true"))
    jsonschema.validate(result, json.loads((OUTPUT / "ExecResult.json").read_text()))
    assert result["item"]["exit_code"] == 0
    daemon.ok("delete", "a/docs", "--force")


def test_what_a_host_cannot_do_is_6_before_anything_happens(daemon: Daemon) -> None:
    daemon.ok("create", "guest", "still", "--host", "b", *CREATE, "--start")
    done = daemon.run("pause", "still")
    assert done.returncode == 6
    assert "reason: CAPABILITY_UNSUPPORTED\nnext: `guestctl capabilities HOST`" in done.stderr
    assert daemon.document("describe", "guest", "b/still")["item"]["status"]["state"] == "GUEST_STATE_RUNNING"
    daemon.ok("delete", "b/still", "--force")


def test_a_plan_has_no_side_effect(daemon: Daemon) -> None:
    before = daemon.ok("get", "volumes", "-o", "name")
    plan = daemon.document("create", "guest", "planned", "--host", "a", *CREATE, "--dry-run")
    assert plan["kind"] == "HostPlanList"
    assert plan["items"][0]["native"]
    assert daemon.run("describe", "guest", "a/planned").returncode == 3
    assert daemon.ok("get", "volumes", "-o", "name") == before


def test_an_ambiguous_name_does_nothing(daemon: Daemon) -> None:
    for host in ("a", "b"):
        daemon.ok("create", "guest", "twin", "--host", host, *CREATE)
    done = daemon.run("start", "twin")
    assert done.returncode == 2
    assert "hosts/a/guests/twin, hosts/b/guests/twin" in done.stderr
    daemon.ok("start", "twin", "--host", "b")
    states = {item["name"]: item["status"]["state"] for item in daemon.document("get", "guests")["items"]}
    assert states["hosts/a/guests/twin"] == "GUEST_STATE_STOPPED"
    assert states["hosts/b/guests/twin"] == "GUEST_STATE_RUNNING"
    mixed = daemon.run("stop", "a/twin", "b/twin", "b/nobody")
    assert mixed.returncode == 8
    daemon.ok("delete", "a/twin", "b/twin", "--force")


def test_a_document_creates_what_it_says(daemon: Daemon) -> None:
    text = """
        {"apiVersion": "virtd.v1", "kind": "Guest", "metadata": {"name": "doc", "host": "a", "labels": {"k": "v"}},
         "spec": {"memory_bytes": "64MiB", "disks": [{"name": "root", "blank": {"capacity_bytes": "1GiB"}}]}}
    """
    file = daemon.directory / "guest.yaml"
    file.write_text(text)
    assert daemon.ok("create", "-f", str(file), "-o", "name") == "hosts/a/guests/doc\n"
    again = daemon.run("create", "-f", str(file))
    assert (again.returncode, "reason: GUEST_EXISTS" in again.stderr) == (5, True)
    daemon.ok("label", "doc", "x=y", "k-")
    assert daemon.document("describe", "guest", "doc")["item"]["labels"] == {"x": "y"}
    daemon.ok("delete", "doc")


def test_events_resume_without_a_gap(daemon: Daemon) -> None:
    token = daemon.document("get", "guests")["resumeToken"]
    daemon.ok("create", "guest", "seen", "--host", "a", *CREATE)
    daemon.ok("start", "seen")
    daemon.ok("delete", "seen", "--force")
    lines = [json.loads(line) for line in daemon.ok("events", "--once", "--since", token, "-o", "jsonl").splitlines()]
    kinds = [line["item"]["type"] for line in lines if line["item"]["resource"] == "hosts/a/guests/seen"]
    assert kinds[0] == "EVENT_TYPE_GUEST_ADDED"
    assert kinds[-1] == "EVENT_TYPE_GUEST_REMOVED"
    assert "EVENT_TYPE_GUEST_STATE_CHANGED" in kinds
    revisions = [int(line["item"]["revision"]) for line in lines]
    assert revisions == sorted(set(revisions))
    for index in (0, len(lines) // 2, len(lines) - 1):
        rest = daemon.ok("events", "--once", "--since", lines[index]["resumeToken"], "-o", "jsonl").splitlines()
        assert set(revisions[index + 1 :]) <= {int(json.loads(line)["item"]["revision"]) for line in rest}


def test_a_watch_shows_what_changes(daemon: Daemon) -> None:
    process = subprocess.Popen(
        [*COMMAND, "get", "guests", "-w", "-o", "jsonl", "--host", "a"],
        stdout=subprocess.PIPE, env={**daemon.environment(), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        daemon.ok("create", "guest", "first", "--host", "a", *CREATE)
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        assert line["change"] in {"present", "added"}
        while line["item"]["name"] != "hosts/a/guests/first":
            line = json.loads(process.stdout.readline())
        daemon.ok("delete", "a/first")
        while line["change"] != "removed":
            line = json.loads(process.stdout.readline())
        assert line["item"]["name"] == "hosts/a/guests/first"
    finally:
        process.kill()
        process.communicate()


def test_a_watch_and_a_wait_outlive_a_killed_daemon(daemon: Daemon) -> None:
    daemon.ok("create", "guest", "tough", "--host", "b", *CREATE)
    waiting = subprocess.Popen(
        [*COMMAND, "wait", "b/tough", "--for", "running", "--timeout", "50s", "-v"],
        env=daemon.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == b"waiting for hosts/b/guests/tough: running\n"
        daemon.kill()
        daemon.start()
        daemon.ok("start", "b/tough")
        _, err = waiting.communicate(timeout=50)
    finally:
        waiting.kill()
        waiting.communicate()
    assert waiting.returncode == 0, err
    daemon.ok("delete", "b/tough", "--force")
