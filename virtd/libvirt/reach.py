"""Why another machine's libvirt cannot be reached: found out step by step, not read from messages.

First the name, then the port, then the certificates, each with its own advice.  For ssh it is ssh that knows;
its last words are in libvirt's message, and only the advice is chosen by them.  Everything here blocks, for a
bounded time: it is for worker threads.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from virtd.errors import HOST_UNREACHABLE, NativeError, UnavailableError, VirtdError
from virtd.libvirt.transports import SSH_TRANSPORTS, TLS_CA, TLS_CERT, TLS_KEY, Address
from virtd.model.host import CheckStatus, HostCheck

CONNECT_S: Final = 10.0
RETRY_AFTER_S: Final = 5.0
SLOW_S: Final = 0.2
_QUESTIONS: Final = 3
_SSH_FAILED: Final = "SSH_FAILED"
_TRIAL_S: Final = 2 * CONNECT_S
# X509_V_ERR_* of OpenSSL, which Python hands on as ``verify_code``.
_NOT_YET_VALID, _EXPIRED, _WRONG_NAMES = 9, 10, (62, 64)


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong, in a stable word and a sentence, and what to do."""

    cause: str
    message: str
    remedy: str

    def error(self, native: NativeError | None = None) -> UnavailableError:
        """HOST_UNREACHABLE with all of it."""
        return UnavailableError(
            HOST_UNREACHABLE,
            f"{self.message}; {self.remedy}",
            native=native,
            retry_after_s=RETRY_AFTER_S,
            metadata={"cause": self.cause},
        )


class Reach:
    """The way to one host: see :class:`virtd.libvirt.connections.Way`.

    :param trial: see :func:`virtd.libvirt.transports.ssh_trial`.
    """

    def __init__(self, address: Address, files: Mapping[str, str], trial: Sequence[str] = ()) -> None:
        self._address: Final = address
        self._files: Final = files
        self._trial: Final = trial

    def before(self) -> VirtdError | None:
        """A port at which nobody listens is found out in no time; libvirt would wait for minutes for some."""
        trouble = knock(self._address)
        return None if trouble is None else trouble.error()

    def after(self, failure: VirtdError) -> VirtdError:
        """The reason with advice, or what libvirt said."""
        native = failure.record.native
        trouble = explain(self._address, self._files, native.message if native is not None else failure.message)
        if trouble is not None and trouble.cause == _SSH_FAILED and (said := last_words(self._trial)):
            # libvirt was quicker than ssh: it noticed that ssh had gone, but not what ssh said.
            trouble = ssh_trouble(said)
        return failure if trouble is None else trouble.error(native)

    def checks(self, connection: Any) -> Sequence[HostCheck]:
        """Whether others can listen or pretend, and how long a question takes."""
        return [_security(self._address), _round_trip(connection)]


def _security(address: Address) -> HostCheck:
    id_ = "connection.security"
    if address.transport == "tcp":
        return HostCheck(
            id_, CheckStatus.WARNING, "the connection is not encrypted, and who reaches the port is root on the host",
            "use +tls or +ssh; plain TCP is for loopback and private links",
        )  # fmt: skip
    if not address.verify:
        return HostCheck(
            id_, CheckStatus.WARNING, "the host does not have to prove who it is: the URI has no_verify",
            "remove no_verify, and give its certificate's authority (tls_ca) or its key (ssh_known_hosts)",
        )  # fmt: skip
    kind = "ssh" if address.transport in SSH_TRANSPORTS else "TLS, with certificates on both sides"
    return HostCheck(id_, CheckStatus.OK, f"the connection is encrypted and both sides are known to each other: {kind}")


