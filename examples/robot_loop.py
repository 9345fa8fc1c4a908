"""Depth in a robot's own loop: drive slower if something ahead is near.

    python examples/robot_loop.py 0 --fov-deg 78

Depth from one image is an estimate, and accurate only for scenes like those in the training data. Measure it on yours
(mde evaluate), and use certified sensors where people must be protected.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import mirrordepth_edge
from mirrordepth_edge.camera.model import Lens

STOP_M, FREE_M = 0.6, 2.0
"""Below STOP_M the robot stops; above FREE_M it drives at full speed."""
MAX_AGE_S = 0.5
"""Older depth is ignored: the robot has moved since."""


def speed_for(depth_m: np.ndarray, age_s: float) -> float:
    """Return a speed from 0 to 1 for depth `[H, W]` in metres."""
    height, width = depth_m.shape
    ahead_m = depth_m[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3]
    nearest_m = float(np.percentile(ahead_m, 5))  # not the minimum: one wrong pixel should not stop a robot
    return 0.0 if age_s > MAX_AGE_S else min(max((nearest_m - STOP_M) / (FREE_M - STOP_M), 0.0), 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", nargs="?", default="0", help="camera number, video, URL or synthetic")
    parser.add_argument("--fov-deg", type=float, help="the camera's horizontal field of view")
    parser.add_argument("--frames", type=int, help="stop after this many frames")
    options = parser.parse_args()

    camera = None if options.fov_deg is None else Lens(fov_deg=options.fov_deg)
    with mirrordepth_edge.stream(options.source, camera=camera) as frames:
        for frame in frames:
            age_s = time.time() - frame.captured_unix_ns / 1e9
            speed = speed_for(frame.depth_m, age_s)  # frame.depth_m is valid until the next iteration
            print(f"frame {frame.number}: speed {speed:.2f}, {1e3 * age_s:.0f} ms old, {frame.dropped} dropped")
            if frame.number + 1 == options.frames:
                break


if __name__ == "__main__":
    main()
