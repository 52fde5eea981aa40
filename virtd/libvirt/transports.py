"""How another machine's libvirt is reached: by ssh, by TLS, or by plain TCP.

libvirt does the reaching; here its URI is completed from the host's options, what can never work is refused
at once, and nothing is left that could wait for a person: no prompt, no connection attempt without an end.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from virtd.backend.api import HostConfig
from virtd.errors import CONFIG_INVALID, InvalidArgumentError
from virtd.libvirt.connections import parse_uri

TLS_CA: Final = "tls_ca"
TLS_CERT: Final = "tls_cert"
TLS_KEY: Final = "tls_key"
SSH_KEY: Final = "ssh_key"
SSH_KNOWN_HOSTS: Final = "ssh_known_hosts"
TLS_OPTIONS: Final = (TLS_CA, TLS_CERT, TLS_KEY)
SSH_OPTIONS: Final = (SSH_KEY, SSH_KNOWN_HOSTS)
OPTIONS: Final = (*TLS_OPTIONS, *SSH_OPTIONS)
"""The options of a host that are about the way to it, for every backend on libvirt."""

SSH_TRANSPORTS: Final = ("ssh", "libssh", "libssh2")
PORTS: Final[Mapping[str, int]] = {"tls": 16514, "tcp": 16509, "ssh": 22, "libssh": 22, "libssh2": 22}
_NAMES: Final = {TLS_CA: "cacert.pem", TLS_CERT: "clientcert.pem", TLS_KEY: "clientkey.pem"}
"""What libvirt calls the files in the directory that ``pkipath`` names."""
_SYSTEM_PKI: Final = {
    TLS_CA: "/etc/pki/CA/cacert.pem",
    TLS_CERT: "/etc/pki/libvirt/clientcert.pem",
    TLS_KEY: "/etc/pki/libvirt/private/clientkey.pem",
}
# Whoever may add a host must not thereby run programs on virtd's machine, or point it at other files of virtd's user.
_REFUSED: Final = {
    "command": "virtd runs ssh itself; what is special about a host belongs into ~/.ssh/config of virtd's user",
    "authfile": "passwords are never typed by virtd: use keys or certificates",
}
_SSH_PROGRAM: Final = "ssh"
_CONNECT_S: Final = 10
"""How long ssh may take to reach the other side."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a remote libvirt is: ``host`` may be an alias of ssh's, ``port`` is the transport's own unless given."""

    transport: str
    host: str
    port: int
    verify: bool
    """Whether the server's certificate, or ssh's host key, is checked."""


def address_of(uri: str) -> Address | None:
    """The address in a URI; None: it is this machine's libvirt.

    :raises InvalidArgumentError: CONFIG_INVALID.
    """
    _, transport = parse_uri(uri)
    if transport not in PORTS:
        return None
    parts = urlsplit(uri)
    try:
        port = parts.port
    except ValueError as error:
        raise InvalidArgumentError(CONFIG_INVALID, f"{uri!r}: {error}") from error
    query = dict(parse_qsl(parts.query))
    host = parts.hostname or "localhost"
    return Address(transport, host, port or PORTS[transport], query.get("no_verify", "0") == "0")


def check_config(config: HostConfig, backend: str, schemes: Collection[str], options: Collection[str]) -> None:
    """Refuse what can never be right: a scheme or an option that is unknown, files that are not there.

    :param options: those that the backend has beside the ones here.
    :raises InvalidArgumentError: CONFIG_INVALID, with what to do.
    """
    driver, transport = parse_uri(config.uri)
    if config.uri.partition(":")[0] not in schemes:
        raise _wrong(
            config, f"{config.uri!r}: the backend {backend} takes the schemes {', '.join(schemes)}, "
            f"not {driver}+{transport}",
        )  # fmt: skip
    known = (*options, *OPTIONS)
    unknown = sorted(set(config.options) - set(known))
    if unknown:
        raise _wrong(config, f"the backend {backend} has no option {unknown[0]!r}; it has {', '.join(known)}")
    _check_uri(config)
    _check_options(config, transport)


def _check_uri(config: HostConfig) -> None:
    parts = urlsplit(config.uri)
    if parts.password is not None:
        raise _wrong(config, "a URI must not hold a password: use keys or certificates")
    address_of(config.uri)
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if name in _REFUSED:
            raise _wrong(config, f"the parameter {name} of the URI is refused: {_REFUSED[name]}")


def _check_options(config: HostConfig, transport: str) -> None:
    given = {name for name in OPTIONS if config.options.get(name)}
    for names, fits in ((TLS_OPTIONS, "tls"), (SSH_OPTIONS, "ssh")):
        if transport != fits and (strange := given & set(names)):
            raise _wrong(config, f"the option {min(strange)} is for URIs with +{fits}, and {config.uri} is none")
    if (TLS_CERT in given) != (TLS_KEY in given):
        raise _wrong(config, f"{TLS_CERT} and {TLS_KEY} belong together: the certificate and its private key")
    if TLS_CERT in given and TLS_CA not in given:
        raise _wrong(config, f"{TLS_CA} is missing: the certificate of who has signed the host's certificate")
    for name in sorted(given):
        _check_file(config, name, config.options[name], private=name in (TLS_KEY, SSH_KEY))
    query = dict(parse_qsl(urlsplit(config.uri).query))
    for parameter, fits, same in (("pkipath", "tls", frozenset(TLS_OPTIONS)), ("keyfile", "ssh", frozenset({SSH_KEY}))):
        path = query.get(parameter)
        if path is None or transport != fits:
            continue
        if given & same:
            raise _wrong(config, f"the URI's {parameter} and the option {min(given & same)} exclude each other")
        private = parameter == "keyfile"
        _check_file(config, f"the URI's {parameter}", path if private else f"{path}/{_NAMES[TLS_CA]}", private=private)


