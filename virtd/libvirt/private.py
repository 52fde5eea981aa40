"""A libvirtd of one's own: where no system daemon answers, and for tests.

As root it runs in a mount namespace in which ``/etc/libvirt``, ``/run/libvirt`` and
``/var/{lib,cache,log}/libvirt`` are folders of the given directory, so that nothing of the machine's
own libvirt is touched.  Other users get a session daemon whose XDG directories lie there.

The daemon and its guests outlive the process that started them: it is found again by its pid file
and its socket.  Stopping it leaves the guests running.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import zlib
from pathlib import Path
from typing import Final
from urllib.parse import quote
from uuid import uuid4

from virtd.errors import CONFIG_INVALID, LIBVIRT_MISSING, InvalidArgumentError, UnavailableError

_log: Final = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 20.0
# Above the usual 5900 to 5999 of the machine's own daemon, below the ports that systems give out.
_DISPLAYS_FROM: Final = 6100
_DISPLAYS: Final = 100
_DISPLAY_RANGES: Final = 250
_STOP_TIMEOUT_S: Final = 10.0
# sizeof(sockaddr_un.sun_path) is 108 with the final NUL.
_SOCKET_PATH_MAX: Final = 107
# The longest path below a session's configuration directory: a channel's socket, with a 20-letter name.
_SESSION_TAIL: Final = "/libvirt/qemu/channel/target/domain-999-aaaaaaaaaaaaaaaaaaaa/org.qemu.guest_agent.0"
_SEARCH: Final = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:/sbin:/bin"

# Daemons that this process has started.  They are meant to outlive every object here, and have to be
# reaped by their parent when they end.
_STARTED: Final[list[subprocess.Popen[bytes]]] = []

# Run inside the new mount namespace: $1 the directory, $2 the cache, $3 libvirtd, $4 "net" for a
# network namespace.  Mount points may be missing where libvirt was never started.
_ENTER: Final = """
set -e
for pair in "$1/etc:/etc/libvirt" "$1/run:/run/libvirt" "$1/lib:/var/lib/libvirt" \
            "$2:/var/cache/libvirt" "$1/log:/var/log/libvirt"; do
  mkdir -p "${pair##*:}"
  mount --bind "${pair%:*}" "${pair##*:}"
