"""First boot by cloud-init: typed fields, from which the core makes a NoCloud seed.

Password hashes, file contents and raw user-data are secrets: they are never shown again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CloudInitUser:
    """A user that cloud-init makes.  ``password_hash`` is a crypt(3) hash."""

    name: str
    full_name: str = ""
    ssh_authorized_keys: tuple[str, ...] = ()
    password_hash: str = ""
    sudo: str = ""
    groups: tuple[str, ...] = ()
    shell: str = ""


@dataclass(frozen=True, slots=True)
class CloudInitFile:
    """A file that cloud-init writes.  ``permissions`` is octal text, empty is ``0644``."""

    path: str
    content: bytes = b""
    permissions: str = ""
    owner: str = ""


@dataclass(frozen=True, slots=True)
class CloudInitInterface:
    """How cloud-init sets up the interface ``name`` of the spec."""

    name: str
    dhcp4: bool = False
    dhcp6: bool = False
    addresses: tuple[str, ...] = ()
    gateway4: str = ""
    gateway6: str = ""
    nameservers: tuple[str, ...] = ()
    search_domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CloudInitSpec:
    """The first boot.  ``user_data`` replaces every field but ``hostname`` and ``interfaces``."""

    hostname: str = ""
    users: tuple[CloudInitUser, ...] = ()
    ssh_authorized_keys: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    run_commands: tuple[str, ...] = ()
    write_files: tuple[CloudInitFile, ...] = ()
    interfaces: tuple[CloudInitInterface, ...] = ()
    timezone: str = ""
    locale: str = ""
    ssh_password_authentication: bool | None = None
    user_data: str = ""
