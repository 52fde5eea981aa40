"""The NoCloud seed: an ISO 9660 image labelled ``cidata`` with what cloud-init reads at the first boot.

The instance-id is the guest's UUID: cloud-init does its work once for it, and again for a clone,
which has another.
"""

from __future__ import annotations

import base64
import io
import ipaddress
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import yaml

from virtd.model.cloud_init import CloudInitFile, CloudInitInterface, CloudInitSpec, CloudInitUser

if TYPE_CHECKING:
    from collections.abc import Mapping

LABEL: Final = "cidata"
DISK_NAME: Final = "cloud-init"
"""The name of the seed among a guest's disks."""

_EVERYWHERE: Final = {4: "0.0.0.0/0", 6: "::/0"}


def seed_name(uid: UUID) -> str:
    """The seed's volume: one for each guest, and told from all others."""
    return f"cloud-init-{uid}.iso"


def build_seed(spec: CloudInitSpec, guest_id: str, uid: UUID, macs: Mapping[str, str]) -> bytes:
    """The image.

    :param macs: MAC addresses by the names of the guest's interfaces.
    """
    documents = {"meta-data": meta_data(spec, guest_id, uid), "user-data": user_data(spec, guest_id)}
    if spec.interfaces:
        documents["network-config"] = network_config(spec.interfaces, macs)
    return image({name: text.encode() for name, text in documents.items()})


def meta_data(spec: CloudInitSpec, guest_id: str, uid: UUID) -> str:
    """YAML."""
    return _dump({"instance-id": str(uid), "local-hostname": spec.hostname or host_name_of(guest_id)})


def host_name_of(guest_id: str) -> str:
    """An id as a host name: ids may have ``_``, host names may not."""
    return guest_id.replace("_", "-")


def user_data(spec: CloudInitSpec, guest_id: str) -> str:
    """YAML after ``#cloud-config``, or what the caller has given instead."""
    if spec.user_data:
        return spec.user_data
    hostname = spec.hostname or host_name_of(guest_id)
    short, _, domain = hostname.partition(".")
    config: dict[str, Any] = {"hostname": short, "preserve_hostname": False}
    if domain:
        # "localhost": the guest can resolve its own full name; nothing else in its /etc/hosts is touched.
        config |= {"fqdn": hostname, "manage_etc_hosts": "localhost"}
    config |= _access(spec) | _software(spec)
    return "#cloud-config\n" + _dump(config)


def _access(spec: CloudInitSpec) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if spec.users:
        # The default user is named only where something is said of it: else there is none.
        config["users"] = [*(["default"] if spec.ssh_authorized_keys else []), *map(_user, spec.users)]
    if spec.ssh_authorized_keys:
        config["ssh_authorized_keys"] = list(spec.ssh_authorized_keys)
    if spec.ssh_password_authentication is not None:
        config["ssh_pwauth"] = spec.ssh_password_authentication
    return config


def _software(spec: CloudInitSpec) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if spec.timezone:
        config["timezone"] = spec.timezone
    if spec.locale:
        config["locale"] = spec.locale
    if spec.write_files:
        config["write_files"] = [_file(entry) for entry in spec.write_files]
    if spec.packages:
        config["package_update"] = True
        config["packages"] = [_package(entry) for entry in spec.packages]
    if spec.run_commands:
        config["runcmd"] = list(spec.run_commands)
    return config


def network_config(interfaces: tuple[CloudInitInterface, ...], macs: Mapping[str, str]) -> str:
    """Version 2, which cloud-init turns into what the guest's system uses."""
    ethernets = {entry.name: _interface(entry, macs[entry.name]) for entry in interfaces}
    return _dump({"version": 2, "ethernets": ethernets})


def _user(user: CloudInitUser) -> dict[str, Any]:
    found: dict[str, Any] = {"name": user.name, "lock_passwd": not user.password_hash}
    if user.full_name:
        found["gecos"] = user.full_name
    if user.ssh_authorized_keys:
        found["ssh_authorized_keys"] = list(user.ssh_authorized_keys)
    if user.password_hash:
        found["passwd"] = user.password_hash
    if user.sudo:
        found["sudo"] = user.sudo
    if user.groups:
        found["groups"] = list(user.groups)
    if user.shell:
        found["shell"] = user.shell
    return found


def _file(entry: CloudInitFile) -> dict[str, Any]:
    found = {
        "path": entry.path,
        "encoding": "b64",
        "content": base64.b64encode(entry.content).decode(),
        "permissions": entry.permissions or "0644",
    }
    # The owner may be a user that is only made after the files are written.
    return {**found, "owner": entry.owner, "defer": True} if entry.owner else found


def _package(entry: str) -> str | list[str]:
    name, _, version = entry.partition("=")
    return [name, version] if version else name


def _interface(entry: CloudInitInterface, mac: str) -> dict[str, Any]:
    found: dict[str, Any] = {"match": {"macaddress": mac}, "dhcp4": entry.dhcp4, "dhcp6": entry.dhcp6}
    if entry.addresses:
        found["addresses"] = list(entry.addresses)
    gateways = [ipaddress.ip_address(gateway) for gateway in (entry.gateway4, entry.gateway6) if gateway]
    if gateways:
        found["routes"] = [{"to": _EVERYWHERE[gateway.version], "via": str(gateway)} for gateway in gateways]
    servers: dict[str, Any] = {}
    if entry.nameservers:
        servers["addresses"] = list(entry.nameservers)
    if entry.search_domains:
        servers["search"] = list(entry.search_domains)
    return {**found, "nameservers": servers} if servers else found


def _dump(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000)


def image(files: Mapping[str, bytes]) -> bytes:
    """An ISO image of files.

    Joliet and Rock Ridge both carry the real names; which one is read depends on the guest's system.
    """
    import pycdlib  # only daemons that make seeds need it, and it takes time to import

    disc = pycdlib.PyCdlib()
    disc.new(interchange_level=3, vol_ident=LABEL, sys_ident="LINUX", joliet=3, rock_ridge="1.09")
    for number, (name, data) in enumerate(files.items()):
        disc.add_fp(io.BytesIO(data), len(data), iso_path=f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    target = io.BytesIO()
    disc.write_fp(target)
    disc.close()
    return target.getvalue()
