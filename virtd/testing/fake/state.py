"""What a fake hypervisor keeps of its guests, pools and volumes, and how that is written to a file."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from virtd.model.guest import GuestState
from virtd.testing.fake.inside import Console, Files


@dataclass
class FakeSnapshot:
    """One snapshot.  ``complete`` is False between begin and commit: nobody sees it then."""

    name: str
    description: str
    memory: bool
    parent: str
    state: GuestState
    time: datetime
    files: Files = field(default_factory=Files)
    complete: bool = False
    location: str = "internal"


@dataclass
class FakeGuest:
    """One guest of the hypervisor."""

    uuid: UUID
    name: str
    native: str
    state: GuestState = GuestState.STOPPED
    reason: str = ""
    active: str = ""  # the configuration that it runs with
    files: Files = field(default_factory=Files)
    saved: dict[str, bytes] | None = None  # memory, while suspended
    snapshots: dict[str, FakeSnapshot] = field(default_factory=dict)
    current_snapshot: str = ""
    presses_needed: int = 1
    presses: int = 0
    firmware_variables: bool = False
    variables: bytes = b""  # what the firmware has written
    autostart: bool = False
    agent: str = "ready"  # or "absent", "stuck", "disabled": what a test wants of it
    frozen: bool = False  # its file systems, by its agent
    checkpoints: dict[str, bytes] = field(default_factory=dict)  # its first disk at that moment
    backing_up: bool = False
    boots: int = 0
    migration: str = ""  # "incoming" (nothing of it runs yet) or "outgoing"
    passes: int = 0  # over its memory, of the migration that is under way
    records: str = ""  # of snapshots that virtd makes by copying disks
    # Not kept in the file: what only a running process has.
    console: Console = field(default_factory=Console)
    started_at: float = 0.0
    booted: bool = False

    @property
    def active_now(self) -> bool:
        """Whether it uses the host's CPU or memory."""
        return self.state in (GuestState.RUNNING, GuestState.PAUSED)


@dataclass
class FakeVolume:
    """One volume.  ``complete`` is False while it is filled."""

    name: str
    path: str
    format: str
    capacity_bytes: int
    allocation_bytes: int = 0
    backing_path: str = ""
    complete: bool = False
    content: str = ""  # base64: what a disk that was restored begins with


@dataclass
class FakePool:
    """One pool."""

    name: str
    path: str
    volumes: dict[str, FakeVolume] = field(default_factory=dict)
    kind: str = "fake"
    source: str = ""
    active: bool = True
    autostart: bool = False


def _pack(files: dict[str, bytes] | None) -> dict[str, str] | None:
    return None if files is None else {path: base64.b64encode(data).decode() for path, data in files.items()}


def _unpack(files: dict[str, str] | None) -> dict[str, bytes] | None:
    return None if files is None else {path: base64.b64decode(data) for path, data in files.items()}


def guest_to_json(guest: FakeGuest) -> dict[str, Any]:
    """A guest as JSON data."""
    return {
        "uuid": str(guest.uuid),
        "name": guest.name,
        "native": guest.native,
        "state": guest.state,
        "reason": guest.reason,
        "active": guest.active,
        "memory": _pack(guest.files.memory),
        "disk": _pack(guest.files.disk),
        "saved": _pack(guest.saved),
        "current_snapshot": guest.current_snapshot,
        "presses_needed": guest.presses_needed,
        "presses": guest.presses,
        "firmware_variables": guest.firmware_variables,
        "variables": guest.variables.hex(),
        "autostart": guest.autostart,
        "agent": guest.agent,
        "frozen": guest.frozen,
        "checkpoints": _pack(guest.checkpoints),
        "backing_up": guest.backing_up,
        "boots": guest.boots,
        "migration": guest.migration,
        "passes": guest.passes,
        "records": guest.records,
        "snapshots": [
            {
                "name": snapshot.name,
                "description": snapshot.description,
                "memory": snapshot.memory,
                "parent": snapshot.parent,
                "state": snapshot.state,
                "time": snapshot.time.isoformat(),
                "files": [_pack(snapshot.files.memory), _pack(snapshot.files.disk)],
                "complete": snapshot.complete,
                "location": snapshot.location,
            }
            for snapshot in guest.snapshots.values()
        ],
    }


def guest_from_json(data: dict[str, Any]) -> FakeGuest:
    """Inverse of :func:`guest_to_json`."""
    snapshots = {
        item["name"]: FakeSnapshot(
            **{key: item[key] for key in ("name", "description", "memory", "parent", "complete")},
            state=GuestState(item["state"]),
            time=datetime.fromisoformat(item["time"]),
            files=Files(*(_unpack(part) or {} for part in item["files"])),
            location=item.get("location", "internal"),
        )
        for item in data["snapshots"]
    }
    plain = ("name", "native", "reason", "active", "current_snapshot", "presses_needed", "presses")
    return FakeGuest(
        uuid=UUID(data["uuid"]),
        state=GuestState(data["state"]),
        files=Files(_unpack(data["memory"]) or {}, _unpack(data["disk"]) or {}),
        saved=_unpack(data["saved"]),
        snapshots=snapshots,
        **{key: data[key] for key in (*plain, "firmware_variables", "agent", "boots")},
        frozen=data.get("frozen", False),
        variables=bytes.fromhex(data.get("variables", "")),
        autostart=data.get("autostart", False),
        checkpoints=_unpack(data.get("checkpoints")) or {},
        backing_up=data.get("backing_up", False),
        migration=data.get("migration", ""),
        passes=data.get("passes", 0),
        records=data.get("records", ""),
    )
