"""The result type of the live loop."""

from __future__ import annotations

from dataclasses import dataclass

from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.imaging.preprocess import Frame


@dataclass(frozen=True, kw_only=True)
class LiveResult:
    """One frame and its depth. Both arrays are reused: copy them to keep them."""

    frame: Frame
    """uint8 RGB `[H, W, 3]`."""
    depth_m: DepthMap
    """float32 `[H, W]`, metres."""
    number: int
    """Index of this result, from 0. The source sent `number + dropped` frames before this one."""
    captured_unix_ns: int
    """Unix time of the frame's arrival in this process, nanoseconds."""
    latency_ms: float
    """Time of the predictor: preprocessing, network and resizing."""
    age_ms: float
    """Time from the frame's arrival in this process to its depth; without exposure and transfer."""
    dropped: int
    """Frames so far that a newer one replaced before they were predicted."""
