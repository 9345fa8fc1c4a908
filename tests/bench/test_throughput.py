"""Sessions side by side: every frame once, all at work at once, failures and an end to all of it."""

from __future__ import annotations

import threading
from time import sleep

import numpy as np
import pytest

from mirrordepth_edge.bench.throughput import throughput
from mirrordepth_edge.errors import MdeError, OptionError


def test_sessions_work_at_the_same_time_and_share_the_frames() -> None:
    taken: list[int] = []
    together = threading.Barrier(3)

    def step(number: int) -> None:
        if number < 3:
            together.wait(timeout=5)  # fails unless three sessions are in it at once
        taken.append(number)
        sleep(0.01)

    result = throughput([step] * 3, 0.2)
    assert sorted(taken) == [*range(len(taken))]
    assert len(result.frames_ms) == len(taken)
    assert (result.frames_ms >= 10).all()
    assert result.seconds >= 0.2
    assert result.rate_hz == pytest.approx(len(taken) / result.seconds)


def test_a_frame_that_was_begun_is_finished() -> None:
    result = throughput([lambda number: sleep(0.2)], 0.01)
    assert len(result.frames_ms) == 1
    np.testing.assert_allclose(result.frames_ms, 1e3 * result.seconds, rtol=0.1)


def test_a_failure_ends_all_and_is_raised() -> None:
    def step(number: int) -> None:
        if number == 3:
            raise ValueError("frame 3")

    with pytest.raises(ValueError, match="frame 3"):
        throughput([step, step], 60)
    assert not [thread for thread in threading.enumerate() if thread.name == "mde-throughput"]


@pytest.mark.parametrize(("sessions", "seconds"), [(0, 1.0), (1, 0.0), (1, float("nan"))])
def test_what_measures_nothing_is_refused(sessions: int, seconds: float) -> None:
    with pytest.raises(OptionError) as caught:
        throughput([lambda number: None] * sessions, seconds)
    assert isinstance(caught.value, MdeError)
