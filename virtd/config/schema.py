"""The configuration file's form: names, types, limits and documentation of every option.

The models describe what may stand in the file; :mod:`virtd.config.loader` turns a checked one into
the plain values of :mod:`virtd.config.model`.  ``None`` means "not said".  The descriptions are the
reference: :mod:`virtd.config.reference` prints them.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from virtd.config import model
from virtd.config.model import Embedded, LogFormat, LogLevel, OnDelete
from virtd.model.names import ID_PATTERN

_ID: Final = re.compile(ID_PATTERN)
_MODE: Final = re.compile(r"0?[0-7]{3}")
_URI: Final = re.compile(r"[a-z][a-z0-9+.-]*://(?P<authority>[^/?#\s]*)[^\s\x00-\x1f\x7f]*", re.IGNORECASE)
_VERB: Final = re.compile(r"[a-z]+(-[a-z]+)*")
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?")
_ENDPOINT: Final = re.compile(r"https?://[^\s/?#@]+/?")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def _plain_default(cls: type, name: str) -> Any:
    """The default that the plain class has, so that it stands in one place only."""
    (found,) = [entry for entry in dataclasses.fields(cls) if entry.name == name]
    if found.default is dataclasses.MISSING:
        message = f"{cls.__name__}.{name} has no plain default"
        raise TypeError(message)
    return found.default


# ------------------------------------------------------------------------------------ text checks


def _mode(value: object) -> object:
    if not isinstance(value, str) or not _MODE.fullmatch(value):
        raise ValueError('write the mode as a text of octal digits, for example "0660"')
    if int(value, 8) & 0o007:
        raise ValueError("other users may not have access to the socket: the last digit must be 0")
    return value


def _path(value: str) -> str:
    if not value.startswith(("/", "~/")):
        raise ValueError("must be an absolute path (it begins with / or ~/)")
    return _text(value)


def _allowed(value: str) -> str:
    if not value.strip("/."):
        raise ValueError("the root directory would allow every file of the machine; name the directories one by one")
    return _path(value)


def _uri(value: str) -> str:
    match = _URI.fullmatch(value)
    if not match:
        raise ValueError('must be a URI of a hypervisor, for example "qemu:///system" or "qemu+ssh://user@host/system"')
    user_info, at, _ = match["authority"].rpartition("@")
    if at and ":" in user_info:
        raise ValueError("must not hold a password: use keys or certificates")
    return value


def _repository_id(value: str) -> str:
    if not _ID.fullmatch(value):
        raise ValueError("a repository's name is 1 to 63 lower-case letters, digits, '.', '_' or '-'")
    return value


def _host_id(value: str) -> str:
    if not _ID.fullmatch(value):
        raise ValueError(
            "a host's id is 1 to 63 lower-case letters, digits, '.', '_' or '-', beginning and ending with a letter "
            "or digit"
        )
    return value


def _verb(value: str) -> str:
    if not _VERB.fullmatch(value):
        raise ValueError("must be the verb of an operation, for example create or snapshot-create")
    return value


def _label_key(value: str) -> str:
    if not _LABEL.fullmatch(value):
        raise ValueError("a label's name is 1 to 63 lower-case letters, digits, '.', '_', '/' or '-'")
    return value


def _endpoint(value: str) -> str:
    if value and not _ENDPOINT.fullmatch(value):
        raise ValueError('must be the URL of an OTLP gRPC receiver, for example "http://127.0.0.1:4317"')
    return value


def _text(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError("must not contain control characters")
    return value


PathText = Annotated[str, AfterValidator(_path)]
Text = Annotated[str, AfterValidator(_text)]
Seconds = Annotated[float, Field(gt=0, le=30 * 24 * 3600, allow_inf_nan=False)]


# --------------------------------------------------------------------------------------- sections


class Section(BaseModel):
    """Base of all tables: unknown keys are errors, and a text is never taken for a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)


