"""The report: what was checked, what came of it, and what each capability is worth now.

As JSON (``"schema": "virtd.conformance/1"``)::

    {"schema", "label", "host", "machine", "time",   # machine: the kind of guest, where there are several
     "complete", "brief", "expected",                # whether all checks were run; how many there are
     "backend": {"id", "title", "version"},
     "facts": {"hypervisor", "hypervisor_version", "api", "api_version", "architecture", "accelerator"},
     "notes": {NAME: VALUE},                    # e.g. how many guests were made in parallel
     "capabilities": [{"id", "level", "provenance", "reason", "checks": [NAME]}],
     "checks": [{"name", "capabilities", "outcome", "duration_s", "message"}]}

``outcome`` is PASSED, FAILED, REFUSED (the capability is not declared, and the refusal was proven) or
NOT_RUN (``message`` says why).  REFUSED is also what a PARTIAL capability may answer with CAPABILITY_UNSUPPORTED
to some of its checks.  ``provenance`` is VERIFIED when every check that proves the capability was run, none failed, and
one passed; of a capability that is not declared: when its refusal was proven.  ``complete`` is false when checks were
left out, and ``brief`` true when these were all but the kit's own choice (:mod:`virtd.backend.conformance.brief`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from virtd.backend.api import BackendDescriptor
from virtd.model.host import Capability, CapabilityLevel, CapabilityProvenance, HostFacts

SCHEMA: Final = "virtd.conformance/1"
SUFFIX: Final = ".json"
_MISSING: Final = (CapabilityLevel.UNSUPPORTED, CapabilityLevel.UNKNOWN)


class Outcome(StrEnum):
    """What came of a check."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    REFUSED = "REFUSED"
    NOT_RUN = "NOT_RUN"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a check, and why; see :class:`CheckRecord`, and :class:`~.marks.NotRun` for ``elsewhere``."""

    outcome: Outcome
    message: str = ""
    refused: str = ""
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class CheckRecord:
    """One check.

    :param proof: it shows that a capability works (or else that it is robust).
    :param refused: the capability whose refusal it has proven, if that is what came of it.
    """

    name: str
    capabilities: tuple[str, ...]
    outcome: Outcome
    duration_s: float
    message: str = ""
    proof: bool = True
    refused: str = ""


@dataclass
class Report:
    """The checks of one backend on one host, as they come in."""

    label: str
    host: str = ""
    machine: str = ""
    descriptor: BackendDescriptor | None = None
    facts: HostFacts | None = None
    notes: dict[str, str | int | float] = field(default_factory=dict)
    checks: list[CheckRecord] = field(default_factory=list)
    expected: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    brief: bool = False

    def add(self, record: CheckRecord) -> None:
        """Take a check's outcome."""
        self.checks.append(record)

    def not_run(self) -> list[CheckRecord]:
        """The checks that the provision gave no means for."""
        return [record for record in self.checks if record.outcome is Outcome.NOT_RUN]

    @property
    def complete(self) -> bool:
        """Whether every check of the suite is in it."""
        return bool(self.expected) and set(self.expected) <= {record.name for record in self.checks}

    def provenance(self, capability: Capability) -> CapabilityProvenance:
        """VERIFIED, or what the probe said."""
        mine = [record for record in self.checks if capability.id in record.capabilities]
        if any(record.outcome is Outcome.FAILED for record in mine):
            return capability.provenance
        if capability.level in _MISSING:
            refused = any(record.refused == capability.id for record in mine)
            return CapabilityProvenance.VERIFIED if refused else capability.provenance
        ran = {record.name for record in mine}
        left_out = [name for name, proven in self.expected.items() if capability.id in proven and name not in ran]
        proofs = [record.outcome for record in mine if record.proof]
        if not left_out and Outcome.PASSED in proofs and Outcome.NOT_RUN not in proofs:
            return CapabilityProvenance.VERIFIED
        return capability.provenance

    def document(self) -> dict[str, Any]:
        """As JSON data.  The host's name is left out: a report is published."""
        facts = self.facts or HostFacts()
        described = self.host or f"{facts.hypervisor} {facts.hypervisor_version}".strip()
        return {
            "schema": SCHEMA,
            "label": self.label,
            "host": described,
            "machine": self.machine,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "complete": self.complete,
            "brief": self.brief,
            "expected": len(self.expected),
            "backend": (
                {"id": self.descriptor.id, "title": self.descriptor.title, "version": self.descriptor.version}
                if self.descriptor
                else {}
            ),
            "facts": {
                "hypervisor": facts.hypervisor,
                "hypervisor_version": facts.hypervisor_version,
                "api": facts.api,
                "api_version": facts.api_version,
                "architecture": facts.architecture,
                "accelerator": facts.default_accelerator,
            },
            "notes": self.notes,
            "capabilities": [self._capability(entry) for entry in facts.capabilities],
            "checks": [_check(record) for record in self.checks],
        }

    def _capability(self, entry: Capability) -> dict[str, Any]:
        checks = [record.name for record in self.checks if entry.id in record.capabilities]
        return {
            "id": entry.id,
            "level": entry.level,
            "provenance": self.provenance(entry),
            "reason": entry.reason,
            "checks": checks,
        }

    def write(self, path: Path) -> Path:
        """Write the report to a file, or as ``LABEL.json`` into a directory."""
        target = path if path.suffix == SUFFIX else path / f"{self.label}{SUFFIX}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(self.document(), indent=1) + "\n")
        return target


def _check(record: CheckRecord) -> dict[str, Any]:
    data = asdict(record)
    data["duration_s"] = round(record.duration_s, 3)
    return data


def summary(reports: Iterable[Report]) -> list[str]:
    """Lines for a person: what was checked, and everything that was not, with the reason."""
    lines = []
    for report in reports:
        counts = {outcome: sum(record.outcome is outcome for record in report.checks) for outcome in Outcome}
        part = "" if report.complete else f" of {len(report.expected)}{', in brief' if report.brief else ', in part'}"
        told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        lines.append(f"{report.label}: {len(report.checks)} checks{part}: {told}")
        grouped: dict[tuple[str, str], list[str]] = {}
        for record in report.not_run():
            name, _, case = record.name.partition("[")
            grouped.setdefault((name, record.message), []).append(case.rstrip("]"))
        for (name, message), cases in grouped.items():
            which = f" ({', '.join(cases)})" if any(cases) else ""
            lines.append(f"  NOT_RUN {name}{which}: {message}")
    return lines
