"""Draws docs/frames-with-readings.png: pictures of a simulated camera joined to the readings of a simulated sensor.

    python docs/frames_with_readings.py docs/frames-with-readings.png

Records both for ten seconds with a gateway of its own in a temporary directory, joins them with `Stream.frames_with`,
and draws them with Matplotlib.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import tempfile
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import uvloop
from matplotlib.patches import ConnectionPatch

import gateway
from gateway.app import App
from gateway.config import from_dict
from gateway.demo import free_port
from gateway.simulate.camera import CameraServer
from gateway.simulate.sensors import SensorSimulator

SENSOR = "plant/line-1/sensor-4/vibration"
PICTURES = 4
INK, LINE, MARK = "#22303c", "#2a78b8", "#d1495b"


async def record(data: Path, seconds: float) -> None:
    """A camera and six sensors, ten times a second each, into a log."""
    port = free_port()
    async with contextlib.AsyncExitStack() as stack:
        camera = CameraServer(["gate-1"], port=0)
        await camera.start()
        stack.push_async_callback(camera.stop)
        routes = [{"filter": "plant/#", "stream": "telemetry"}]
        app = App(
            from_dict(
                {
                    "data": str(data),
                    "disk": {"reserve": "1MiB"},
                    "mqtt": {"listeners": {"devices": {"bind": f"127.0.0.1:{port}", "routes": routes}}},
                    "cameras": {"gate-1": {"url": camera.urls["gate-1"]}},
                }
            )
        )
        await app.start()
        stack.push_async_callback(app.stop)
        sensors = SensorSimulator(f"mqtt://127.0.0.1:{port}", count=6, rate=60, seed=4)
        await sensors.start()
        stack.push_async_callback(sensors.stop)
        await asyncio.sleep(seconds)


def draw(data: Path, seconds: float, out: Path) -> int:
    """The picture of what was recorded there; how many frames are joined in it."""
    log = gateway.open(data)
    table = log["telemetry"].read(keys=SENSOR).to_pandas(values="json")
    joined = [
        found
        for found in log["gate-1"].frames_with(log["telemetry"], every=f"{seconds / (PICTURES + 1):.3f}s", keys=SENSOR)
        if found.latest
    ][-PICTURES:]

    plt.rcParams.update({"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": "#9aa5b1"})
    figure = plt.figure(figsize=(9, 4.4), dpi=110)
    grid = figure.add_gridspec(2, len(joined), height_ratios=(1, 1.1), hspace=0.42, wspace=0.06)
    curve = figure.add_subplot(grid[1, :])
    curve.plot(table["timestamp"], table["value"], color=LINE, linewidth=1.4)
    curve.set_ylabel("vibration, mm/s")
    curve.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M:%S"))
    curve.spines[["top", "right"]].set_visible(False)
    curve.margins(x=0.01)
    for place, found in enumerate(joined):
        reading = found.latest[SENSOR.encode()]
        value = json.loads(reading.value or b"")["value"]
        axes = figure.add_subplot(grid[0, place])
        axes.imshow(found.item.rgb)
        axes.set_axis_off()
        behind = found.item.timestamp_ms - reading.timestamp_ms
        axes.set_title(f"{found.item.timestamp:%H:%M:%S.%f}"[:-3] + f"   {value:.2f} mm/s", fontsize=9)
        axes.text(
            0.5, -0.09, f"reading {behind} ms older", transform=axes.transAxes, ha="center", va="center", fontsize=8
        )
        at = (mdates.date2num(reading.timestamp), value)
        curve.plot(*at, "o", color=MARK, markersize=6, zorder=3)
        curve.add_artist(
            ConnectionPatch((0.5, -0.16), at, axes.transAxes, curve.transData, color=MARK, linewidth=0.9, linestyle=":")
        )
    curve.set_xlabel(SENSOR, color=LINE)
    figure.savefig(out, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return len(joined)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to record")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "data"
        uvloop.run(record(data, chosen.seconds))
        frames = draw(data, chosen.seconds, chosen.out)
    print(f"{chosen.out}: {frames} frames with their readings")  # noqa: T201  # what a script says


if __name__ == "__main__":
    main()