class Server(Section):
    """Where the API is served, and its limits."""

    socket: PathText | None = Field(
        default=None,
        description="The unix socket of the API. Callers are known by the credentials of their process.",
        json_schema_extra={"default_text": "`virtd.sock` in `state.runtime_directory`"},
    )
    socket_mode: Annotated[str, BeforeValidator(_mode)] | None = Field(
        default=None,
        description="Permissions of the socket, as a text of octal digits. They are set before the first call is "
        "taken. Who can open the socket can manage every guest.",
        json_schema_extra={"default_text": '`"0660"` for root, `"0600"` for other users'},
    )
    socket_owner: str | None = Field(
        default=None,
        min_length=1,
        description="User, by name or number, who owns the socket.",
        json_schema_extra={"default_text": "the daemon's user"},
    )
    socket_group: str | None = Field(
        default=None,
        min_length=1,
        description="Group, by name or number, of the socket: with mode 0660 its members may use the API.",
        json_schema_extra={"default_text": "the daemon's group"},
    )
    tcp_listen: str | None = Field(
        default=None,
        description="A loopback address and port on which the API is served as well, for example "
        '`"127.0.0.1:7443"` or `"[::1]:7443"`; port 0 takes a free one. There is no TLS yet, so it needs `insecure`.',
        json_schema_extra={"default_text": "no TCP"},
    )
    insecure: bool = Field(
        default=_plain_default(model.ServerConfig, "insecure"),
        description="Allow TCP without TLS. Every user and program of this machine can then manage every guest. "
        "Only loopback addresses are accepted even so.",
    )
    max_concurrent_calls: int = Field(
        default=_plain_default(model.ServerConfig, "max_concurrent_calls"),
        ge=1,
        le=100_000,
        description="So many calls are worked on at once, open watches included; more are refused with "
        "RESOURCE_EXHAUSTED.",
    )
    max_message_bytes: int = Field(
        default=_plain_default(model.ServerConfig, "max_message_bytes"),
        ge=64 * 1024,
        le=1024 * 1024 * 1024,
        description="Largest request and response, in bytes.",
    )
    drain_timeout_s: float = Field(
        default=_plain_default(model.ServerConfig, "drain_timeout_s"),
        ge=0,
        le=3600,
        description="After SIGTERM: how long running calls and operations may take to end, in seconds. Operations that "
        "have not ended then are taken up again by the next start.",
    )


class State(Section):
    """Directories of the daemon. Two daemons cannot share them."""

    directory: PathText | None = Field(
        default=None,
        description="What survives a restart: the journal, images, volumes. Created when it is not there.",
        json_schema_extra={
            "default_text": "`/var/lib/virtd` for root, `$XDG_STATE_HOME/virtd` (`~/.local/state/virtd`) otherwise"
        },
    )
    runtime_directory: PathText | None = Field(
        default=None,
        description="Sockets and process ids, also those of the private libvirt daemon.",
        json_schema_extra={
            "default_text": "`run` in `state.directory` where that is set; else `/run/virtd` for root, "
            "`$XDG_RUNTIME_DIR/virtd` for other users, and `run` in `state.directory` where there is none"
        },
    )


class Host(Section):
    """One hypervisor endpoint: `[hosts.NAME]`, where NAME is the host's id in `hosts/NAME`."""

    uri: Annotated[str, AfterValidator(_uri)] = Field(
        description="How it is reached; the scheme chooses the backend: `qemu:///system`, `qemu:///session`, "
        "`qemu+ssh://user@host/system`, `qemu+tls://host/system`, `qemu+unix:///system?socket=/path`. Without a "
        "password.",
    )
    labels: dict[Annotated[str, AfterValidator(_label_key)], Text] = Field(
        default_factory=dict, description="Labels of the host, for filters."
    )
    call_timeout_s: Seconds = Field(
        default=_plain_default(model.HostEntry, "call_timeout_s"),
        description="A call of the hypervisor that has not answered after so many seconds is given up, and the host is "
        "taken for unreachable. Other hosts are not touched by it.",
    )
    workers: int = Field(
        default=_plain_default(model.HostEntry, "workers"),
        ge=1,
        le=64,
        description="So many calls are made to this host at once, each on a connection of its own.",
    )
    options: dict[Text, Text] = Field(
        default_factory=dict, description="Options that the backend defines for its hosts; all are texts."
    )


class Discovery(Section):
    """What virtd finds by itself, so that it works with no configuration at all."""

    enabled: bool = Field(
        default=_plain_default(model.DiscoveryConfig, "enabled"),
        description="Where no host is configured, look for the hypervisors of this machine and add them as hosts. "
        "`false`: there are only the hosts that are configured or added, and a private libvirt daemon only where "
        "`embedded` is `always`.",
    )
    embedded: Embedded = Field(
        default=_plain_default(model.DiscoveryConfig, "embedded"),
        strict=False,
        description="A private libvirt daemon for this user, which virtd starts itself and which keeps its guests over "
        "a restart: `auto` where no other host is configured or found, `always`, or `never`. It is the host `local`.",
    )


