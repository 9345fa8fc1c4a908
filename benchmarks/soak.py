"""Test the live loop for memory leaks.

    python benchmarks/soak.py --minutes 30

The camera is the synthetic pattern, which disconnects and reconnects every `--unplug-s` seconds. One output copies
every result. The script reports the slope of the memory (VmRSS of `/proc/self/status`) after a settling time, with its
95 % interval, and the numbers of frames, drops and faults.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.live.loop import run_live
from mirrordepth_edge.live.result import LiveResult
from mirrordepth_edge.machine.sensors.linux import parse_memory_mib
from mirrordepth_edge.predictor import load
from mirrordepth_edge.sources.reconnect import reconnecting
from mirrordepth_edge.sources.source import FrameSource
from mirrordepth_edge.sources.synthetic import SyntheticSource

STATUS = Path("/proc/self/status")
INTERVAL_S = 0.5
SETTLING = 0.2
"""Share of the run that is ignored, in which buffers and allocators reach their size."""
BLOCKS = 20
T_18 = 2.101
"""97.5 % quantile of Student's t with `BLOCKS - 2` degrees of freedom."""


class UnpluggedCamera(FrameSource):
    """A camera that fails after `seconds`."""

    live = True
    may_return = True

    def __init__(self, camera: FrameSource, seconds: float) -> None:
        self.name, self.rate_hz = camera.name, camera.rate_hz
        self._camera = camera
        self._until_s = time.perf_counter() + seconds

    def read(self, out: Frame | None = None) -> Frame | None:
        if time.perf_counter() > self._until_s:
            raise InputError(
                f"{self.name} was unplugged.", "The soak test disconnects it on purpose.", "Wait until it reconnects."
            )
        return self._camera.read(out)


class CopyingOutput:
    """An output that copies every result, like a recorder."""

    name = "copies"

    def show(self, result: LiveResult) -> None:
        self.frame, self.depth_m = result.frame.copy(), result.depth_m.copy()


def slope(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Fit a line by least squares; return its slope with a 95 % interval.

    The interval is computed from the means of `BLOCKS` blocks, because neighbouring samples are correlated.

    Args:
        x: ascending, shape `[N]`, at least `BLOCKS` long.
        y: shape `[N]`.

    Returns:
        slope, low, high.
    """
    means = [np.array([block.mean() for block in np.array_split(values, BLOCKS)]) for values in (x, y)]
    centred = means[0] - means[0].mean()
    steepness = float(centred @ means[1] / (centred @ centred))
    residuals = means[1] - means[1].mean() - steepness * centred
    error = float(np.sqrt(residuals @ residuals / (BLOCKS - 2) / (centred @ centred)))
    return steepness, steepness - T_18 * error, steepness + T_18 * error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--rate", type=float, default=30, help="camera rate (Hz)")
    parser.add_argument("--unplug-s", type=float, default=20, help="seconds between disconnections")
    options = parser.parse_args()
    # Allocated in advance, so that it does not count as growth.
    samples = np.full((int(options.minutes * 60 / INTERVAL_S) + 1, 2), np.nan)
    taken = 0
    camera = SyntheticSource(rate_hz=options.rate)
    start_s = time.perf_counter()

    def should_stop() -> bool:
        nonlocal taken
        seconds = time.perf_counter() - start_s
        if seconds >= taken * INTERVAL_S and taken < len(samples):
            samples[taken] = seconds / 60, parse_memory_mib(STATUS.read_text(encoding="utf-8"), "VmRSS") * 1024
            taken += 1
        return bool(seconds >= options.minutes * 60)

    with load(options.model) as predictor, reconnecting(lambda: UnpluggedCamera(camera, options.unplug_s)) as source:
        stats = run_live(source, predictor, outputs=[CopyingOutput()], should_stop=should_stop)
    minutes, kib = samples[:taken].T
    kept = minutes >= SETTLING * options.minutes
    if kept.sum() < BLOCKS:
        raise SystemExit("The run is too short for a slope. Pass --minutes 1 or more.")
    steepness, low, high = slope(minutes[kept], kib[kept])
    print(f"{stats}")
    for output in stats.outputs:
        print(f"output {output.name}: {output.shown} results, {output.dropped} dropped")
    print(f"memory (MiB): start {kib[0] / 1024:.1f}, settled {kib[kept][0] / 1024:.1f}, end {kib[-1] / 1024:.1f}")
    print(f"slope: {steepness:+.1f} KiB/min, 95 % interval {low:+.1f} … {high:+.1f}; {kept.sum()} samples")
    print(f"faults: {stats.faults}; frames: {stats.frames}; dropped: {stats.dropped}")
    raise SystemExit(stats.interrupted)


if __name__ == "__main__":
    main()
