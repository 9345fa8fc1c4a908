"""JPEG encoding."""

from __future__ import annotations

import cv2

from mirrordepth_edge.imaging.preprocess import Frame


def encode_jpeg(frame: Frame, quality: int) -> bytes:
    """Encode uint8 RGB `[H, W, 3]` as JPEG with a quality of 0 to 100."""
    bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
