"""The handover of frames from a source to the live loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.sources.latest import in_order, newest
from mirrordepth_edge.sources.source import FrameSource

WAIT_S = 60.0


class Numbered(FrameSource):
    """Frames that contain their number; reading waits after the frames in `pauses` until `go_on` is set."""

    name, live = "numbered", True

    def __init__(
        self, count: int, pauses: tuple[int, ...] = (), error: Exception | None = None, period_s: float = 0.0
    ) -> None:
        self.count, self.pauses, self.error, self.period_s = count, pauses, error, period_s
        self.number = 0
        self.paused, self.go_on = threading.Event(), threading.Event()
        self.stopped = False
        self.buffers: set[int] = set()

    def read(self, out: Frame | None = None) -> Frame | None:
        time.sleep(self.period_s)
        if self.number in self.pauses:
            self.paused.set()
            assert self.go_on.wait(WAIT_S)
            self.go_on.clear()
        if self.number == self.count or self.stopped:
            if self.error is not None:
                raise self.error
            return None
        frame = np.empty((2, 2, 3), np.uint8) if out is None else out
        frame[:] = self.number
        self.buffers.add(frame.ctypes.data)
        self.number += 1
        return frame

    def stop(self) -> None:
        self.stopped = True
        self.go_on.set()


def test_the_newest_frame_wins_and_the_others_are_counted() -> None:
    source = Numbered(50, pauses=(10, 30))
    numbers = []
    with closing(newest(source)) as captures:
        for capture in captures:
            if capture is None:
                continue
            if not numbers:
                assert source.paused.wait(WAIT_S)
                source.paused.clear()
                source.go_on.set()
                assert source.paused.wait(WAIT_S)
                source.go_on.set()
            assert capture.frame[0, 0, 0] == len(numbers) + capture.dropped, "number + dropped is the frame number"
            numbers.append(int(capture.frame[0, 0, 0]))
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 49, "the last frame must not be lost"
    assert len(numbers) < 50
    assert len(source.buffers) <= 3


def test_a_frame_does_not_change_while_it_is_in_use(wait_until: Callable[[Callable[[], object]], None]) -> None:
    source = Numbered(200, period_s=0.001)
    with closing(newest(source)) as captures:
        for capture in captures:
            if capture is not None:
                number = int(capture.frame[0, 0, 0])
                wait_until(lambda number=number: source.number >= min(200, number + 5))
                assert (capture.frame == number).all()
    assert source.number == 200


def test_none_is_yielded_while_no_frame_arrives() -> None:
    source = Numbered(2, pauses=(1,))
    with closing(newest(source)) as captures:
        assert next(captures) is not None
        assert next(captures) is None
        source.go_on.set()
        while (capture := next(captures)) is None:
            pass
        assert capture.frame[0, 0, 0] == 1


def test_an_error_is_raised_after_the_last_frame_and_the_thread_ends() -> None:
    before = set(threading.enumerate())
    source = Numbered(1, error=InputError("lost", "why", "cure"))
    numbers = []
    with pytest.raises(InputError, match="lost"):
        numbers.extend(int(capture.frame[0, 0, 0]) for capture in newest(source) if capture is not None)
    assert numbers == [0]
    assert set(threading.enumerate()) <= before


def test_leaving_early_stops_the_source() -> None:
    before = set(threading.enumerate())
    source = Numbered(10, pauses=(1,))
    with closing(newest(source)) as captures:
        assert next(captures) is not None
    assert source.stopped
    assert set(threading.enumerate()) <= before


def test_every_frame_is_yielded_in_order_in_one_buffer() -> None:
    source = Numbered(5)
    captures = [(int(capture.frame[0, 0, 0]), capture.dropped) for capture in in_order(source) if capture is not None]
    assert captures == [(number, 0) for number in range(5)]
    assert len(source.buffers) == 1
