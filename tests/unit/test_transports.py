"""The ways to hosts of other machines: what is refused, what libvirt is told, and why it does not work."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from virtd.backend.api import HostConfig
from virtd.errors import HOST_UNREACHABLE, UnavailableError, VirtdError
from virtd.libvirt.reach import SLOW_S, Reach, explain, handshake, knock, ssh_trouble
from virtd.libvirt.transports import Address, address_of, check_config, complete, ssh_trial, tls_files

SCHEMES = ("qemu", "qemu+ssh", "qemu+tls", "qemu+tcp")
TLS = "qemu+tls://far.example/system"
SSH = "qemu+ssh://root@far.example/system"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """One file for every option."""
    found = {}
    for name in ("tls_ca", "tls_cert", "tls_key", "ssh_key", "ssh_known_hosts"):
        path = tmp_path / name
        path.write_text("x")
        path.chmod(0o600)
        found[name] = str(path)
    return found


def check(uri: str, **options: str) -> None:
    check_config(HostConfig("far", uri, "", options=options), "kvm", SCHEMES, ("pool_directory",))


@pytest.mark.parametrize(
    ("uri", "options", "words"),
    [
        ("qemu+ext://far/system", {}, "takes the schemes"),
        ("qemu+ssh://root:secret@far/system", {}, "must not hold a password"),
        (f"{SSH}?command=/tmp/evil", {}, "parameter command of the URI is refused"),
        (f"{TLS}?authfile=/etc/shadow", {}, "parameter authfile of the URI is refused"),
        ("qemu+tls://far:99999/system", {}, "Port out of range"),
        (TLS, {"tls_cret": "/x"}, "has no option 'tls_cret'; it has pool_directory, tls_ca"),
        (SSH, {"tls_ca": "@"}, "option tls_ca is for URIs with +tls"),
        (TLS, {"ssh_key": "@"}, "option ssh_key is for URIs with +ssh"),
        ("qemu:///system", {"ssh_key": "@"}, "option ssh_key is for URIs with +ssh"),
        (TLS, {"tls_ca": "@", "tls_cert": "@"}, "tls_cert and tls_key belong together"),
        (TLS, {"tls_cert": "@", "tls_key": "@"}, "tls_ca is missing"),
        (TLS, {"tls_ca": "cacert.pem"}, "tls_ca must be an absolute path"),
        (TLS, {"tls_ca": "/nonexistent/ca.pem"}, "there is no file /nonexistent/ca.pem on virtd's machine"),
        (f"{TLS}?pkipath=/nonexistent", {}, "there is no file /nonexistent/cacert.pem"),
        (f"{TLS}?pkipath=/nonexistent", {"tls_ca": "@"}, "pkipath and the option tls_ca exclude each other"),
        (f"{SSH}?keyfile=/nonexistent", {}, "there is no file /nonexistent"),
        (f"{SSH}?keyfile=/k", {"ssh_key": "@"}, "keyfile and the option ssh_key exclude each other"),
    ],
)
def test_what_can_never_work_is_refused(files: dict[str, str], uri: str, options: dict[str, str], words: str) -> None:
    given = {name: files[name] if value == "@" else value for name, value in options.items()}
    with pytest.raises(VirtdError) as refused:
        check(uri, **given)
    assert refused.value.reason.name == "CONFIG_INVALID"
    assert words in refused.value.message
    assert "secret" not in refused.value.message


@pytest.mark.parametrize(("uri", "name"), [(SSH, "ssh_key"), (TLS, "tls_key")])
def test_private_keys_that_others_can_read_are_refused(files: dict[str, str], uri: str, name: str) -> None:
    Path(files[name]).chmod(0o644)
    options = {key: path for key, path in files.items() if key.startswith(name[:3])}
    with pytest.raises(VirtdError, match=r"mode 0644.*chmod 600"):
        check(uri, **options)
    Path(files[name]).chmod(0o600)
    check(uri, **options)


def test_libvirt_gets_certificates_under_its_own_names(files: dict[str, str], tmp_path: Path) -> None:
    options = {name: path for name, path in files.items() if name.startswith("tls")}
    config = HostConfig("far", f"{TLS}?no_verify=1", str(tmp_path / "host"), options=options)
    for _ in range(2):
        assert complete(config) == f"{TLS}?no_verify=1&pkipath={tmp_path}/host/tls"
    assert {p.name: str(p.readlink()) for p in (tmp_path / "host/tls").iterdir()} == {
        "cacert.pem": files["tls_ca"],
        "clientcert.pem": files["tls_cert"],
        "clientkey.pem": files["tls_key"],
    }
    complete(HostConfig("far", TLS, config.directory, options={"tls_ca": files["tls_ca"]}))
    assert [p.name for p in (tmp_path / "host/tls").iterdir()] == ["cacert.pem"], "an old certificate is used no more"
    assert tls_files(config) == options
    assert complete(HostConfig("here", "qemu:///system", "")) == "qemu:///system"


def test_ssh_is_run_without_questions_and_with_an_end(files: dict[str, str], tmp_path: Path) -> None:
    known = tmp_path / "known hosts 100%"
    known.touch()
    options = {"ssh_key": files["ssh_key"], "ssh_known_hosts": str(known)}
    config = HostConfig("far", SSH, str(tmp_path / "host"), options=options)
    program = tmp_path / "host/ssh"
    assert complete(config) == f"{SSH}?no_tty=1&keyfile={files['ssh_key']}&command={program}"
    fake = tmp_path / "bin/ssh"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        [program, "-T", "--", "far", "a b"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"},
    )
    said = done.stdout.splitlines()
    assert said[-4:] == ["-T", "--", "far", "a b"]
    assert {"BatchMode=yes", "ConnectTimeout=10", "StrictHostKeyChecking=yes"} <= set(said)
    assert f'UserKnownHostsFile="{tmp_path}/known hosts 100%%"' in said


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("qemu:///system", None),
        ("qemu+unix:///system?socket=/x", None),
        ("qemu://far/system", Address("tls", "far", 16514, True)),
        ("xen+tcp://[::1]:99/system", Address("tcp", "::1", 99, True)),
        ("qemu+tls://far/system?no_verify=1", Address("tls", "far", 16514, False)),
        ("qemu+ssh://me@far/session", Address("ssh", "far", 22, True)),
        ("qemu+tcp:///system", Address("tcp", "localhost", 16509, True)),
    ],
)
def test_addresses(uri: str, address: Address | None) -> None:
    assert address_of(uri) == address


# ------------------------------------------------------------------------------ why it does not work


class Server:
    """What libvirt's TLS server does: a handshake, and one byte when it accepts the client's certificate."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._socket.accept()
                plain.settimeout(5)
                with contextlib.suppress(OSError), self._context.wrap_socket(plain, server_side=True) as secure:
                    secure.sendall(b"\x01")
                    secure.recv(1)
                plain.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


