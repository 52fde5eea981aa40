"""The public unix socket's file: made so that it is never open to more than its mode says.

The mode is set before ``bind`` makes the file, and owner and mode are final before ``listen`` makes
it answer.  A lock file beside it, held as long as the daemon runs, keeps two daemons from taking a
path from each other; a socket that somebody listens on is never removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from virtd.errors import ADDRESS_IN_USE, CONFIG_INVALID, FailedPreconditionError, InvalidArgumentError

BACKLOG: Final = 1024
_PATH_MAX: Final = 107  # sun_path of unix(7), less the final NUL
_FIRST_ACTIVATION_FD: Final = 3


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """The public socket.

    :param path: where it is made; its directory must exist.
    :param mode: permission bits of the file.
    :param owner: numeric user, or None for the process's own.
    :param group: numeric group, or None for the process's own.
    :param fd: a listening unix socket that was passed in (socket activation); the path, mode and
        owner are then whoever passed it's business, and the file is never removed here.
    """

    path: Path
    mode: int = 0o600
    owner: int | None = None
    group: int | None = None
    fd: int | None = None


def activation_fd(environment: Mapping[str, str], pid: int) -> int | None:
    """The first socket that a service manager passed (``LISTEN_FDS``), or None.

    See sd_listen_fds(3): the variables count only if ``LISTEN_PID`` is this process.
    """
    try:
        if int(environment.get("LISTEN_PID", "")) == pid and int(environment.get("LISTEN_FDS", "")) >= 1:
            return _FIRST_ACTIVATION_FD
    except ValueError:
        pass
    return None


def granted_group(fd: int) -> int | None:
    """The group that may use a socket which was passed in, by its file's mode; None for no group but root's.

    A service manager's ``SocketGroup`` is meant as a permission: whoever it lets connect may use the API.
    """
    with socket.socket(fileno=os.dup(fd)) as passed:
        path = passed.getsockname()
    if not isinstance(path, str) or not path:
        return None
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_gid if found.st_gid and found.st_mode & stat.S_IWGRP else None


class PublicSocket:
    """The listening socket, its file and its lock."""

    def __init__(self, listener: socket.socket, path: Path | None, lock: int | None) -> None:
        self.listener = listener
        self._path = path
        self._lock = lock
        self._identity = _identity(path) if path is not None else None

    @classmethod
    def open(cls, options: SocketOptions) -> PublicSocket:
        """Make the socket, or take the one that was passed in.

        :raises FailedPreconditionError: ADDRESS_IN_USE.
        :raises InvalidArgumentError: CONFIG_INVALID.
        """
        if options.fd is not None:
            return cls(_passed(options.fd), None, None)
        path = options.path
        if len(os.fsencode(path)) > _PATH_MAX:
            raise _invalid(path, f"is longer than the {_PATH_MAX} bytes that a unix socket's path may have")
        try:
            lock = _lock(path)
        except OSError as error:
            raise _invalid(path, f"its lock file cannot be made: {error.strerror}") from error
        try:
            _clear(path)
            listener = _listen(options)
        except OSError as error:
            os.close(lock)
            raise _invalid(path, error.strerror or str(error)) from error
        except BaseException:
            os.close(lock)
            raise
        return cls(listener, path, lock)

    def close(self) -> None:
        """Stop listening and remove the file, if it still is ours.  Idempotent."""
        self.listener.close()
        if self._path is not None and self._identity == _identity(self._path):
            with contextlib.suppress(OSError):
                self._path.unlink()
        if self._lock is not None:
            # The lock file stays: removing it would let two others lock two files of one name.
            os.close(self._lock)
            self._lock = None


def _passed(fd: int) -> socket.socket:
    wrong = InvalidArgumentError(CONFIG_INVALID, f"file descriptor {fd} is not a listening unix stream socket")
    try:
        listener = socket.socket(fileno=fd)
    except OSError as error:
        raise wrong from error
    listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM or not listening:
        listener.close()
        raise wrong
    os.set_inheritable(listener.fileno(), False)  # noqa: FBT003 - no keyword exists
    listener.setblocking(False)  # noqa: FBT003 - no keyword exists
    return listener


def _lock(path: Path) -> int:
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise _in_use(path) from None
    return lock


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on; refuse anything else that stands there."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise _invalid(path, "exists and is not a socket; virtd does not remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()  # nobody has listened since its owner died
            return
        except BlockingIOError:
            pass  # somebody listens, with a full backlog
    raise _in_use(path)


def _listen(options: SocketOptions) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        # On Linux bind makes the file with the mode of the socket's own inode: nobody else can
        # connect from the first moment, and before listen() nobody at all.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(options.path))
        try:
            if options.owner is not None or options.group is not None:
                owner, group = options.owner, options.group
                os.chown(
                    options.path, -1 if owner is None else owner, -1 if group is None else group, follow_symlinks=False
                )
            options.path.chmod(options.mode)
            listener.listen(BACKLOG)
        except BaseException:
            options.path.unlink(missing_ok=True)
            raise
    except BaseException:
        listener.close()
        raise
    return listener


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _in_use(path: Path) -> FailedPreconditionError:
    return FailedPreconditionError(ADDRESS_IN_USE, f"another process listens on {path}")


def _invalid(path: Path, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(CONFIG_INVALID, f"server.socket {path}: {why}")
