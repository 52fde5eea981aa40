"""Finding, reading and checking the configuration.

Every defect of a file is found in one go and told as CONFIG_INVALID with one violation each:
``field`` is the option's path (``hosts.lab.uri``), and the description names file and line.
"""

from __future__ import annotations

import difflib
import grp
import ipaddress
import os
import pwd
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from virtd.config.model import (
    AgentConfig,
    Config,
    ConsolesConfig,
    DiscoveryConfig,
    EventsConfig,
    HostEntry,
    ImagesConfig,
    InventoryConfig,
    LogConfig,
    MetricsConfig,
    OperationsConfig,
    PluginsConfig,
    ServerConfig,
    StateConfig,
    StorageConfig,
    StrategyConfig,
    TcpAddress,
    TracingConfig,
    TrashConfig,
)
from virtd.errors import CONFIG_INVALID, FieldViolation, InvalidArgumentError

if TYPE_CHECKING:
    from virtd.config.schema import File

SYSTEM_FILE: Final = Path("/etc/virtd/virtd.toml")
MAX_BYTES: Final = 1024 * 1024
"""A larger file is not a configuration."""
_SOCKET_PATH_BYTES: Final = 107
"""Linux: sizeof(sun_path) less the final NUL (unix(7))."""


@dataclass(frozen=True)
class Surroundings:
    """Who and where the daemon is: everything besides the file that the result depends on."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    uid: int = field(default_factory=os.geteuid)

    @property
    def home(self) -> Path:
        """The user's home directory."""
        return Path(self.environ.get("HOME") or pwd.getpwuid(self.uid).pw_dir)

    def xdg(self, variable: str, otherwise: str) -> Path:
        """A base directory of the XDG specification, which ignores relative values."""
        value = self.environ.get(variable, "")
        return Path(value) if value.startswith("/") else self.home / otherwise


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    overrides: Mapping[str, object] | None = None,
    surroundings: Surroundings | None = None,
) -> Config:
    """The configuration, checked and complete.

    The file is ``path``, else ``$VIRTD_CONFIG``, else ``/etc/virtd/virtd.toml`` for root and
    ``$XDG_CONFIG_HOME/virtd/virtd.toml`` for other users.  One that is named must exist; without
    any file, all defaults hold.  Nothing is created or changed.

    :param overrides: options by dotted path (``{"server.socket": "/tmp/s"}``) that go before the file:
        the command line.  Values are as they would be in the file.
    :raises InvalidArgumentError: CONFIG_INVALID with every violation found.
    """
    here = surroundings or Surroundings()
    source = find(path, here)
    text = _read(source) if source else ""
    document = _parse(text, source) if source else {}
    given = dict(overrides or {})
    for dotted, value in given.items():
        _put(document, dotted, value)
    problems = _Problems(source, text, given)
    if document:
        # Importing pydantic takes 80 ms: not worth it for no configuration at all.
        file = _check(document, problems)
        config = _resolve(file, document, here, source, problems)
    else:
        config = _resolve(None, {}, here, source, problems)
    problems.raise_if_any()
    assert config is not None
    return config


def find(path: str | os.PathLike[str] | None, surroundings: Surroundings) -> Path | None:
    """The file that :func:`load` would read, or None."""
    if path is not None:
        return Path(path)
    named = surroundings.environ.get("VIRTD_CONFIG")
    if named:
        return Path(named)
    usual = (
        SYSTEM_FILE if surroundings.uid == 0 else surroundings.xdg("XDG_CONFIG_HOME", ".config") / "virtd/virtd.toml"
    )
    # os.path.lexists: a dangling link is a defect to report, not an absence.
    return usual if os.path.lexists(usual) else None


# ---------------------------------------------------------------------------------------- reading


def _invalid(message: str, *violations: FieldViolation) -> InvalidArgumentError:
    return InvalidArgumentError(CONFIG_INVALID, message, violations=violations)