class Lab:
    """An authority, its certificates as files, and servers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = trustme.CA()
        self.stranger = trustme.CA()
        self.servers: list[Server] = []

    def client(self, ca: trustme.CA | None = None, *, trusts: trustme.CA | None = None) -> dict[str, str]:
        leaf = (ca or self.ca).issue_cert("client")
        place = self.directory / f"c{len(list(self.directory.iterdir()))}"
        place.mkdir()
        (trusts or self.ca).cert_pem.write_to_path(place / "ca")
        leaf.cert_chain_pems[0].write_to_path(place / "cert")
        leaf.private_key_pem.write_to_path(place / "key")
        return {f"tls_{name}": str(place / name) for name in ("ca", "cert", "key")}

    def serve(self, leaf: trustme.LeafCert | None = None) -> Address:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        (leaf or self.ca.issue_cert("127.0.0.1")).configure_cert(context)
        self.ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        self.servers.append(Server(context))
        return Address("tls", "127.0.0.1", self.servers[-1].port, True)


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    for server in lab.servers:
        server.close()


def cause(address: Address, files: dict[str, str]) -> str:
    trouble = handshake(address, files)
    if trouble is None:
        return ""
    assert trouble.remedy
    return trouble.cause


def test_certificates_are_found_out_about(tls: Lab) -> None:
    good, mine = tls.serve(), tls.client()
    assert cause(good, mine) == ""
    assert cause(good, tls.client(trusts=tls.stranger)) == "CERTIFICATE_UNTRUSTED"
    assert cause(good, tls.client(tls.stranger)) == "CLIENT_CERTIFICATE_REFUSED"
    assert cause(good, {"tls_ca": mine["tls_ca"]}) == "CLIENT_CERTIFICATE_REFUSED"
    assert cause(good, mine | {"tls_key": tls.client()["tls_key"]}) == "CERTIFICATE_UNREADABLE"
    assert cause(tls.serve(tls.ca.issue_cert("other.example")), mine) == "CERTIFICATE_NAME"
    old = datetime.now(UTC) - timedelta(days=1)
    assert cause(tls.serve(tls.ca.issue_cert("127.0.0.1", not_after=old)), mine) == "CERTIFICATE_EXPIRED"
    unverified = tls.serve(tls.ca.issue_cert("other.example"))
    assert cause(Address("tls", unverified.host, unverified.port, False), mine) == ""


def test_ports_and_names_are_found_out_about() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert knock(Address("tcp", "127.0.0.1", port, True)) is None
    refused = knock(Address("tcp", "127.0.0.1", port, True))
    assert refused is not None
    assert refused.cause == "PORT_REFUSED"
    assert "libvirtd-tcp.socket" in refused.remedy
    unknown = knock(Address("tls", "no-such-host.invalid", 1, True))
    assert unknown is not None
    assert unknown.cause == "NAME_UNKNOWN"
    assert knock(Address("ssh", "no-such-host.invalid", 1, True)) is None, "ssh may have another name for it"
    error = Reach(Address("tcp", "127.0.0.1", port, True), {}).before()
    assert error is not None
    assert (error.reason.name, error.record.metadata["cause"]) == ("HOST_UNREACHABLE", "PORT_REFUSED")
    assert error.record.retry_after_s


class Slow:
    """A connection."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def getLibVersion(self) -> int:  # noqa: N802 - libvirt's name
        time.sleep(self._seconds)
        return 9_000_000


