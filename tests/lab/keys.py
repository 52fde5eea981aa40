"""The keys of a lab: a certificate authority, certificates for the hosts and their clients, an ssh key.

Every image has its own, made with it; whoever may read the cache may use the lab.
"""

from __future__ import annotations

from pathlib import Path

import trustme
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

SSH_KEY = "id_ed25519"


def make(folder: Path, names: tuple[str, ...]) -> None:
    """Write them into a new folder, under the names by which libvirt looks for them.

    ``names`` are the hosts' names and addresses, for which the server's certificate is good.
    """
    folder.mkdir(mode=0o700)
    authority = trustme.CA(organization_name="virtd lab")
    authority.cert_pem.write_to_path(folder / "cacert.pem")
    server = authority.issue_cert(*names, common_name="lab host")
    client = authority.issue_cert("client.lab", common_name="lab client")
    for end, leaf in (("server", server), ("client", client)):
        leaf.cert_chain_pems[0].write_to_path(folder / f"{end}cert.pem")
        _write(folder / f"{end}key.pem", leaf.private_key_pem.bytes())
    key = Ed25519PrivateKey.generate()
    _write(folder / SSH_KEY, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (folder / f"{SSH_KEY}.pub").write_bytes(public + b" lab\n")


def _write(path: Path, secret: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(secret)