def _round_trip(connection: Any) -> HostCheck:
    took = []
    for _ in range(_QUESTIONS):
        started = time.monotonic()
        connection.getLibVersion()
        took.append(time.monotonic() - started)
    best, id_ = min(took), "connection.round_trip"
    summary = f"a question takes {best * 1000:.0f} ms"
    if best > SLOW_S:
        return HostCheck(
            id_, CheckStatus.WARNING, f"{summary}: everything on this host is slow",
            "look for a load or a network between; lists and watches come from memory and are not slower",
        )  # fmt: skip
    return HostCheck(id_, CheckStatus.OK, summary)


def knock(address: Address, timeout_s: float = CONNECT_S) -> Trouble | None:
    """Whether somebody listens there.  Not for ssh, whose configuration may say another address, or a way around."""
    if address.transport in SSH_TRANSPORTS:
        return None
    where = f"{address.host}:{address.port}"
    try:
        with socket.create_connection((address.host, address.port), timeout=timeout_s):
            return None
    except socket.gaierror as error:
        return Trouble(
            "NAME_UNKNOWN", f"the name {address.host} is not known here ({error.strerror})",
            "check the URI's spelling and this machine's DNS or /etc/hosts",
        )  # fmt: skip
    except ConnectionRefusedError:
        service = "virtproxyd" if address.transport == "tcp" else "virtproxyd-tls or libvirtd-tls"
        return Trouble(
            "PORT_REFUSED", f"nobody listens at {where}",
            f"start the socket of {service} on that host (systemctl start libvirtd-{address.transport}.socket), "
            "or correct the URI's port",
        )  # fmt: skip
    except TimeoutError:
        return Trouble(
            "NO_ANSWER", f"{where} did not answer within {timeout_s:g} s",
            f"check that the host is up, and that no firewall drops TCP port {address.port}",
        )  # fmt: skip
    except OSError as error:
        return Trouble(
            "NO_ROUTE", f"{where} cannot be reached ({error.strerror or error})",
            "check this machine's network and routes",
        )  # fmt: skip


def handshake(address: Address, files: Mapping[str, str], timeout_s: float = CONNECT_S) -> Trouble | None:
    """Whether both sides accept each other's certificates.

    libvirt's server sends one byte when it has accepted the client's.
    """
    try:
        context = ssl.create_default_context(cafile=files.get(TLS_CA))
        context.check_hostname = address.verify
        context.verify_mode = ssl.CERT_REQUIRED if address.verify else ssl.CERT_NONE
        if TLS_CERT in files and TLS_KEY in files:
            context.load_cert_chain(files[TLS_CERT], files[TLS_KEY])
    except (ssl.SSLError, OSError) as error:
        paths = ", ".join(files.values())
        return Trouble(
            "CERTIFICATE_UNREADABLE", f"the certificates of virtd cannot be used ({error.strerror or error}): {paths}",
            "check that they are PEM files and that the key belongs to the certificate",
        )  # fmt: skip
    deadline = time.monotonic() + timeout_s
    try:
        with socket.create_connection((address.host, address.port), timeout=timeout_s) as plain:
            plain.settimeout(max(0.1, deadline - time.monotonic()))
            with context.wrap_socket(plain, server_hostname=address.host) as secure:
                accepted = secure.recv(1) == b"\x01"
    except ssl.SSLCertVerificationError as error:
        return _unverified(address, files, error)
    except ConnectionResetError:
        accepted = False
    except ssl.SSLError as error:
        if TLS_CERT in files or "ALERT" in (error.reason or ""):
            accepted = False
        else:
            return Trouble(
                "TLS_FAILED", f"{address.host}:{address.port} does not speak TLS as expected ({error.reason})",
                "check that the port is that of libvirt's TLS socket",
            )  # fmt: skip
    except OSError:
        return None  # slow, or gone by now: what libvirt has said is all that is known
    if accepted:
        return None
    used = f"virtd's certificate {files[TLS_CERT]}" if TLS_CERT in files else "a client without a certificate"
    return Trouble(
        "CLIENT_CERTIFICATE_REFUSED", f"the host does not accept {used}",
        "have the certificate signed by the authority that the host trusts, see that it has not expired, and that the "
        "host's tls_allowed_dn_list allows its name",
    )  # fmt: skip