def _check_file(config: HostConfig, name: str, path: str, *, private: bool) -> None:
    if not path.startswith("/"):
        raise _wrong(config, f"{name} must be an absolute path of virtd's machine, not {path!r}")
    if not Path(path).is_file():
        raise _wrong(config, f"{name}: there is no file {path} on virtd's machine")
    if not os.access(path, os.R_OK):
        raise _wrong(config, f"{name}: virtd's user (uid {os.geteuid()}) cannot read {path}: change its owner or mode")
    mode = stat.S_IMODE(Path(path).stat().st_mode)
    if private and mode & 0o077:
        why = f"others can read the private key {path} (mode {mode:04o}), which ssh refuses: chmod 600 {path}"
        raise _wrong(config, f"{name}: {why}")


def _wrong(config: HostConfig, message: str) -> InvalidArgumentError:
    return InvalidArgumentError(CONFIG_INVALID, f"host {config.id}: {message}")


def tls_files(config: HostConfig) -> Mapping[str, str]:
    """The certificate files that are used for a host, by the options' names; those that exist."""
    query = dict(parse_qsl(urlsplit(config.uri).query))
    if any(config.options.get(name) for name in TLS_OPTIONS):
        found = {name: config.options.get(name, "") for name in TLS_OPTIONS}
    elif "pkipath" in query:
        found = {name: f"{query['pkipath']}/{file}" for name, file in _NAMES.items()}
    else:
        found = dict(_SYSTEM_PKI)
        home = Path("~/.pki/libvirt").expanduser()
        # As libvirt does: a user's own files go first, each kind as a whole.
        if os.geteuid() and (home / _NAMES[TLS_CERT]).exists():
            found |= {TLS_CERT: str(home / _NAMES[TLS_CERT]), TLS_KEY: str(home / _NAMES[TLS_KEY])}
        if os.geteuid() and (home / _NAMES[TLS_CA]).exists():
            found[TLS_CA] = str(home / _NAMES[TLS_CA])
    return {name: path for name, path in found.items() if path and Path(path).is_file()}


def complete(config: HostConfig) -> str:
    """The URI to give to libvirt.  Writes what it names into the host's directory; idempotent.

    :raises InvalidArgumentError: CONFIG_INVALID.
    """
    address = address_of(config.uri)
    if address is None:
        return config.uri
    add: dict[str, str] = {}
    directory = Path(config.directory)
    if address.transport == "tls" and any(config.options.get(name) for name in TLS_OPTIONS):
        add["pkipath"] = str(_pki(directory / "tls", config.options))
    if address.transport in SSH_TRANSPORTS:
        add["no_tty"] = "1"
        if config.options.get(SSH_KEY):
            add["keyfile"] = config.options[SSH_KEY]
    if address.transport == "ssh":
        add["command"] = str(_ssh(directory / _SSH_PROGRAM, config.options.get(SSH_KNOWN_HOSTS, "")))
    return _with(config.uri, add)


def ssh_trial(config: HostConfig) -> Sequence[str]:
    """A command that reaches the host as libvirt's ssh does, and does nothing there; empty where there is no ssh.

    For after :func:`complete`.
    """
    address = address_of(config.uri)
    if address is None or address.transport != "ssh":
        return ()
    parts = urlsplit(config.uri)
    key = config.options.get(SSH_KEY, "") or dict(parse_qsl(parts.query)).get("keyfile", "")
    words = [str(Path(config.directory) / _SSH_PROGRAM), "-T", "-e", "none"]
    for option, value in (("-p", str(parts.port or "")), ("-l", unquote(parts.username or "")), ("-i", key)):
        words += [option, value] if value else []
    return (*words, "--", address.host, "true")


def _with(uri: str, add: Mapping[str, str]) -> str:
    parts = urlsplit(uri)
    query = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name not in add]
    # Slashes stay: libvirt reads "%2F" as well, but people read these in logs.
    text = urlencode([*query, *add.items()], safe="/")
    return urlunsplit(parts._replace(query=text))


def _pki(directory: Path, options: Mapping[str, str]) -> Path:
    """A directory with the files under libvirt's names for them."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for option, name in _NAMES.items():
        link, target = directory / name, options.get(option, "")
        if target and link.is_symlink() and str(link.readlink()) == target:
            continue
        link.unlink(missing_ok=True)
        if target:
            link.symlink_to(target)
    return directory


def _ssh(program: Path, known_hosts: str) -> Path:
    """The program that libvirt runs for ssh: with an end to every wait, and without questions."""
    words = ["exec", "ssh"]
    options = ["BatchMode=yes", f"ConnectTimeout={_CONNECT_S}", "ServerAliveInterval=5", "ServerAliveCountMax=4"]
    if known_hosts:
        options += [f"UserKnownHostsFile={_ssh_quoted(known_hosts)}", "StrictHostKeyChecking=yes"]
    for option in options:
        words += ["-o", option]
    text = f'#!/bin/sh\n{shlex.join(words)} "$@"\n'
    program.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not program.is_file() or program.read_text() != text:
        new = program.with_name(f"{program.name}.new")
        new.write_text(text)
        new.chmod(0o700)
        new.replace(program)
    return program


def _ssh_quoted(path: str) -> str:
    """As ssh's own configuration language has it: words are split at blanks, and percents are expanded."""
    return '"' + path.replace("%", "%%") + '"'