done
# libvirt locks consoles below /var/lock, which is missing in a container that nothing has booted.
mkdir -p -m 1777 /run/lock
if [ "$4" = net ]; then ip link set lo up; fi
exec "$3" --pid-file "$1/libvirtd.pid"
"""


def _reap(ended: int | None = None) -> None:
    """Collect daemons that have ended; wait for the one that was just told to."""
    for process in list(_STARTED):
        if process.pid == ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_STOP_TIMEOUT_S)
        if process.poll() is not None:
            _STARTED.remove(process)


def find_libvirtd() -> str:
    """Where libvirtd is.

    :raises UnavailableError: LIBVIRT_MISSING, with the packages to install.
    """
    found = shutil.which("libvirtd", path=f"{os.environ.get('PATH', '')}:{_SEARCH}")
    if found is None:
        raise UnavailableError(
            LIBVIRT_MISSING,
            "no libvirtd was found on this machine: on Debian and Ubuntu install the packages "
            "libvirt-daemon-system and qemu-system-x86, on Fedora libvirt-daemon-driver-qemu and qemu-kvm",
        )
    return found


class PrivateLibvirt:
    """One private daemon, kept in ``directory``.

    :param directory: made if it is missing; holds configuration, state, logs and the socket.
    :param cache: a folder for libvirt's cache of emulator abilities, which several daemons may share:
        looking at the emulators takes seconds and the result is checked against their time stamps.
    :param network_namespace: give it networks of its own (root only), for tests.
    """

    def __init__(
        self, directory: str | Path, *, cache: str | Path | None = None, network_namespace: bool = False
    ) -> None:
        self.directory: Final = Path(directory).absolute()
        self.cache: Final = Path(cache).absolute() if cache else self.directory / "cache"
        self._network_namespace: Final = network_namespace
        self._root: Final = os.geteuid() == 0
        self._process: subprocess.Popen[bytes] | None = None

    # ---------------------------------------------------------------------------- where

    @property
    def uri(self) -> str:
        """The URI that reaches it."""
        mode = "system" if self._root else "session"
        return f"qemu:///{mode}?socket={quote(str(self.socket))}"

    @property
    def socket(self) -> Path:
        """Its socket."""
        return self.directory / "run" / ("libvirt-sock" if self._root else "libvirt/libvirt-sock")

    @property
    def pid_file(self) -> Path:
        """Its pid file, which the daemon itself keeps locked while it runs."""
        return self.directory / "libvirtd.pid"

    @property
    def log(self) -> Path:
        """Its log."""
        return self.directory / "log" / "libvirtd.log"

    @property
    def pid(self) -> int | None:
        """Its process id, or None when it does not run."""
        try:
            with self.pid_file.open("rb+") as file:
                # libvirtd holds a lock on its pid file: without it, the number is an old one.
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    return int(file.read())
                fcntl.lockf(file, fcntl.LOCK_UN)
        except (OSError, ValueError):
            return None
        return None

    def answers(self) -> bool:
        """Whether it runs and takes connections."""
        if self.pid is None:
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        return True

    # ----------------------------------------------------------------------- start, stop

    async def start(self) -> str:
        """Start it, or adopt the one that runs, and return its URI.  Idempotent.

        :raises UnavailableError: LIBVIRT_MISSING: not installed, not permitted, or it did not come up.
        :raises InvalidArgumentError: CONFIG_INVALID, the directory's path is too long for a socket.
        """
        return await asyncio.to_thread(self.start_blocking)

    def start_blocking(self) -> str:
        """As :meth:`start`, on this thread."""
        self._check_paths()
        if self.answers():
            return self.uri
        program = find_libvirtd()
        self._write_configuration()
        deadline = time.monotonic() + START_TIMEOUT_S
        if self.pid is None:
            self._spawn(program)
        while not self.answers():
            if self._process is not None and self._process.poll() is not None:
                # Another virtd may have been quicker: then its daemon answers.
                if self.answers():
                    break
                raise self._failed(f"it ended with status {self._process.returncode}")
            if time.monotonic() > deadline:
                raise self._failed(f"it did not answer within {START_TIMEOUT_S:g} s")
            time.sleep(0.02)
        _log.info("private libvirtd answers", extra={"uri": self.uri, "pid": self.pid})
        return self.uri

    async def stop(self) -> None:
        """Stop the daemon; guests keep running.  Idempotent."""
        await asyncio.to_thread(self.stop_blocking)

    def stop_blocking(self) -> None:
        """As :meth:`stop`, on this thread."""
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            while self.pid == pid and time.monotonic() < deadline:
                time.sleep(0.02)
            if self.pid == pid:
                _log.warning("libvirtd ignored SIGTERM", extra={"pid": pid})
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        _reap(pid)

    # -------------------------------------------------------------------------- details

    def _check_paths(self) -> None:
        longest = str(self.socket)
        if not self._root:
            longest = max(longest, f"{self._config_home()}{_SESSION_TAIL}", key=len)
        if len(os.fsencode(longest)) > _SOCKET_PATH_MAX:
            raise InvalidArgumentError(
                CONFIG_INVALID,
                f"the directory {self.directory} has too long a path: sockets in it would need "
                f"{len(os.fsencode(longest))} bytes and {_SOCKET_PATH_MAX} are possible; choose a shorter one",
            )

    def _config_home(self) -> Path:
        """A session's configuration directory, by a short name where the real one is too long.

        libvirt 9 puts the sockets of a session's guests below it, under names of up to 83 bytes.
        """
        real = self.directory / "config"
        if len(os.fsencode(f"{real}{_SESSION_TAIL}")) <= _SOCKET_PATH_MAX:
            return real
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        digest = hashlib.sha256(os.fsencode(real)).hexdigest()
        if runtime and os.access(runtime, os.W_OK):
            return Path(runtime) / f"v{digest[:6]}"
        return Path(tempfile.gettempdir()) / f"virtd-{os.geteuid()}" / digest[:6]

    def _link_config_home(self) -> None:
        """Make the short name.  Nobody else may have made it, or its directory, first."""
        real, link = self.directory / "config", self._config_home()
        if link == real:
            return
        link.parent.mkdir(mode=0o700, exist_ok=True)
        if link.parent.stat(follow_symlinks=False).st_uid != os.geteuid():
            raise self._failed(f"{link.parent} belongs to another user")
        if not link.is_symlink() or link.readlink() != real:
            link.unlink(missing_ok=True)
            link.symlink_to(real)

    def _write_configuration(self) -> None:
        for name in ("run", "lib", "log", *(("etc",) if self._root else ())):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self.cache.mkdir(parents=True, exist_ok=True)
        settings = self.directory / "etc" if self._root else self.directory / "config" / "libvirt"
        settings.mkdir(parents=True, exist_ok=True)
        if not self._root:
            self._link_config_home()
        self.directory.chmod(0o700)
        uuid_file = self.directory / "host_uuid"
        if not uuid_file.exists():
            # Kept: migration and guests tell hosts apart by it, also after a restart.
            uuid_file.write_text(f"{uuid4()}\n")
        (settings / "libvirtd.conf").write_text(
            f'host_uuid = "{uuid_file.read_text().strip()}"\n'
            'auth_unix_ro = "none"\n'
            'auth_unix_rw = "none"\n'
            'unix_sock_rw_perms = "0700"\n'
            "listen_tls = 0\n"
            "listen_tcp = 0\n"
            "max_client_requests = 20\n"
            "log_level = 3\n"
            f'log_outputs = "3:file:{self.log}"\n'
        )
        # stdio_handler file: otherwise virtlogd would have to run.  security_driver none and the
        # user: this daemon's guests belong to whoever runs it, and so do their files.
        user = 'user = "root"\ngroup = "root"\n' if self._root else ""
        # Ports for displays of its own: two daemons of one machine that look for a free one at the same
        # moment find the same, and the guest that comes second does not start.
        first = _DISPLAYS_FROM + _DISPLAYS * (zlib.crc32(str(self.directory).encode()) % _DISPLAY_RANGES)
        (settings / "qemu.conf").write_text(
            f'{user}security_driver = "none"\nnamespaces = []\nstdio_handler = "file"\nremember_owner = 0\n'
            f"remote_display_port_min = {first}\nremote_display_port_max = {first + _DISPLAYS - 1}\n"
        )

    def _spawn(self, program: str) -> None:
        if self._root:
            unshare = shutil.which("unshare", path=_SEARCH)
            if unshare is None:
                raise self._failed("the program unshare (package util-linux) is missing")
            net = ["--net"] if self._network_namespace else []
            command = [unshare, "--mount", "--propagation", "private", *net, "--", "/bin/sh", "-c", _ENTER, "libvirtd"]
            command += [str(self.directory), str(self.cache), program, "net" if self._network_namespace else ""]
            environment = dict(os.environ)
        else:
            command = [program, "--pid-file", str(self.pid_file), "--config"]
            command += [str(self.directory / "config" / "libvirt" / "libvirtd.conf")]
            environment = {
                **os.environ,
                "XDG_CONFIG_HOME": str(self._config_home()),
                "XDG_CACHE_HOME": str(self.cache),
                "XDG_DATA_HOME": str(self.directory / "lib"),
                "XDG_RUNTIME_DIR": str(self.directory / "run"),
            }
        environment["PATH"] = f"{environment.get('PATH', '')}:{_SEARCH}"
        with (self.directory / "log" / "start.log").open("wb") as output:
            # A session of its own: it lives on when virtd ends or its terminal closes.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
                cwd="/",
            )
        _reap()
        _STARTED.append(self._process)

    def _failed(self, why: str) -> UnavailableError:
        said = ""
        for name in ("start.log", "libvirtd.log"):
            with contextlib.suppress(OSError):
                lines = (self.directory / "log" / name).read_text(errors="replace").strip().splitlines()
                said = said or (lines[-1] if lines else "")
        hint = f": {said}" if said else ""
        return UnavailableError(
            LIBVIRT_MISSING,
            f"a private libvirtd could not be started in {self.directory}: {why}{hint} (its logs are in "
            f"{self.directory / 'log'})",
        )
