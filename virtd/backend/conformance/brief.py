"""The kit in brief, for slow hosts: each ability that is cheap to check has a check, and every refusal is proven.

A module that is marked ``conformance_brief`` (see :mod:`virtd.backend.conformance.plugin`) runs these checks
only; ``--virtd-conformance-all`` runs all of them.  A brief run finds what is declared and does not work at all, and
its report says that it was brief: an ability is VERIFIED by it only if every check that proves it is one of these.
"""

from __future__ import annotations

import re
from typing import Final

_GROUPS: Final = (
    "TestDescriptor",
    "TestCapabilities",
    "TestLowering",
    "TestDeviceFields",
    "TestAutostart",
    "TestPools",
    "TestVolumes",
    "TestPoolChanges",
    "TestVolumeChanges",
    "TestVolumeTransfer",
    "TestNetworks",
    "TestNetworkChanges",
    "TestCloudInit",
    "TestDiagnosis",
)
"""Groups that are cheap: they start no guest, or hardly any."""

_CHECKS: Final = (
    "TestGuests.test_round_trip",
    "TestGuests.test_redefine",
    "TestGuests.test_name_is_taken",
    "TestGuests.test_life",
    "TestGuests.test_foreign_guest",
    "TestDevices.test_acceleration",
    "TestDevices.test_graphics",
    "TestDevices.test_kernel_boot",
    "TestDevices.test_disk_boot",
    "TestDevices.test_uefi_boot",
    "TestMemoryIsKept.test_pause",
    "TestMemoryIsKept.test_pause_with_content",
    "TestMemoryIsKept.test_suspend_with_content",
    "TestConsole.test_echo",
    "TestConsole.test_taken_over",
    "TestScreenshot.test_picture",
    "TestAgent.test_commands",
    "TestAgent.test_addresses",
    "TestAgentStream.test_dialogue",
    "TestAgentFiles.test_there_and_back",
    "TestAgentMore.test_freeze",
    "TestAgentMore.test_info",
    "TestSnapshots.test_record",
    "TestSnapshots.test_branch",
    "TestExternalSnapshots.test_chain",
    "TestQuiescedSnapshots.test_quiesce",
    "TestMemorySnapshots.test_keeps_running",
    "TestBackup.test_stopped",
    "TestIncrementalBackup.test_marks",
    "TestUpdate.test_config",
    "TestUpdate.test_unknown_guest",
    "TestUpdate.test_live_of_a_stopped_guest",
    "TestUpdate.test_resize",
    "TestHotplug.test_memory",
    "TestHotplug.test_vcpus",
    "TestHotplug.test_vcpus_unplug",
    "TestHotplug.test_interface",
    "TestHotplug.test_disk",
    "TestHotplug.test_io_tune",
    "TestHotplug.test_medium",
    "TestDefinitions.test_other_name",
    "TestDefinitions.test_unknown_guest",
    "TestClones.test_copied_disks",
    "TestPower.test_reboot",
    "TestPower.test_reset",
    "TestPower.test_shutdown",
    "TestReboots.test_reset_is_reported",
    "TestMovedDefinitions.test_definition",
    "TestMigration.test_side",
    "TestEvents.test_pause",
    "TestEvents.test_iterator_ends_with_the_session",
    "TestMetrics.test_sample",
)

# Of the verbs, those that need no guest to be started for them alone: a running one is used again and again.
_VERB: Final = re.compile(r"TestVerbs\.test_verb\[(?P<verb>[a-z-]+)-(?P<state>[A-Z]+)\]")
_ENDS_IT: Final = ("stop", "shutdown", "reboot", "reset", "pause", "suspend", "snapshot-memory")


def is_brief(name: str) -> bool:
    """Whether a check of this name (``TestVerbs.test_verb[pause-RUNNING]``) is one of the brief run."""
    if match := _VERB.fullmatch(name):
        again = match["state"] == "RUNNING" and match["verb"] not in _ENDS_IT
        return again or match["state"] == "ABSENT" or (match["state"] == "STOPPED" and match["verb"] != "start")
    plain = name.partition("[")[0]
    return plain in _CHECKS or plain.partition(".")[0] in _GROUPS


def named() -> frozenset[str]:
    """Groups and checks that are named here, each of which has to exist."""
    return frozenset((*_GROUPS, *_CHECKS))
