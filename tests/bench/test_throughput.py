"""Sessions side by side, and one that keeps frames in work: every frame once, failures and an end to all of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from time import sleep

import pytest

from mirrordepth_edge.bench.throughput import throughput, throughput_of_generator
from mirrordepth_edge.errors import MdeError, OptionError


def test_sessions_work_at_the_same_time_and_share_the_frames() -> None:
    taken: list[int] = []
    together = threading.Barrier(3)

    def step(number: int) -> None:
        if number < 3:
            together.wait(timeout=600)  # fails unless three sessions are in it at once
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
    assert 200 <= result.frames_ms[0] <= 1e3 * result.seconds


def test_a_failure_ends_all_and_is_raised() -> None:
    def step(number: int) -> None:
        if number == 3:
            raise ValueError("frame 3")

    with pytest.raises(ValueError, match="frame 3"):
        throughput([step, step], 60)
    assert not [thread for thread in threading.enumerate() if thread.name == "mde-throughput"]


@pytest.mark.parametrize(("sessions", "seconds"), [(0, 1.0), (1, 0.0), (1, float("nan"))])
def test_nothing_to_measure_is_refused(sessions: int, seconds: float) -> None:
    with pytest.raises(OptionError) as caught:
        throughput([lambda number: None] * sessions, seconds)
    assert isinstance(caught.value, MdeError)


def test_one_thread_finishes_started_frames() -> None:
    """Frames are begun two at a time and end in pairs, 20 ms later; the last one is alone, or not."""
    taken: list[int] = []

    def work(numbers: Iterator[int]) -> Iterator[int]:
        for number in numbers:
            pair = [number, *(each for each in [next(numbers, None)] if each is not None)]
            sleep(0.02)
            taken.extend(pair)
            yield from pair

    result = throughput_of_generator(work, 0.1)
    assert taken == [*range(len(taken))]
    assert len(result.frames_ms) == len(taken)
    assert (result.frames_ms >= 20).all()
    assert result.seconds >= 0.1
    assert result.rate_hz == pytest.approx(len(taken) / result.seconds)


def test_one_frame_is_the_least() -> None:
    def work(numbers: Iterator[int]) -> Iterator[int]:
        for number in numbers:
            sleep(0.1)
            yield number

    result = throughput_of_generator(work, 0.01)
    assert len(result.frames_ms) == 1
    assert 100 <= result.frames_ms[0] <= 1e3 * result.seconds


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(OptionError):
        throughput_of_generator(iter, seconds)
