"""Is a cloud-init specification right?  Every wrong field is named; what is secret is never shown."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Final, Protocol

import yaml

from virtd.model.cloud_init import CloudInitFile, CloudInitInterface, CloudInitSpec, CloudInitUser
from virtd.model.guest import GuestSpec
from virtd.model.names import shown

HOSTNAME_MAX: Final = 253
USERS_MAX: Final = 32
KEYS_MAX: Final = 64
KEY_MAX: Final = 16 * 1024
LIST_MAX: Final = 256
COMMAND_MAX: Final = 16 * 1024
FILE_MAX: Final = 2**20
SEED_MAX: Final = 8 * 2**20
"""All that the seed holds, in bytes before encoding."""

_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
_LOGIN: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_HASH: Final = re.compile(r"\$(5|6|7|y|gy|2[aby])\$[A-Za-z0-9./=$,]{8,500}")
_WEAK: Final = re.compile(r"\$1\$")
_PACKAGE: Final = re.compile(r"[a-z0-9][a-z0-9+._-]{0,127}(=[A-Za-z0-9.+~:-]{1,127})?", re.IGNORECASE)
_MODE: Final = re.compile(r"[0-7]{3,4}")
_OWNER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}(:[a-z_][a-z0-9_-]{0,31})?")
_ZONE: Final = re.compile(r"[A-Za-z0-9_+-]{1,64}(/[A-Za-z0-9_+-]{1,64}){0,3}")
_LOCALE: Final = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_TEXT_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_KEY_TYPES: Final = frozenset({
    "ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com",
})  # fmt: skip
# What cloud-init recognises a part by; a shell script begins with "#!".
_USER_DATA_HEADS: Final = (
    "#cloud-config", "#!", "#include", "#cloud-boothook", "#part-handler", "## template: jinja",
    "Content-Type: multipart/", "MIME-Version:",
)  # fmt: skip
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NOT_REPLACED: Final = frozenset({"hostname", "interfaces", "user_data"})


class Violations(Protocol):
    """Collects what is wrong (:class:`virtd.service.validate.Violations`)."""

    def add(self, field: str, description: str, *alternatives: str) -> None:
        """One more."""


def check_cloud_init(wrong: Violations, spec: GuestSpec, prefix: str) -> None:
    """Check ``spec.cloud_init``, if there is one.

    :param prefix: the path of the guest's specification in the request.
    """
    seed = spec.cloud_init
    if seed is None:
        return
    field = f"{prefix}.cloud_init"
    if seed.hostname:
        _check_hostname(wrong, seed.hostname, f"{field}.hostname")
    if seed.user_data:
        _check_user_data(wrong, seed, field)
    if _count(wrong, seed.users, USERS_MAX, f"{field}.users"):
        _check_users(wrong, seed.users, f"{field}.users")
    _check_keys(wrong, seed.ssh_authorized_keys, f"{field}.ssh_authorized_keys")
    _check_software(wrong, seed, field)
    if _count(wrong, seed.write_files, LIST_MAX, f"{field}.write_files"):
        _check_files(wrong, seed.write_files, f"{field}.write_files")
    _check_interfaces(wrong, seed.interfaces, {i.name for i in spec.interfaces}, f"{field}.interfaces")
    _check_region(wrong, seed, field)
    size = sum(len(entry.content) for entry in seed.write_files) + sum(map(len, seed.run_commands))
    if size + len(seed.user_data) > SEED_MAX:
        wrong.add(field, f"must be at most {SEED_MAX} bytes in all")


def _check_software(wrong: Violations, seed: CloudInitSpec, field: str) -> None:
    if _count(wrong, seed.packages, LIST_MAX, f"{field}.packages"):
        for index, package in enumerate(seed.packages):
            if not _PACKAGE.fullmatch(package):
                wrong.add(f"{field}.packages[{index}]", f"{shown(package)} is not the name of a package")
    if _count(wrong, seed.run_commands, LIST_MAX, f"{field}.run_commands"):
        for index, command in enumerate(seed.run_commands):
            if not command.strip() or len(command) > COMMAND_MAX or _TEXT_CONTROL.search(command):
                wrong.add(
                    f"{field}.run_commands[{index}]",
                    f"must be 1 to {COMMAND_MAX} characters without control characters but tab and newline",
                )


def _check_region(wrong: Violations, seed: CloudInitSpec, field: str) -> None:
    if seed.timezone and not _ZONE.fullmatch(seed.timezone):
        wrong.add(f"{field}.timezone", f"{shown(seed.timezone)} is not the name of a time zone", "Europe/Berlin")
    if seed.locale and not _LOCALE.fullmatch(seed.locale):
        wrong.add(f"{field}.locale", f"{shown(seed.locale)} is not the name of a locale", "en_GB.UTF-8")


def without_secrets(spec: GuestSpec) -> GuestSpec:
    """The specification as it may be shown and kept: no password, no file content, no raw user-data."""
    seed = spec.cloud_init
    if seed is None:
        return spec
    return replace(
        spec,
        cloud_init=replace(
            seed,
            users=tuple(replace(user, password_hash="") for user in seed.users),
            write_files=tuple(replace(entry, content=b"") for entry in seed.write_files),
            user_data="",
        ),
    )


def _count(wrong: Violations, values: Sequence[object], most: int, field: str) -> bool:
    if len(values) > most:
        wrong.add(field, f"must be at most {most}, not {len(values)}")
        return False
    return True


def _check_hostname(wrong: Violations, name: str, field: str) -> None:
    labels = name.split(".")
    if len(name) > HOSTNAME_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        wrong.add(
            field,
            f"{shown(name)} is not a host name: use labels of 1 to 63 letters, digits and '-', with dots in between",
        )


def _check_user_data(wrong: Violations, seed: CloudInitSpec, prefix: str) -> None:
    field = f"{prefix}.user_data"
    others = [
        f.name for f in fields(seed) if f.name not in _NOT_REPLACED and getattr(seed, f.name) not in (None, "", ())
    ]
    if others:
        wrong.add(field, f"replaces the other fields: it cannot be given together with {', '.join(others)}")
    if not seed.user_data.startswith(_USER_DATA_HEADS):
        wrong.add(field, "must begin with a line that cloud-init knows", "#cloud-config", "#!/bin/sh")
    elif "\0" in seed.user_data:
        wrong.add(field, "must not contain NUL")
    elif seed.user_data.startswith("#cloud-config"):
        _check_yaml(wrong, seed.user_data, field)


def _check_yaml(wrong: Violations, text: str, field: str) -> None:
    """The message never quotes the text: there may be passwords in it."""
    try:
        found = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else "?"
        wrong.add(field, f"is not YAML: see line {line}")
    except (yaml.YAMLError, ValueError, RecursionError):
        wrong.add(field, "is not YAML")
    else:
        if found is not None and not isinstance(found, dict):
            wrong.add(field, "must be a mapping after the line #cloud-config")


def _check_users(wrong: Violations, users: Iterable[CloudInitUser], prefix: str) -> None:
    seen: set[str] = set()
    for index, user in enumerate(users):
        field = f"{prefix}[{index}]"
        if not _LOGIN.fullmatch(user.name):
            wrong.add(
                f"{field}.name",
                f"{shown(user.name)} is not a login name: use 1 to 32 lower-case letters, digits, '_' or '-'",
            )
        elif user.name in seen:
            wrong.add(f"{field}.name", f"{user.name} is there twice")
        seen.add(user.name)
        if _CONTROL.search(user.full_name) or ":" in user.full_name or len(user.full_name) > LIST_MAX:
            wrong.add(
                f"{field}.full_name", f"must be at most {LIST_MAX} characters, without ':' and control characters"
            )
        _check_keys(wrong, user.ssh_authorized_keys, f"{field}.ssh_authorized_keys")
        _check_hash(wrong, user.password_hash, f"{field}.password_hash")
        if _CONTROL.search(user.sudo) or len(user.sudo) > LIST_MAX:
            wrong.add(f"{field}.sudo", f"must be one line of at most {LIST_MAX} characters", "ALL=(ALL) NOPASSWD:ALL")
        for number, group in enumerate(user.groups):
            if not _LOGIN.fullmatch(group):
                wrong.add(f"{field}.groups[{number}]", f"{shown(group)} is not the name of a group")
        if user.shell and not _is_path(user.shell):
            wrong.add(f"{field}.shell", f"{shown(user.shell)} must be an absolute path", "/bin/bash")


def _check_hash(wrong: Violations, value: str, field: str) -> None:
    """Never shows the value: it may be the password itself."""
    if not value:
        return
    if _WEAK.match(value):
        wrong.add(field, "is an MD5 hash, which is broken; make one with `openssl passwd -6`")
    elif not _HASH.fullmatch(value):
        wrong.add(field, "is not a crypt(3) hash such as $6$...; make one with `openssl passwd -6`")


def _check_keys(wrong: Violations, keys: Sequence[str], field: str) -> None:
    if not _count(wrong, keys, KEYS_MAX, field):
        return
    for index, key in enumerate(keys):
        problem = _key_problem(key)
        if problem:
            wrong.add(f"{field}[{index}]", problem)


def _key_problem(key: str) -> str:
    if "PRIVATE KEY" in key:
        return "is a private key; give the public one (the file with the ending .pub)"
    parts = key.strip().split(None, 2)
    if len(key) > KEY_MAX or _CONTROL.search(key.strip()) or len(parts) < 2 or parts[0] not in _KEY_TYPES:  # noqa: PLR2004 - type and key
        return f"is not an OpenSSH public key: one line, beginning with one of {', '.join(sorted(_KEY_TYPES))}"
    try:
        blob = base64.b64decode(parts[1], validate=True)
    except (binascii.Error, ValueError):
        return "is not an OpenSSH public key: its second word is not base64"
    name = parts[0].encode()
    if not blob.startswith(len(name).to_bytes(4) + name):
        return f"is cut or damaged: the key in it is not one of type {parts[0]}"
    return ""


def _check_files(wrong: Violations, files: Iterable[CloudInitFile], prefix: str) -> None:
    seen: set[str] = set()
    for index, entry in enumerate(files):
        field = f"{prefix}[{index}]"
        if not _is_path(entry.path):
            wrong.add(f"{field}.path", f"{shown(entry.path)} must be an absolute path without '..'")
        elif entry.path in seen:
            wrong.add(f"{field}.path", f"{shown(entry.path)} is there twice")
        seen.add(entry.path)
        if len(entry.content) > FILE_MAX:
            wrong.add(f"{field}.content", f"must be at most {FILE_MAX} bytes, not {len(entry.content)}")
        if entry.permissions and not _MODE.fullmatch(entry.permissions):
            wrong.add(f"{field}.permissions", f"{shown(entry.permissions)} is not an octal mode", "0644", "0600")
        if entry.owner and not _OWNER.fullmatch(entry.owner):
            wrong.add(f"{field}.owner", f"{shown(entry.owner)} is not of the form user or user:group", "root:root")


def _is_path(path: str) -> bool:
    plain = path.startswith("/") and path != "/" and len(path) <= LIST_MAX * 16 and not path.endswith("/")
    return plain and not _CONTROL.search(path) and ".." not in path.split("/")


def _check_interfaces(
    wrong: Violations, interfaces: Sequence[CloudInitInterface], known: set[str], prefix: str
) -> None:
    seen: set[str] = set()
    for index, entry in enumerate(interfaces):
        field = f"{prefix}[{index}]"
        if entry.name not in known:
            wrong.add(f"{field}.name", f"{shown(entry.name)} is not an interface of the guest", *sorted(known))
        elif entry.name in seen:
            wrong.add(f"{field}.name", f"{entry.name} is there twice")
        seen.add(entry.name)
        if not (entry.dhcp4 or entry.dhcp6 or entry.addresses):
            wrong.add(field, "sets nothing up: give addresses, dhcp4 or dhcp6")
        networks = list(_networks(wrong, entry.addresses, f"{field}.addresses"))
        for version, gateway in ((4, entry.gateway4), (6, entry.gateway6)):
            if gateway:
                _check_gateway(wrong, gateway, version, networks, f"{field}.gateway{version}")
        _check_names(wrong, entry, field)


def _networks(wrong: Violations, addresses: Iterable[str], field: str) -> Iterator[_Network]:
    for number, address in enumerate(addresses):
        try:
            found = ipaddress.ip_interface(address if "/" in address else "")
        except ValueError:
            what = f"{shown(address)} must be an address with prefix length"
            wrong.add(f"{field}[{number}]", what, "192.0.2.10/24")
        else:
            yield found.network


def _check_names(wrong: Violations, entry: CloudInitInterface, field: str) -> None:
    for number, server in enumerate(entry.nameservers):
        try:
            ipaddress.ip_address(server)
        except ValueError:
            wrong.add(f"{field}.nameservers[{number}]", f"{shown(server)} is not an IP address")
    for number, domain in enumerate(entry.search_domains):
        _check_hostname(wrong, domain, f"{field}.search_domains[{number}]")


def _check_gateway(
    wrong: Violations,
    gateway: str,
    version: int,
    networks: Iterable[_Network],
    field: str,
) -> None:
    try:
        address = ipaddress.ip_address(gateway)
    except ValueError:
        wrong.add(field, f"{shown(gateway)} is not an IP address")
        return
    if address.version != version:
        wrong.add(field, f"{gateway} is not an IPv{version} address")
    elif not address.is_link_local and not any(address in network for network in networks):
        wrong.add(field, f"{gateway} lies in none of the networks of the interface's addresses")
