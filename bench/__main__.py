"""`python -m bench [NAME …] [--json] [--rounds N]`: measure; what has no peer here is skipped by name."""

from __future__ import annotations

import argparse
import importlib
import json
import sys

from bench.common import Skipped, machine

MODULES = {
    "mqtt_listener": "messages/s into the log, beside an aiomqtt receive loop behind Mosquitto",
    "storage_append": "ring to durable by record size, mapped and pwrite",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog="\n".join(f"{name}: {what}" for name, what in MODULES.items()),
    )
    parser.add_argument("names", nargs="*", choices=[*MODULES, []], help="which; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median counts")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    about = machine()
    report: dict[str, object] = {"machine": about}
    print(", ".join(f"{key} {value}" for key, value in about.items()), file=sys.stderr)
    for name in arguments.names or MODULES:
        print(f"\n{name}: {MODULES[name]}", file=sys.stderr)
        try:
            result = importlib.import_module(f"bench.{name}").run(arguments.rounds)
        except Skipped as reason:
            report[name] = {"skipped": str(reason)}
            print(f"  skipped: {reason}", file=sys.stderr)
            continue
        report[name] = result.as_json()
        print(result.as_text(), file=sys.stderr)
    if arguments.json:
        print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
