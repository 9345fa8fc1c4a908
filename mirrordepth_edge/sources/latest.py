"""Frames from a source to the live loop: only the newest one, or every one."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator
from typing import NamedTuple

from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.sources.source import FrameSource
from mirrordepth_edge.support.latest import Latest

POLL_S = 0.1
"""Longest wait before a waiting thread checks whether it should stop."""


class Capture(NamedTuple):
    """A frame and its time of arrival."""

    frame: Frame
    captured_s: float
    """`perf_counter` when the frame arrived."""
    captured_unix_ns: int
    """Wall clock (Unix time) of the same moment."""
    dropped: int = 0
    """Number of earlier frames that were replaced by a newer one."""


def newest(source: FrameSource) -> Generator[Capture | None, None, None]:
    """Read the source in a thread and yield its newest frame, or None if there was none for `POLL_S`.

    A frame is valid until the next one is requested: three buffers circulate, one being filled, one waiting, one with
    the caller.
    """
    changed = threading.Condition()
    mailbox = Latest[Capture](changed)
    spare: deque[Frame] = deque(maxlen=2)
    failures: list[BaseException] = []

    def capture_frames() -> None:
        buffer: Frame | None = None
        try:
            while not mailbox.closed and (frame := source.read(buffer)) is not None:
                replaced = mailbox.put(Capture(frame, time.perf_counter(), time.time_ns()))
                if replaced is not None:
                    spare.append(replaced.frame)
                buffer = spare.pop() if spare else None
        except BaseException as error:  # re-raised below, in the caller's thread
            failures.append(error)
        finally:
            mailbox.close()

    # A daemon, so that a second Ctrl-C ends the program even if `read` hangs in a camera driver.
    thread = threading.Thread(target=capture_frames, name="mde-capture", daemon=True)
    thread.start()
    try:
        while True:
            with changed:  # so that no frame is put between these three
                capture = mailbox.get(POLL_S)
                dropped, ended = mailbox.dropped, mailbox.closed
            if capture is not None:
                yield capture._replace(dropped=dropped)
                spare.append(capture.frame)
            elif ended:
                break
            else:
                yield None
        if failures:
            raise failures[0]
    finally:
        mailbox.close()
        source.stop()
        thread.join()


def in_order(source: FrameSource) -> Generator[Capture | None, None, None]:
    """Yield every frame, in one buffer that is reused."""
    frame: Frame | None = None
    while (frame := source.read(frame)) is not None:
        yield Capture(frame, time.perf_counter(), time.time_ns())
