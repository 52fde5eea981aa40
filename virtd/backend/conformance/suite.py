"""Everything that a backend's test module needs: ``from virtd.backend.conformance.suite import *``.

The module that does so defines a fixture ``provision`` (module-scoped) that returns a
:class:`Provision`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from virtd.backend.conformance.checks_agent import TestAgentFiles, TestAgentMore, TestAgentStream, TestDisplay
from virtd.backend.conformance.checks_backup import TestBackup, TestIncrementalBackup
from virtd.backend.conformance.checks_chaos import TestCancel, TestNativeFailures
from virtd.backend.conformance.checks_describe import TestCapabilities, TestDescriptor, TestDevices, TestLowering
from virtd.backend.conformance.checks_devices import TestDeviceFields
from virtd.backend.conformance.checks_guests import TestGuests
from virtd.backend.conformance.checks_inside import TestAgent, TestConsole, TestMemoryIsKept, TestPower, TestScreenshot
from virtd.backend.conformance.checks_lifecycle2 import TestAutostart, TestClones, TestDefinitions, TestReboots
from virtd.backend.conformance.checks_migration import TestMigration, TestMovedDefinitions
from virtd.backend.conformance.checks_networks import TestCloudInit, TestNetworkChanges
from virtd.backend.conformance.checks_observe import TestDiagnosis, TestEvents, TestMetrics, TestPresence
from virtd.backend.conformance.checks_snapshots import (
    TestDiskContents,
    TestExternalSnapshots,
    TestMemorySnapshots,
    TestQuiescedSnapshots,
    TestSnapshots,
)
from virtd.backend.conformance.checks_storage import TestNetworks, TestPools, TestVolumes
from virtd.backend.conformance.checks_update import TestHotplug, TestUpdate
from virtd.backend.conformance.checks_verbs import TestVerbs
from virtd.backend.conformance.checks_volumes import TestPoolChanges, TestVolumeChanges, TestVolumeTransfer
from virtd.backend.conformance.kit import Kit, check_name
from virtd.backend.conformance.plugin import REPORTS, runs_brief
from virtd.backend.conformance.provision import Bootable, Connection, FaultInjector, Outside, Provision, plain_guest
from virtd.backend.conformance.report import Report

SUITE = (
    TestDescriptor,
    TestCapabilities,
    TestLowering,
    TestGuests,
    TestVerbs,
    TestDevices,
    TestDeviceFields,
    TestMemoryIsKept,
    TestConsole,
    TestScreenshot,
    TestAgent,
    TestAgentStream,
    TestAgentFiles,
    TestAgentMore,
    TestDisplay,
    TestSnapshots,
    TestExternalSnapshots,
    TestQuiescedSnapshots,
    TestMemorySnapshots,
    TestDiskContents,
    TestBackup,
    TestIncrementalBackup,
    TestPower,
    TestPools,
    TestVolumes,
    TestPoolChanges,
    TestVolumeChanges,
    TestVolumeTransfer,
    TestUpdate,
    TestHotplug,
    TestAutostart,
    TestDefinitions,
    TestClones,
    TestReboots,
    TestMovedDefinitions,
    TestMigration,
    TestNetworks,
    TestNetworkChanges,
    TestCloudInit,
    TestDiagnosis,
    TestEvents,
    TestMetrics,
    TestPresence,
    TestNativeFailures,
    TestCancel,
)
"""Every group of checks."""

__all__ = [  # noqa: PLE0604 - the groups' own names
    "Bootable",
    "Connection",
    "FaultInjector",
    "Outside",
    "Provision",
    "kit",
    "plain_guest",
    *(group.__name__ for group in SUITE),
]


def every_check() -> dict[str, tuple[str, ...]]:
    """All checks by their names, as the report has them, and the capabilities that each proves."""
    found: dict[str, tuple[str, ...]] = {}
    for group in SUITE:
        for attribute in vars(group).values():
            body = getattr(attribute, "virtd_check", None)
            if body is not None:
                for parameters in _parameters(attribute):
                    found[check_name(body, parameters)] = attribute.virtd_proves(parameters)
    return found


def _parameters(test: object) -> list[dict[str, object]]:
    """The arguments of each case of a parametrized check."""
    cases: list[dict[str, object]] = [{}]
    for mark in getattr(test, "pytestmark", ()):
        if mark.name == "parametrize":
            argument, values = mark.args
            cases = [{**case, argument: value} for case in cases for value in values]
    return cases


@pytest.fixture(scope="module")
def kit(provision: Provision, request: pytest.FixtureRequest) -> Iterator[Kit]:
    """The host under test."""
    config = request.config
    descriptor = provision.backend.descriptor
    report = Report(
        label=provision.label or descriptor.id,
        host=provision.host,
        machine=provision.machine,
        descriptor=descriptor,
        expected=every_check(),
        brief=runs_brief(request.node, config),
    )
    regenerate = config.getoption("--virtd-conformance-regenerate", default=False)
    under_test = Kit(provision, report, regenerate=bool(regenerate))
    under_test.open()
    try:
        yield under_test
    finally:
        under_test.close()
        config.stash.setdefault(REPORTS, []).append(report)
        path = config.getoption("--virtd-conformance-report", default=None) or provision.report
        if path is not None:
            report.write(path)
