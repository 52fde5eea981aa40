"""``apply``, ``diff``, ``plan``, ``export`` and ``edit``: what is sent, what is said, what is kept."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.rpc.guestctl_kit import Ctl, environment, guest, hosts
from tests.rpc.scripted_server import ScriptedServer, operation, virtd_fail
from tests.tools.gen_schema import OUTPUT
from virtd.v1 import guest_service_pb2 as pb

WEB = """
apiVersion: virtd.v1
kind: Guest
metadata: {name: web, host: a}
spec: {memory_bytes: 256MiB, vcpus: 2}
"""
DB = WEB.replace("web", "db")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as found:
        found.on("ListHosts", hosts("a"))
        yield found


@pytest.fixture
def ctl(
    server: ScriptedServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Ctl:
    for name, value in environment(server, tmp_path).items():
        monkeypatch.setenv(name, value)
    for name in ("GUESTCTL_CONTEXT", "VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return Ctl(server, capfd)


@pytest.fixture
def web(tmp_path: Path) -> str:
    path = tmp_path / "web.yaml"
    path.write_text(WEB)
    return str(path)


def valid(data: Any) -> Any:
    jsonschema.validate(data, json.loads((OUTPUT / f"{data['kind']}.json").read_text()))
    return data


def update(*changes: tuple[str, str, str, str]) -> pb.PlanGuestResponse:
    """(field, old, new, effect) each."""
    answer = pb.PlanGuestResponse(plans=[pb.HostPlan(host="hosts/a")])
    answer.plans[0].update.name = "hosts/a/guests/web"
    for field, old, new, effect in changes:
        answer.plans[0].update.changes.add(
            field=field, old=old, new=new, effect=pb.UpdateEffect.Value(f"UPDATE_EFFECT_{effect}"), reason="because"
        )
    return answer


def creation(*rejected: str) -> pb.PlanGuestResponse:
    answer = pb.PlanGuestResponse(plans=[pb.HostPlan(host="hosts/a")])
    for field in rejected:
        answer.plans[0].verdicts.add(field=field, fidelity=pb.FIDELITY_REJECTED, reason="there is none here")
    return answer


def test_apply_creates_what_is_not_there(ctl: Ctl, server: ScriptedServer, web: str) -> None:
    server.on("PlanGuest", creation())
    server.on("CreateGuest", pb.CreateGuestResponse(operation=operation("operations/1", response=guest("web"))))
    result = ctl("apply", "-f", web, "--start")
    assert result.code == 0, result.err
    assert "hosts/a/guests/web created and started" in result.err
    (call,) = server.calls_of("CreateGuest")
    assert (call.request.parent, call.request.guest_id, call.request.start) == ("hosts/a", "web", True)
    assert call.request.guest.spec.memory_bytes == 256 << 20
    assert server.calls_of("PlanGuest")[0].request.name == "hosts/a/guests/web"


def test_apply_changes_what_differs(ctl: Ctl, server: ScriptedServer, web: str) -> None:
    changed = guest("web")
    changed.status.pending_restart_fields.append("spec.vcpus")
    server.on("PlanGuest", update(("spec.vcpus", "1", "2", "NEXT_BOOT")))
    server.on("UpdateGuest", pb.UpdateGuestResponse(operation=operation("operations/1", response=changed)))
    result = ctl("apply", "-f", web, "--mode", "next-boot", "--allow-replace")
    assert result.code == 0, result.err
    assert "hosts/a/guests/web changed" in result.err
    assert "waits for the next start: spec.vcpus" in result.err
    (call,) = server.calls_of("UpdateGuest")
    assert list(call.request.update_fields) == ["spec"]
    assert call.request.guest.name == "hosts/a/guests/web"
    assert call.request.mode == pb.UPDATE_MODE_NEXT_BOOT
    assert call.request.allow_replace


def test_apply_again_changes_nothing(ctl: Ctl, server: ScriptedServer, web: str) -> None:
    server.on("PlanGuest", update())
    server.on("GetGuest", pb.GetGuestResponse(guest=guest("web")))
    result = ctl("apply", "-f", web)
    assert result.code == 0
    assert "unchanged" in result.err
    assert server.calls_of("UpdateGuest") == []
    assert server.calls_of("CreateGuest") == []


def test_apply_sends_nothing_that_cannot_be_done(ctl: Ctl, server: ScriptedServer, web: str) -> None:
    server.on("PlanGuest", update(("spec.machine", "q35", "pc", "REJECTED")))
    result = ctl("apply", "-f", web)
    assert result.code == 6
    assert "spec.machine: because" in result.err
    assert server.calls_of("UpdateGuest") == []


def test_one_bad_guest_does_not_keep_the_others(ctl: Ctl, server: ScriptedServer, tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(WEB + "---" + DB)
    wrong = virtd_fail(3, "FIELD_INVALID", "InvalidArgument", message="spec.vcpus: too many")
    server.on("PlanGuest", wrong, creation())
    server.on("CreateGuest", pb.CreateGuestResponse(operation=operation("operations/1", response=guest("db"))))
    result = ctl("apply", "-f", str(file))
    assert result.code == 8
    assert "two.yaml:2" in result.err
    assert "hosts/a/guests/db created" in result.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (WEB + "---" + WEB, "is in"),
        (WEB.replace("name: web, ", ""), "metadata.name: is required"),
        (WEB.replace("vcpus", "vcpu"), "did you mean 'vcpus'?"),
    ],
)
def test_a_wrong_document_stops_everything(
    ctl: Ctl, server: ScriptedServer, tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    result = ctl("apply", "-f", str(file))
    assert result.code == 2
    assert said in result.err
    assert server.calls_of("PlanGuest") == []


def test_diff_shows_each_field_and_ends_with_10(ctl: Ctl, server: ScriptedServer, web: str) -> None:
    answer = update(("spec.vcpus", "1", "2", "LIVE"), ("spec.machine", '"pc"', '"q35"', "REPLACE"))
    server.on("PlanGuest", answer)
    result = ctl("diff", "-f", web)
    assert result.code == 10
    assert [line.split()[:5] for line in result.out.splitlines()[1:]] == [
        ["web", "spec.vcpus", "1", "2", "LIVE"],
        ["web", "spec.machine", '"pc"', '"q35"', "REPLACE"],
    ]
    data = valid(ctl("diff", "-f", web, "-o", "json").json)
    assert [item["field"] for item in data["items"]] == ["spec.vcpus", "spec.machine"]


def test_diff_of_nothing_is_0_and_of_a_new_guest_10(ctl: Ctl, server: ScriptedServer, web: str) -> None:
    server.on("PlanGuest", update())
    assert ctl("diff", "-f", web).code == 0
    server.on("PlanGuest", creation())
    result = ctl("diff", "-f", web)
    assert result.code == 10
    assert "created" in result.out


def test_apply_dry_run_is_diff(ctl: Ctl, server: ScriptedServer, web: str) -> None:
    server.on("PlanGuest", update(("spec.vcpus", "1", "2", "LIVE")))
    assert ctl("apply", "-f", web, "--dry-run").code == 10
    assert server.calls_of("UpdateGuest") == []


def test_plan_judges_every_host(ctl: Ctl, server: ScriptedServer, web: str) -> None:
    good, bad = pb.HostPlan(host="hosts/a"), pb.HostPlan(host="hosts/b", native="<domain/>")
    bad.verdicts.add(field="spec.tpm", fidelity=pb.FIDELITY_REJECTED, reason="no swtpm")
    server.on("PlanGuest", pb.PlanGuestResponse(plans=[good, bad]))
    result = ctl("plan", "-f", web, "--native")
    assert result.code == 8
    assert "no swtpm" in result.out
    assert "<domain/>" in result.out
    assert list(server.calls_of("PlanGuest")[0].request.hosts) == ["hosts/-"]


def test_export_is_what_apply_takes(ctl: Ctl, server: ScriptedServer, tmp_path: Path) -> None:
    server.on("GetGuest", pb.GetGuestResponse(guest=guest("web", labels={"env": "prod"})))
    result = ctl("export", "hosts/a/guests/web")
    assert result.code == 0
    found = yaml.safe_load(result.out)
    assert found["metadata"] == {"name": "web", "host": "a", "labels": {"env": "prod"}}
    assert found["spec"]["memory_bytes"] == "256MiB"
    file = tmp_path / "out.yaml"
    file.write_text(result.out)
    server.on("PlanGuest", update())
    assert ctl("diff", "-f", str(file)).code == 0


def editor(tmp_path: Path, script: str) -> str:
    path = tmp_path / "editor"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_edit_applies_what_was_changed(
    ctl: Ctl, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITOR", editor(tmp_path, 'sed -i "s/vcpus: 2/vcpus: 3/" "$1"'))
    server.on("GetGuest", pb.GetGuestResponse(guest=guest("web")))
    server.on("PlanGuest", update(("spec.vcpus", "2", "3", "LIVE")))
    server.on("UpdateGuest", pb.UpdateGuestResponse(operation=operation("operations/1", response=guest("web"))))
    result = ctl("edit", "hosts/a/guests/web")
    assert result.code == 0, result.err
    assert server.calls_of("UpdateGuest")[0].request.guest.spec.vcpus == 3
    assert list(tmp_path.glob("guestctl-*")) == []


def test_edit_without_a_change_sends_nothing(
    ctl: Ctl, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITOR", "true")
    server.on("GetGuest", pb.GetGuestResponse(guest=guest("web")))
    assert ctl("edit", "hosts/a/guests/web").code == 0
    assert server.calls_of("PlanGuest") == []
    assert list(tmp_path.glob("guestctl-*")) == []


@pytest.mark.parametrize("how", ["wrong", "refused", "renamed"])
def test_edit_never_loses_what_was_written(
    ctl: Ctl, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    script = {"wrong": "s/vcpus: 2/vcpus: two/", "refused": "s/vcpus: 2/vcpus: 400/", "renamed": "s/name: web/name: x/"}
    monkeypatch.setenv("EDITOR", editor(tmp_path, f'sed -i "{script[how]}" "$1"'))
    server.on("GetGuest", pb.GetGuestResponse(guest=guest("web")))
    server.on("PlanGuest", virtd_fail(3, "FIELD_INVALID", "InvalidArgument", message="spec.vcpus: too many"))
    result = ctl("edit", "hosts/a/guests/web")
    assert result.code == 2
    (kept,) = tmp_path.glob("guestctl-*")
    assert str(kept) in result.err
    assert server.calls_of("UpdateGuest") == []


def test_an_editor_that_fails_changes_nothing(
    ctl: Ctl, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.on("GetGuest", pb.GetGuestResponse(guest=guest("web")))
    for chosen in ("false", "/no/such/editor"):
        monkeypatch.setenv("EDITOR", chosen)
        result = ctl("edit", "hosts/a/guests/web")
        assert result.code == 1
        assert server.calls_of("PlanGuest") == []
