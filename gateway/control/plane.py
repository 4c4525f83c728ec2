"""The control plane's connection to its broker: status, statistics, commands.

<topic>/status            online or offline, retained; offline is also the last will
<topic>/statistics        JSON, every `statistics_interval`
<topic>/command           requests, if the configuration allows commands
<topic>/answer            answers, unless the request names a response topic
<topic>/snapshot/<name>   JPEG of a camera, when asked for
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Coroutine
from typing import Any

import aiomqtt

from gateway.backoff import Backoff
from gateway.broker_tls import broker_tls
from gateway.clock import NS_PER_S, format_time, realtime_ns
from gateway.config import ControlConfig
from gateway.control import reports
from gateway.control.client import ControlClient, refuses_version
from gateway.control.commands import BadRequest, Controlled, Request, execute, parse
from gateway.control.outbox import Outbox, Outgoing
from gateway.control.pictures import Picture
from gateway.errors import GatewayError

JSON = "application/json"
ONLINE, OFFLINE = b"online", b"offline"
# Requests that wait; what comes beyond is answered at once that there are too many.
REQUESTS_MAX = 16
# The least time from one command to the next: whoever floods us must not make pictures all day.
REQUEST_SPACING_S = 0.1
RESPONSE_TOPIC_BYTES_MAX = 1_024
CANCEL_AGAIN_S = 0.1
# How long the end of the gateway waits for a broker to take the last words.
STOP_TIMEOUT_S = 2.0

logger = logging.getLogger("gateway.control")
# Below warnings aiomqtt and paho describe every message.
_library_logger = logger.getChild("aiomqtt")
_library_logger.setLevel(logging.WARNING)


class ControlPlane:
    """One client of one broker. It tries for ever, and nothing that records ever waits for it."""

    def __init__(self, config: ControlConfig, topic: str, gateway: Controlled) -> None:
        self.config = config
        self.topic = topic
        self._gateway = gateway
        self._client_id = config.client_id or f"gateway-{gateway.config.site.name}-control"
        self._version = aiomqtt.ProtocolVersion.V5
        self._tls: ssl.SSLContext | None = None
        self._outbox = Outbox()
        self._requests: asyncio.Queue[tuple[Request, str, bytes | None]] = asyncio.Queue(REQUESTS_MAX)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._state, self._cause = "starting", ""
        self._packet_bytes_max: int | None = None
        self._counters = dict.fromkeys(
            ("connects", "failures", "published", "too_large", "commands", "commands_refused"), 0
        )

    # -- its life

    async def start(self) -> None:
        """Begin connecting. Raises SourceError when the TLS files cannot be used, never because a broker is away."""
        self._tls = broker_tls(self.config, "control")
        self._tasks = [
            asyncio.create_task(self._run(), name="gateway-control"),
            asyncio.create_task(self._work(), name="gateway-control-commands"),
        ]

    async def stop(self) -> None:
        """Say offline and disconnect, if the broker takes that within STOP_TIMEOUT_S. Safe when not started."""
        self._stopping.set()
        if not self._tasks:
            return
        running, working = self._tasks
        working.cancel()
        await asyncio.wait([running], timeout=STOP_TIMEOUT_S)
        running.cancel()
        await asyncio.wait(self._tasks, timeout=STOP_TIMEOUT_S)
        self._tasks = []
        self._state = "stopped"

    def statistics(self) -> dict[str, Any]:
        """Counters since the start, and the present state with its cause."""
        return {"state": self._state, "cause": self._cause, **self._counters, **self._outbox.statistics()}

    # -- the connection

    async def _run(self) -> None:
        backoff = Backoff(self.config.reconnect_min_ns, self.config.reconnect_max_ns)
        while not self._stopping.is_set():
            began_s = time.monotonic()
            try:
                await self._session()
            except Exception as error:  # noqa: BLE001  # the control plane must not die of a broker, whatever it sends
                if self._version is aiomqtt.ProtocolVersion.V5 and refuses_version(error):
                    self._version = aiomqtt.ProtocolVersion.V311
                    continue
                await self._wait(error, backoff.after(time.monotonic() - began_s))

    async def _wait(self, error: Exception, wait_s: float) -> None:
        event = "control broker lost" if self._state == "connected" else "control broker not reached"
        self._counters["failures"] += 1
        self._state, self._cause = "waiting", str(error.__cause__ or error) or type(error).__name__
        self._say(logging.WARNING, event, cause=self._cause, retry_in_s=round(wait_s, 1))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), wait_s)

    async def _session(self) -> None:
        """One connection: until `stop`, or an error."""
        self._state, self._cause = "connecting", ""
        status = f"{self.topic}/status"
        client = ControlClient(
            self.config,
            version=self._version,
            client_id=self._client_id,
            will=aiomqtt.Will(status, OFFLINE, qos=1, retain=True),
            tls=self._tls,
            logger=_library_logger,
        )
        with contextlib.closing(client):
            async with client:
                try:
                    await self._connected(client, status)
                    await _first_of(self._send(client), self._report(), self._receive(client), self._ended())
                    await client.send(Outgoing(status, OFFLINE, qos=1, retain=True))
                except BaseException:
                    # Leaving the block would say goodbye, and the broker would forget the will: online for ever.
                    client.close()
                    raise

    async def _connected(self, client: ControlClient, status: str) -> None:
        self._packet_bytes_max = client.packet_bytes_max
        await client.send(Outgoing(status, ONLINE, qos=1, retain=True))
        if self.config.commands:
            await self._subscribe(client)
        self._counters["connects"] += 1
        self._state = "connected"
        self._say(logging.INFO, "control broker connected", topic=self.topic, commands=self.config.commands)

    async def _ended(self) -> None:
        await self._stopping.wait()

    async def _subscribe(self, client: ControlClient) -> None:
        codes = await client.subscribe(f"{self.topic}/command", qos=1)
        if any(getattr(code, "value", code) >= 0x80 for code in codes):
            self._say(logging.ERROR, "the broker refuses the subscription to commands", topic=f"{self.topic}/command")

    # -- what goes out

    async def _send(self, client: ControlClient) -> None:
        while True:
            message = await self._outbox.first()
            if client.fits(message):
                await client.send(message)
                self._counters["published"] += 1
            else:
                self._counters["too_large"] += 1
                self._say(logging.WARNING, "not published: larger than the broker takes", topic=message.topic)
            self._outbox.done(message)

    async def _report(self) -> None:
        """Statistics now and then; the first at once."""
        while True:
            self._outbox.put(self._statistics())
            await asyncio.sleep(self.config.statistics_interval_ns / NS_PER_S)

    def _statistics(self) -> Outgoing:
        site = self._gateway.config.site
        report = {
            "time": format_time(realtime_ns(), site.zone),
            "site": site.name,
            "paused": sorted(self._gateway.held),
            **self._gateway.statistics(),
        }
        return self._json(f"{self.topic}/statistics", report, replaceable=True)

    def _json(self, topic: str, report: dict[str, Any], **more: Any) -> Outgoing:
        bytes_max = reports.REPORT_BYTES_MAX
        if self._packet_bytes_max is not None:
            bytes_max = max(reports.REPORT_BYTES_MIN, min(bytes_max, self._packet_bytes_max - 2 * len(topic)))
        return Outgoing(topic, reports.encode(report, bytes_max), content_type=JSON, **more)

    # -- commands

    async def _receive(self, client: ControlClient) -> None:
        async for message in client.messages:
            self._take(message)

    def _take(self, message: aiomqtt.Message) -> None:
        """A request has arrived: understood and queued, or answered with what is wrong."""
        topic, correlation = self._way_back(message)
        try:
            if message.retain:
                raise BadRequest("A retained request would be carried out at every connect; publish it unretained.")
            request = parse(message.payload)
            self._requests.put_nowait((request, topic, correlation))
        except BadRequest as error:
            self._refuse(error.echo, str(error), topic, correlation)
        except asyncio.QueueFull:
            self._refuse(request.echo(), f"{REQUESTS_MAX} requests wait already; try again later.", topic, correlation)

    def _way_back(self, message: aiomqtt.Message) -> tuple[str, bytes | None]:
        """Where the answer goes. Never to where it would be taken for a request or for another word of ours."""
        properties = message.properties
        topic = getattr(properties, "ResponseTopic", "")
        correlation = getattr(properties, "CorrelationData", None)
        own = topic == self.topic or topic.startswith(f"{self.topic}/")
        if own or not topic or len(topic.encode()) > RESPONSE_TOPIC_BYTES_MAX or any(one in topic for one in "+#\0"):
            topic = f"{self.topic}/answer"
        return topic, correlation

    async def _work(self) -> None:
        """Carry requests out, one after the other. Independent of the connection: a command is never half done."""
        while True:
            request, topic, correlation = await self._requests.get()
            self._counters["commands"] += 1
            self._say(logging.INFO, "command", command=request.command, asked_for=request.source)
            try:
                answer, picture = await execute(request, self._gateway)
            except GatewayError as error:
                self._refuse(request.echo(), str(error), topic, correlation)
            except Exception as error:
                logger.exception("command failed unexpectedly", extra={"fields": {"command": request.command}})
                what = f"The command failed unexpectedly ({type(error).__name__}); the gateway's log has more."
                self._refuse(request.echo(), what, topic, correlation)
            else:
                self._answer(request, answer, picture, topic, correlation)
            await asyncio.sleep(REQUEST_SPACING_S)

    def _answer(
        self, request: Request, answer: dict[str, Any], picture: Picture | None, topic: str, correlation: bytes | None
    ) -> None:
        if picture is not None:
            answer["topic"] = f"{self.topic}/snapshot/{request.source}"
            self._outbox.put(Outgoing(answer["topic"], picture.jpeg, qos=1, content_type="image/jpeg"))
        report = {**request.echo(), "ok": True, **answer}
        self._outbox.put(self._json(topic, report, qos=1, correlation=correlation))

    def _refuse(self, echo: dict[str, Any], error: str, topic: str, correlation: bytes | None) -> None:
        self._counters["commands_refused"] += 1
        self._say(logging.WARNING, "command refused", command=echo.get("command", ""), cause=error)
        self._outbox.put(self._json(topic, {**echo, "ok": False, "error": error}, qos=1, correlation=correlation))

    def _say(self, level: int, event: str, **fields: object) -> None:
        """Log an event; no payload, no secret. The log itself limits repeats and counts them."""
        broker = f"{self.config.host}:{self.config.port}"
        logger.log(level, event, extra={"fields": {"source": "control", "broker": broker, **fields}})


async def _first_of(*bodies: Coroutine[Any, Any, None]) -> None:
    """Run all until the first ends, and raise what it raised; the others are cancelled."""
    tasks = [asyncio.ensure_future(body) for body in bodies]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        # More than once: until Python 3.12 asyncio.wait_for, which aiomqtt uses, swallows a cancellation that comes in
        # the moment in which what it waits for has come, too.
        while left := [task for task in tasks if not task.done()]:
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # the first one's was raised above; the others' are consequences
