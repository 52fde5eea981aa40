"""What is kept of snapshots that are copies: one text for each guest, which its hypervisor keeps with the guest.

It is kept there, and not in virtd's database, so that it goes wherever the guest's definition goes: into the trash and
back, and into the hands of a virtd that has lost its database.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Protocol, Self
from uuid import UUID

from virtd.errors import JOURNAL_CORRUPT, InternalError
from virtd.model.guest import DiskFormat

_VERSION: Final = 1


class Stage(StrEnum):
    """How far a snapshot is: only one that is COMPLETE is shown."""

    MAKING = "making"
    COMPLETE = "complete"
    GOING = "going"


@dataclass(frozen=True, slots=True)
class DiskCopy:
    """One disk of a snapshot: the file that the guest used, and the volume that is the copy."""

    disk: str
    path: str
    format: DiskFormat
    pool: str
    volume: str

    @property
    def id(self) -> str:
        """``pool/volume``."""
        return f"{self.pool}/{self.volume}"


@dataclass(frozen=True, slots=True)
class CopyRecord:
    """One snapshot."""

    name: str
    description: str
    parent: str
    time: datetime
    stage: Stage
    disks: tuple[DiskCopy, ...] = ()

    @property
    def volumes(self) -> tuple[str, ...]:
        """The copies, as ``pool/volume``."""
        return tuple(disk.id for disk in self.disks)


@dataclass(frozen=True, slots=True)
class CopyTree:
    """All snapshots of a guest, parents before children, and which one its present content descends from."""

    current: str = ""
    records: tuple[CopyRecord, ...] = ()

    def find(self, name: str) -> CopyRecord | None:
        """The snapshot, whatever its stage."""
        return next((record for record in self.records if record.name == name), None)

    def with_record(self, record: CopyRecord) -> CopyTree:
        """With this one instead of the one of its name, or at the end."""
        if self.find(record.name) is None:
            return replace(self, records=(*self.records, record))
        return replace(self, records=tuple(record if old.name == record.name else old for old in self.records))

    def without(self, name: str) -> CopyTree:
        """Without this one; its children go to its parent."""
        gone = self.find(name)
        if gone is None:
            return self
        rest = (record for record in self.records if record.name != name)
        children = tuple(replace(entry, parent=gone.parent) if entry.parent == name else entry for entry in rest)
        return CopyTree(gone.parent if self.current == name else self.current, children)

    def to_text(self) -> str:
        """As text; empty where there is nothing."""
        if not self.records:
            return ""
        return json.dumps(
            {"version": _VERSION, "current": self.current, "snapshots": [_to_json(record) for record in self.records]},
            separators=(",", ":"),
        )

    @classmethod
    def of_text(cls, text: str) -> Self:
        """Inverse of :meth:`to_text`.

        :raises InternalError: JOURNAL_CORRUPT.
        """
        if not text:
            return cls()
        try:
            data = json.loads(text)
            _check_version(data["version"])
            return cls(str(data["current"]), tuple(_of_json(item) for item in data["snapshots"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InternalError(
                JOURNAL_CORRUPT, "the records of the guest's snapshots, kept with its definition, cannot be read"
            ) from error


class RecordKeeper(Protocol):
    """What a hypervisor does for snapshots that are copies.

    The text belongs to the guest's definition: ``read_definition`` has it, ``undefine_guest`` loses it, a
    ``define_guest`` of a guest that exists keeps it.
    """

    async def read_records(self, uuid: UUID) -> str:
        """The text; empty if there is none.

        :raises NotFoundError: GUEST_NOT_FOUND.
        """

    async def write_records(self, uuid: UUID, text: str) -> None:
        """Replace it, as one: a loss of power leaves the old one or the new one.

        :raises NotFoundError: GUEST_NOT_FOUND.
        """


def _check_version(version: object) -> None:
    if version != _VERSION:
        raise ValueError(version)


def _to_json(record: CopyRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "description": record.description,
        "parent": record.parent,
        "time": record.time.isoformat(),
        "stage": record.stage.value,
        "disks": disks_to_json(record.disks),
    }


def _of_json(item: Mapping[str, Any]) -> CopyRecord:
    return CopyRecord(
        str(item["name"]),
        str(item["description"]),
        str(item["parent"]),
        datetime.fromisoformat(item["time"]),
        Stage(item["stage"]),
        disks_of_json(item["disks"]),
    )


def disks_to_json(disks: tuple[DiskCopy, ...]) -> list[list[str]]:
    """As JSON data."""
    return [[disk.disk, disk.path, disk.format.value, disk.pool, disk.volume] for disk in disks]


def disks_of_json(data: list[list[str]]) -> tuple[DiskCopy, ...]:
    """Inverse of :func:`disks_to_json`."""
    return tuple(DiskCopy(disk, path, DiskFormat(format_), pool, volume) for disk, path, format_, pool, volume in data)
