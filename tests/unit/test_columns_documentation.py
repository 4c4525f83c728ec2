"""The examples of docs/columns.md run, on a log that has what they read."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.columns import Put, make_stream
from tests.support.partitions import T0
from tests.unit.test_moments import put_camera

PAGE = Path(__file__).parents[2] / "docs" / "columns.md"


@pytest.mark.filterwarnings("ignore::gateway.errors.BadPayloadWarning")
def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, in one program; and what they name has rows in it."""
    now = int(time.time() * 1000) - T0
    data = tmp_path / "gateway-demo"
    readings = [
        Put(now - 10_000 + n * 10, f"plant/{n % 2}/press/temperature".encode(), b"%d.5" % n) for n in range(500)
    ]
    make_stream(data, readings, name="telemetry")
    machines = [{"rpm": n, "motor": {"temperature": n / 2}} for n in range(5)]
    make_stream(data, [Put(n, b"m", json.dumps(one).encode()) for n, one in enumerate(machines)], name="machines")
    put_camera(data, "gate-1", 6)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for example in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(example, str(PAGE), "exec"), names)  # noqa: S102  # the page's own examples
    assert names["frame"].height == names["table"].num_rows == len(names["pandas_frame"]) == 500
    assert names["numbers"]["value"].sum() == sum(float(put.value or b"") for put in readings)
    assert names["machines"]["motor.temperature"].to_list() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert names["exact"].column_names == ["offset", "timestamp", "key", "rpm", "motor.temperature"]
    assert set(names["by_line"]["line"]) == {"0", "1"}
    assert names["pictures"]["codec"].to_pylist() == ["h264"] * 6
    assert names["side_by_side"].width == 3
    assert len(names["moment"]) == 2
    assert names["batch"].num_rows == 500
