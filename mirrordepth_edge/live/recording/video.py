"""Record live depth as a video, or as image files every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path

from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.imaging.draw import save_npy, save_png, scale_bar, side_by_side, video_writer
from mirrordepth_edge.imaging.jpeg import encode_jpeg
from mirrordepth_edge.imaging.postprocess import colourise, to_millimetres
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.live.recording.base import JPEG_QUALITY, Recording
from mirrordepth_edge.live.result import LiveResult
from mirrordepth_edge.support.files import atomic_write

DEFAULT_RATE_HZ = 30.0
"""Frame rate if the source does not report one."""
RATE_FRAMES = 5
"""Number of live frames from which the frame rate is measured."""
MAX_STILL_S = 2.0
"""Gaps between live frames are shortened to this."""


class VideoRecording(Recording):
    """An MP4 with photo, colour-mapped depth and colour scale side by side.

    It plays in real time: the frame rate is the highest rate among the first results, and a frame is repeated where the
    next one is missing. It is written to a temporary file and moved into place when it is closed, so a power failure
    leaves no video.

    Args:
        path: the `.mp4` file.
        limits_m: nearest and farthest depth of the colour map.
        rate_hz: frame rate; the maximum for a live source.
        live: True if frames have their own times, False if they follow each other, as in a file.
    """

    def __init__(
        self, path: Path, limits_m: tuple[float, float], *, rate_hz: float | None = None, live: bool = True
    ) -> None:
        super().__init__(path)
        self._limits_m = limits_m
        self._rate_hz = rate_hz or DEFAULT_RATE_HZ
        self._live = live
        self._video = ExitStack()
        self._append: Callable[[Frame], None] | None = None
        self._first: list[tuple[int, int, Frame]] = []
        """Capture time (Unix, ns), number and image of the first results, from which the rate is measured."""
        self._image: Frame | None = None
        self._bar: Frame | None = None
        self._position = 0
        """Frames in the video so far, plus those that were left out of long gaps."""
        self._too_slow = False
        """Whether encoding a frame takes longer than showing it."""

    def _write(self, result: LiveResult) -> None:
        captured_unix_ns, number = result.captured_unix_ns, result.number
        # The video is created once the first frames have shown its rate.
        if self._append is not None:
            if self._fill_gap(captured_unix_ns, number):
                self._put(self._compose(result, out=self._image))
            return
        self._first.append((captured_unix_ns, number, self._compose(result)))
        if len(self._first) == RATE_FRAMES or not self._live:
            self._begin()

    def _finish(self) -> None:
        if self._append is None and self._first:
            self._begin()
        self._video.close()

    def _compose(self, result: LiveResult, out: Frame | None = None) -> Frame:
        if self._bar is None:
            self._bar = scale_bar(result.frame.shape[0], self._limits_m)
        image = side_by_side((result.frame, colourise(result.depth_m, self._limits_m), self._bar), out=out)
        if self._first and image.shape != self._first[0][2].shape:
            raise InputError("The frame size has changed.", "A video has one frame size.", "Start a new recording.")
        return image

    def _begin(self) -> None:
        """Measure the rate and write the first results."""
        times_ns = [captured_unix_ns for captured_unix_ns, _, _ in self._first]
        if self._live and len(times_ns) > 1:
            # The shortest interval: a rate that is too low loses frames, one that is too high only repeats some.
            interval_s = min(later - earlier for earlier, later in pairwise(times_ns)) / 1e9
            self._rate_hz = round(min(max(1 / interval_s, 1.0), self._rate_hz), 1) if interval_s > 0 else self._rate_hz
        self._append = self._video.enter_context(video_writer(self.path, self._rate_hz))
        for captured_unix_ns, number, image in self._first:
            if self._fill_gap(captured_unix_ns, number):
                self._put(image)
        del self._first[1:]  # the first one is the start of the video

    def _fill_gap(self, captured_unix_ns: int, number: int) -> bool:
        """Repeat the last image until it is this frame's turn. A camera's jitter of up to one frame is ignored.

        Returns:
            False if the frame comes too early and must be left out.
        """
        assert self._append is not None
        first_unix_ns, first_number, _ = self._first[0]
        due = (captured_unix_ns - first_unix_ns) / 1e9 * self._rate_hz if self._live else number - first_number
        missing, max_repeats = due - self._position, int(MAX_STILL_S * self._rate_hz)
        if -max_repeats < missing <= -1:
            return False  # the camera is faster than the video
        # If encoding is too slow, repeated frames would leave no time for new ones.
        if self._image is not None and not self._too_slow:
            for _ in range(min(int(missing), max_repeats)):
                self._append(self._image)
        self._position += int(missing)  # also across long gaps, and if the system clock was set
        return True

    def _put(self, image: Frame) -> None:
        assert self._append is not None
        begin_s = time.perf_counter()
        self._append(image)
        self._too_slow = time.perf_counter() - begin_s > 1 / self._rate_hz
        self._image = image
        self._position += 1
        self.frames += 1


class SavedFrames(Recording):
    """A frame at fixed intervals, as files in a folder: NAME.jpg, NAME.depth.png (16-bit millimetres) and
    NAME.depth.npy (float32 metres), named by the UTC capture time.

    Args:
        path: the folder, which may contain files.
        every_s: interval in seconds, starting with the first frame.

    Raises:
        OptionError: `every_s` is not above 0.
    """

    def __init__(self, path: Path, every_s: float) -> None:
        if not every_s > 0:
            raise OptionError(f"Cannot save a frame every {every_s:g} s.", "The interval must be above 0.", "1")
        super().__init__(path)
        self._every_ns = round(every_s * 1e9)
        self._due_unix_ns: int | None = None

    def _folder(self) -> Path:
        return self.path

    def _write(self, result: LiveResult) -> None:
        now_ns, due_ns = result.captured_unix_ns, self._due_unix_ns
        if due_ns is not None and 0 < due_ns - now_ns <= self._every_ns:
            return
        # Stay in step with the first frame, unless an interval had no frame or the system clock was set.
        in_step = due_ns is not None and now_ns - due_ns in range(self._every_ns)
        self._due_unix_ns = (due_ns if due_ns is not None and in_step else now_ns) + self._every_ns
        captured = datetime.fromtimestamp(now_ns // 10**9, timezone.utc)
        name = f"{captured:%Y%m%dT%H%M%S}.{now_ns // 10**6 % 1000:03d}Z"
        save_png(self.path / f"{name}.depth.png", to_millimetres(result.depth_m))
        save_npy(self.path / f"{name}.depth.npy", result.depth_m)
        with atomic_write(self.path / f"{name}.jpg") as temporary:
            temporary.write_bytes(encode_jpeg(result.frame, JPEG_QUALITY))
        self.frames += 1
