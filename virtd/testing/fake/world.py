"""Worlds: one fake hypervisor each, with its faults, its clock and, if wanted, its file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import NAMESPACE_URL, UUID, uuid5

from virtd.model.migration import MigrationFinding
from virtd.testing.clock import Clock, SystemClock
from virtd.testing.fake.faults import Faults
from virtd.testing.fake.native import NativeHypervisor
from virtd.testing.fake.networks import NativeNetworks
from virtd.testing.fake.options import FakeOptions, parse_uri
from virtd.testing.fake.state import FakePool, FakeVolume, guest_from_json, guest_to_json

_FILE: Final = "fake-world.json"
_VOLUME_HEAD_BYTES: Final = 4096


class FakeWorld:
    """All that a fake host is.

    :param directory: where a world with ``persist=1`` lives; "" otherwise.
    """

    def __init__(self, options: FakeOptions, clock: Clock, directory: str = "") -> None:
        self.options = options
        self.clock = clock
        self.directory = directory
        self.faults = Faults(clock)
        self.migration_findings: list[MigrationFinding] = []
        """What every check of a guest that comes here finds."""
        self.native = NativeHypervisor(self)
        self.networks = NativeNetworks(self.native)
        self._drawn = 0
        if not self._load():
            for index in range(options.guests):
                self.native.define_foreign(f"guest-{index}")
            self.save()

    def draw_uuid(self, label: str) -> UUID:
        """The next UUID: the same sequence for the same seed and labels."""
        self._drawn += 1
        return uuid5(NAMESPACE_URL, f"fake:{self.options.path}:{self.options.seed}:{self._drawn}:{label}")

    @property
    def native_calls(self) -> dict[str, int]:
        """How often each native call has been made."""
        return dict(self.faults.counts)

    @contextmanager
    def recording(self) -> Iterator[list[str]]:
        """The names of the native calls that are made in the block, in order."""
        with self.native.recording() as calls:
            yield calls

    def disconnect(self) -> None:
        """See :meth:`NativeHypervisor.disconnect`."""
        self.native.disconnect()

    def reconnect(self) -> None:
        """See :meth:`NativeHypervisor.reconnect`."""
        self.native.reconnect()

    def digest(self) -> str:
        """Everything there is, as text: two worlds with the same digest are the same.  Half-made things count."""
        return json.dumps(self._document(), sort_keys=True, indent=1)

    # ------------------------------------------------------------------------------- the file

    def _document(self) -> dict[str, object]:
        return {
            "drawn": self._drawn,
            "guests": [guest_to_json(guest) for guest in self.native.guests.values()],
            "pools": [
                {
                    "name": pool.name,
                    "path": pool.path,
                    "kind": pool.kind,
                    "source": pool.source,
                    "active": pool.active,
                    "autostart": pool.autostart,
                    "volumes": [vars(volume) for volume in pool.volumes.values()],
                }
                for pool in self.native.pools.values()
            ],
            "networks": self.networks.to_json(),
        }

    def save(self) -> None:
        """Write the world if it has a file.  A kill at any moment leaves the old file or the new one."""
        if not self.directory:
            return
        path = Path(self.directory, _FILE)
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(self._document()))
        temporary.replace(path)

    def _load(self) -> bool:
        path = Path(self.directory, _FILE)
        if not self.directory or not path.exists():
            return False
        data = json.loads(path.read_text())
        self._drawn = data["drawn"]
        for item in data["guests"]:
            guest = guest_from_json(item)
            guest.booted = guest.active_now
            guest.started_at = self.clock.monotonic()
            self.native.guests[guest.uuid] = guest
        for item in data["pools"]:
            volumes = {volume["name"]: FakeVolume(**volume) for volume in item["volumes"]}
            self.native.pools[item["name"]] = FakePool(**{**item, "volumes": volumes})
        self.networks.load(data["networks"])
        return True

    def write_volume(self, volume: FakeVolume) -> None:
        """Make the volume's file: its source's first bytes, or a mark.  Only for a world with a file."""
        if not self.directory:
            return
        head = b"fake volume\n"
        if volume.backing_path and Path(volume.backing_path).is_file():
            with Path(volume.backing_path).open("rb") as source:
                head = source.read(_VOLUME_HEAD_BYTES)
        path = Path(volume.path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(head)

    def delete_volume(self, volume: FakeVolume) -> None:
        """Delete the volume's file, if it has one."""
        if self.directory:
            Path(volume.path).unlink(missing_ok=True)


class Worlds:
    """The worlds of a process, by the path of their URIs.

    :param clock: the time that they live in.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or SystemClock()
        self._worlds: dict[tuple[str, str], FakeWorld] = {}

    def get(self, uri: str, directory: str = "") -> FakeWorld:
        """The world of a URI; it is made by the first who asks.

        The URI's rates (latency, boot, presses, volume_mib_s) hold from now on; its number of guests
        and its seed only count when the world is made.

        :param directory: the host's directory (``HostConfig.directory``), used with ``persist=1``.
        :raises InvalidArgumentError: CONFIG_INVALID.
        """
        options = parse_uri(uri)
        home = os.path.realpath(directory) if options.persist else ""
        key = (options.path, home)
        if key not in self._worlds:
            self._worlds[key] = FakeWorld(options, self.clock, home)
        self._worlds[key].options = options
        return self._worlds[key]

    def forget(self, uri: str, directory: str = "") -> None:
        """Drop a world; a file that it has stays."""
        options = parse_uri(uri)
        self._worlds.pop((options.path, os.path.realpath(directory) if options.persist else ""), None)


WORLDS: Final = Worlds()
"""The worlds that the installed fake backend uses."""