class Plugins(Section):
    """Backends and other plugins, found by the entry points `virtd.backends`."""

    block: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list,
        description="Names of entry points that are not loaded. GetServerInfo shows them as blocked.",
    )


class Storage(Section):
    """Which files of the host a guest may use."""

    allowed_directories: list[Annotated[str, AfterValidator(_allowed)]] | None = Field(
        default=None,
        description="Disks, kernels, initial RAM disks and images that a request names as files of the host must lie "
        "in one of these directories or below, after all symbolic links are followed. An empty list: no file at all. "
        "virtd's own images and volumes are used by their names, never by their paths.",
        json_schema_extra={"default_text": "`import` in `state.directory`"},
    )
    backup_repositories: dict[Annotated[str, AfterValidator(_repository_id)], Annotated[str, AfterValidator(_path)]] = (
        Field(
            default_factory=dict,
            description='Directories for backups, by name: `nightly = "/srv/backups"`. They are made where they are '
            "missing. The name `default` moves the repository that is always there to another directory.",
            json_schema_extra={"default_text": "`default` is `backups` in `state.directory`"},
        )
    )


class Images(Section):
    """The catalogue of disk images."""

    allow_private_addresses: bool = Field(
        default=_plain_default(model.ImagesConfig, "allow_private_addresses"),
        description="Import images also from URLs that lead to addresses of private networks, or to this machine. "
        "virtd then asks servers in the name of its callers that these may not reach themselves, and tells them "
        "whether they answer: allow it where everybody who may import images may ask those servers too. Proxies of the "
        "environment (`https_proxy`, `no_proxy`) are used, and see the addresses instead of virtd.",
    )
    max_bytes: int = Field(
        default=_plain_default(model.ImagesConfig, "max_bytes"),
        ge=2**20,
        le=2**50,
        description="A larger file is not fetched or taken as an upload, in bytes.",
    )


class Operations(Section):
    """Every change runs as an operation."""

    max_parallel: int = Field(
        default=_plain_default(model.OperationsConfig, "max_parallel"),
        ge=1,
        le=1000,
        description="So many operations work at once on each host; on one guest they always follow each other.",
    )
    max_queued: int = Field(
        default=_plain_default(model.OperationsConfig, "max_queued"),
        ge=1,
        le=1_000_000,
        description="So many operations may wait; more are refused with RESOURCE_EXHAUSTED (LIMIT_EXCEEDED).",
    )
    default_timeout_s: Seconds = Field(
        default=_plain_default(model.OperationsConfig, "default_timeout_s"),
        description="An operation that works longer, in seconds, is ended with DEADLINE_EXCEEDED and undone.",
    )
    timeouts_s: dict[Annotated[str, AfterValidator(_verb)], Seconds] = Field(
        default_factory=dict, description="The same for single verbs, for example `{ create = 3600, start = 120 }`."
    )
    retention_days: float = Field(
        default=_plain_default(model.OperationsConfig, "retention_days"),
        ge=1,
        le=3650,
        description="Ended operations, and the request ids of all, are remembered for so many days.",
    )


class Events(Section):
    """The event log and its watchers. An event lives until the first of the two limits is reached."""

    retention_count: int = Field(
        default=_plain_default(model.EventsConfig, "retention_count"),
        ge=1000,
        le=100_000_000,
        description="At most so many events are kept.",
    )
    retention_hours: float = Field(
        default=_plain_default(model.EventsConfig, "retention_hours"),
        gt=0,
        le=24 * 3650,
        description="Events are kept for at most so many hours. A watcher that was away longer has to list again.",
    )
    watcher_buffer: int = Field(
        default=_plain_default(model.EventsConfig, "watcher_buffer"),
        ge=10,
        le=10_000_000,
        description="A watcher that is so many events behind is closed with WATCHER_TOO_SLOW and its last token; it "
        "can resume, and nothing is skipped.",
    )


class Metrics(Section):
    """Usage of guests, and numbers of the daemon itself."""

    interval_s: Seconds = Field(
        default=_plain_default(model.MetricsConfig, "interval_s"),
        description="Seconds between two samples of all guests of a host.",
    )
    listen: str | None = Field(
        default=None,
        description='A loopback address and port for Prometheus, for example `"127.0.0.1:9465"`; the path is '
        "`/metrics`. Anyone on this machine can read it: it shows the names and the usage of all guests.",
        json_schema_extra={"default_text": "off"},
    )


