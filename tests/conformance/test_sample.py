"""A third party's backend, in its own distribution, passes the kit; broken on purpose, it does not."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.strangers import SAMPLE, install_sample, python, run_pytest

HEADER = """
import pytest
from virtd.backend.conformance.suite import *
from virtd_sample.backend import *
from virtd_sample.backend import SampleSession, SampleBackend

class Session(SampleSession):
    def __init__(self, hypervisor):
        super().__init__(hypervisor)
        self.setup()

    def setup(self):
        pass

{methods}

class Backend(SampleBackend):
    async def open(self, config):
        session = await super().open(config)
        session.__class__ = Session
        session.setup()
        return session

@pytest.fixture(scope="module")
def provision():
    return Provision(backend=Backend(), uri="sample:///mutant", check_timeout_s=20, event_timeout_s=0.5, parallel=5)
"""


@dataclass(frozen=True)
class Mutant:
    """A defect, and the check that must find it."""

    name: str
    methods: str
    found_by: str


MUTANTS = (
    Mutant("none", "", ""),
    Mutant(
        "declared-but-broken",
        """
    async def pause_guest(self, uuid, context):
        self._active(uuid, context)
""",
        "test_verb[pause-RUNNING]",
    ),
    Mutant(
        "declared-without-facet",
        """
    def setup(self):
        self._facets = Facets()
""",
        "test_facet[guest.pause]",
    ),
    Mutant(
        "facet-without-capability",
        """
    def setup(self):
        self._facets = Facets(pause=self, reset=self)
""",
        "test_facet[guest.reset]",
    ),
    Mutant(
        "no-reason",
        """
    async def probe(self):
        from dataclasses import replace
        facts = await super().probe()
        return replace(facts, capabilities=tuple(replace(entry, reason="") for entry in facts.capabilities))
""",
        "test_every_capability_once",
    ),
    Mutant(
        "other-errors-escape",
        """
    async def get_guest(self, uuid):
        if uuid not in self._machines:
            raise KeyError(uuid)
        return await super().get_guest(uuid)
""",
        "test_verb[get-ABSENT]",
    ),
    Mutant(
        "not-idempotent",
        """
    async def undefine_guest(self, uuid, context):
        self._find(uuid)
        await super().undefine_guest(uuid, context)
""",
        "test_everything_twice",
    ),
    Mutant(
        "leaves-something-when-cancelled",
        """
    async def define_guest(self, guest, context):
        self._machines.setdefault(guest.uuid, Machine(guest))
        return await super().define_guest(guest, context)
""",
        "test_each_point[define]",
    ),
    Mutant(
        "swallows-cancel",
        """
    async def start_guest(self, uuid, context):
        machine = self._find(uuid)
        try:
            context.checkpoint()
        except Exception:
            pass
        if machine.state is GuestState.STOPPED:
            machine.start()
""",
        "test_each_point[start]",
    ),
    Mutant(
        "impure-lower",
        """
    def lower(self, guest):
        with open("/etc/hostname") as file:
            file.read()
        return super().lower(guest)
""",
        "test_pure[plain]",
    ),
    Mutant(
        "lossy-list",
        """
    async def list_guests(self):
        return [guest for guest in await super().list_guests() if guest.state is not GuestState.PAUSED]
""",
        "test_list",
    ),
    Mutant(
        "takes-a-name-twice",
        """
    async def define_guest(self, guest, context):
        for machine in self._machines.values():
            if machine.guest.name == guest.name and machine.guest.uuid != guest.uuid:
                self._machines[guest.uuid] = Machine(guest)
                return await self.get_guest(guest.uuid)
        return await super().define_guest(guest, context)
""",
        "test_name_is_taken",
    ),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    install_sample(target)
    return target


def test_a_stranger_passes_the_kit(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(SAMPLE / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(SAMPLE / "pyproject.toml", tmp_path)
    report = tmp_path / "report.json"
    run = run_pytest(f"--virtd-conformance-report={report}", cwd=tmp_path, path=installed)
    assert run.code == 0, run.output
    assert "NOT_RUN" in run.output
    document = json.loads(report.read_text())
    assert document["complete"]
    assert document["backend"]["id"] == "sample"
    assert {check["outcome"] for check in document["checks"]} == {"PASSED", "REFUSED", "NOT_RUN"}
    levels = {entry["id"]: (entry["level"], entry["provenance"]) for entry in document["capabilities"]}
    assert levels["guest.pause"] == ("NATIVE", "VERIFIED")
    assert levels["guest.snapshot"] == ("UNSUPPORTED", "VERIFIED")
    assert levels["guest.lifecycle"][0] == "NATIVE"


def test_virtd_finds_it_by_its_entry_point(installed: Path, tmp_path: Path) -> None:
    program = (
        "from virtd.plugins import PluginManager; m = PluginManager(); m.load_entry_points();"
        "r = [x for x in m.report if x.name == 'sample']; print(r);"
        "assert r[0].init_error == '' and r[0].backend_ids == ('sample',);"
        "assert r[0].distribution == 'virtd-backend-sample' and r[0].version;"
        "assert m.backend_for_uri('sample:///x') is m.backends['sample']"
    )
    run = python("-c", program, cwd=tmp_path, path=installed)
    assert run.code == 0, run.output


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_kit_finds_the_defect(mutant: Mutant, installed: Path, tmp_path: Path) -> None:
    (tmp_path / "test_mutant.py").write_text(HEADER.format(methods=mutant.methods))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    # One group of checks is enough to find a defect; the sound one must pass all.
    only = ("-k", mutant.found_by.partition("[")[0]) if mutant.found_by else ()
    run = run_pytest("-q", "--tb=no", "-rf", *only, "test_mutant.py", cwd=tmp_path, path=installed)
    if not mutant.found_by:
        assert run.code == 0, run.output
        return
    assert run.code == 1, run.output
    assert any(line.startswith("FAILED") and mutant.found_by in line for line in run.output.splitlines()), run.output
