"""Reports as JSON whose size is bounded, whatever the number of sources and streams."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

REPORT_BYTES_MAX = 256 * 2**10
# What a report is never cut below: members that say what it answers take less.
REPORT_BYTES_MIN = 4 * 2**10
# Room for the names of what was left out, braces and the like.
_FRAME_BYTES = 1_024


def encode(report: Mapping[str, Any], bytes_max: int = REPORT_BYTES_MAX) -> bytes:
    """The report as UTF-8 JSON of at most `bytes_max` bytes (more than 1,024).

    What makes it too large is left out, the largest members first; `left_out` then names them.
    """
    members = {name: _json(value) for name, value in report.items()}
    left_out: list[str] = []
    while members and sum(len(name) + len(text) + 4 for name, text in members.items()) > bytes_max - _FRAME_BYTES:
        largest = max(members, key=lambda name: len(members[name]))
        del members[largest]
        left_out.append(largest)
    if left_out:
        members["left_out"] = _json(left_out)
    return b"{%b}" % b",".join(_json(name) + b":" + text for name, text in members.items())


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), default=str).encode()
