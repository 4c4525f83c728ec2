"""A process that publishes with QoS 0: `python -m bench.generator PORT SECONDS [RATE]`. Prints how many it sent.

Without a rate it sends as fast as the other side takes them. Packets are encoded beforehand and sent in large blocks,
so that little of the machine is spent here.
"""

from __future__ import annotations

import sys
import time

from bench.common import connect_mqtt, publish_packets

BLOCK = 5_000
PACED_BLOCK = 100


def main() -> None:
    port, seconds = int(sys.argv[1]), float(sys.argv[2])
    rate = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    block = PACED_BLOCK if rate else BLOCK
    packets = publish_packets(block)
    with connect_mqtt(port, "bench-generator") as connection:
        sent, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            if rate and sent >= elapsed * rate:
                time.sleep(0.001)
                continue
            connection.sendall(packets)
            sent += block
        connection.sendall(b"\xe0\x00")
    print(sent)


if __name__ == "__main__":
    main()
