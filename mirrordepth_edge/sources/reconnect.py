"""A camera or stream that may go away and come back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mirrordepth_edge.errors import MdeError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.sources.source import LIVE, FrameSource, SourceState

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0
STALL_S = 1.5
"""A source that is silent for so long is called stalled; it may go on, or fail and be opened anew."""


def reconnecting(factory: Callable[[], FrameSource]) -> FrameSource:
    """Open a source, and open it again whenever it is lost.

    Args:
        factory: opens it, such as `lambda: open_source("0")`.

    Returns:
        the source itself where it cannot come back.

    Raises:
        Whatever the factory raises at first: a typing error does not become a camera by waiting.
    """
    source = factory()
    return Reconnecting(source, factory) if source.may_return else source


class Reconnecting(FrameSource):
    """A live source that is closed and opened anew when it fails, after 0.5 s, 1 s, 2 s … and 10 s at most.

    One that fails before its first frame is not tried again: it has never worked.

    Args:
        source: open.
        factory: opens it again.
        wait: sleeps for some seconds and returns whether it was woken by `stop`.
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
        self._works = False
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
            return SourceState("stalled", f"{self.name} sends nothing.")
        return LIVE

    def read(self, out: Frame | None = None) -> Frame | None:
        while not self._stopped.is_set():
            self._reading_since_s = time.perf_counter()
            try:
                frame = self._source.read(out)
            except MdeError as error:
                if not self._works:
                    raise
                self._reopen(error)
                continue
            finally:
                self._reading_since_s = None
            self.faults = self._faults_before + self._source.faults
            self._lost, self._wait_s, self._works = None, FIRST_WAIT_S, True
            return frame
        return None

    def stop(self) -> None:
        self._stopped.set()
        self._source.stop()

    def close(self) -> None:
        self._source.close()

    def _reopen(self, error: MdeError) -> None:
        """Close, and try to open until it succeeds or `stop` is called."""
        self._lost = SourceState("reconnecting", error.what)
        self._notes = list(self.notes)
        self._source.close()  # at once, so that the system can give the camera its old number again
        self._faults_before += self._source.faults + 1
        self.faults = self._faults_before
        while not self._wait(self._wait_s):
            self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
            try:
                source = self._factory()
            except MdeError as again:
                self._lost = SourceState("reconnecting", again.what)
                continue
            self._adopt(source)
            if self._stopped.is_set():  # it was the old source that was told
                source.stop()
            return

    def _adopt(self, source: FrameSource) -> None:
        self._source = source
        self.name, self.rate_hz, self.length = source.name, source.rate_hz, source.length