def _read(source: Path) -> str:
    try:
        with source.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        message = f"{source}: cannot be read: {error.strerror or error}"
        raise _invalid(message) from error
    if len(content) > MAX_BYTES:
        raise _invalid(f"{source}: is larger than {MAX_BYTES} bytes: not a configuration file")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _invalid(f"{source}, line {line}: is not UTF-8 text") from error


def _parse(text: str, source: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _invalid(f"{source}: is not valid TOML: {error}") from error


def _put(document: dict[str, Any], dotted: str, value: object) -> None:
    *tables, name = dotted.split(".")
    for table in tables:
        inner = document.get(table)
        if inner is None:
            inner = document[table] = {}
        if not isinstance(inner, dict):
            return  # the file has a value where a table belongs: the check says so
        document = inner
    document[name] = value


def line_of(text: str, path: tuple[str, ...]) -> int | None:
    """The line, from 1, on which a TOML document gives the value at ``path``; None if it cannot be told.

    tomllib keeps no positions.  But the first prefix of the text that parses and has the value ends with
    the value's last line, and the prefix that parsed before it ends just above its first line.
    """
    lines = text.splitlines(keepends=True)
    if len(lines) > 5000:  # noqa: PLR2004 -- a bound on the quadratic search, for errors only
        return None
    before = 0
    for number in range(1, len(lines) + 1):
        try:
            document = tomllib.loads("".join(lines[:number]))
        except tomllib.TOMLDecodeError:
            continue
        if _has(document, path):
            return before + 1
        before = number
    return None


def _has(document: object, path: tuple[str, ...]) -> bool:
    for part in path:
        if isinstance(document, list) and part.isdigit() and int(part) < len(document):
            document = document[int(part)]
        elif isinstance(document, dict) and part in document:
            document = document[part]
        else:
            return False
    return True


class _Problems:
    """Collects violations, each with its place."""

    def __init__(self, source: Path | None, text: str, overrides: Mapping[str, object]) -> None:
        self._source = source
        self._text = text
        self._overrides = overrides
        self._found: list[FieldViolation] = []

    def add(self, path: tuple[str, ...], description: str, *alternatives: str) -> None:
        """Note that the option at ``path`` is wrong."""
        dotted = ".".join(path)
        self._found.append(FieldViolation(dotted, f"{self._place(path)}{description}", alternatives))

    def about(self, *path: str) -> bool:
        """Whether something at or below ``path`` is wrong already."""
        dotted = ".".join(path)
        return any(found.field == dotted or found.field.startswith(dotted + ".") for found in self._found)

    def raise_if_any(self) -> None:
        """:raises InvalidArgumentError: CONFIG_INVALID, if there are any."""
        if not self._found:
            return
        first = self._found[0]
        more = f" (and {len(self._found) - 1} more)" if len(self._found) > 1 else ""
        raise _invalid(f"{first.field}: {first.description}{more}", *self._found)

    def _place(self, path: tuple[str, ...]) -> str:
        dotted = ".".join(path)
        if any(dotted == name or dotted.startswith(name + ".") for name in self._overrides):
            return "on the command line: "
        if self._source is None:
            return ""
        line = next((line for line in (line_of(self._text, path[:n]) for n in range(len(path), 0, -1)) if line), None)
        return f"{self._source}, line {line}: " if line else f"{self._source}: "


# --------------------------------------------------------------------------------------- checking


def _check(document: Mapping[str, Any], problems: _Problems) -> File | None:
    from pydantic import ValidationError

    from virtd.config.schema import File

    try:
        return File.model_validate(document)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            # pydantic marks a bad key of a mapping with "[key]" behind the key itself.
            path = tuple(str(part) for part in detail["loc"] if part != "[key]")
            description, alternatives = _describe(File, path, detail)
            problems.add(path, description, *alternatives)
        return None


def _describe(root: type, path: tuple[str, ...], detail: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    if detail["type"] == "extra_forbidden":
        known = _keys(root, path[:-1])
        near = tuple(difflib.get_close_matches(path[-1], known, n=1))
        where = f"in [{'.'.join(path[:-1])}]" if path[:-1] else "as a table"
        hint = f"did you mean {near[0]!r}?" if near else f"known {where}: {', '.join(known)}"
        return f"unknown option; {hint}", near or known
    context = detail.get("ctx", {})
    if detail["type"] == "value_error":
        return str(context["error"]), ()
    if detail["type"] == "missing":
        return "is required", ()
    if detail["type"] == "enum":
        return f"must be {context['expected']}", ()
    if detail["type"] == "model_type":
        return "must be a table", ()
    message = str(detail["msg"])
    return message.replace("Input should be", "must be").replace("valid dictionary", "table").replace(
        "String", "text"
    ), ()


def _keys(root: type, path: tuple[str, ...]) -> tuple[str, ...]:
    """The names that are known in the table at ``path``."""
    from typing import get_args

    model: Any = root
    parts = iter(path)
    for part in parts:
        annotation = model.model_fields[part].annotation
        if annotation is not None and get_args(annotation):
            annotation = get_args(annotation)[-1]  # dict[str, Host]
            next(parts, None)
        model = annotation
    return tuple(model.model_fields)


# -------------------------------------------------------------------------------------- resolving


def _resolve(
    file: File | None, document: Mapping[str, Any], here: Surroundings, source: Path | None, problems: _Problems
) -> Config | None:
    if file is None and document:
        return None
    sections: dict[str, dict[str, Any]] = {}
    for name in ("server", "state", "discovery", "plugins", "storage", "operations", "events", "metrics", "inventory",
                 "consoles", "agent", "images", "trash", "strategy", "log", "tracing"):  # fmt: skip
        section = getattr(file, name) if file else None
        # Only what is said: the rest is the plain classes' own default.
        sections[name] = {key: getattr(section, key) for key in section.model_fields_set} if section else {}
    state = _state(sections["state"], here)
    config = Config(
        server=_server(sections["server"], state, here, problems),
        state=state,
        storage=StorageConfig(
            allowed_directories=_allowed(sections["storage"], state, here),
            backup_repositories=MappingProxyType(_repositories(sections["storage"], here)),
        ),
        hosts=tuple(_hosts(file)) if file else (),
        images=ImagesConfig(**sections["images"]),
        discovery=DiscoveryConfig(**sections["discovery"]),
        plugins=PluginsConfig(block=tuple(sections["plugins"].get("block", ()))),
        operations=_operations(sections["operations"]),
        events=EventsConfig(**sections["events"]),
        metrics=_metrics(sections["metrics"], problems),
        inventory=InventoryConfig(**sections["inventory"]),
        consoles=ConsolesConfig(**sections["consoles"]),
        agent=AgentConfig(**sections["agent"]),
        trash=TrashConfig(**sections["trash"]),
        strategy=StrategyConfig(**sections["strategy"]),
        log=LogConfig(**sections["log"]),
        tracing=TracingConfig(**sections["tracing"]),
        source=source,
    )
    if config.server.tcp_listen and not config.server.insecure:
        problems.add(
            ("server", "tcp_listen"),
            "TCP has no TLS yet and needs insecure = true (--insecure): every user of this machine can then manage "
            "every guest. Use the unix socket if you can",
        )
    return config


def _state(said: Mapping[str, Any], here: Surroundings) -> StateConfig:
    root = here.uid == 0
    directory = _absolute(said.get("directory"), here)
    if directory is None:
        directory = Path("/var/lib/virtd") if root else here.xdg("XDG_STATE_HOME", ".local/state") / "virtd"
        session = here.environ.get("XDG_RUNTIME_DIR", "")
        usual = Path("/run/virtd") if root else Path(session) / "virtd" if session.startswith("/") else None
    else:
        # A daemon with a state directory of its own must not meet another one's sockets.
        usual = None
    runtime = _absolute(said.get("runtime_directory"), here) or usual or directory / "run"
    return StateConfig(directory=directory, runtime_directory=runtime)


def _server(said: Mapping[str, Any], state: StateConfig, here: Surroundings, problems: _Problems) -> ServerConfig:
    values = dict(said)
    socket = _absolute(values.pop("socket", None), here) or state.runtime_directory / "virtd.sock"
    if len(os.fsencode(socket)) > _SOCKET_PATH_BYTES:
        problems.add(
            ("server", "socket"),
            f"{socket} is longer than {_SOCKET_PATH_BYTES} bytes, the limit for unix sockets; choose a shorter path",
        )
    mode = values.pop("socket_mode", None) or ("0660" if here.uid == 0 else "0600")
    listen = values.pop("tcp_listen", None)
    return ServerConfig(
        socket=socket,
        socket_mode=int(mode, 8),
        socket_owner=_user(values.pop("socket_owner", None), problems),
        socket_group=_group(values.pop("socket_group", None), problems),
        tcp_listen=_loopback(listen, ("server", "tcp_listen"), problems),
        **values,
    )


def _metrics(said: Mapping[str, Any], problems: _Problems) -> MetricsConfig:
    values = dict(said)
    listen = _loopback(values.pop("listen", None), ("metrics", "listen"), problems)
    return MetricsConfig(listen=listen, **values)


def _operations(said: Mapping[str, Any]) -> OperationsConfig:
    values = dict(said)
    return OperationsConfig(timeouts_s=MappingProxyType(dict(values.pop("timeouts_s", {}))), **values)


def _hosts(file: File) -> Iterator[HostEntry]:
    for name, host in file.hosts.items():
        yield HostEntry(
            id=name,
            uri=host.uri,
            labels=MappingProxyType(dict(host.labels)),
            call_timeout_s=host.call_timeout_s,
            workers=host.workers,
            options=MappingProxyType(dict(host.options)),
        )


def _allowed(said: Mapping[str, Any], state: StateConfig, here: Surroundings) -> tuple[Path, ...]:
    # virtd's own images and volumes are not among them: a guest that opened one by its path could write to what
    # other guests' disks are based on.
    named = said.get("allowed_directories")
    more = [state.import_directory] if named is None else [_absolute(entry, here) for entry in named]
    # Resolved here once; the check of a request resolves the request's path and compares.
    return tuple(dict.fromkeys(Path(os.path.realpath(path)) for path in more if path))


def _repositories(said: Mapping[str, Any], here: Surroundings) -> dict[str, Path]:
    found = {name: _absolute(path, here) for name, path in said.get("backup_repositories", {}).items()}
    return {name: path for name, path in found.items() if path is not None}


def _absolute(value: str | None, here: Surroundings) -> Path | None:
    if value is None:
        return None
    return Path(os.path.normpath(here.home / value[2:] if value.startswith("~/") else value))


def _loopback(value: str | None, path: tuple[str, ...], problems: _Problems) -> TcpAddress | None:
    if value is None:
        return None
    host, colon, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:  # noqa: PLR2004
        problems.add(path, f'{value!r} is not ADDRESS:PORT, for example "127.0.0.1:7443"')
        return None
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        problems.add(path, f"{host!r} is not a numeric address; a name could be resolved to any address")
        return None
    if not address.is_loopback:
        problems.add(path, f"{address} is not a loopback address; only 127.0.0.0/8 and ::1 are accepted without TLS")
        return None
    return TcpAddress(str(address), int(port))


def _user(value: str | None, problems: _Problems) -> int | None:
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return int(value)
    try:
        return pwd.getpwnam(value).pw_uid
    except KeyError:
        problems.add(("server", "socket_owner"), f"there is no user {value!r} on this machine")
        return None


def _group(value: str | None, problems: _Problems) -> int | None:
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return int(value)
    try:
        return grp.getgrnam(value).gr_gid
    except KeyError:
        problems.add(("server", "socket_group"), f"there is no group {value!r} on this machine")
        return None
