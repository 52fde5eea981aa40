"""Every way to a host of another machine, and every way in which it does not work, through the public API."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme
from virtd_client import Client, errors

from tests.lab.daemon import LabVirtd, serving
from tests.lab.hosts import LabHost
from tests.support.isolation import until
from virtd.v1.host_pb2 import HOST_STATE_CONNECTED, HOST_STATE_UNREACHABLE, Host

pytestmark = pytest.mark.timeout(300)

QUICK_S = 20.0
"""So soon a person must be told, also by the slowest."""


@pytest.fixture(scope="module")
def virtd() -> Iterator[LabVirtd]:
    with serving({}) as virtd:
        yield virtd


@pytest.fixture
def client(virtd: LabVirtd) -> Iterator[Client]:
    client = virtd.client()
    yield client
    for host in client.hosts.list():
        client.hosts.remove(host.name, force=True)


@pytest.fixture(scope="module")
def files(lab_kvm1: LabHost, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Right and wrong keys, certificates and lists of known hosts."""
    place = tmp_path_factory.mktemp("keys")
    pki = Path(parse_qs(urlsplit(lab_kvm1.tls_uri).query)["pkipath"][0])
    found = {
        "tls_ca": pki / "cacert.pem", "tls_cert": pki / "clientcert.pem", "tls_key": pki / "clientkey.pem",
        "ssh_key": lab_kvm1.ssh_key,
    }  # fmt: skip
    stranger = trustme.CA()
    yesterday = datetime.now(UTC) - timedelta(days=1)
    leaves = {
        "strange": stranger.issue_cert("client"),
        "expired": stranger.issue_cert("client", not_after=yesterday),
        "old_server": stranger.issue_cert("127.0.0.1", not_after=yesterday),
        "other_server": stranger.issue_cert("other.example"),
    }
    for name, leaf in leaves.items():
        found |= {f"{name}_cert": place / f"{name}.pem", f"{name}_key": place / f"{name}.key"}
        leaf.cert_chain_pems[0].write_to_path(place / f"{name}.pem")
        leaf.private_key_pem.write_to_path(place / f"{name}.key")
        (place / f"{name}.key").chmod(0o600)
    found |= {"strange_ca": place / "ca.pem", "other_ssh_key": place / "id", "known": place / "known"}
    stranger.cert_pem.write_to_path(place / "ca.pem")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / "id"], check=True)
    scan = ["ssh-keyscan", "-p", str(lab_kvm1.ssh_port), "127.0.0.1"]
    known = subprocess.run(scan, check=True, capture_output=True, text=True).stdout
    (place / "known").write_text(known)
    changed = place / "changed"
    other = (place / "id.pub").read_text().split()[1]
    changed.write_text(f"[127.0.0.1]:{lab_kvm1.ssh_port} ssh-ed25519 {other}\n")
    (place / "nobody").touch()
    found |= {"changed": changed, "nobody": place / "nobody"}
    return {name: str(path) for name, path in found.items()}


def connected(client: Client, name: str) -> bool:
    return bool(client.hosts.get(name).state == HOST_STATE_CONNECTED)


def failed(client: Client, uri: str, options: Mapping[str, str]) -> Host:
    """The host, when it is known not to work; that was quick."""
    started = time.monotonic()
    name = client.hosts.add("wrong", uri, options=options).name
    until("the host is found unreachable", lambda: client.hosts.get(name).state == HOST_STATE_UNREACHABLE, QUICK_S)
    assert time.monotonic() - started < QUICK_S
    return client.hosts.get(name)


@pytest.mark.parametrize("transport", ["tcp", "tls", "tls-pkipath", "ssh"])
def test_every_transport_serves(client: Client, lab_kvm1: LabHost, files: dict[str, str], transport: str) -> None:
    options = {}
    uri = {"tcp": lab_kvm1.uri, "ssh": f"qemu+ssh://root@127.0.0.1:{lab_kvm1.ssh_port}/system"}.get(transport)
    if transport == "tls":
        uri, options = lab_kvm1.tls_uri.partition("?")[0], {k: files[k] for k in ("tls_ca", "tls_cert", "tls_key")}
    elif transport == "ssh":
        options = {"ssh_key": files["ssh_key"], "ssh_known_hosts": files["known"]}
    name = client.hosts.add("far", uri or lab_kvm1.tls_uri, options=options).name
    until("it is connected", lambda: connected(client, name), 30)
    assert client.pools.list(name) is not None
    if transport == "tls":  # it takes a while: the host is probed
        checks = {check.id: check for check in client.hosts.diagnose(name)}
        assert "TLS" in checks["connection.security"].summary
        assert "connection.round_trip" in checks


TLS = ("tls_ca", "tls_cert", "tls_key")