class Consoles(Section):
    """The serial consoles of guests."""

    log_max_bytes: int = Field(
        default=_plain_default(model.ConsolesConfig, "log_max_bytes"),
        ge=0,
        le=2**30,
        description="How much of what each guest prints to its console is kept in the state directory, in bytes; the "
        "oldest goes first. 0 keeps it in memory only, 256 KiB of it.",
    )


class Trash(Section):
    """Deleted guests that can be brought back."""

    on_delete: OnDelete = Field(
        default=_plain_default(model.TrashConfig, "on_delete"),
        strict=False,
        description="What becomes of a deleted guest whose caller does not say: `delete` it with its disks, or move it "
        "to the `trash`.",
    )
    retention_days: float = Field(
        default=_plain_default(model.TrashConfig, "retention_days"),
        ge=0,
        le=3650,
        allow_inf_nan=False,
        description="After so many days in the trash a guest and its disks are deleted for ever; 0: never. It holds "
        "for what is deleted from now on.",
    )


class Strategy(Section):
    """Run strategies: how guests are started again."""

    backoff_first_s: Seconds = Field(
        default=_plain_default(model.StrategyConfig, "backoff_first_s"),
        description="How long the second start in a row waits, in seconds; the first does not wait, and each later "
        "one waits twice as long as that before it.",
    )
    backoff_max_s: Seconds = Field(
        default=_plain_default(model.StrategyConfig, "backoff_max_s"),
        description="No start waits longer, in seconds.",
    )
    stable_s: Seconds = Field(
        default=_plain_default(model.StrategyConfig, "stable_s"),
        description="A guest that has run so long, in seconds, has not failed: it is started at once the next time.",
    )
    halt_timeout_s: Seconds = Field(
        default=_plain_default(model.StrategyConfig, "halt_timeout_s"),
        description="How long a guest with the strategy HALTED may take to shut down, in seconds, before it is asked "
        "again. It is never forced.",
    )


class Agent(Section):
    """The agents in guests."""

    file_max_bytes: int = Field(
        default=_plain_default(model.AgentConfig, "file_max_bytes"),
        ge=1024,
        le=2**34,
        description="The largest file, or part of one, that one call reads or writes through a guest agent, in bytes.",
    )


class Inventory(Section):
    """What virtd knows of every guest is fed by events, and compared with the hypervisor now and then."""

    resync_s: Seconds = Field(
        default=_plain_default(model.InventoryConfig, "resync_s"),
        description="Seconds between two comparisons. Where a hypervisor sends no events, this is also how often its "
        "guests are looked at.",
    )


class Log(Section):
    """The daemon's log, on standard error."""

    level: LogLevel = Field(
        default=_plain_default(model.LogConfig, "level"),
        strict=False,
        description="Least important level that is written: `debug`, `info`, `warning` or `error`.",
    )
    format: LogFormat = Field(
        default=_plain_default(model.LogConfig, "format"),
        strict=False,
        description="`json`: one object a line; `console`: for people; `auto`: console on a terminal, json otherwise.",
    )


class Tracing(Section):
    """OpenTelemetry traces. Needs the extra `tracing` (`pip install 'virtd[tracing]'`)."""

    endpoint: Annotated[str, AfterValidator(_endpoint)] = Field(
        default=_plain_default(model.TracingConfig, "endpoint"),
        description='URL of an OTLP gRPC receiver, for example `"http://127.0.0.1:4317"`; empty: no traces.',
    )
    sample: float = Field(
        default=_plain_default(model.TracingConfig, "sample"),
        ge=0,
        le=1,
        description="Part of the traces that are kept, 0 to 1. A caller's own decision is respected.",
    )


class File(Section):
    """The whole file."""

    server: Server = Field(default_factory=Server)
    state: State = Field(default_factory=State)
    hosts: dict[Annotated[str, AfterValidator(_host_id)], Host] = Field(default_factory=dict)
    discovery: Discovery = Field(default_factory=Discovery)
    plugins: Plugins = Field(default_factory=Plugins)
    storage: Storage = Field(default_factory=Storage)
    images: Images = Field(default_factory=Images)
    operations: Operations = Field(default_factory=Operations)
    events: Events = Field(default_factory=Events)
    metrics: Metrics = Field(default_factory=Metrics)
    consoles: Consoles = Field(default_factory=Consoles)
    agent: Agent = Field(default_factory=Agent)
    trash: Trash = Field(default_factory=Trash)
    strategy: Strategy = Field(default_factory=Strategy)
    inventory: Inventory = Field(default_factory=Inventory)
    log: Log = Field(default_factory=Log)
    tracing: Tracing = Field(default_factory=Tracing)
