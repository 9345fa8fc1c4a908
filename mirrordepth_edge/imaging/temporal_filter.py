"""A temporal filter that removes flicker from frame-by-frame metric depth, without delay.

It is a first-order recursive filter in log depth. The last result is warped along optical flow (DIS, Kroeger et al.,
ECCV 2016). The difference to the new prediction, e = ln d_t - warped, is split into a change of scale, the median of e,
and a change of each pixel. Each is attenuated with its own time constant, as far as it is small and the warped image
matches the new one. So depth steps, newly visible objects and cuts pass at once, and changes that the image does not
explain are smoothed. In log depth the filter is unbiased: relative errors of +3 % and -3 % weigh the same.

NumPy and OpenCV only; image-sized arrays are allocated once.
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
"""Flow is computed on images whose longer side is at most this long."""
FLOW_SHORT_PX = 32
"""Minimum of both sides: DIS chooses its pyramid by the width, and reads past the end of images that are too low."""
SAMPLE_STEP_PX = 4
"""The median uses every fourth pixel of every fourth row."""
MIN_FIT = 0.5
"""Image match, 0 to 1, from which a pixel counts in the median."""
MIN_SAMPLES = 32
"""Pixels that the median needs; with fewer, the change of scale is taken to be zero."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TemporalFilterConfig(Strict):
    """Filter strength. The defaults were tuned with `benchmarks/flicker.py` on `nano`."""

    pixel_s: float = 0.2
    """Time constant of per-pixel changes, seconds: 63 % of a small change has passed after this time."""
    scale_s: float = 0.1
    """Time constant of changes of the whole depth map by one factor, seconds. Shorter, because approaching something is
    such a change and must not lag."""
    flicker: float = 0.2
    """Change of ln d that passes at once. Smaller changes count as flicker and are attenuated, the smaller the more."""
    misfit_levels: float = 20.0
    """Difference in grey levels from which the warped image does not match; up to a third of it, it matches fully."""
    cut_fit: float = 0.4
    """Mean image match, 0 to 1, below which the frame counts as a cut to another scene."""

    def __post_init__(self) -> None:
        if not all(0 < value < math.inf for value in (self.pixel_s, self.scale_s, self.flicker, self.misfit_levels)):
            raise OptionError(
                f"{self} is not valid.",
                "Time constants and limits must be finite and greater than 0.",
                "To turn smoothing off, leave out the temporal filter.",
            )


