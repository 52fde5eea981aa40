"""By which addresses one host's libvirt, and its guests' memory, reach another one's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import libvirt

from virtd.backend.api import HostConfig
from virtd.backend.shared import OPTION as SHARED_OPTION
from virtd.backend.shared import directories_of, option_of
from virtd.errors import CONFIG_INVALID, InvalidArgumentError
from virtd.libvirt.connections import parse_uri
from virtd.model.migration import FindingSeverity, MigrationFinding, MigrationReason

URI_OPTION: Final = "migration_uri"
DATA_OPTION: Final = "migration_data_uri"
OPTIONS: Final = (URI_OPTION, DATA_OPTION, SHARED_OPTION)
_LOOPBACK: Final = ("localhost", "127.", "::1")


@dataclass(frozen=True, slots=True)
class Route:
    """The way to a target.

    :param uri: of the target's libvirt, for the source's; empty: not known.
    :param data: where the target listens for memory and disks: ``tcp://HOST``, ``unix:DIRECTORY``; empty: what
        libvirt makes of the target's own host name.
    """

    uri: str
    data: str = ""
    findings: tuple[MigrationFinding, ...] = ()

    def parameters(self, uuid: UUID, *, mirrors: bool) -> Mapping[str, Any]:
        """The parameters of virDomainMigrateToURI3 that are about addresses."""
        found: dict[str, Any] = {}
        if not self.data:
            return found
        if self.data.startswith("unix:"):
            # One socket each, below the target's own directory: 107 bytes are all that a path may have.
            place = PurePosixPath(self.data.removeprefix("unix:"))
            found[libvirt.VIR_MIGRATE_PARAM_URI] = f"unix://{place}/{uuid.hex[:8]}.m"
            if mirrors:
                found[libvirt.VIR_MIGRATE_PARAM_DISKS_URI] = f"unix://{place}/{uuid.hex[:8]}.d"
            return found
        found[libvirt.VIR_MIGRATE_PARAM_URI] = self.data
        listen = urlsplit(self.data).hostname
        if mirrors and listen:
            found[libvirt.VIR_MIGRATE_PARAM_LISTEN_ADDRESS] = listen
        return found


def check_options(config: HostConfig) -> None:
    """Refuse options of a host that can never be right.

    :raises InvalidArgumentError: CONFIG_INVALID.
    """
    directories_of(option_of(config.options))
    uri, data = config.options.get(URI_OPTION, ""), config.options.get(DATA_OPTION, "")
    if uri:
        parse_uri(uri)
        if not urlsplit(uri).netloc and "socket=" not in uri:
            raise InvalidArgumentError(
                CONFIG_INVALID, f"host {config.id}: {URI_OPTION} must name the machine, as in {_example(config)}"
            )
    if data and not (data.startswith("unix:/") or (data.startswith("tcp://") and urlsplit(data).hostname)):
        raise InvalidArgumentError(
            CONFIG_INVALID, f"host {config.id}: {DATA_OPTION} must be tcp://ADDRESS or unix:/DIRECTORY"
        )


def is_here(config: HostConfig) -> bool:
    """Whether the host's libvirt is this machine's own."""
    driver, transport = parse_uri(config.uri)
    return driver == "test" or (transport == "unix" and not urlsplit(config.uri).netloc)


def route_of(source: HostConfig, target: HostConfig) -> Route:
    """The way from one host to another, by their configuration."""
    data = target.options.get(DATA_OPTION, "")
    if target.options.get(URI_OPTION):
        return Route(target.options[URI_OPTION], data)
    if is_here(source) and is_here(target):
        socket = parse_qs(urlsplit(target.uri).query).get("socket", [""])[0]
        if socket:
            driver, _ = parse_uri(target.uri)
            uri = f"{driver}+unix://{urlsplit(target.uri).path}?socket={socket}"
            return Route(uri, data or f"unix:{os.path.dirname(socket)}")  # noqa: PTH120 - a string, as the API has it
        return Route("", data, (_unknown(target, "the libvirt of this machine cannot be reached from itself"),))
    parts = urlsplit(target.uri)
    name = parts.hostname or ""
    if name and not name.startswith(_LOOPBACK):
        derived = MigrationFinding(
            FindingSeverity.INFORMATION,
            MigrationReason.CONNECTION_DERIVED,
            f"host {source.id} will reach host {target.id} as virtd does, at {name}",
            f"Where that is not so, set the option {URI_OPTION} of host {target.id}.",
            "target",
        )
        return Route(_without_secrets(target.uri), data, (derived,))
    why = "virtd reaches it through an address of this machine" if name else "its URI names no machine"
    return Route("", data, (_unknown(target, why),))


def _unknown(target: HostConfig, why: str) -> MigrationFinding:
    return MigrationFinding(
        FindingSeverity.CRITICAL,
        MigrationReason.CONNECTION_UNKNOWN,
        f"how other hosts reach the libvirt of host {target.id} is not known: {why}",
        f'Configure it: under [hosts.{target.id}.options] set {URI_OPTION} = "{_example(target)}", by the name '
        f'or address that the other hosts use, and if need be {DATA_OPTION} = "tcp://ADDRESS".',
        "target",
    )


def _example(config: HostConfig) -> str:
    return f"{parse_uri(config.uri)[0]}+tls://NAME/system"


def _without_secrets(uri: str) -> str:
    """The URI for another machine: keys and files of this one mean nothing there."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"
