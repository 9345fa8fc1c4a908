"""The test pattern: reproducible, paced, with known depth."""

from __future__ import annotations

import time

import numpy as np
import pytest

from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.sources.synthetic import MIDDLE_M, STEP_PX, SWING_M, SyntheticSource


class Simulated:
    """A clock that advances when it sleeps."""

    def __init__(self) -> None:
        self.now = 5_000_000_000
        self.woken: list[int] = []

    def now_ns(self) -> int:
        return self.now

    def sleep_until_ns(self, due_ns: int) -> None:
        self.now = max(self.now, due_ns)
        self.woken.append(self.now)


def test_the_pattern_moves_and_repeats() -> None:
    source, again = SyntheticSource(clock=Simulated()), SyntheticSource(clock=Simulated())
    assert source.live
    assert source.rate_hz == 30
    frames = [source.read() for _ in range(3)]
    for frame in frames:
        assert frame.shape == (480, 640, 3)
        assert np.array_equal(frame, again.read())
    assert np.array_equal(np.roll(frames[0], -STEP_PX, axis=1), frames[1])  # one step to the left, seamless
    assert frames[0].std((0, 1)).min() > 40


@pytest.mark.parametrize("size_hw", [(480, 640), (33, 50)])
def test_blue_is_the_depth(size_hw: tuple[int, int]) -> None:
    source = SyntheticSource(size_hw, clock=Simulated())
    for number in range(300):
        frame, depth_m = source.read(), source.depth_m(number)
        if number % 37 == 0:
            assert frame.shape == (*size_hw, 3)
            assert depth_m.shape == size_hw
            assert depth_m.dtype == np.float32
            depth_of_blue_m = MIDDLE_M - SWING_M + 2 * SWING_M * (frame[..., 2] + 0.5) / 255
            np.testing.assert_allclose(depth_m, depth_of_blue_m, atol=1.01 * SWING_M / 255)
    assert depth_m.min() >= MIDDLE_M - SWING_M - 1e-6


def test_frames_keep_the_rate_without_bursts() -> None:
    clock = Simulated()
    source = SyntheticSource((4, 6), rate_hz=50.0, clock=clock)
    start = clock.now
    for _ in range(4):
        source.read()
        clock.now += 3_000_000  # work of the reader does not delay the next frame
    clock.now += 500_000_000
    for _ in range(3):
        source.read()
    waits_ms = [(woken - start) / 1e6 for woken in clock.woken]
    assert waits_ms[:4] == [20, 40, 60, 80]
    late = waits_ms[4]
    assert late == 583, "a late frame is returned immediately"
    assert np.diff(waits_ms[4:]).tolist() == [0, 20]  # at most one frame waits, as in a camera


def test_the_real_clock_is_never_early() -> None:
    out = np.empty((4, 6, 3), np.uint8)
    start_s = time.perf_counter()
    source = SyntheticSource((4, 6), rate_hz=100.0)
    for _ in range(8):
        assert source.read(out) is out
    assert time.perf_counter() - start_s >= 0.9 * 8 / 100


def test_buffers_of_another_size_are_left_alone() -> None:
    other = np.zeros((3, 3, 3), np.uint8)
    frame = SyntheticSource((4, 6), clock=Simulated()).read(other)
    assert frame.shape == (4, 6, 3)
    assert not other.any()


@pytest.mark.parametrize(
    ("size_hw", "rate_hz", "message"),
    [
        ((0, 6), 30.0, "6x0 is not a frame size"),
        ((4, 6), 0.0, "0 Hz is not a frame rate"),
        ((4, 6), float("nan"), "nan Hz is not a frame rate"),
    ],
)
def test_invalid_patterns(size_hw: tuple[int, int], rate_hz: float, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SyntheticSource(size_hw, rate_hz)