def _unverified(address: Address, files: Mapping[str, str], error: ssl.SSLCertVerificationError) -> Trouble:
    if error.verify_code == _EXPIRED:
        return Trouble("CERTIFICATE_EXPIRED", "the host's certificate has expired", "renew it on the host")
    if error.verify_code == _NOT_YET_VALID:
        return Trouble(
            "CERTIFICATE_NOT_YET_VALID", "the host's certificate is not valid yet", "check the clocks of both machines"
        )
    if error.verify_code in _WRONG_NAMES:
        return Trouble(
            "CERTIFICATE_NAME", f"the host's certificate is not for {address.host}",
            "use a name of the certificate in the URI, or issue one that has this name",
        )  # fmt: skip
    authority = files.get(TLS_CA, "the system's authorities")
    return Trouble(
        "CERTIFICATE_UNTRUSTED", f"the host's certificate is not signed by {authority} ({error.verify_message})",
        "give the right authority's certificate in the host's option tls_ca",
    )  # fmt: skip


_KNOWN_HOSTS: Final = (
    "add the host's key, after comparing it, to known_hosts of virtd's user or to the host's option ssh_known_hosts: "
    "ssh-keyscan prints it"
)
_LOGIN: Final = (
    "the host does not accept virtd's key: name the right one in the host's option ssh_key, without a passphrase, "
    "and add its public half to authorized_keys there"
)
_CHANGED: Final = (
    "the host has another key than before: find out why; if that is right, replace it in known_hosts (ssh-keygen -R)"
)
_CLIENT: Final = "install the package openssh-client on virtd's machine"
# The words are OpenSSH's.  They choose the advice, and nothing else.
_SSH_ADVICE: Final = (
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "HOST_KEY_CHANGED", _CHANGED),
    ("Host key verification failed", "HOST_KEY_UNKNOWN", _KNOWN_HOSTS),
    ("Permission denied", "LOGIN_REFUSED", _LOGIN),
    ("Could not resolve hostname", "NAME_UNKNOWN", "check the URI's spelling and this machine's DNS or /etc/hosts"),
    ("Connection refused", "PORT_REFUSED", "no ssh server listens there: start it, or correct the URI's port"),
    ("timed out", "NO_ANSWER", "check that the host is up, and that no firewall drops ssh"),
    ("No route to host", "NO_ROUTE", "check this machine's network and routes"),
    ("ssh: not found", "SSH_MISSING", _CLIENT),
    ("ocket to '", "LIBVIRT_DOWN", "ssh works, but no libvirt daemon answers on that host: start it there"),
    ("nc: not found", "NETCAT_MISSING", "install virt-ssh-helper (libvirt-daemon-system) or netcat on that host"),
)


def ssh_trouble(message: str) -> Trouble:
    """What to do about a failed ssh, by ssh's last words."""
    message = " ".join(message.split())
    for words, cause, remedy in _SSH_ADVICE:
        if words in message:
            return Trouble(cause, f"ssh could not reach libvirt: {message}", remedy)
    return Trouble(
        _SSH_FAILED, f"ssh could not reach libvirt: {message}",
        "try as virtd's user: ssh -o BatchMode=yes HOST virsh list",
    )  # fmt: skip


def last_words(command: Sequence[str]) -> str:
    """What ssh says when it fails; empty when it does not, or cannot be tried."""
    if not command:
        return ""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TRIAL_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stderr.decode(errors="replace").strip() if done.returncode else ""


def explain(address: Address, files: Mapping[str, str], message: str) -> Trouble | None:
    """Why an open failed; None: it cannot be said better than libvirt has."""
    if address.transport in SSH_TRANSPORTS:
        return ssh_trouble(message)
    trouble = knock(address)
    if trouble is None and address.transport == "tls":
        with contextlib.suppress(OSError):
            trouble = handshake(address, files)
    return trouble
