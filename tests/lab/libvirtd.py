"""What lab hosts with a libvirtd have in common: it answers by TCP, by TLS and by ssh."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import ClassVar

from tests.guests.kernel import Kernel
from tests.guests.tools import need_tool
from tests.lab.kind import Kind, NotReadyError
from tests.lab.tree import Tree

_ANSWER_S = 20.0


class LibvirtKind(Kind):
    """A kind of host that is driven by libvirt."""

    scheme: ClassVar[str]
    ports: ClassVar[dict[str, int]] = {"ssh": 22, "tcp": 16509, "tls": 16514}

    def add_files(self, tree: Tree, kernel: Kernel, scratch: Path) -> None:
        """The certificates, where libvirt looks for them; a host is also a client of other hosts."""
        pki = scratch / "pki"
        tree.file("etc/pki/CA/cacert.pem", pki / "cacert.pem")
        for end in ("server", "client"):
            tree.file(f"etc/pki/libvirt/{end}cert.pem", pki / f"{end}cert.pem")
            tree.file(f"etc/pki/libvirt/private/{end}key.pem", pki / f"{end}key.pem", 0o600)

    def uri(self, ports: dict[str, int]) -> str:
        """By TCP, without encryption."""
        return f"{self.scheme}+tcp://127.0.0.1:{ports['tcp']}/system"

    def tls_uri(self, ports: dict[str, int], pki: Path) -> str:
        """By TLS, with the client's certificate."""
        return f"{self.scheme}+tls://127.0.0.1:{ports['tls']}/system?pkipath={pki}"

    def check(self, ports: dict[str, int]) -> str:
        """The versions of libvirt and of the hypervisor, as the host's libvirtd says."""
        # A process of its own: opening a connection cannot be given a deadline.
        command = [str(need_tool("virsh")), "-q", "-c", self.uri(ports), "version", "--daemon"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S, check=False)
        except subprocess.TimeoutExpired:
            raise NotReadyError(f"libvirtd gave no answer in {_ANSWER_S:.0f} s") from None
        if done.returncode:
            raise NotReadyError(done.stderr.strip())
        return done.stdout.strip()
