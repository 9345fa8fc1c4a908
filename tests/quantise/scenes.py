"""Images for calibration tests."""

from __future__ import annotations

import cv2
import numpy as np

from mirrordepth_edge.imaging.preprocess import Frame


def scene(seed: int, size_hw: tuple[int, int] = (180, 240)) -> Frame:
    """Return an image with natural statistics: coloured noise that is stronger at coarser scales."""
    rng = np.random.default_rng(seed)
    height, width = size_hw
    image = np.full((height, width, 3), rng.uniform(90, 160, 3), np.float32)
    for cells, strength in ((2, 40), (4, 30), (10, 20), (30, 12), (90, 10), (180, 8)):
        coarse = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return image.clip(0, 255).astype(np.uint8)
