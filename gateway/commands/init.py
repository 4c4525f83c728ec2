"""``gateway init``: a first configuration, with everything explained that people change."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from gateway.commands.common import command_with_examples
from gateway.errors import GatewayError

_TEMPLATE = """\
# The configuration of one gateway. `gateway config check` says what is wrong with it and what it adds up to.
# Units are written out everywhere: "5ms", "30s", "7d"; "64KiB", "2GiB". Relative paths start at this file's directory.

data = "{data}"              # where the streams are kept

# Further files, merged into this one; each key may be set in one file only.
# include = ["conf.d/*.toml"]

[site]
name = "{name}"
timezone = "{timezone}"      # times without a zone mean this one, for everybody who reads
# clock = "trusted"            # where no NTP runs: retention by age then does not wait for a synchronised clock

# --- the disk ---------------------------------------------------------------------------------------------------

# [disk]
# reserve = "2GiB"              # never filled; before it is reached, the oldest segments are deleted

# --- streams ----------------------------------------------------------------------------------------------------
# A stream needs no entry here: it appears with its first record. These are the keys, with their defaults.

[streams.telemetry]
ack = "disk"                    # a publish is acknowledged when its record is on disk; "memory": when it is taken
linger = "5ms"                  # least time between two commits of a busy stream
segment_size = "1GiB"           # a file of the log is sealed at this size …
segment_age = "7d"              # … or at this age
when_full = "delete-oldest"     # "refuse": this stream keeps what it has, and refuses records while the disk is full
# retention = ["30d", "100GiB"] # at most so old and so much; default: as much as the disk holds

# --- sensors ----------------------------------------------------------------------------------------------------

[mqtt.listeners.devices]        # devices connect straight to the gateway, as if it were a broker
bind = "127.0.0.1:1883"         # "0.0.0.0:1883" for the whole network: then with users, or allow_anonymous = true
routes = [{{ filter = "#", stream = "telemetry" }}]
#   passwords: users_file (of mosquitto_passwd) and access_file; TLS: tls_cert, tls_key; see docs/reference.md
# subscribe = "accept"          # for firmware that insists on subscribing; nothing is delivered

# [mqtt.subscribers.broker]     # or the gateway subscribes at a broker that is there already
# url = "mqtt://broker.local:1883"    # mqtts:// for TLS
# username = "gateway"
# password_file = "/run/credentials/broker"
# routes = [{{ filter = "plant/#", stream = "telemetry", qos = 1 }}]

# --- the control plane ------------------------------------------------------------------------------------------

# [control]                       # tells a broker: online or offline, and statistics
# url = "mqtt://broker.local:1883"
# topic = "gateway/{name}"          # …/status, …/statistics
# commands = false                # true: who may publish to …/command there may pause sources and see pictures

# [kafka]                         # Kafka clients read every stream as a topic: pip install 'gateway[kafka]'
# bind = "127.0.0.1:9092"
# produce = ["orders"]              # streams that they may write to

# --- cameras ----------------------------------------------------------------------------------------------------

# [cameras.gate-1]
# url = "rtsp://10.0.0.11/main"
# username = "viewer"
# password = "${{GATE1_PASSWORD}}"      # from the environment; only as the whole value
# stream = "gate-1"                   # default: the camera's name
# transport = "tcp"                   # or "udp"
"""


@command_with_examples(
    "init",
    "Write a commented configuration.",
    """
    gateway init
    gateway init /etc/gateway/gateway.toml --data /var/lib/gateway
    """,
)
@click.argument("path", type=click.Path(path_type=Path), default=Path("gateway.toml"))
@click.option("--data", metavar="DIR", default="gateway-data", show_default=True, help="The data directory it names.")
def command(path: Path, data: str) -> None:
    """Write a commented configuration to PATH (gateway.toml); an existing file is left alone."""
    text = _TEMPLATE.format(data=_escaped(data), name="gateway", timezone=local_timezone())
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise GatewayError(f"{path} exists and was left as it is; remove it, or name another file.") from None
    click.echo(f"Wrote {path}. Next: gateway config check -c {path}, then gateway run -c {path}")


def local_timezone() -> str:
    """The IANA name of this machine's time zone, "UTC" if it cannot be told."""
    candidates = [os.environ.get("TZ", "").removeprefix(":")]
    target = str(Path("/etc/localtime").resolve())
    if "/zoneinfo/" in target:
        candidates.append(target.partition("/zoneinfo/")[2])
    if time.tzname == ("UTC", "UTC"):
        candidates.append("UTC")
    from zoneinfo import available_timezones

    known = available_timezones()
    found = next((name for name in candidates if name in known), "UTC")
    return "UTC" if found in ("Etc/UTC", "Etc/UCT", "UCT", "Universal", "Zulu") else found


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
