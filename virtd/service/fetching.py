"""Files from HTTP servers: resumed after a cut, limited in size, and never from where virtd should not look.

A daemon that fetches what a caller names can be made to ask servers that the caller cannot reach
(SSRF).  So the addresses that a name stands for are checked, and the connection is made to one of
the addresses that were checked, for every redirection anew; where a proxy is configured by the
environment (``https_proxy``), only it sees the addresses, and only a literal address is checked.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import socket
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from virtd.errors import (
    FETCH_FAILED,
    LIMIT_EXCEEDED,
    URL_NOT_ALLOWED,
    FieldViolation,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
    VirtdError,
)
from virtd.model.names import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

CHUNK: Final = 2**20
STALL_S: Final = 20.0
"""A server that sends nothing for so long is given up, and asked again."""
ATTEMPTS: Final = 5
"""So often in a row without a byte, then it is an error."""
REDIRECTIONS: Final = 5
_SCHEMES: Final = ("http", "https")
_URL_MAX: Final = 4096
_NOT_PUBLIC: Final = "is not a public address; set images.allow_private_addresses to fetch from such servers"
_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_PARTIAL: Final = 206
_RANGE_WRONG: Final = 416


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """From where, and how much.

    :param allow_private: also addresses of private networks and of this machine.
    :param max_bytes: a larger file is refused.
    """

    allow_private: bool = False
    max_bytes: int = 2**40


class RetryableError(Exception):
    """The transfer was cut; it can go on.  The text says why."""


def check_url(url: str, options: FetchOptions, field: str = "url") -> str:
    """Return the URL if its form is right; a literal address in it is checked as well.

    :raises InvalidArgumentError: URL_NOT_ALLOWED.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
    except ValueError:
        raise _refused(field, f"{shown(url)} is not a URL") from None
    if len(url) > _URL_MAX or not url.isascii() or not url.isprintable() or " " in url:
        raise _refused(field, f"must have at most {_URL_MAX} printable ASCII characters; others are written as %XX")
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise _refused(field, f"{_shown(url)} does not begin with http:// or https:// and a host")
    if parts.username is not None or parts.password is not None:
        raise _refused(field, "must not contain a user name or password: they would be kept as the image's source")
    with contextlib.suppress(ValueError):
        _check_address(parts.hostname, ipaddress.ip_address(parts.hostname), options, field)
    if parts.hostname == "localhost" and not options.allow_private:
        raise _refused(field, "localhost is this machine, which is not public")
    return url


def source_of(url: str) -> str:
    """The URL as it may be kept: what follows ``?`` can be a secret (a signed URL)."""
    return urllib.parse.urlunsplit(urllib.parse.urlsplit(url)._replace(query="", fragment=""))


