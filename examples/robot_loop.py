"""Depth in a robot's own loop: drive slower the nearer something is ahead.

    python examples/robot_loop.py 0 --fov-deg 78

Depth from one picture is a guess, and a good one only where it looks like what the model has learnt from. Measure
yours (mde evaluate), and leave stopping for people to sensors that are made for it.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import mirrordepth_edge
from mirrordepth_edge.camera.model import Lens

STOP_M, FREE_M = 0.6, 2.0
"""Nearer than this the robot stands, and farther than this it goes as fast as it can."""
OLDEST_S = 0.5
"""Depth that is older than this is of somewhere else."""


def speed_for(depth_m: np.ndarray, age_s: float) -> float:
    """0 to 1, from depth `[H, W]` in metres."""
    height, width = depth_m.shape
    ahead_m = depth_m[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3]
    nearest_m = float(np.percentile(ahead_m, 5))  # not the minimum: one wrong pixel should not stop a robot
    return 0.0 if age_s > OLDEST_S else min(max((nearest_m - STOP_M) / (FREE_M - STOP_M), 0.0), 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", nargs="?", default="0", help="camera number, video, URL or synthetic")
    parser.add_argument("--fov-deg", type=float, help="the camera's horizontal field of view")
    parser.add_argument("--frames", type=int, help="stop after so many")
    options = parser.parse_args()

    camera = None if options.fov_deg is None else Lens(fov_deg=options.fov_deg)
    with mirrordepth_edge.stream(options.source, camera=camera) as frames:
        for frame in frames:
            age_s = time.time() - frame.captured_unix_ns / 1e9
            speed = speed_for(frame.depth_m, age_s)  # frame.depth_m is valid until the next turn
            print(f"frame {frame.number}: speed {speed:.2f}, {1e3 * age_s:.0f} ms old, {frame.dropped} dropped")
            if frame.number + 1 == options.frames:
                break


if __name__ == "__main__":
    main()
