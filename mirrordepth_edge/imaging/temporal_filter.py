"""Less flicker in metric depth that was predicted frame by frame, without a frame of delay.

A recursive filter of first order in log depth. The last result is moved along optical flow (DIS, Kroeger et al.,
ECCV 2016), and what is new, e = ln d_t - moved, is taken apart into one change of scale, the median of e, and a
change of each pixel. Both are forgiven in part, and each by its own time constant, as far as they are small and the
moved picture fits the new one. So steps of depth, things that come into sight and cuts pass at once; what no picture
explains does not. In log depth the filter has no bias: a relative error of +3 % weighs what one of -3 % does.

NumPy and OpenCV only; arrays of a picture's size are made once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.config import SizeHW, Strict
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.imaging.preprocess import Frame, Resizer, check_frame

FLOW_LONG_PX = 160
"""Flow is computed on pictures whose longer side has at most so many pixels."""
FLOW_SHORT_PX = 32
"""And each side at least so many: DIS halves pictures by their width, and reads past the end of low ones."""
SAMPLE_STEP_PX = 4
"""The median is that of every fourth pixel of every fourth row."""
SURE = 0.5
"""A pixel counts in the median where the picture fits at least so well, 0 to 1."""
FEWEST_SURE = 32
"""Of the pixels sampled; with fewer the scale is left as it is."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class StabiliseConfig(Strict):
    """How much is smoothed. The defaults were chosen with `benchmarks/flicker.py`, on `nano`."""

    pixel_s: float = 0.2
    """Time constant of changes of single pixels, seconds: 63 % of a small one is let through after so long."""
    scale_s: float = 0.1
    """Time constant of changes of all depth by one factor. Walking up to something is one: short, to lag less."""
    flicker: float = 0.2
    """Changes of ln d from here on are real and pass at once; below it flicker, the more so the smaller."""
    misfit_levels: float = 20.0
    """The moved picture fits where it is off by less than a third of this, and not at all from here on; grey levels."""
    cut_fit: float = 0.4
    """With a mean fit below this, 0 to 1, the frame is taken for the first of another scene."""

    def __post_init__(self) -> None:
        if not all(0 < each < math.inf for each in (self.pixel_s, self.scale_s, self.flicker, self.misfit_levels)):
            raise OptionError(
                f"{self} cannot be used.",
                "Time constants and limits are finite and above zero.",
                "Pass the depth on as it is where nothing is to be smoothed.",
            )


