"""What the documentation's examples are run at: a gateway with all that the pages speak of, and its simulators."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

import gateway
from gateway.serve.kafka.users import Credentials
from tests.support.certificates import Authority
from tests.support.gateway_process import GatewayProcess, environment, free_port
from tests.support.native import wait_until

PATIENCE_S = 30.0
# Recorded before the examples begin; the picture of the instant lies in the middle.
FRAMES = 30
PASSWORD = "forty-two buckets"

# As mosquitto_passwd writes it.
_MOSQUITTO_USER = "press-1:$7$101$c2FsdHNhbHRzYWx0$" + "A" * 86 + "==\n"
_CONFIGURATION = """
[site]
name = "plant-7"
timezone = "Europe/Berlin"
[disk]
reserve = "1MiB"
[mqtt.listeners.others]
bind = "127.0.0.1:{others}"
connections_max = 100
routes = [
    {{ filter = "meters/#", stream = "meters" }},
    {{ filter = "machines/#", stream = "machines" }},
    {{ filter = "alarms/#", stream = "alarms" }},
    {{ filter = "replay/#", stream = "replayed" }},
    {{ filter = "#", stream = "rest" }},
]
[cameras.gate-1]
url = "{gate_1}"
[cameras.gate-2]
url = "{gate_2}"
[kafka]
bind = "127.0.0.1:{kafka}"
produce = ["orders"]
"""


@dataclass
class Site:
    """Running. names: what stands for what the pages call so. instant: a picture was on screen, readings came."""

    directory: Path
    data: Path
    config: Path
    environment: dict[str, str]
    names: dict[str, str]
    instant: datetime

    def place(self, name: str) -> Path:
        """A directory to run examples in: ./gateway.toml and ./gateway-demo lead to what is recorded."""
        place = self.directory / "places" / name
        place.mkdir(parents=True)
        (place / "gateway.toml").symlink_to(self.config)
        (place / "gateway-demo").symlink_to(self.data)
        (place / "password").write_text(PASSWORD + "\n", encoding="utf-8")
        shutil.copy(self.directory / "authority" / "site-ca.pem", place)
        return place

    def stopped(self, name: str) -> Path:
        """The same with a copy of the data, which nobody writes.

        The gateway goes on meanwhile: what counts is what was durable before, so watermarks are read first. One that is
        copied after its log may speak of what the copy does not have.
        """
        place = self.directory / "places" / name
        place.mkdir(parents=True)
        marks = {path.relative_to(self.data): path.read_bytes() for path in self.data.glob("*/watermark")}
        shutil.copytree(self.data, place / "data")
        for path, mark in marks.items():
            (place / "data" / path).write_bytes(mark)
        text = self.config.read_text(encoding="utf-8").replace(str(self.data), str(place / "data"))
        (place / "gateway.toml").write_text(text, encoding="utf-8")
        return place


@contextmanager
def example_site(directory: Path) -> Iterator[Site]:
    """Ends with the block, and with it all that was started."""
    with ExitStack() as stack:
        cameras = stack.enter_context(_simulator("camera", "--name", "gate-1", "--name", "gate-2", "--port", "0"))
        others, kafka = free_port(), free_port()
        settings = {"others": others, "kafka": kafka}
        urls = {name.replace("-", "_"): url for name, url in cameras["cameras"].items()}
        process = GatewayProcess(directory, extra_toml=_CONFIGURATION.format(**settings, **urls))
        stack.enter_context(process)
        process.start()
        to = f"mqtt://127.0.0.1:{process.port}"
        stack.enter_context(_simulator("sensors", "--to", to, "--count", "60", "--rate", "120", "--qos", "1"))
        _publish_others(others)
        instant = _recorded(process.data)
        names = _names(directory, process.data, cameras["cameras"]["gate-1"], process.port, others, kafka)
        names["edge-7:9093"] = stack.enter_context(_with_users(directory))
        yield Site(directory, process.data, process.config, _environment(directory), names, instant)


@contextmanager
def _with_users(directory: Path) -> Iterator[str]:
    """The address of a Kafka endpoint that asks for logins over TLS, of a gateway beside the other."""
    port, place = free_port(), directory / "with-users"
    place.mkdir()
    (place / "users").write_text(Credentials.make(PASSWORD).line("etl") + "\n", encoding="utf-8")
    etc = directory / "etc"
    kafka = f"""
