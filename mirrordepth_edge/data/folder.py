"""Any folder of pictures with depth: `rgb/NAME.{jpg,png}` beside `depth/NAME.png`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.files import existing_file
from mirrordepth_edge.preprocess import Frame

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class Sample(NamedTuple):
    """One picture and its depth."""

    name: str
    frame: Frame
    """uint8 RGB `[H, W, 3]`."""
    depth_m: npt.NDArray[np.float32]
    """float32 `[H, W]`, metres; 0 where nothing was measured."""


def read_picture(path: Path) -> Frame:
    """Read a picture as uint8 RGB `[H, W, 3]`, turned upright by its EXIF tag.

    Raises:
        InputError: the file is missing, empty or no picture.
    """
    existing_file(path, "picture")
    # Through memory rather than cv2.imread, whose decoder warnings and non-ASCII paths differ by platform.
    picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise InputError(
            f"{path} is no readable picture.",
            "OpenCV could not decode it: it is damaged or of another kind.",
            f"Pass a picture ({', '.join(suffix[1:] for suffix in PICTURE_SUFFIXES)}) or a video.",
        )
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def read_depth_png(path: Path, units_per_metre: float) -> npt.NDArray[np.float32]:
    """Read a 16-bit depth PNG as metres, float32 `[H, W]`, 0 = no value.

    Raises:
        InputError: the file is missing, no picture, or not 16-bit with one channel.
    """
    existing_file(path, "depth picture")
    raw = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if raw is None or raw.dtype != np.uint16 or raw.ndim != 2:
        found = "no picture" if raw is None else f"{raw.dtype} with shape {raw.shape}"
        raise InputError(
            f"{path} is no depth picture.",
            f"Depth is one channel of 16 bits; this is {found}.",
            "Save depth as 16-bit grey PNG, for example in millimetres (--units-per-metre 1000).",
        )
    return raw.astype(np.float32) / np.float32(units_per_metre)


@dataclass(frozen=True, kw_only=True)
class FolderDataset:
    """Pairs found under `root`, in name order."""

    root: Path
    units_per_metre: float = 1000.0

    def names(self) -> list[tuple[Path, Path]]:
        """Picture and depth file of every pair.

        Raises:
            InputError: there are none, or a picture has no partner.
        """
        rgb, depth = self.root / "rgb", self.root / "depth"
        pictures = sorted(p for p in rgb.glob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
        if not pictures:
            raise InputError(
                f"There are no pictures in {rgb}.",
                "A folder data set is rgb/NAME.jpg or .png beside depth/NAME.png.",
                "Point --root at the folder that holds rgb and depth.",
            )
        pairs = [(picture, depth / f"{picture.stem}.png") for picture in pictures]
        lonely = [picture.name for picture, partner in pairs if not partner.is_file()]
        if lonely:
            raise InputError(
                f"{len(lonely)} pictures in {rgb} have no depth, such as {lonely[0]}.",
                f"Each needs a file of the same name in {depth}.",
                "Add the depth or move the pictures away.",
            )
        return pairs

    def __len__(self) -> int:
        return len(self.names())

    def __iter__(self) -> Iterator[Sample]:
        for picture, depth in self.names():
            yield Sample(picture.stem, read_picture(picture), read_depth_png(depth, self.units_per_metre))