class TemporalFilter:
    """Smooth the depth of one video frame by frame. Frames may be dropped and the rate may vary.

    Args:
        config: filter strength; the defaults if None.
    """

    def __init__(self, config: TemporalFilterConfig | None = None) -> None:
        self.config = config or TemporalFilterConfig()
        self._buffers: _Buffers | None = None
        self._time_s: float | None = None
        # Lookup table: image match, 0 to 1, for a difference of 0 to 255 grey levels.
        difference = np.arange(256, dtype=np.float32) / np.float32(self.config.misfit_levels)
        self._fit_of = (1.5 - 1.5 * difference).clip(0, 1)
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def reset(self) -> None:
        """Start a new video: the next frame passes unchanged."""
        self._time_s = None

    def __call__(self, frame: Frame, depth_m: DepthMap, time_s: float) -> DepthMap:
        """Return the smoothed depth of the next frame.

        The first frame of a scene passes unchanged: after `reset`, after a cut, at another size, and if time did not
        advance. So does every pixel with a depth of 0, NaN or infinity, and the first valid depth after one.

        Args:
            frame: uint8 RGB `[H, W, 3]`, the image that the depth was predicted from; fastest at the network's size.
            depth_m: float32 `[h, w]`, metres, of the same field of view, at the network's size.
            time_s: capture time of the frame in seconds, from any monotonic clock.

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
        b, last_s = self._buffers, self._time_s
        b.add(frame)
        with np.errstate(divide="ignore", invalid="ignore"):  # log of 0 or NaN, which `_correct` does not change
            np.log(depth_m, out=b.log)
            if last_s is None or not time_s > last_s or not self._warp(b):
                b.correction.fill(0)
            else:
                self._correct(b, time_s - last_s)
            self._time_s = time_s
            np.add(b.log, b.correction, out=b.state)
        np.exp(b.correction, out=b.correction)
        return np.multiply(depth_m, b.correction, out=b.result)  # bit-identical where nothing is corrected

    def _warp(self, b: _Buffers) -> bool:
        """Warp the state to the new frame; return whether it still shows the same scene."""
        b.flow.fill(0)  # DIS would start from the last flow, and drift where the image has no texture
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
        # Nearest neighbour: interpolating in every frame would blur edges. NaN where the last frame saw nothing.
        outside = (math.nan,) * 4
        cv2.remap(b.state, b.at, None, cv2.INTER_NEAREST, b.warped, cv2.BORDER_CONSTANT, outside)  # type: ignore[call-overload]
        return True

    def _correct(self, b: _Buffers, elapsed_s: float) -> None:
        """Compute what to add to log depth, in `b.correction`."""
        limit = self.config.flicker
        change, keep = np.subtract(b.log, b.warped, out=b.correction), b.keep
        scale = _scale_of(change, b.fit)
        share = max(0.0, 1 - (scale / limit) ** 2) ** 2 * math.exp(-elapsed_s / self.config.scale_s)
        # fmax and fmin replace NaN by the limit, where the weight below is 0.
        change -= np.float32(scale)
        change /= np.float32(limit)
        np.fmin(np.fmax(change, np.float32(-1), out=change), np.float32(1), out=change)
        # Tukey's biweight, (1 - x^2)^2.
        np.multiply(change, change, out=keep)
        np.subtract(np.float32(1), keep, out=keep)
        np.multiply(keep, keep, out=keep)
        np.multiply(keep, b.fit, out=keep)
        change *= keep
        change *= np.float32(-limit * math.exp(-elapsed_s / self.config.pixel_s))
        change -= np.float32(scale * share)


class _Buffers:
    """Arrays for one depth size, at that size and at the smaller size that flow is computed at."""

    def __init__(self, size_hw: SizeHW) -> None:
        shrink = math.ceil(max(size_hw) / FLOW_LONG_PX)
        small_hw = (max(size_hw[0] // shrink, FLOW_SHORT_PX), max(size_hw[1] // shrink, FLOW_SHORT_PX))
        self.size_hw = size_hw
        self.log, self.state, self.warped, self.fit, self.keep, self.correction, self.result = (
            np.empty(size_hw, np.float32) for _ in range(7)
        )
        self.at, self.grid = np.empty((*size_hw, 2), np.float32), _grid(size_hw)
        self.small_fit = np.empty(small_hw, np.float32)
        self.flow, self.small_at, self.px_per_small_px = np.empty((3, *small_hw, 2), np.float32)
        # At full size, because NumPy broadcasts pairs slowly.
        self.px_per_small_px[:] = np.divide(size_hw[::-1], small_hw[::-1])
        self.small_grid = _grid(small_hw)
        self.grey, self.grey_before, self.small_off = np.empty((3, *small_hw), np.uint8)
        self._small = np.empty((*small_hw, 3), np.uint8)
        self._resize = Resizer(small_hw)

    def add(self, frame: Frame) -> None:
        """Convert a frame to grey; the last one becomes `grey_before`."""
        self.grey, self.grey_before = self.grey_before, self.grey
        cv2.cvtColor(self._resize(frame, out=self._small), cv2.COLOR_RGB2GRAY, dst=self.grey)


def _scale_of(change: Floats, fit: Floats) -> float:
    """Return the change of log depth that all pixels share: their median."""
    sample = np.s_[::SAMPLE_STEP_PX, ::SAMPLE_STEP_PX]
    changes = change[sample]
    reliable = changes[(fit[sample] >= MIN_FIT) & np.isfinite(changes)]
    return float(np.median(reliable)) if reliable.size >= MIN_SAMPLES else 0.0


def _resize(small: Floats, out: Floats) -> Any:
    return cv2.resize(small, (out.shape[1], out.shape[0]), dst=out, interpolation=cv2.INTER_LINEAR)


def _grid(size_hw: SizeHW) -> Floats:
    """Return the coordinates of each pixel, float32 `[h, w, 2]` as (x, y)."""
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    return np.stack([columns, rows], axis=-1).astype(np.float32)
