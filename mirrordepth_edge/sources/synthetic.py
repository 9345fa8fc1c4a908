"""A moving pattern whose depth is known, paced like a camera: the whole path without any hardware."""

from __future__ import annotations

import time

import numpy as np

from mirrordepth_edge.config import SizeHW
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.sources.source import FrameSource
from mirrordepth_edge.support.clock import Clock

SIZE_HW = (480, 640)
RATE_HZ = 30.0
STEP_PX = 4
"""How far the pattern moves to the left from one frame to the next."""
MIDDLE_M, SWING_M = 3.0, 2.0
"""Depth is `MIDDLE_M` give or take `SWING_M`."""


class SleepingClock:
    """`perf_counter` and sleep. It spins for nothing, since that would keep Python from the thread that infers."""

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def sleep_until_ns(self, due_ns: int) -> None:
        time.sleep(max(0, due_ns - time.perf_counter_ns()) / 1e9)


SLEEPING_CLOCK = SleepingClock()


class SyntheticSource(FrameSource):
    """A pattern that moves to the left; frame k, counted from 0, is the same in every run.

    It shows a wall with waves: blue is how far each pixel is away, 255 at `MIDDLE_M + SWING_M` and 0 at
    `MIDDLE_M - SWING_M`, rounded down.

    Args:
        size_hw: of the frames.
        rate_hz: frames a second, above 0. As with a camera, those that nobody fetches in time are lost, but
            they have no number: the next one that is read is the next one of the pattern.
        clock: the real one, or a simulated one.

    Raises:
        OptionError: there is no such size or rate.
    """

    name = "synthetic pattern"
    live = True

    def __init__(self, size_hw: SizeHW = SIZE_HW, rate_hz: float = RATE_HZ, clock: Clock = SLEEPING_CLOCK) -> None:
        height, width = size_hw
        if min(size_hw) < 1 or not 0 < rate_hz <= 1000:
            raise OptionError(
                f"No pattern of {width}x{height} pixels at {rate_hz:g} Hz can be shown.",
                "It needs a width, a height, and a rate of at most 1000 Hz.",
                "Leave them out, or pass such as 640x480 and 30.",
            )
        self.rate_hz = rate_hz
        self._size_hw = size_hw
        y, x = np.mgrid[:height, : 2 * width]
        # Periodic in `width`, so that every frame is a window into this one array.
        phase = 2 * np.pi * x / width
        waves = np.sin(phase), np.cos(3 * phase), np.sin(phase + 2 * np.pi * y / height)
        self._pattern = np.stack([127.5 + 127.5 * wave for wave in waves], axis=-1).astype(np.uint8)
        self._pattern_m: DepthMap = (MIDDLE_M + SWING_M * waves[2]).astype(np.float32)
        self._index = 0
        self._clock = clock
        self._due_ns = clock.now_ns()

    def read(self, out: Frame | None = None) -> Frame:
        period_ns = round(1e9 / (self.rate_hz or RATE_HZ))
        # As a camera does, lose the frames that nobody fetched in time instead of sending a burst.
        self._due_ns = max(self._due_ns + period_ns, self._clock.now_ns() - period_ns)
        self._clock.sleep_until_ns(self._due_ns)
        window = self._window(self._index)
        self._index += 1
        if out is None or out.shape != (*self._size_hw, 3):
            out = np.empty((*self._size_hw, 3), np.uint8)
        np.copyto(out, self._pattern[:, window])
        return out

    def depth_m(self, number: int) -> DepthMap:
        """The exact depth of a frame.

        Args:
            number: of the frame, from 0: `number + dropped` of a `LiveResult`.

        Returns:
            float32 `[H, W]`, metres; a view that is not to be written.
        """
        return self._pattern_m[:, self._window(number)]

    def _window(self, number: int) -> slice:
        start = number * STEP_PX % self._size_hw[1]
        return slice(start, start + self._size_hw[1])
