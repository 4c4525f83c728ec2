"""A process that publishes with QoS 1, one at a time, and counts acknowledgements in a shared file: PORT FILE.

It ends when its standard input does.
"""

from __future__ import annotations

import mmap
import select
import socket
import sys
from pathlib import Path

from tests.support.mqtt import connect, publish


def main() -> None:
    port, path = int(sys.argv[1]), Path(sys.argv[2])
    message = publish("plant/a", b"x", qos=1, packet_id=1)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8) as counter:
        client = socket.create_connection(("127.0.0.1", port), timeout=60)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(connect(4, "counting"))
        assert client.recv(4)[:1] == b"\x20"
        count = 0
        while not select.select([sys.stdin], [], [], 0)[0]:
            client.sendall(message)
            assert client.recv(4) == b"\x40\x02\x00\x01"
            count += 1
            counter[:8] = count.to_bytes(8, "little")


if __name__ == "__main__":
    main()