[disk]
reserve = "1MiB"
[kafka]
bind = "127.0.0.1:{port}"
tls_cert = "{etc}/edge-7.pem"
tls_key = "{etc}/edge-7.key"
users_file = "{place}/users"
"""
    with GatewayProcess(place, extra_toml=kafka) as process:
        process.start()
        wait_until(lambda: "listening source=kafka" in process.log, "the Kafka endpoint", PATIENCE_S)
        yield f"127.0.0.1:{port}"


@contextmanager
def _simulator(*arguments: str) -> Iterator[dict[str, Any]]:
    """What it says when it is ready. It ends with the block, or with this process."""
    with subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "simulate", *arguments, "--json", "--until-eof"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait(PATIENCE_S)


def _publish_others(port: int) -> None:
    """Plain numbers, objects within objects, texts."""
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", port)
    client.loop_start()
    for number in range(50):
        rpm = {"rpm": 1_500 + number, "motor": {"temperature": 60 + number / 4}}
        for topic, payload in (
            (f"meters/hall-{number % 2 + 1}/power", b"%d.5" % number),
            ("machines/press-1", json.dumps(rpm).encode()),
            ("alarms/press-1", b"too hot"),
        ):
            client.publish(topic, payload, qos=1).wait_for_publish(PATIENCE_S)
    client.disconnect()
    client.loop_stop()


def _recorded(data: Path) -> datetime:
    """Waits until there is something of everything; an instant in the midst of it."""

    def cameras() -> bool:
        log = gateway.open(data)
        return {"gate-1", "gate-2"} <= {*log.streams()} and all(len(log[f"gate-{n}"]) >= FRAMES for n in (1, 2))

    wait_until((data / "meta.json").exists, "the data directory")
    wait_until(cameras, "pictures of both cameras", PATIENCE_S)
    newest = gateway.open(data)["gate-1"].describe()["newest"]
    assert isinstance(newest, datetime)
    return (newest - timedelta(seconds=1)).replace(tzinfo=None)


def _names(directory: Path, data: Path, camera: str, port: int, others: int, kafka: int) -> dict[str, str]:
    (directory / "etc").mkdir()
    certificate, key = Authority(directory / "authority", "site-ca").issue("edge-7")
    shutil.copy(certificate, directory / "etc" / "edge-7.pem")
    shutil.copy(key, directory / "etc" / "edge-7.key")
    shutil.copy(certificate, directory / "etc" / "server.pem")
    shutil.copy(key, directory / "etc" / "server.key")
    (directory / "etc" / "users").write_text(_MOSQUITTO_USER, encoding="utf-8")
    (directory / "etc" / "acl").write_text("topic write plant/#\n", encoding="utf-8")
    (directory / "gate-1.password").write_text(PASSWORD, encoding="utf-8")
    return {
        ".venv/bin/gateway": "gateway",
        "/opt/gateway/bin/gateway": "gateway",
        "/var/lib/gateway": str(data),
        "/etc/gateway": str(directory / "etc"),
        "rtsp://10.0.0.11/main": camera,
        "gateway simulate camera ": "gateway simulate camera --port 0 ",
        "--port 8554": "--port 0",
        "--size 1920x1080": "--size 640x360",  # encodes in a tenth of the time
        "127.0.0.1:1883 --prefix": f"127.0.0.1:{others} --prefix",
        "127.0.0.1:1883": f"127.0.0.1:{port}",
        "edge-7:9092": f"127.0.0.1:{kafka}",
    }


def _environment(directory: Path) -> dict[str, str]:
    """With a `gateway` of this tree on the PATH, in front of one that may be installed."""
    programs = directory / "bin"
    programs.mkdir()
    script = programs / "gateway"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gateway.cli "$@"\n', encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return environment({"PATH": os.pathsep.join([str(programs), os.environ["PATH"]])})


def interrupted(process: subprocess.Popen[bytes], said: Path) -> tuple[int, bytes]:
    """Ctrl-C once it has written something to `said`; exit code and stderr."""
    deadline = time.monotonic() + PATIENCE_S
    while not said.stat().st_size and process.poll() is None:
        assert time.monotonic() < deadline, "it says nothing"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    return process.returncode, errors
