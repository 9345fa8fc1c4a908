"""A moving test pattern with known depth, paced like a camera, to run live depth without hardware."""

from __future__ import annotations

import time

import numpy as np

from mirrordepth_edge.config import SizeHW
from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.sources.cameras import CameraOptions
from mirrordepth_edge.sources.source import FrameSource
from mirrordepth_edge.support.clock import Clock

SIZE_HW = (480, 640)
RATE_HZ = 30.0
STEP_PX = 4
"""Shift of the pattern to the left per frame."""
MIDDLE_M, SWING_M = 3.0, 2.0
"""Depth is `MIDDLE_M` ± `SWING_M`."""


class SleepingClock:
    """`perf_counter` and sleep, without spinning, which would take the GIL from the inference thread."""

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def sleep_until_ns(self, due_ns: int) -> None:
        time.sleep(max(0, due_ns - time.perf_counter_ns()) / 1e9)


SLEEPING_CLOCK = SleepingClock()


class SyntheticSource(FrameSource):
    """A pattern that moves to the left; frame k, counted from 0, is the same in every run.

    It shows a wavy wall. The blue channel is the depth of each pixel: 0 at `MIDDLE_M - SWING_M`, 255 at
    `MIDDLE_M + SWING_M`, rounded down.

    Args:
        size_hw: frame size.
        rate_hz: frames per second, above 0. Frames that are not read in time are lost, as with a camera, but they do
            not count: the next frame that is read is the next one of the pattern.
        clock: a real or simulated clock.

    Raises:
        OptionError: invalid size or rate.
    """

    name = "synthetic pattern"
    live = True

    def __init__(self, size_hw: SizeHW = SIZE_HW, rate_hz: float = RATE_HZ, clock: Clock = SLEEPING_CLOCK) -> None:
        CameraOptions(size_hw=size_hw, rate_hz=rate_hz)  # checks both
        height, width = size_hw
        self.rate_hz = rate_hz
        self._size_hw = size_hw
        y, x = np.mgrid[:height, : 2 * width]
        # Two periods of `width` pixels, so that every frame is a window into this one array.
        phase = 2 * np.pi * x / width
        waves = np.sin(phase), np.cos(3 * phase), np.sin(phase + 2 * np.pi * y / height)
        self._pattern = np.stack([127.5 + 127.5 * wave for wave in waves], axis=-1).astype(np.uint8)
        self._pattern_m: DepthMap = (MIDDLE_M + SWING_M * waves[2]).astype(np.float32)
        self._index = 0
        self._clock = clock
        self._due_ns = clock.now_ns()

    def read(self, out: Frame | None = None) -> Frame:
        period_ns = round(1e9 / (self.rate_hz or RATE_HZ))
        # Lose the frames that were not read in time, as a camera does, instead of sending a burst.
        self._due_ns = max(self._due_ns + period_ns, self._clock.now_ns() - period_ns)
        self._clock.sleep_until_ns(self._due_ns)
        window = self._window(self._index)
        self._index += 1
        if out is None or out.shape != (*self._size_hw, 3):
            out = np.empty((*self._size_hw, 3), np.uint8)
        np.copyto(out, self._pattern[:, window])
        return out

    def depth_m(self, number: int) -> DepthMap:
        """Return the exact depth of a frame.

        Args:
            number: frame number from 0: `number + dropped` of a `LiveResult`.

        Returns:
            float32 `[H, W]`, metres; a view that must not be modified.
        """
        return self._pattern_m[:, self._window(number)]

    def _window(self, number: int) -> slice:
        start = number * STEP_PX % self._size_hw[1]
        return slice(start, start + self._size_hw[1])