@pytest.mark.parametrize(
    ("kind", "options", "cause", "advice"),
    [
        ("tls", {}, "CERTIFICATE_UNTRUSTED", "tls_ca"),
        ("tls", {"tls_ca": "tls_ca"}, "CLIENT_CERTIFICATE_REFUSED", "signed by the authority"),
        ("tls", dict(zip(TLS, ("strange_ca", "strange_cert", "strange_key"), strict=True)), "CERTIFICATE_UNTRUSTED",
         "tls_ca"),
        ("tls", dict(zip(TLS, ("tls_ca", "strange_cert", "strange_key"), strict=True)), "CLIENT_CERTIFICATE_REFUSED",
         "signed by the authority"),
        ("tls", dict(zip(TLS, ("tls_ca", "expired_cert", "expired_key"), strict=True)), "CLIENT_CERTIFICATE_REFUSED",
         "expired"),
        ("tls-to-tcp", dict(zip(TLS, TLS, strict=True)), None, ""),
        ("tcp-refused", {}, "PORT_REFUSED", "libvirtd-tcp.socket"),
        ("tcp-nowhere", {}, "NAME_UNKNOWN", "spelling"),
        ("ssh", {"ssh_key": "ssh_key", "ssh_known_hosts": "nobody"}, "HOST_KEY_UNKNOWN", "ssh-keyscan"),
        ("ssh", {"ssh_key": "ssh_key", "ssh_known_hosts": "changed"}, "HOST_KEY_CHANGED", "ssh-keygen -R"),
        ("ssh", {"ssh_key": "other_ssh_key", "ssh_known_hosts": "known"}, "LOGIN_REFUSED", "authorized_keys"),
        ("ssh-refused", {"ssh_key": "ssh_key"}, "PORT_REFUSED", "ssh server"),
        ("ssh-nowhere", {"ssh_key": "ssh_key"}, "NAME_UNKNOWN", "spelling"),
    ],
)  # fmt: skip
def test_what_does_not_work_says_why_and_what_to_do(
    client: Client,
    lab_kvm1: LabHost,
    files: dict[str, str],
    kind: str,
    options: dict[str, str],
    cause: str | None,
    advice: str,
) -> None:
    tls = lab_kvm1.tls_uri.partition("?")[0]
    uri = {
        "tls": tls,
        "tls-to-tcp": f"qemu+tls://127.0.0.1:{urlsplit(lab_kvm1.uri).port}/system",
        "tcp-refused": "qemu+tcp://127.0.0.1:1/system",
        "tcp-nowhere": "qemu+tcp://no-such-host.invalid/system",
        "ssh": f"qemu+ssh://root@127.0.0.1:{lab_kvm1.ssh_port}/system",
        "ssh-refused": "qemu+ssh://root@127.0.0.1:1/system",
        "ssh-nowhere": "qemu+ssh://root@no-such-host.invalid/system",
    }[kind]
    error = failed(client, uri, {name: files[file] for name, file in options.items()}).last_error
    assert error.reason == "HOST_UNREACHABLE"
    if cause is not None:
        assert error.metadata["cause"] == cause, error.message
    assert advice in error.message
    with pytest.raises(errors.Unavailable) as refused:
        client.pools.list("hosts/wrong")
    assert refused.value.reason == "HOST_UNREACHABLE"


def test_a_host_with_a_wrong_certificate(client: Client, lab_kvm1: LabHost, files: dict[str, str]) -> None:
    options = {"tls_ca": files["strange_ca"], "tls_cert": files["tls_cert"], "tls_key": files["tls_key"]}
    # As it is: libvirtd itself looks at its certificate when it starts, unless it is told not to.
    lab_kvm1.run(
        "cd /etc && cp libvirt/libvirtd.conf pki/libvirt/servercert.pem pki/libvirt/private/serverkey.pem /root && "
        "echo tls_no_sanity_certificate = 1 >> libvirt/libvirtd.conf"
    )
    try:
        for kind, cause, advice in (
            ("old_server", "CERTIFICATE_EXPIRED", "renew it"),
            ("other_server", "CERTIFICATE_NAME", "use a name of the certificate"),
        ):
            for end, path in (("key", "private/serverkey.pem"), ("cert", "servercert.pem")):
                text = Path(files[f"{kind}_{end}"]).read_text()
                lab_kvm1.run(f"cat > /etc/pki/libvirt/{path} <<'END'\n{text}END\n")
            restart(lab_kvm1)
            error = failed(client, lab_kvm1.tls_uri.partition("?")[0], options).last_error
            assert (error.reason, error.metadata["cause"]) == ("HOST_UNREACHABLE", cause), error.message
            assert advice in error.message
            client.hosts.remove("hosts/wrong", force=True)
    finally:
        lab_kvm1.run(
            "cd /etc && cp /root/libvirtd.conf libvirt && cp /root/servercert.pem pki/libvirt && "
            "cp /root/serverkey.pem pki/libvirt/private"
        )
        restart(lab_kvm1)


def restart(host: LabHost) -> None:
    host.signal_libvirtd("KILL")
    host.signal_libvirtd("start")


def test_what_can_never_work_is_refused_at_once(client: Client, files: dict[str, str]) -> None:
    for uri, options, field, words in (
        ("qemu+ssh://root:secret@far/system", {}, "uri", "password"),
        ("qemu+ssh://far/system?command=/bin/evil", {}, "uri", "command"),
        ("qemu+tls://far/system", {"tls_ca": "/nonexistent"}, "options", "no file /nonexistent"),
        ("qemu+tls://far/system", {"ssh_key": files["ssh_key"]}, "options", "+ssh"),
        ("qemu+tcp://far/system", {"pool_directroy": "/x"}, "options", "pool_directory"),
    ):
        with pytest.raises(errors.InvalidArgument) as refused:
            client.hosts.add("wrong", uri, options=options)
        assert [violation.field for violation in refused.value.violations] == [field]
        assert words in refused.value.message
        assert "secret" not in str(refused.value)
    assert client.hosts.list() == ()


def test_a_host_that_was_added_with_options_is_there_after_a_restart(
    virtd: LabVirtd, client: Client, lab_kvm1: LabHost, files: dict[str, str]
) -> None:
    options = {name: files[name] for name in TLS}
    name = client.hosts.add("kept", lab_kvm1.tls_uri.partition("?")[0], options=options).name
    until("it is connected", lambda: connected(client, name), 30)
    virtd.stop()
    virtd.start()
    until("it is connected again", lambda: connected(client, name), 30)
