"""The gateway as one running thing: data directory, engine, sources; started and stopped in the right order."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import uvloop

from gateway.config import KAFKA_SOURCE, Config, Retention, StreamConfig
from gateway.errors import ConfigError, GatewayError, SourceError
from gateway.ingest import limits
from gateway.ingest.engine import Engine
from gateway.ingest.source import Factory, Holdable, Refreshing, Source, SourceContext, load_factory
from gateway.ingest.troubles import DISK
from gateway.log.layout import partition_path, prepare
from gateway.log.lock import DataLock
from gateway.log.read_ahead import read_ahead

if TYPE_CHECKING:
    from gateway.control.plane import ControlPlane

logger = logging.getLogger("gateway")


# How many of the sources are named to who asks for one that is not there.
SOURCES_SHOWN_MAX = 20


def source_configs(config: Config) -> dict[str, tuple[str, Any]]:
    """Every configured source: name, kind, its part of the configuration. `config` has seen to it that names differ."""
    return {
        **{name: ("mqtt.listener", model) for name, model in config.mqtt.listeners.items()},
        **{name: ("mqtt.subscriber", model) for name, model in config.mqtt.subscribers.items()},
        **{name: ("camera", model) for name, model in config.cameras.items()},
        **({KAFKA_SOURCE: ("kafka", config.kafka)} if config.kafka is not None else {}),
    }


class App:
    """A gateway in this process. ``await start()``, later ``await stop()``, both on one event loop.

    After `stop` everything that was acknowledged is on disk, and the data directory is free for the next.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.sources: dict[str, Source] = {}
        self._models: dict[str, tuple[str, Any]] = {}
        self._engine: Engine | None = None
        self._resources = AsyncExitStack()
        self._troubles: dict[str, str] = {}
        self._held: set[str] = set()
        self._changing = asyncio.Lock()  # sources are stopped, held and started by one at a time
        self._control: ControlPlane | None = None

    @property
    def engine(self) -> Engine:
        """The running engine. Raises GatewayError before `start`."""
        if self._engine is None:
            raise GatewayError("The gateway is not running.")
        return self._engine

    async def start(self) -> None:
        """Take the data directory, recover, start the threads, then the sources.

        Raises LockedError, FormatError, ConfigError or SourceError; nothing is left running then.
        """
        try:
            limits.check(self.config)
            self._take_data_directory()
            self._engine = Engine(self.config, on_health=self._log_health)
            self._engine.start()
            self._resources.callback(self._close_engine)
            directories = [partition_path(self.config.data, name) for name in self.config.written_streams()]
            await asyncio.to_thread(read_ahead, directories)
            for name, (kind, model) in source_configs(self.config).items():
                await self._start_source(name, kind, model)
            self._log_recovery()
            await self._start_control()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop reading, make everything durable, let the acknowledgements go, close."""
        await self._stop_control()
        async with self._changing:
            await self._stop_sources(list(self.sources))
        await self._resources.aclose()

    async def reload(self, config: Config) -> None:
        """Apply changed sources, touching no other. What else changed needs a restart, and is named in the log."""
        async with self._changing:
            await self._reload(config)

    async def _reload(self, config: Config) -> None:
        wanted = source_configs(config)
        changed = [name for name, what in self._models.items() if wanted.get(name) != what]
        self._log_unapplied(config)
        await self._stop_sources(changed)
        control_changed = (config.control, config.control_topic) != (self.config.control, self.config.control_topic)
        if control_changed:
            await self._stop_control()
        self.config = config
        self.engine.config = config
        self._refresh_sources()
        for name, (kind, model) in wanted.items():
            if name in self._models:
                continue
            try:
                await self._start_source(name, kind, model)
            except GatewayError as error:
                logger.error("source not started", extra={"fields": {"source": name, "error": str(error)}})
        if control_changed:
            try:
                await self._start_control()
            except GatewayError as error:
                logger.error("control plane not started", extra={"fields": {"error": str(error)}})

    async def hold(self, name: str) -> None:
        """Let this source read nothing until `release` or its next start. Its records so far become durable as ever.

        Raises SourceError for a source that is not there.
        """
        async with self._changing:
            source = self._source(name)
            if name in self._held:
                return
            if isinstance(source, Holdable):
                await source.hold()
            else:
                await self._end([source])
            self._held.add(name)
        logger.info("source paused", extra={"fields": {"source": name, "kind": source.kind}})

    async def release(self, name: str) -> None:
        """Let it read on. Raises SourceError for one that is not there, or that cannot be started again."""
        async with self._changing:
            source = self._source(name)
            if name not in self._held:
                return
            if isinstance(source, Holdable):
                await source.release()
            else:
                await self._start_source(name, *self._models[name])
            self._held.discard(name)
        logger.info("source resumed", extra={"fields": {"source": name, "kind": source.kind}})

    @property
    def held(self) -> frozenset[str]:
        """The sources that stand still because `hold` asked them to."""
        return frozenset(self._held)

    def _source(self, name: str) -> Source:
        if name in self.sources:
            return self.sources[name]
        known = ", ".join(list(self.sources)[:SOURCES_SHOWN_MAX]) or "none"
        raise SourceError(f"There is no source {name!r} here; there are: {known}.")

    def statistics(self) -> dict[str, Any]:
        """The engine's counters and each source's."""
        return {
            **self.engine.statistics(),
            "sources": {name: {"kind": source.kind, **source.statistics()} for name, source in self.sources.items()},
            **({"control": self._control.statistics()} if self._control is not None else {}),
        }

    def _take_data_directory(self) -> None:
        """Lock the data directory and make it one if it is new. Raises LockedError, FormatError or GatewayError."""
        data, site = self.config.data, self.config.site
        try:
            self._resources.callback(DataLock(data).release)
            prepare(data, site.name, site.timezone)
        except OSError as error:
            raise GatewayError(
                f"The data directory {data} cannot be used: {error.strerror or error}. Name a directory in which the "
                "gateway may create files, on a disk that is not full."
            ) from error

    # -- sources ------------------------------------------------------------------------------------------------------

    async def _start_source(self, name: str, kind: str, model: Any) -> None:
        context = SourceContext(self.engine, self.config, logging.getLogger(f"gateway.{kind}"))
        source = _factory(kind)(name, model, context)
        self.sources[name] = source
        self._models[name] = (kind, model)
        try:
            await source.start()
        except BaseException:
            await self._stop_sources([name])
            raise

    def _refresh_sources(self) -> None:
        """Files that unchanged sources read by themselves, such as certificates, may have changed."""
        for name, source in self.sources.items():
            if not isinstance(source, Refreshing):
                continue
            try:
                source.refresh()
            except ConfigError as error:
                logger.error(
                    "files not read again; the source goes on as before",
                    extra={"fields": {"source": name, "error": str(error)}},
                )

    async def _stop_sources(self, names: list[str]) -> None:
        """Stop these; one that fails to stop is logged and does not keep the others."""
        stopping = [self.sources[name] for name in names if name in self.sources]
        if not stopping:
            return
        await self._end(stopping)
        for source in stopping:
            del self.sources[source.name]
            del self._models[source.name]
            self._held.discard(source.name)

    async def _end(self, stopping: list[Source]) -> None:
        await self._each("pause", stopping)
        if not await asyncio.to_thread(self.engine.flush):
            logger.error("the disk did not take everything in time; what is missing was not acknowledged")
        await self._each("drain", stopping)
        await self._each("stop", stopping)

    async def _each(self, step: str, sources: list[Source]) -> None:
        calls = [getattr(source, step)() for source in sources]
        for source, outcome in zip(sources, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(outcome, BaseException):
                logger.error(
                    "source did not %s cleanly",
                    step,
                    exc_info=outcome,
                    extra={"fields": {"source": source.name, "kind": source.kind}},
                )

    # -- the control plane --------------------------------------------------------------------------------------------

    async def _start_control(self) -> None:
        if self.config.control is None:
            return
        from gateway.control.plane import ControlPlane

        self._control = ControlPlane(self.config.control, self.config.control_topic, self)
        await self._control.start()

    async def _stop_control(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            await control.stop()

    # -- the engine's health ------------------------------------------------------------------------------------------

    def _close_engine(self) -> None:
        if not self.engine.close():
            logger.error("the disk did not take everything in time; what is missing was not acknowledged")
        self._log_health()

    def _log_health(self) -> None:
        """Log a trouble when it begins and when it ends. On the keeper's thread, and once more when that has ended."""
        troubles = self.engine.troubles()
        for name, sentence in troubles.items():
            if self._troubles.get(name) != sentence:
                logger.error(sentence, extra={"fields": _concerned(name)})
        for name in self._troubles.keys() - troubles.keys():
            event = "the disk is well again" if name == DISK else "stream is well again"
            logger.info(event, extra={"fields": _concerned(name)})
        self._troubles = troubles

    def _log_recovery(self) -> None:
        for stream, found in self.engine.recovered.items():
            for damage in found.damages:
                logger.error(
                    "damage among acknowledged records", extra={"fields": {"stream": stream, "place": str(damage)}}
                )
            if found.lost_records:
                logger.error(
                    "acknowledged records are gone: the log ends before what was durable",
                    extra={"fields": {"stream": stream, "records": found.lost_records}},
                )
            for sentence in found.skipped:
                logger.warning("recovery left something out", extra={"fields": {"stream": stream, "what": sentence}})
            for path in found.set_aside:
                logger.warning("segment set aside", extra={"fields": {"stream": stream, "file": str(path)}})
            if found.cut_bytes:
                logger.warning(
                    "recovery cut a torn tail that was never acknowledged",
                    extra={"fields": {"stream": stream, "bytes": found.cut_bytes, "next_offset": found.next_offset}},
                )

    def _log_unapplied(self, config: Config) -> None:
        """Sources and retention are applied while running; of the rest, say that it is not."""
        for key in ("data", "site", "disk", "limits"):
            if getattr(config, key) != getattr(self.config, key):
                logger.warning("[%s] changed; the change takes effect at the next start", key)
        for name in sorted(config.streams.keys() | self.config.streams.keys()):
            if _without_retention(config.stream(name)) != _without_retention(self.config.stream(name)):
                logger.warning(
                    "[streams] changed in more than retention; the rest takes effect at the next start",
                    extra={"fields": {"stream": name}},
                )