class Download:
    """A file that grows in ``part`` until it is whole.  All methods block: call them on a thread.

    What is there of an earlier attempt, perhaps of an earlier daemon, is gone on with if the server
    says that the file is still the same (by ETag or date), else it is thrown away.

    :param url: checked by :func:`check_url`.
    """

    def __init__(self, url: str, part: Path, options: FetchOptions) -> None:
        self._url: Final = url
        self._part: Final = part
        self._notes: Final = part.with_name(part.name + ".json")
        self._options: Final = options
        self._response: Any = None
        self._file: Any = None
        self.done_bytes = 0
        self.total_bytes: int | None = None

    def open(self) -> None:
        """Ask for what is missing.

        :raises RetryableError: the server does not answer, or not now.
        :raises VirtdError: FETCH_FAILED, URL_NOT_ALLOWED, LIMIT_EXCEEDED.
        """
        self.close()
        have, validator = self._known()
        headers = {"Accept-Encoding": "identity", "User-Agent": "virtd"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": validator}
        try:
            request = urllib.request.Request(self._url, headers=headers)  # noqa: S310 - http and https only
            self._response = _opener(self._options).open(request, timeout=STALL_S)
        except urllib.error.HTTPError as error:
            error.close()
            self._answered(error.code, error.reason)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, _NotAllowedError):
                raise _refused("url", str(reason)) from None
            raise RetryableError(str(reason) or type(reason).__name__) from error
        self._begin(have)

    def read(self) -> bytes:
        """The next bytes, written to the file too; empty at the end.

        :raises RetryableError: the connection was cut.
        :raises OSError: the file cannot be written.
        """
        try:
            chunk: bytes = self._response.read(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise RetryableError(str(error) or type(error).__name__) from error
        if not chunk:
            if self.total_bytes is not None and self.done_bytes < self.total_bytes:
                raise RetryableError(f"the connection ended after {self.done_bytes} of {self.total_bytes} bytes")
            self._file.flush()
            os.fsync(self._file.fileno())
            return b""
        self._file.write(chunk)
        self.done_bytes += len(chunk)
        self._check_size(self.done_bytes)
        return chunk

    def close(self) -> None:
        """Let go of the connection and the file; what is there stays."""
        for thing in (self._response, self._file):
            if thing is not None:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    thing.close()
        self._response = self._file = None

    def discard(self) -> None:
        """Remove all that there is."""
        self.close()
        self._part.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def _known(self) -> tuple[int, str]:
        """How much of which version is there; nothing where the server gave no mark to know it again."""
        try:
            notes = json.loads(self._notes.read_text())
            if notes["url"] == self._url and notes["validator"]:
                return self._part.stat().st_size, notes["validator"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return 0, ""

    def _answered(self, code: int, reason: str) -> None:
        if code == _RANGE_WRONG:
            self.discard()
            raise RetryableError("the server's file has changed")
        if code in _AGAIN:
            raise RetryableError(f"the server answered {code} {reason}")
        raise UnavailableError(FETCH_FAILED, f"{_shown(self._url)}: the server answered {code} {reason}")

    def _begin(self, have: int) -> None:
        headers: Mapping[str, str] = self._response.headers
        if (headers.get("Content-Encoding") or "identity").lower() != "identity":
            raise UnavailableError(FETCH_FAILED, f"{_shown(self._url)}: the server sends it packed, unasked")
        resumed = self._response.status == _PARTIAL and have > 0
        if resumed and not (headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            self.discard()
            raise RetryableError("the server sent another part than it was asked for")
        self.done_bytes = have if resumed else 0
        length = headers.get("Content-Length") or ""
        self.total_bytes = self.done_bytes + int(length) if length.isascii() and length.isdigit() else None
        self._check_size(self.total_bytes or 0)
        if not resumed:
            tag = headers.get("ETag") or ""
            validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified") or ""
            self._notes.write_text(json.dumps({"url": self._url, "validator": validator}))
        self._file = self._part.open("ab" if resumed else "wb")

    def _check_size(self, size: int) -> None:
        if size > self._options.max_bytes:
            raise ResourceExhaustedError(
                LIMIT_EXCEEDED,
                f"{_shown(self._url)} has more than the {self._options.max_bytes} bytes that images.max_bytes allows",
            )


class _NotAllowedError(OSError):
    """An address that virtd does not ask."""


def _shown(url: str) -> str:
    return shown(source_of(url))


def _refused(field: str, what: str) -> InvalidArgumentError:
    return InvalidArgumentError(URL_NOT_ALLOWED, f"{field}: {what}", violations=(FieldViolation(field, what),))


_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL: Final = ipaddress.IPv6Network("64:ff9b:1::/48")
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _check_address(host: str, address: _Address, options: FetchOptions, field: str) -> None:
    if not _allowed(address, options):
        raise _refused(
            field,
            f"{host} ({address}) {_NOT_PUBLIC}",
        )


def _allowed(address: _Address, options: FetchOptions) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return _allowed(inner, options)
    if address.is_multicast or address.is_unspecified or address in _NAT64_LOCAL:
        return False
    return options.allow_private or address.is_global


def _connect(host: str, port: int, options: FetchOptions, timeout: float) -> socket.socket:
    """Connect to one of the addresses of a name that may be asked."""
    problem: OSError | None = None
    for family, kind, protocol, _, target in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        address = ipaddress.ip_address(str(target[0]).partition("%")[0])
        if not _allowed(address, options):
            problem = _NotAllowedError(f"{host} ({address}) {_NOT_PUBLIC}")
            continue
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(timeout)
        try:
            connection.connect(target)
        except OSError as error:
            connection.close()
            problem = error
        else:
            return connection
    raise problem or OSError(f"{host} has no address")


def _opener(options: FetchOptions) -> urllib.request.OpenerDirector:
    """One that connects only to where it may, and whose redirections do too."""

    def connecting(kind: type[http.client.HTTPConnection], request: urllib.request.Request) -> Any:
        def make(host: str, **settings: Any) -> http.client.HTTPConnection:
            connection = kind(host, **settings)
            if not request.has_proxy() and not getattr(request, "_tunnel_host", None):
                connection._create_connection = lambda address, timeout, *_: _connect(  # type: ignore[attr-defined]  # noqa: SLF001 - the one place where http.client lets the address be chosen
                    address[0], address[1], options, timeout
                )
            return connection

        return make

    class Http(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(connecting(http.client.HTTPConnection, req), req)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(connecting(http.client.HTTPSConnection, req), req)

    class Redirections(urllib.request.HTTPRedirectHandler):
        max_redirections = REDIRECTIONS

        def redirect_request(
            self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
        ) -> urllib.request.Request | None:
            try:
                check_url(newurl, options)
            except VirtdError as error:
                raise _NotAllowedError(f"the server sends us on, and {error.message}") from None
            if req.full_url.startswith("https:") and not newurl.startswith("https:"):
                raise _NotAllowedError("the server sends us on from https to http")
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    # Without the handlers for ftp:, file: and data: that build_opener would add.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        Http(),
        Https(),
        Redirections(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener
