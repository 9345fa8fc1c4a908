"""Sources that are files: videos, and folders of pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterator
from pathlib import Path

import cv2

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.pictures import PICTURE_SUFFIXES, read_picture
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.sources.capture import CaptureSource, open_capture
from mirrordepth_edge.sources.source import FrameSource
from mirrordepth_edge.support.files import existing_file

TERMINAL_TEXT = cv2.VideoWriter.fourcc(*"ansi")
RATE_HZ = 30.0
"""Of a video whose header gives none and whose frames have no times."""
LATE_S = 1.0
"""A video that is so much behind its own times goes on from there instead of hurrying after them."""


class VideoSource(CaptureSource):
    """A video file: frame after frame as they are fetched, or at its own times.

    Args:
        realtime: give each frame when it is due, as a camera would; then the newest frame wins.
    """

    may_return = False

    def __init__(self, capture: cv2.VideoCapture, name: str, *, realtime: bool = False) -> None:
        super().__init__(capture, name)
        self.live = realtime
        length = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.length = length if length > 0 else None
        self._over = False
        self._start_s: float | None = None
        """When the video's time 0 was, or would have been."""
        self._position_s = -1.0

    @property
    def notes(self) -> tuple[str, ...]:
        missing = (self.length or 0) - self.frames
        if not self._over or missing <= max(2, (self.length or 0) // 50):  # headers are off by a frame or two
            return ()
        return (f"{self.name} declares {self.length} frames and has {self.frames} that can be read: it is damaged.",)

    def read(self, out: Frame | None = None) -> Frame | None:
        frame = super().read(out)
        if frame is not None and self.live:
            self._wait_until_due()
        return frame

    def _wait_until_due(self) -> None:
        position_s = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
        if not position_s > self._position_s:  # no time, or a broken one
            position_s = self._position_s + 1 / (self.rate_hz or RATE_HZ)
        self._position_s = position_s
        now_s = time.perf_counter()
        if self._start_s is None or now_s - self._start_s - position_s > LATE_S:
            self._start_s = now_s - position_s
        self._stopped.wait(max(0.0, self._start_s + position_s - now_s))

    def _ended(self) -> Frame | None:
        self._over = True
        if self.frames:
            return None
        raise InputError(
            f"{self.name} holds no frame that can be read.",
            "It is damaged, cut short, or coded in a way this OpenCV cannot decode.",
            "Convert it, for example with ffmpeg -i IN -c:v libx264 OUT.mp4.",
        )


class PictureFolder(FrameSource):
    """The pictures of a folder in order of their names. One that cannot be read is passed over and told.

    Args:
        folder: where they are, not deeper.

    Raises:
        InputError: there are none.
    """

    live = False

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        pictures = (path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
        self._paths = sorted(pictures, key=lambda path: path.name)
        if not self._paths:
            raise InputError(
                f"There are no pictures in {folder}.",
                f"None of its files ends in {', '.join(PICTURE_SUFFIXES)}.",
                "Name another folder, or a video.",
            )
        self.length = len(self._paths)
        self._next = 0
        self._unreadable: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        if not self._unreadable:
            return ()
        return (f"{len(self._unreadable)} of {self.length} pictures cannot be read, such as {self._unreadable[0]}.",)

    def read(self, out: Frame | None = None) -> Frame | None:
        while self._next < len(self._paths):
            path = self._paths[self._next]
            self._next += 1
            try:
                return read_picture(path)
            except InputError:
                self._unreadable.append(path.name)
                self.faults += 1
                if self.faults == len(self._paths):
                    raise  # not one of them is a picture
        return None


def open_video(path: Path, *, realtime: bool = False) -> FrameSource:
    """Open a video file.

    Args:
        realtime: at the video's own times, as `VideoSource` describes it.

    Raises:
        InputError: it is missing, empty or no video.
    """
    existing_file(path, "video")
    if path.suffix.lower() in PICTURE_SUFFIXES:
        raise InputError(f"{path} is a picture, not a video.", "It has one frame.", f"mde run {path}")
    capture = open_capture(str(path))
    # FFmpeg would render a text file as pictures of a terminal.
    if capture is None or capture.get(cv2.CAP_PROP_FOURCC) == TERMINAL_TEXT:
        raise InputError(
            f"{path} is no readable video.",
            "OpenCV could not open it: it is damaged, cut short or of another kind.",
            "Pass a video (mp4, avi, mkv, mov, webm); ffprobe FILE tells what it holds.",
        )
    return VideoSource(capture, str(path), realtime=realtime)


BAD_FRAMES = 5
"""So many reads in a row that fail are a video's end."""


def video_frames(path: Path, numbers: Container[int]) -> Iterator[tuple[int, Frame]]:
    """Frames of a video with their numbers, counted from 0 over those that can be read.

    Args:
        numbers: which ones; the others are passed over, which is faster than to turn them into colours.

    Yields:
        The number, and uint8 RGB `[H, W, 3]`. Nothing where the file is no video.
    """
    for number, capture in _grabbed(path):
        if number in numbers:
            read, bgr = capture.retrieve()
            if read and bgr is not None and bgr.ndim == 3:
                yield number, cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)  # type: ignore[misc]


def video_length(path: Path) -> int:
    """Frames of a video that can be read, counted one by one, where its header does not say it."""
    return sum(1 for _ in _grabbed(path))


def _grabbed(path: Path) -> Iterator[tuple[int, cv2.VideoCapture]]:
    """The video at one frame after the other, with their numbers."""
    # What is wrong with a damaged file goes to the terminal otherwise; read once, when FFmpeg is first used.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    capture = cv2.VideoCapture(str(path))
    try:
        number, bad = 0, 0
        while bad < BAD_FRAMES:
            if capture.grab():
                yield number, capture
                number, bad = number + 1, 0
            else:
                bad += 1
    finally:
        capture.release()
