"""A process that is a bare epoll echo server: `python -m bench.echo PORT`."""

from __future__ import annotations

import socket
import sys

from bench.native import load_module


def main() -> None:
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4_096) as listening:
        listening.setblocking(False)
        load_module("acknowledged").echo(listening.fileno())


if __name__ == "__main__":
    main()
