"""Reopen a camera or stream that was lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mirrordepth_edge.errors import MdeError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.sources.source import LIVE, FrameSource, SourceState

FIRST_WAIT_S, MAX_WAIT_S = 0.5, 10.0
STALL_S = 1.5
"""Time without a frame after which a source is reported as stalled. It may continue, or fail and be reopened."""


def reconnecting(factory: Callable[[], FrameSource]) -> FrameSource:
    """Open a source, and reopen it whenever it is lost.

    Args:
        factory: opens the source, such as `lambda: open_source("0")`.

    Returns:
        A source that reopens itself; the plain source if reopening cannot help, as for files.

    Raises:
        MdeError: the first attempt fails. It is not repeated, since a wrong name stays wrong.
    """
    source = factory()
    return Reconnecting(source, factory) if source.may_return else source


class Reconnecting(FrameSource):
    """A live source that is closed and reopened when it fails, after 0.5 s, 1 s, 2 s … up to 10 s.

    A source that fails before its first frame is not reopened: it has never worked.

    Args:
        source: the open source.
        factory: opens it again.
        wait: sleeps for a number of seconds; returns True if `stop` woke it.
    """

    live = True

    def __init__(
        self, source: FrameSource, factory: Callable[[], FrameSource], wait: Callable[[float], bool] | None = None
    ) -> None:
        self._factory = factory
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait
        self._notes: list[str] = []
        self._lost: SourceState | None = None
        self._reading_since_s: float | None = None
        self._wait_s = FIRST_WAIT_S
        self._faults_before = 0
        self._has_worked = False
        self._adopt(source)

    @property
    def notes(self) -> tuple[str, ...]:
        new = (note for note in self._source.notes if note not in self._notes)
        return (*self._notes, *new)

    @property
    def state(self) -> SourceState:
        lost, since_s = self._lost, self._reading_since_s
        if lost is not None:
            return lost
        if since_s is not None and time.perf_counter() - since_s > STALL_S:
            return SourceState("stalled", f"{self.name} sends no frames.")
        return LIVE

    def read(self, out: Frame | None = None) -> Frame | None:
        while not self._stopped.is_set():
            self._reading_since_s = time.perf_counter()
            try:
                frame = self._source.read(out)
            except MdeError as error:
                if not self._has_worked:
                    raise
                self._reopen(error)
                continue
            finally:
                self._reading_since_s = None
            self.faults = self._faults_before + self._source.faults
            self._lost, self._wait_s, self._has_worked = None, FIRST_WAIT_S, True
            return frame
        return None

    def stop(self) -> None:
        self._stopped.set()
        self._source.stop()

    def close(self) -> None:
        self._source.close()

    def _reopen(self, error: MdeError) -> None:
        """Close the source, and try to open it until that succeeds or `stop` is called."""
        self._lost = SourceState("reconnecting", error.what)
        self._notes = list(self.notes)
        self._source.close()  # before waiting, so that the camera can get its old device number back
        self._faults_before += self._source.faults + 1
        self.faults = self._faults_before
        while not self._wait(self._wait_s):
            self._wait_s = min(2 * self._wait_s, MAX_WAIT_S)
            try:
                source = self._factory()
            except MdeError as retry_error:
                self._lost = SourceState("reconnecting", retry_error.what)
                continue
            self._adopt(source)
            if self._stopped.is_set():  # `stop` may have reached only the old source
                source.stop()
            return

    def _adopt(self, source: FrameSource) -> None:
        self._source = source
        self.name, self.rate_hz, self.length = source.name, source.rate_hz, source.length