@pytest.mark.parametrize(
    ("transport", "verify", "security"),
    [("tcp", True, "not encrypted"), ("tls", True, "TLS"), ("ssh", True, "ssh"), ("tls", False, "no_verify")],
)
def test_the_way_is_looked_over(transport: str, verify: bool, security: str) -> None:
    way = Reach(Address(transport, "far", 1, verify), {})
    first, second = way.checks(Slow(0))
    assert security in first.summary
    assert (first.status == "OK") == (verify and transport != "tcp")
    assert bool(first.remedy) == (first.status != "OK")
    assert second.status == "OK"
    assert way.checks(Slow(SLOW_S + 0.05))[1].status == "WARNING"


@pytest.mark.parametrize(
    ("script", "cause", "words"),
    [
        ('echo "connect to host $6 port $4: Connection refused" >&2; exit 255', "PORT_REFUSED", "host fred port 99"),
        ("exit 0", "SSH_FAILED", "Broken pipe"),
        ("exit 1", "SSH_FAILED", "Broken pipe"),
    ],
)
def test_ssh_is_asked_again_where_libvirt_has_not_heard_it(
    tmp_path: Path, files: dict[str, str], script: str, cause: str, words: str
) -> None:
    uri = "qemu+ssh://fred@far:99/system"
    config = HostConfig("far", uri, str(tmp_path / "host"), options={"ssh_key": files["ssh_key"]})
    complete(config)
    trial = ssh_trial(config)
    assert trial[1:] == ("-T", "-e", "none", "-p", "99", "-l", "fred", "-i", files["ssh_key"], "--", "far", "true")
    (tmp_path / "host/ssh").write_text(f"#!/bin/sh\nshift 1\n{script}\n")
    address = address_of(uri)
    assert address is not None
    found = Reach(address, {}, trial).after(UnavailableError(HOST_UNREACHABLE, "Cannot write data: Broken pipe"))
    assert found.record.metadata["cause"] == cause
    assert words in found.message


def test_only_ssh_is_asked_again() -> None:
    for uri in ("qemu:///system", "qemu+tls://far/system", "qemu+libssh2://far/system"):
        assert ssh_trial(HostConfig("far", uri, "/x")) == ()


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("Host key verification failed.\r\n: Connection reset by peer", "HOST_KEY_UNKNOWN"),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @ Host key verification failed.", "HOST_KEY_CHANGED"),
        ("root@far: Permission denied (publickey).", "LOGIN_REFUSED"),
        ("ssh: connect to host far port 22: Connection timed out", "NO_ANSWER"),
        ("something new", "SSH_FAILED"),
    ],
)
def test_the_last_words_of_ssh_choose_the_advice(said: str, cause: str) -> None:
    trouble = ssh_trouble(said)
    assert trouble.cause == cause
    assert trouble.remedy
    assert "\n" not in trouble.message
    found = explain(Address("ssh", "far", 22, True), {}, said)
    assert found == trouble