def _factory(kind: str) -> Factory:
    """Of a source of that kind. Raises SourceError when what it needs is not installed."""
    if kind != "kafka":
        return load_factory(kind)
    try:
        from gateway.serve.kafka import server
    except ModuleNotFoundError as error:
        raise SourceError(f"[kafka] needs the package {error.name!r}: pip install 'gateway[kafka]'.") from error
    return server.create


def _concerned(name: str) -> dict[str, str]:
    """The log's fields for a trouble's key."""
    return {} if name == DISK else {"source": name, "stream": name}


def _without_retention(settings: StreamConfig) -> StreamConfig:
    return settings.model_copy(update={"retention": Retention()})


def run(config: Config, *, log_format: str = "text", reload: Callable[[], Config] | None = None) -> int:
    """Run until SIGINT or SIGTERM and return the exit code; SIGHUP calls `reload` and applies changed sources.

    Logging is the caller's to set up; ``log_format`` is only reported. Raises GatewayError when the start fails.
    """
    _raise_descriptor_limit()
    return uvloop.run(_run(config, log_format, reload))


def _raise_descriptor_limit() -> None:
    """As many descriptors as the system lets us have: each stream takes 6, each connection 1.

    The usual 1,024 are kept low for the sake of programs that use select(2), which the gateway does not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _run(config: Config, log_format: str, reload: Callable[[], Config] | None) -> int:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[str] = loop.create_future()
    reloads: asyncio.Queue[None] = asyncio.Queue(maxsize=1)

    def end(name: str) -> None:
        if not ended.done():
            ended.set_result(name)

    def ask_reload() -> None:
        if reload is not None and reloads.empty():
            reloads.put_nowait(None)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end, number.name)
    loop.add_signal_handler(signal.SIGHUP, ask_reload)
    app = App(config)
    await app.start()
    logger.info(
        "gateway is running",
        extra={
            "fields": {
                "data": str(config.data),
                "sources": len(app.sources),
                "storage": app.engine.storage,
                "filesystem": app.engine.filesystem,
                "log_format": log_format,
            }
        },
    )
    reloading = asyncio.create_task(_reload_loop(app, reloads, reload), name="gateway-reload")
    try:
        name = await ended
        logger.info("stopping", extra={"fields": {"signal": name}})
    finally:
        reloading.cancel()
        await app.stop()
    logger.info("gateway has stopped; everything acknowledged is on disk")
    return 0


async def _reload_loop(app: App, reloads: asyncio.Queue[None], reload: Callable[[], Config] | None) -> None:
    while reload is not None:
        await reloads.get()
        try:
            await app.reload(reload())
        except (ConfigError, SourceError) as error:
            logger.error(
                "configuration not applied; the gateway goes on as before", extra={"fields": {"error": str(error)}}
            )
        else:
            logger.info("configuration applied", extra={"fields": {"sources": len(app.sources)}})
