"""What the conformance kit has proven, matched with the host at hand.

``virtd/data/verified.json`` is made of the same reports as the capability matrix, by the same command.  A proof is
worth something on another host only where that is the same in all that decides: backend and its version, hypervisor,
API, their versions, architecture, accelerator.  A newer hypervisor may have lost what an older one could, so another
version is another host: it keeps what was declared or probed.  What a probe of this very host denies is never
overruled.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, Final

from virtd.backend.api import BackendDescriptor
from virtd.backend.capabilities import of_kind
from virtd.model.host import Capability, CapabilityLevel, CapabilityProvenance, GuestKind, HostFacts

SCHEMA: Final = "virtd.verified/1"
FILE: Final = "verified.json"
_OF_A_HOST: Final = "host."
_MISSING: Final = (CapabilityLevel.UNSUPPORTED, CapabilityLevel.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Environment:
    """All that must be the same for a proof to be one."""

    backend: str
    backend_version: str
    hypervisor: str
    hypervisor_version: str
    api: str
    api_version: str
    architecture: str
    accelerator: str

    @property
    def versions(self) -> str:
        """For people: ``QEMU 7.2.22, libvirt 9.0.0``."""
        parts = [f"{self.hypervisor} {self.hypervisor_version}".strip()]
        if self.api != self.hypervisor:
            parts.append(f"{self.api} {self.api_version}".strip())
        return ", ".join(filter(None, parts))


@dataclass(frozen=True, slots=True)
class Evidence:
    """One run of the kit: the levels that it has proven.

    :param machine: the kind of guest that it was run with; empty where guests are of one kind.
    """

    environment: Environment
    machine: str
    time: datetime
    levels: Mapping[str, CapabilityLevel]


def environment_of(backend: str, backend_version: str, facts: HostFacts) -> Environment:
    """The environment that a probe found."""
    return Environment(
        backend,
        backend_version,
        facts.hypervisor,
        facts.hypervisor_version,
        facts.api,
        facts.api_version,
        facts.architecture,
        facts.default_accelerator,
    )


def parse(document: Mapping[str, Any]) -> tuple[Evidence, ...]:
    """The evidence in a document of the schema.

    :raises ValueError: another schema.
    """
    if document.get("schema") != SCHEMA:
        raise ValueError(f"the schema is {document.get('schema')!r}, not {SCHEMA!r}")
    names = [field.name for field in fields(Environment)]
    return tuple(
        Evidence(
            Environment(*(run[name] for name in names)),
            run["machine"],
            datetime.fromisoformat(run["time"]).astimezone(UTC),
            {id_: CapabilityLevel(level) for id_, level in run["capabilities"].items()},
        )
        for run in document["runs"]
    )


@functools.cache
def shipped() -> tuple[Evidence, ...]:
    """The evidence that goes with this version of virtd."""
    return parse(json.loads(files("virtd").joinpath("data", FILE).read_text("utf-8")))


def known(backend: BackendDescriptor, facts: HostFacts) -> HostFacts:
    """What a probe found, and what the shipped evidence says of it."""
    return apply(environment_of(backend.id, backend.version, facts), facts, shipped())


def apply(environment: Environment, facts: HostFacts, evidence: Sequence[Evidence]) -> HostFacts:
    """The same facts, with VERIFIED where the kit has proven on a host like this one what the probe says here."""
    mine = [run for run in evidence if run.environment == environment]
    if not mine:
        return facts
    # Before anything is marked: what differs is merged with what the probe has said.
    whole = {kind.machine: of_kind(facts, kind.machine) for kind in facts.guest_kinds}
    machines = [kind.machine for kind in facts.guest_kinds]
    host = tuple(_of_host(entry, mine, machines, environment) for entry in facts.capabilities)
    stated = {entry.id: entry for entry in host}
    kinds = tuple(
        GuestKind(
            machine,
            tuple(
                entry
                for entry in (_of_guest(entry, mine, machine, environment) for entry in capabilities)
                if entry != stated[entry.id]
            ),
        )
        for machine, capabilities in whole.items()
    )
    return replace(facts, capabilities=host, guest_kinds=kinds)


def _of_host(
    entry: Capability, mine: Iterable[Evidence], machines: Sequence[str], environment: Environment
) -> Capability:
    """An entry of the host's own list.

    Where guests are of several kinds it is proven by a run with every kind: each has proven its own level, and the
    host's sums them up.  What is no matter of guests is proven by any run.
    """
    if not machines:
        return _of_guest(entry, mine, "", environment)
    runs = [run for run in mine if run.machine in machines]
    if entry.id.startswith(_OF_A_HOST):
        proofs = [run for run in runs if run.levels.get(entry.id) is entry.level]
        return _marked(entry, proofs[:1], environment)
    by_machine = {run.machine: run for run in runs if entry.id in run.levels}
    levels = {run.levels[entry.id] for run in by_machine.values()}
    summed = entry.level is CapabilityLevel.PARTIAL and levels - set(_MISSING)
    whole = set(by_machine) == set(machines) and (levels == {entry.level} or summed)
    return _marked(entry, list(by_machine.values()) if whole else [], environment)


def _of_guest(entry: Capability, mine: Iterable[Evidence], machine: str, environment: Environment) -> Capability:
    proofs = [run for run in mine if run.machine == machine and run.levels.get(entry.id) is entry.level]
    return _marked(entry, proofs, environment)


def _marked(entry: Capability, proofs: Sequence[Evidence], environment: Environment) -> Capability:
    """VERIFIED, if there are proofs; as old as the oldest of them."""
    denied_here = entry.level in _MISSING and entry.provenance is CapabilityProvenance.PROBED
    if not proofs or denied_here:
        return entry
    return replace(
        entry,
        provenance=CapabilityProvenance.VERIFIED,
        verified_with=environment.versions,
        verified_time=min(run.time for run in proofs),
    )
