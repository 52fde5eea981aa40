"""The composition root: the only module that knows all parts, and the order in which they live.

Start: state directory (lock, journal), inventory as last seen, plugins, hosts (they connect by
themselves), recovery, then the API.  Nothing waits for a host, so a dead one does not delay the start.

Stop (SIGTERM): no new work; what runs may end within the drain time, the rest stays in the journal for
the next start; watchers get their last token; hosts are let go.  Guests run on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from virtd.auth import Policy
from virtd.backend.api import Backend, EmbeddingBackend, HostConfig
from virtd.backend.observe import observe_with
from virtd.config.model import Config, Embedded
from virtd.errors import LIBVIRT_MISSING, UnavailableError, VirtdError
from virtd.events import EventLog
from virtd.inventory import HostLink, Inventory, LinkOptions, MissingBackend
from virtd.model.event import Event
from virtd.model.host import HostState
from virtd.model.operation import Operation
from virtd.model.trash import DiskPolicy
from virtd.obs import tracing
from virtd.obs.exporter import Exporter
from virtd.obs.metrics import GuestSample, Metrics, Reading
from virtd.obs.sdnotify import notify
from virtd.operations import Engine
from virtd.plugins import PluginManager
from virtd.rpc.convert import ENCODERS
from virtd.rpc.listener import SocketOptions, activation_fd, granted_group
from virtd.rpc.server import RpcOptions, RpcServer
from virtd.service import Core, CoreOptions, Services, make_services
from virtd.service.core import StrategyOptions
from virtd.service.fetching import FetchOptions
from virtd.service.seeds import tidy_seeds
from virtd.store import Database, open_database

log = structlog.get_logger(__name__)

HOUSEKEEPING_S: Final = 600.0
DISCOVERY_S: Final = 3.0
EMBEDDED_ID: Final = "local"
DAY_S: Final = 86_400.0


class Daemon:
    """One running daemon.  :meth:`run` is its life; tests use :meth:`running`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.metrics = Metrics()
        self._stopping = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()
        self.core: Core
        self.services: Services
        self.rpc: RpcServer

    def stop(self) -> None:
        """Begin to stop; safe to call twice."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until :meth:`stop`.

        :raises VirtdError: it could not start; the message says why and what to do.
        """
        async with self.running():
            notify("READY=1")
            await self._stopping.wait()
            notify("STOPPING=1")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Daemon]:
        """Serve while the block runs."""
        config = self.config
        async with AsyncExitStack() as stack:
            stack.callback(tracing.configure(config.tracing))
            stack.callback(observe_with(self._seen))
            # Searchable by others: a hypervisor that runs as another user must reach its disks, a
            # client the socket.  What is private in there has a mode of its own.
            for directory in (
                config.state.directory,
                config.state.hosts_directory,
                config.state.images_directory,
                config.state.import_directory,
                config.state.runtime_directory,
                config.server.socket.parent,
            ):
                _make_directory(directory)
            database = open_database(config.state.directory)
            stack.callback(database.close)
            database.on_commit = lambda seconds, _rows: self.metrics.journal_committed(seconds)
            plugins = PluginManager(config.plugins.block)
            plugins.load_entry_points()
            for record in plugins.report:
                if record.init_error:
                    log.error("plugin_unusable", plugin=record.name, source=record.source, error=record.init_error)
            self.core = self._make_core(database, plugins)
            self.services = make_services(self.core, self._added_host)
            self._wire()
            stack.push_async_callback(self._let_go)
            await self._make_links()
            self.core.inventory.settle()
            recovered = await self.core.engine.recover()
            if recovered:
                log.info("operations_recovered", count=recovered)
                for operation in self.core.engine.live():
                    if operation.recovered:
                        self.metrics.operation_recovered(operation.verb)
            await self.core.freezes.start()
            stack.push_async_callback(self.core.freezes.stop)
            await self.services.uploads.tidy()
            await self.services.catalogue.tidy()
            await asyncio.to_thread(tidy_seeds, self.core)
            self.services.strategies.start()
            stack.push_async_callback(self.services.strategies.stop)
            self.services.scheduler.start()
            stack.push_async_callback(self.services.scheduler.stop)
            self.services.consoles.start()
            stack.push_async_callback(self.services.consoles.stop)
            if config.metrics.listen is not None:
                await stack.enter_async_context(Exporter(self.metrics, config.metrics.listen))
            self.rpc = RpcServer(self.services, self._rpc_options(), self.metrics)
            await self.rpc.start()
            stack.push_async_callback(self._drain)
            self._spawn(self._housekeeping())
            log.info("serving", socket=str(config.server.socket), tcp=self.rpc.tcp_address)
            yield self

    # -------------------------------------------------------------------------------------- making

    def _make_core(self, database: Database, plugins: PluginManager) -> Core:
        config = self.config
        events = EventLog(
            database,
            retention_count=config.events.retention_count,
            retention_s=config.events.retention_hours * 3600.0,
        )
        inventory = Inventory(database, events, ENCODERS)
        inventory.load()
        engine = Engine(
            database,
            parallel=config.operations.max_parallel,
            queued_max=config.operations.max_queued,
            retention_s=config.operations.retention_days * DAY_S,
            timeout_s=config.operations.default_timeout_s,
            timeouts_s=config.operations.timeouts_s,
        )
        options = CoreOptions(
            state_directory=config.state.directory,
            image_directory=config.state.images_directory,
            allowed_directories=tuple(str(path) for path in config.storage.allowed_directories),
            watcher_buffer=config.events.watcher_buffer,
            repositories=config.storage.backup_repositories,
            start_timeout_s=config.operations.timeout_for("start"),
            on_delete=DiskPolicy(config.trash.on_delete.upper()),
            trash_retention_s=config.trash.retention_days * DAY_S or None,
            strategy=StrategyOptions(
                backoff_first_s=config.strategy.backoff_first_s,
                backoff_max_s=config.strategy.backoff_max_s,
                stable_s=config.strategy.stable_s,
                halt_s=config.strategy.halt_timeout_s,
            ),
            console_log_bytes=config.consoles.log_max_bytes,
            agent_file_bytes=config.agent.file_max_bytes,
            fetch=FetchOptions(config.images.allow_private_addresses, config.images.max_bytes),
        )
        return Core(database, events, inventory, engine, plugins, options)

    def _wire(self) -> None:
        core, metrics = self.core, self.metrics

        def changed(operation: Operation) -> None:
            current = [entry.name for entry in core.engine.current(operation.target)]
            core.inventory.observe_operation(operation, current)

        def finished(operation: Operation) -> None:
            core.plugins.operation_finished(operation)
            started = operation.start_time or operation.create_time
            if operation.create_time is not None and started is not None:
                metrics.operation_started(operation.verb, (started - operation.create_time).total_seconds())
            if started is not None and operation.end_time is not None:
                seconds = (operation.end_time - started).total_seconds()
                metrics.operation_finished(operation.verb, operation.state.value, seconds)
            log.info(
                "operation_ended",
                operation=operation.name,
                verb=operation.verb,
                target=operation.target,
                state=operation.state.value,
                reason=operation.error.reason if operation.error else "",
            )

        def published(event: Event) -> None:
            metrics.event_logged(event.type.value)
            metrics.event_delivered((datetime.now(UTC) - event.time).total_seconds())

        core.engine.on_change = changed
        core.engine.on_finished = finished
        core.events.on_published = published
        self.services.events.on_too_slow = metrics.watcher_too_slow
        metrics.read_from(self._reading)

    @contextlib.contextmanager
    def _seen(self, host: str, call: str) -> Iterator[None]:
        """Around a call of a hypervisor's API: a span, and a number."""
        started, outcome = time.monotonic(), "error"
        try:
            with tracing.span(call, host=host):
                yield
            outcome = "ok"
        finally:
            self.metrics.native_called(host, call, outcome, time.monotonic() - started)

    def _rpc_options(self) -> RpcOptions:
        config = self.config.server
        tcp = config.tcp_listen
        group = config.socket_group
        passed = activation_fd(os.environ, os.getpid())
        if passed is not None and group is None:
            group = granted_group(passed)
        return RpcOptions(
            runtime_directory=self.config.state.runtime_directory,
            policy=Policy(
                own_uid=os.geteuid(),
                uids=frozenset() if config.socket_owner is None else frozenset({config.socket_owner}),
                gids=frozenset() if group is None else frozenset({group}),
                tcp=tcp is not None and config.insecure,
            ),
            socket=SocketOptions(
                path=config.socket,
                mode=config.socket_mode,
                owner=config.socket_owner,
                group=group,
                fd=passed,
            ),
            tcp_host=tcp.host if tcp is not None else "",
            tcp_port=tcp.port if tcp is not None else 0,
            max_message_bytes=config.max_message_bytes,
            max_concurrent_calls=config.max_concurrent_calls,
        )

    # --------------------------------------------------------------------------------------- hosts

    async def _make_links(self) -> None:
        config = self.config
        for entry in config.hosts:
            link = self._make_link(
                entry.id,
                entry.uri,
                "config",
                entry.labels,
                call_timeout_s=entry.call_timeout_s,
                workers=entry.workers,
                options=dict(entry.options),
            )
            self.core.links[entry.id] = link
        for added in self.services.hosts.load_added():
            if added.id not in self.core.links:
                self.core.links[added.id] = self._make_link(
                    added.id, added.uri, "added", added.labels, options=dict(added.options)
                )
        backends = list(self.core.plugins.backends.values())
        was_embedded = config.discovery.enabled and self._remembered("embedded")
        if config.discovery.embedded is Embedded.ALWAYS or (
            was_embedded and config.discovery.embedded is Embedded.AUTO
        ):
            # Once guests may live in the private service, it stays, whatever else appears beside it.
            self._embed(backends)
        if not config.discovery.enabled:
            return
        found = [] if config.hosts else await self._discover(backends)
        for backend, host_id, uri in found:
            unique = host_id if host_id not in self.core.links else "system"
            if unique not in self.core.links:
                self.core.links[unique] = self._make_link(unique, uri, "discovered", {}, backend=backend)
        if not self.core.links and config.discovery.embedded is Embedded.AUTO:
            self._embed(backends)

    async def _discover(self, backends: list[Backend]) -> list[tuple[Backend, str, str]]:
        async def one(backend: Backend) -> list[tuple[Backend, str, str]]:
            try:
                candidates = await asyncio.wait_for(backend.discover(), DISCOVERY_S)
            except Exception as error:
                log.warning("discovery_failed", backend=backend.descriptor.id, error=str(error) or type(error).__name__)
                return []
            return [(backend, candidate.id, candidate.uri) for candidate in candidates]

        found = await asyncio.gather(*(one(backend) for backend in backends))
        return [entry for entries in found for entry in entries]

    def _embed(self, backends: list[Backend]) -> None:
        for backend in backends:
            if isinstance(backend, EmbeddingBackend) and EMBEDDED_ID not in self.core.links:
                directory = str(self.config.state.hosts_directory / EMBEDDED_ID / "private")
                embedding: EmbeddingBackend = backend

                async def prepare(
                    config: HostConfig, embedding: EmbeddingBackend = embedding, directory: str = directory
                ) -> HostConfig:
                    candidate = await embedding.embedded(directory)
                    if candidate is None:
                        raise UnavailableError(LIBVIRT_MISSING, "this machine cannot run a private hypervisor service")
                    return replace(config, uri=candidate.uri)

                self._remember("embedded", "1")
                self.core.links[EMBEDDED_ID] = self._make_link(
                    EMBEDDED_ID, "embedded:", "embedded", {}, backend=backend, prepare=prepare
                )

    def _added_host(
        self, host_id: str, uri: str, origin: str, labels: Mapping[str, str], options: Mapping[str, str]
    ) -> HostLink:
        return self._make_link(host_id, uri, origin, labels, options=dict(options))

    def _make_link(
        self,
        host_id: str,
        uri: str,
        origin: str,
        labels: Mapping[str, str],
        *,
        backend: Backend | None = None,
        call_timeout_s: float = 30.0,
        workers: int = 4,
        options: dict[str, str] | None = None,
        prepare: Callable[[HostConfig], asyncio.Future[HostConfig]] | object | None = None,
    ) -> HostLink:
        config = self.config
        directory = config.state.hosts_directory / host_id
        _make_directory(directory)
        if backend is None:
            try:
                backend = self.core.plugins.backend_for_uri(uri)
            except VirtdError as error:
                log.error("host_unusable", host=host_id, error=error.message)  # noqa: TRY400 - no news in the traceback
                backend = MissingBackend(error)
        link = HostLink(
            backend,
            HostConfig(
                id=host_id,
                uri=uri,
                directory=str(directory),
                allowed_directories=(str(directory), *map(str, config.storage.allowed_directories)),
                call_timeout_s=call_timeout_s,
                workers=workers,
                options=options or {},
            ),
            self.core.inventory,
            LinkOptions(resync_s=config.inventory.resync_s, metrics_s=config.metrics.interval_s),
            origin=origin,
            prepare=prepare,  # type: ignore[arg-type]  # the two callers' functions have this type
        )
        metrics = self.metrics
        link.on_resync = lambda seconds, differences: metrics.resync_finished(host_id, seconds, differences)
        link.on_sampled = lambda seconds: metrics.sampled(host_id, seconds)
        link.on_reconnected = lambda: metrics.host_reconnected(host_id)
        link.start(labels=dict(labels))
        return link

    def _remembered(self, key: str) -> str:
        row = self.core.database.read_now(
            lambda connection: connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        )
        return row[0] if row else ""

    def _remember(self, key: str, value: str) -> None:
        def upsert(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

        self.core.database.submit(upsert)

    # ------------------------------------------------------------------------------ living, dying

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            try:
                await self.core.engine.expire()
                await self.services.trash.purge_expired()
                await self.services.uploads.tidy()
                await self.core.bases.sweep(self.core.links)
                self.core.events.trim()
                self.services.audit.trim()
                await self.core.usage.compact()
            except VirtdError as error:
                log.warning("housekeeping_failed", error=error.message)
            except Exception:
                log.exception("housekeeping_failed")

    async def _drain(self) -> None:
        started = time.monotonic()
        self.rpc.health.set_serving(False)  # load balancers and clients look elsewhere from now on
        left = await self.core.engine.stop(self.config.server.drain_timeout_s)
        if left:
            log.warning("operations_left_for_the_next_start", count=left)
        self.core.events.close()
        await self.rpc.stop(grace_s=2.0)
        await self.services.uploads.stop()
        log.info("drained", seconds=round(time.monotonic() - started, 3))

    async def _let_go(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.core.engine.stop(0.0)
        self.core.events.close()
        await asyncio.gather(*(link.stop() for link in self.core.links.values()))
        self.core.usage.flush()  # closing the database waits for it

    def _reading(self) -> Reading:
        core = self.core
        guests: dict[tuple[str, str], int] = {}
        samples: list[GuestSample] = []
        for view in core.inventory.guests():
            key = (view.key.host, view.guest.status.state.value)
            guests[key] = guests.get(key, 0) + 1
            sample = core.inventory.metrics.get(view.guest.uid)
            if sample is not None:
                samples.append(GuestSample(view.key.host, view.key.guest, sample))
        return Reading(
            operations_queued=core.engine.depth["PENDING"],
            operations_running=core.engine.depth["RUNNING"],
            watchers=self.services.events.watchers,
            guests=guests,
            hosts={name.id: name.host.state is HostState.CONNECTED for name in core.links.values()},
            samples=samples,
        )

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)  # type: ignore[arg-type]  # coroutines only
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def serve(config: Config) -> int:
    """Run a daemon until SIGTERM or SIGINT; a second signal ends it at once.

    :returns: the exit code, 0.
    :raises VirtdError: it could not start.
    """
    daemon = Daemon(config)
    loop = asyncio.get_running_loop()
    seen = 0

    def on_signal() -> None:
        nonlocal seen
        seen += 1
        if seen > 1:
            os._exit(130)
        daemon.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        await daemon.run()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(RuntimeError):
                loop.remove_signal_handler(number)
    return 0


def _make_directory(path: Path) -> None:
    from virtd.errors import INTERNAL_ERROR, InternalError

    try:
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        raise InternalError(
            INTERNAL_ERROR,
            f"the directory {path} cannot be made: {error.strerror}; check the owner and mode of {path.parent}, "
            "or choose another state directory with `state.directory` or --state-dir",
        ) from error
