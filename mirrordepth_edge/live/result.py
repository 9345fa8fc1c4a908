"""One frame with its depth, as the live loop hands it to outputs."""

from __future__ import annotations

from dataclasses import dataclass

from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.imaging.preprocess import Frame


@dataclass(frozen=True, kw_only=True)
class LiveResult:
    """One frame and its depth. Both arrays are reused: copy them to keep them past the call that got them."""

    frame: Frame
    """uint8 RGB `[H, W, 3]`."""
    depth_m: DepthMap
    """float32 `[H, W]`, metres."""
    number: int
    """Results before this one, from 0. `number + dropped` frames of the source came before this one."""
    captured_unix_ns: int
    """Wall clock (Unix time) at the frame's arrival in this process."""
    latency_ms: float
    """Of the predictor: preprocessing, network, resize back."""
    age_ms: float
    """From the frame's arrival in this process to its depth; exposure and transfer are not seen."""
    dropped: int
    """Frames so far that a newer one replaced before their turn came."""
