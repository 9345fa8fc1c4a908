"""Reopening of lost sources, with scripted fakes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.live.loop import run_live
from mirrordepth_edge.sources import reconnect
from mirrordepth_edge.sources.reconnect import Reconnecting, reconnecting
from mirrordepth_edge.sources.source import LIVE, FrameSource, SourceState

LOST = InputError("/dev/video0 delivers no frames.", "why", "cure")
ABSENT = InputError("Camera /dev/video0 does not exist.", "why", "cure")


class Scripted(FrameSource):
    """A source that returns frames of these values and raises these errors, then ends."""

    live = True
    may_return = True

    def __init__(self, *script: int | Exception, name: str = "camera", faults: int = 0, note: str = "") -> None:
        self.script = list(script)
        self.name, self.faults = name, faults
        self.note = note
        self.closed = self.stopped = False

    @property
    def notes(self) -> tuple[str, ...]:
        return (self.note,) if self.note else ()

    def read(self, out: Frame | None = None) -> Frame | None:
        assert not self.closed, "read after close"
        if not self.script:
            return None
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return np.full((2, 3, 3), step, np.uint8)

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        self.closed = True


class Port:
    """Opens these sources in turn, and records the waiting times in between."""

    def __init__(self, *plugged: FrameSource | Exception) -> None:
        self.plugged = list(plugged)
        self.waits_s: list[float] = []

    def open(self) -> FrameSource:
        source = self.plugged.pop(0)
        if isinstance(source, Exception):
            raise source
        return source

    def wait(self, seconds: float) -> bool:
        self.waits_s.append(seconds)
        return False


def opened(*plugged: FrameSource | Exception) -> tuple[Reconnecting, Port]:
    port = Port(*plugged)
    return Reconnecting(port.open(), port.open, port.wait), port


def values(source: FrameSource) -> list[int]:
    numbers = []
    while (frame := source.read()) is not None:
        numbers.append(int(frame[0, 0, 0]))
    return numbers


def test_a_reconnected_camera_continues() -> None:
    first, second = Scripted(1, 2, LOST), Scripted(3, name="camera again")
    source, port = opened(first, ABSENT, ABSENT, second)
    assert values(source) == [1, 2, 3]
    assert first.closed, "a device that stays open gets another number"
    assert port.waits_s == [0.5, 1.0, 2.0]
    assert source.faults == 1
    assert source.name == "camera again"
    source.close()
    assert second.closed


def test_waits_grow_to_ten_seconds_and_restart_after_a_frame() -> None:
    source, port = opened(Scripted(1, LOST), *[ABSENT] * 7, Scripted(2, LOST), ABSENT, Scripted(3))
    assert values(source) == [1, 2, 3]
    assert port.waits_s == [0.5, 1, 2, 4, 8, 10, 10, 10, 0.5, 1]


def test_waits_also_grow_if_the_camera_opens_without_frames() -> None:
    source, port = opened(Scripted(1, LOST), Scripted(LOST), Scripted(LOST), Scripted(2))
    assert values(source) == [1, 2]
    assert port.waits_s == [0.5, 1.0, 2.0]
    assert source.faults == 3


def test_a_failure_before_the_first_frame_is_raised() -> None:
    with pytest.raises(InputError, match="does not exist"):
        reconnecting(Port(ABSENT).open)
    source, port = opened(Scripted(LOST), Scripted(1))
    with pytest.raises(InputError, match="delivers no frames"):
        source.read()
    assert port.waits_s == []


def test_program_errors_are_raised() -> None:
    source, _ = opened(Scripted(1, ValueError("a mistake")), Scripted(2))
    assert source.read() is not None
    with pytest.raises(ValueError, match="a mistake"):
        source.read()


def test_files_are_not_reopened() -> None:
    video, camera = Scripted(), Scripted()
    video.may_return = False
    assert reconnecting(lambda: video) is video
    assert isinstance(reconnecting(lambda: camera), Reconnecting)


def test_faults_and_notes_add_up() -> None:
    first_note = "camera uses 30 Hz instead of 60 Hz."
    second_note = "camera uses 15 Hz instead of 60 Hz."
    source, _ = opened(
        Scripted(1, LOST, faults=3, note=first_note), Scripted(2, LOST, faults=2, note=first_note), Scripted(3)
    )
    assert source.notes == (first_note,)
    assert values(source) == [1, 2, 3]
    assert source.faults == 3 + 1 + 2 + 1
    assert source.notes == (first_note,)
    source, _ = opened(Scripted(1, LOST, note=first_note), Scripted(2, note=second_note))
    assert values(source) == [1, 2]
    assert source.notes == (first_note, second_note)


def test_states_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(reconnect.time, "perf_counter", lambda: now_s[0])
    seen: list[SourceState] = []

    class Slow(Scripted):
        def read(self, out: Frame | None = None) -> Frame | None:
            seen.append(source.state)
            now_s[0] += 1.4
            seen.append(source.state)
            now_s[0] += 0.2
            seen.append(source.state)
            return super().read(out)

    def wait(seconds: float) -> bool:
        seen.append(source.state)
        return False

    port = Port(Slow(1, LOST, name="/dev/video0"), ABSENT, Scripted(2))
    source = Reconnecting(port.open(), port.open, wait)
    assert source.state == LIVE
    source.read()
    stalled = SourceState("stalled", "/dev/video0 sends no frames.")
    assert seen == [LIVE, LIVE, stalled]
    assert source.state == LIVE
    seen.clear()
    source.read()
    assert seen[3:] == [SourceState("reconnecting", LOST.what), SourceState("reconnecting", ABSENT.what)]
    assert source.state == LIVE
    assert [str(stalled), str(LIVE)] == ["stalled: /dev/video0 sends no frames.", "live"]


def test_stop_ends_the_wait_for_a_camera() -> None:
    def factory() -> FrameSource:
        raise ABSENT

    source = Reconnecting(Scripted(1, LOST), factory)
    source._wait_s = 600.0
    source.read()
    timer = threading.Timer(0.05, source.stop)
    timer.start()
    start_s = time.perf_counter()
    assert source.read() is None
    assert time.perf_counter() - start_s < 120, "it waited for its next attempt"
    timer.join()


def test_stop_reaches_the_current_source_and_one_that_is_being_opened() -> None:
    first, second = Scripted(1, LOST), Scripted(2)
    port = Port(first)

    def factory() -> FrameSource:
        source.stop()  # from another thread, in the moment of opening
        return second

    source = Reconnecting(port.open(), factory, port.wait)
    source.read()
    assert source.read() is None
    assert first.stopped
    assert second.stopped


class Unplugged(Scripted):
    """A 500 Hz camera that is unplugged after its frames, once `seen` returns."""

    def __init__(self, values: Iterable[int], seen: Callable[[], None]) -> None:
        super().__init__(*values, LOST)
        self.seen = seen

    def read(self, out: Frame | None = None) -> Frame | None:
        time.sleep(0.002)
        if self.script == [LOST]:
            self.seen()
        return super().read(out)


def test_the_loop_continues_and_reports_states(
    wait_until: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnect, "FIRST_WAIT_S", 0.01)
    before = set(threading.enumerate())
    states: list[str] = []
    shown: list[int] = []
    port = Port(
        Unplugged(range(10), lambda: wait_until(lambda: shown[-1:] == [9])),
        Unplugged(range(10, 20), lambda: wait_until(lambda: shown[-1] == 19 and states[-1] == "live")),
        ABSENT,
        Scripted(20),
    )

    def opens() -> FrameSource:
        """Open once the loop has seen that the camera is lost."""
        if shown:
            wait_until(lambda: states[-1:] == ["reconnecting"])
        return port.open()

    with reconnecting(opens) as source:
        stats = run_live(
            source,
            lambda frame, time_s: frame[..., 0].astype(np.float32),
            lambda result: shown.append(int(result.frame[0, 0, 0])),
            on_state=lambda state: states.append(state.kind),
        )
    assert shown == sorted(set(shown))
    assert {*range(10)} & {*shown}
    assert {*range(10, 20)} & {*shown}
    assert shown[-1] == 20
    assert stats.faults == 2
    assert "recovered from 2 faults" in str(stats)
    assert stats.frames + stats.dropped == 21
    # The run may end before the last "live" is reported.
    assert states[:3] == ["reconnecting", "live", "reconnecting"]
    assert set(threading.enumerate()) <= before


def test_the_loop_can_be_stopped_while_a_camera_is_lost() -> None:
    def factory() -> FrameSource:
        raise ABSENT

    before = set(threading.enumerate())
    source = Reconnecting(Scripted(1, LOST), factory, None)
    source._wait_s = 600.0
    start_s = time.perf_counter()
    states: list[SourceState] = []
    stats = run_live(
        source,
        lambda frame, time_s: frame[..., 0].astype(np.float32),
        should_stop=lambda: bool(states),
        on_state=states.append,
    )
    assert stats.frames == 1
    assert states == [SourceState("reconnecting", LOST.what)]
    assert time.perf_counter() - start_s < 120
    assert set(threading.enumerate()) <= before
