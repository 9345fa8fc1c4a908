"""Sources that read files: videos, and folders of images."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from pathlib import Path

import cv2

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.images import IMAGE_SUFFIXES, read_image
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.sources.capture import CaptureSource, open_capture
from mirrordepth_edge.sources.source import FrameSource
from mirrordepth_edge.support.files import existing_file

TERMINAL_TEXT = cv2.VideoWriter.fourcc(*"ansi")
DEFAULT_RATE_HZ = 30.0
"""Frame rate of a video that has neither a frame rate nor timestamps."""
MAX_DELAY_S = 1.0
"""Real-time playback that is later than this continues from where it is; otherwise it catches up."""


class VideoSource(CaptureSource):
    """A video file, read as fast as frames are requested or in real time.

    Args:
        realtime: return each frame at its timestamp, as a camera would; the newest frame wins.
    """

    may_return = False

    def __init__(self, capture: cv2.VideoCapture, name: str, *, realtime: bool = False) -> None:
        super().__init__(capture, name)
        self.live = realtime
        length = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.length = length if length > 0 else None
        self._ended = False
        self._start_s: float | None = None
        """`perf_counter` at the video's timestamp 0."""
        self._position_s = -1.0

    @property
    def notes(self) -> tuple[str, ...]:
        missing = (self.length or 0) - self.frames
        if not self._ended or missing <= max(2, (self.length or 0) // 50):  # headers are off by a frame or two
            return ()
        return (f"{self.name} is damaged: only {self.frames} of {self.length} frames can be read.",)

    def read(self, out: Frame | None = None) -> Frame | None:
        frame = super().read(out)
        if frame is not None and self.live:
            self._wait_until_due()
        return frame

    def skip(self) -> bool:
        """Go past the next frame without converting its colours, which is faster than `read`.

        Returns:
            False at the end.
        """
        return self._advance(self._capture.grab)

    def _wait_until_due(self) -> None:
        position_s = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
        if not position_s > self._position_s:  # the timestamp is missing or wrong
            position_s = self._position_s + 1 / (self.rate_hz or DEFAULT_RATE_HZ)
        self._position_s = position_s
        now_s = time.perf_counter()
        if self._start_s is None or now_s - self._start_s - position_s > MAX_DELAY_S:
            self._start_s = now_s - position_s
        self._stopped.wait(max(0.0, self._start_s + position_s - now_s))

    def _check_end(self) -> None:
        self._ended = True
        if not self.frames:
            raise InputError(
                f"{self.name} has no readable frame.",
                "It is damaged, truncated, or in a codec that this OpenCV cannot decode.",
                "Convert it, for example with ffmpeg -i IN -c:v libx264 OUT.mp4.",
            )


class ImageFolder(FrameSource):
    """The images of a folder, without subfolders, sorted by name. Unreadable images are skipped and counted.

    Raises:
        InputError: the folder has no images.
    """

    live = False

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        images = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        self._paths = sorted(images, key=lambda path: path.name)
        if not self._paths:
            raise InputError(
                f"No images found in {folder}.",
                f"Expected files that end in {', '.join(IMAGE_SUFFIXES)}.",
                "Pass another folder, or a video.",
            )
        self.length = len(self._paths)
        self._next = 0
        self._unreadable: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        if not self._unreadable:
            return ()
        return (f"{len(self._unreadable)} of {self.length} images cannot be read, such as {self._unreadable[0]}.",)

    def read(self, out: Frame | None = None) -> Frame | None:
        while self._next < len(self._paths):
            path = self._paths[self._next]
            self._next += 1
            try:
                return read_image(path)
            except InputError:
                self._unreadable.append(path.name)
                self.faults += 1
                if self.faults == len(self._paths):
                    raise  # none of the files is an image
        return None


def open_video(path: Path, *, realtime: bool = False) -> VideoSource:
    """Open a video file.

    Args:
        realtime: play at the video's own timestamps; see `VideoSource`.

    Raises:
        InputError: the file is missing, empty or not a video.
    """
    existing_file(path, "video")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise InputError(f"{path} is an image, not a video.", "It has one frame.", f"mde run {path}")
    capture = open_capture(str(path))
    # FFmpeg would decode a text file as images of a terminal.
    if capture is None or capture.get(cv2.CAP_PROP_FOURCC) == TERMINAL_TEXT:
        raise InputError(
            f"{path} cannot be read as a video.",
            "OpenCV could not open it: it is damaged, truncated or of another type.",
            "Pass a video (mp4, avi, mkv, mov, webm); ffprobe FILE shows what a file contains.",
        )
    return VideoSource(capture, str(path), realtime=realtime)


def video_frames(path: Path, numbers: Collection[int]) -> Iterator[tuple[int, Frame]]:
    """Yield the frames of a video that have the given numbers, with their numbers.

    Args:
        numbers: frame numbers, counted from 0 over the frames that can be read. Those beyond the end are ignored.

    Yields:
        The number, and uint8 RGB `[H, W, 3]`.

    Raises:
        InputError: the file is not a video, or has no readable frame.
    """
    last = max(numbers, default=-1)
    with open_video(path) as video:
        # Decoding from the start: seeking by frame number is inexact in many formats.
        while (number := video.frames) <= last:
            if number not in numbers:
                if not video.skip():
                    return
            elif (frame := video.read()) is not None:
                yield number, frame
            else:
                return


def video_length(path: Path) -> int:
    """Count the readable frames of a video by decoding it, for videos whose header does not state their length.

    Raises:
        InputError: the file is not a video, or has no readable frame.
    """
    with open_video(path) as video:
        while video.skip():
            pass
        return video.frames
