"""Live depth kept on the disk: as a video to look at, or as files every few seconds. `record_mcap` and `rerun_log`
have two more kinds.

Recordings stop by themselves while there is still room to close them, and whatever ends a run, what was recorded
until then stays readable.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path

from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.imaging.draw import save_npy, save_png, scale_bar, side_by_side, video_writer
from mirrordepth_edge.imaging.postprocess import colourise, to_millimetres
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.live.recording.base import Recording, jpeg
from mirrordepth_edge.live.result import LiveResult
from mirrordepth_edge.support.files import atomic_write

VIDEO_RATE_HZ = 30.0
"""Of a video whose source does not tell its own rate."""
MEASURED = 5
"""Results that tell the rate of a video of live frames."""
LONGEST_STILL_S = 2.0
"""How long a video shows one picture where the camera was silent for longer."""


class VideoRecording(Recording):
    """An MP4 of photo, depth in colours and their scale, side by side.

    It plays as fast as things went: its rate is the highest of the first results, and where a later one is missing, the
    one before is shown on. Written beside its place and moved there when it is closed: what a power cut leaves is no
    video.

    Args:
        path: an `.mp4`.
        limits_m: of the colours.
        rate_hz: frames per second; of a live source at most.
        live: frames come at their own times; otherwise one after the other, as from a file.
    """

    def __init__(
        self, path: Path, limits_m: tuple[float, float], *, rate_hz: float | None = None, live: bool = True
    ) -> None:
        super().__init__(path)
        self._limits_m = limits_m
        self._rate_hz = rate_hz or VIDEO_RATE_HZ
        self._live = live
        self._video = ExitStack()
        self._append: Callable[[Frame], None] | None = None
        self._first: list[tuple[int, int, Frame]] = []
        self._picture: Frame | None = None
        self._bar: Frame | None = None
        self._shown = 0
        """Pictures in the video, and those left out of a long silence."""
        self._too_slow = False
        """Encoding takes longer than playing."""

    def _open(self) -> None:
        pass  # with the first frames, which tell the rate, and without which there is no file

    def _keep(self, result: LiveResult) -> None:
        moment = result.captured_unix_ns, result.number
        if self._append is not None:
            if self._fill(*moment):
                self._put(self._composed(result, out=self._picture))
            return
        self._first.append((*moment, self._composed(result)))
        if len(self._first) == MEASURED or not self._live:
            self._begin()

    def _finish(self) -> None:
        if self._append is None and self._first:
            self._begin()
        self._video.close()

    def _composed(self, result: LiveResult, out: Frame | None = None) -> Frame:
        if self._bar is None:
            self._bar = scale_bar(result.frame.shape[0], self._limits_m)
        picture = side_by_side((result.frame, colourise(result.depth_m, self._limits_m), self._bar), out=out)
        if self._first and picture.shape != self._first[0][2].shape:
            raise InputError("Frames have changed their size.", "A video has one size.", "Record anew.")
        return picture

    def _begin(self) -> None:
        times_ns = [captured_unix_ns for captured_unix_ns, _, _ in self._first]
        if self._live and len(times_ns) > 1:
            # The shortest, since a video too slow loses frames, and one too fast repeats them.
            interval_s = min(later - earlier for earlier, later in pairwise(times_ns)) / 1e9
            self._rate_hz = round(min(max(1 / interval_s, 1.0), self._rate_hz), 1) if interval_s > 0 else self._rate_hz
        self._append = self._video.enter_context(video_writer(self.path, self._rate_hz))
        for captured_unix_ns, number, picture in self._first:
            if self._fill(captured_unix_ns, number):
                self._put(picture)
        del self._first[1:]  # the first tells when the video began

    def _fill(self, captured_unix_ns: int, number: int) -> bool:
        """Show the last picture on until this one's turn; False where it has none.

        Up to one picture too early or too late is the camera's own unsteadiness.
        """
        assert self._append is not None
        first_unix_ns, first_number, _ = self._first[0]
        place = (captured_unix_ns - first_unix_ns) / 1e9 * self._rate_hz if self._live else number - first_number
        late, longest = place - self._shown, int(LONGEST_STILL_S * self._rate_hz)
        if -longest < late <= -1:
            return False  # the camera is faster than the video
        # On a machine too slow for its video, repeating would leave no time for anything new.
        if self._picture is not None and not self._too_slow:
            for _ in range(min(int(late), longest)):
                self._append(self._picture)
        self._shown += int(late)  # however long the silence was, and wherever the clock was set to
        return True

    def _put(self, picture: Frame) -> None:
        assert self._append is not None
        begin_s = time.perf_counter()
        self._append(picture)
        self._too_slow = time.perf_counter() - begin_s > 1 / self._rate_hz
        self._picture = picture
        self._shown += 1
        self.frames += 1


class SavedFrames(Recording):
    """A frame every so many seconds, as files in a folder: NAME.jpg, NAME.depth.png (16-bit millimetres) and
    NAME.depth.npy (float32 metres), named by the time of capture in UTC.

    Args:
        path: the folder; may hold others already.
        every_s: seconds from one to the next; the first is the first frame.

    Raises:
        OptionError: `every_s` is not above 0.
    """

    def __init__(self, path: Path, every_s: float) -> None:
        if not every_s > 0:
            raise OptionError(f"A frame cannot be saved every {every_s:g} seconds.", "It takes more than 0.", "1")
        super().__init__(path)
        self._every_ns = round(every_s * 1e9)
        self._due_unix_ns: int | None = None

    def _folder(self) -> Path:
        return self.path

    def _open(self) -> None:
        pass

    def _keep(self, result: LiveResult) -> None:
        now_ns, due_ns = result.captured_unix_ns, self._due_unix_ns
        if due_ns is not None and 0 < due_ns - now_ns <= self._every_ns:
            return
        # In step with the first, unless a turn was left out or the clock was set.
        in_step = due_ns is not None and now_ns - due_ns in range(self._every_ns)
        self._due_unix_ns = (due_ns if due_ns is not None and in_step else now_ns) + self._every_ns
        captured = datetime.fromtimestamp(now_ns // 10**9, timezone.utc)
        name = f"{captured:%Y%m%dT%H%M%S}.{now_ns // 10**6 % 1000:03d}Z"
        save_png(self.path / f"{name}.depth.png", to_millimetres(result.depth_m))
        save_npy(self.path / f"{name}.depth.npy", result.depth_m)
        with atomic_write(self.path / f"{name}.jpg") as temporary:
            temporary.write_bytes(jpeg(result.frame))
        self.frames += 1

    def _finish(self) -> None:
        pass