class Stabiliser:
    """Depth of one video, frame after frame; frames may be dropped and rates may vary."""

    def __init__(self, config: StabiliseConfig | None = None) -> None:
        self.config = config or StabiliseConfig()
        self._buffers: _Buffers | None = None
        self._time_s: float | None = None
        # How well the picture fits by how far it is off, 0 to 255 grey levels.
        off = np.arange(256, dtype=np.float32) / np.float32(self.config.misfit_levels)
        self._fit_of = (1.5 - 1.5 * off).clip(0, 1)
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def reset(self) -> None:
        """Forget what was seen: the next frame passes as it is."""
        self._time_s = None

    def __call__(self, frame: Frame, depth_m: DepthMap, time_s: float) -> DepthMap:
        """The depth of the next frame.

        The first frame of a scene passes as it is: after `reset`, after a cut, at another size, and where time did
        not go on. So does every pixel with a depth of 0, NaN or infinity, and the first depth after one.

        Args:
            frame: uint8 RGB `[H, W, 3]`, what the depth was predicted from; cheapest at the network's size.
            depth_m: float32 `[h, w]`, metres, of the same field of view; at the network's size.
            time_s: when the frame was taken, by any clock that only goes forwards.

        Returns:
            float32 `[h, w]`, metres. The array is reused: copy it to keep it past the next call.

        Raises:
            InputError: the frame is not uint8 RGB.
        """
        check_frame(frame)
        size_hw = (depth_m.shape[0], depth_m.shape[1])
        if self._buffers is None or self._buffers.size_hw != size_hw:
            self._buffers = _Buffers(size_hw)
            self.reset()
        b, before_s = self._buffers, self._time_s
        b.see(frame)
        with np.errstate(divide="ignore", invalid="ignore"):  # no depth: its logarithm is in no limits below
            np.log(depth_m, out=b.log)
            if before_s is None or not time_s > before_s or not self._follow(b):
                b.correction.fill(0)
            else:
                self._correct(b, time_s - before_s)
            self._time_s = time_s
            np.add(b.log, b.correction, out=b.state)
        np.exp(b.correction, out=b.correction)
        return np.multiply(depth_m, b.correction, out=b.result)  # exactly the depth where nothing is corrected

    def _follow(self, b: _Buffers) -> bool:
        """Move the state to where things are now, and say whether this is still the same scene."""
        b.flow.fill(0)  # else DIS would begin with the last one, and drift where there is nothing to see
        self._dis.calc(b.grey, b.grey_before, b.flow)
        np.add(b.flow, b.small_grid, out=b.small_at)
        cv2.remap(b.grey_before, b.small_at, None, cv2.INTER_LINEAR, dst=b.small_off)  # type: ignore[call-overload]
        cv2.absdiff(b.grey, b.small_off, dst=b.small_off)
        cv2.blur(b.small_off, (5, 5), dst=b.small_off)
        cv2.LUT(b.small_off, self._fit_of, dst=b.small_fit)
        if cv2.mean(b.small_fit)[0] < self.config.cut_fit:
            return False
        _resize(b.small_fit, b.fit)
        np.multiply(b.flow, b.px_per_small_px, out=b.flow)
        _resize(b.flow, b.at)
        np.add(b.at, b.grid, out=b.at)
        # Whole pixels: interpolated again in every frame, edges would wear off. NaN where nothing was seen.
        nothing = (math.nan,) * 4
        cv2.remap(b.state, b.at, None, cv2.INTER_NEAREST, b.moved, cv2.BORDER_CONSTANT, nothing)  # type: ignore[call-overload]
        return True

    def _correct(self, b: _Buffers, elapsed_s: float) -> None:
        """What to add to log depth."""
        limit = self.config.flicker
        change, keep = np.subtract(b.log, b.moved, out=b.correction), b.keep
        scale = _scale_of(change, b.fit)
        share = max(0.0, 1 - (scale / limit) ** 2) ** 2 * math.exp(-elapsed_s / self.config.scale_s)
        # In limits; fmax and fmin take the limit in place of NaN, and at the limit nothing is kept.
        change -= np.float32(scale)
        change /= np.float32(limit)
        np.fmin(np.fmax(change, np.float32(-1), out=change), np.float32(1), out=change)
        # Tukey's biweight: (1 - x^2)^2.
        np.multiply(change, change, out=keep)
        np.subtract(np.float32(1), keep, out=keep)
        np.multiply(keep, keep, out=keep)
        np.multiply(keep, b.fit, out=keep)
        change *= keep
        change *= np.float32(-limit * math.exp(-elapsed_s / self.config.pixel_s))
        change -= np.float32(scale * share)


class _Buffers:
    """Arrays for one size of depth: of that size, and of the smaller one that flow is computed at."""

    def __init__(self, size_hw: SizeHW) -> None:
        shrink = math.ceil(max(size_hw) / FLOW_LONG_PX)
        small_hw = (max(size_hw[0] // shrink, FLOW_SHORT_PX), max(size_hw[1] // shrink, FLOW_SHORT_PX))
        self.size_hw = size_hw
        self.log, self.state, self.moved, self.fit, self.keep, self.correction, self.result = (
            np.empty(size_hw, np.float32) for _ in range(7)
        )
        self.at, self.grid = np.empty((*size_hw, 2), np.float32), _grid(size_hw)
        self.small_fit = np.empty(small_hw, np.float32)
        self.flow, self.small_at, self.px_per_small_px = np.empty((3, *small_hw, 2), np.float32)
        self.px_per_small_px[:] = np.divide(size_hw[::-1], small_hw[::-1])  # whole, for NumPy is slow at pairs
        self.small_grid = _grid(small_hw)
        self.grey, self.grey_before, self.small_off = np.empty((3, *small_hw), np.uint8)
        self._small = np.empty((*small_hw, 3), np.uint8)
        self._resize = Resizer(small_hw)

    def see(self, frame: Frame) -> None:
        """Take a frame in; the last one becomes the one before."""
        self.grey, self.grey_before = self.grey_before, self.grey
        cv2.cvtColor(self._resize(frame, out=self._small), cv2.COLOR_RGB2GRAY, dst=self.grey)


def _scale_of(change: Floats, fit: Floats) -> float:
    """The change of log depth that all pixels share, by their median."""
    sample = np.s_[::SAMPLE_STEP_PX, ::SAMPLE_STEP_PX]
    changes = change[sample]
    sure = changes[(fit[sample] >= SURE) & np.isfinite(changes)]
    return float(np.median(sure)) if sure.size >= FEWEST_SURE else 0.0


def _resize(small: Floats, out: Floats) -> Any:
    return cv2.resize(small, (out.shape[1], out.shape[0]), dst=out, interpolation=cv2.INTER_LINEAR)


def _grid(size_hw: SizeHW) -> Floats:
    """Where each pixel is, `[h, w, 2]` as (x, y)."""
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    return np.stack([columns, rows], axis=-1).astype(np.float32)
