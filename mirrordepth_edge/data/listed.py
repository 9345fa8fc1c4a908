"""Data sets named by a list of files: the form in which BTS and its successors share NYU and KITTI.

A line is `PICTURE DEPTH FOCAL_PX`, with paths relative to the data; `None` as depth is a picture
without ground truth (45 of KITTI's 697 Eigen test pictures), which is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mirrordepth_edge.data.folder import Sample, read_depth_png, read_picture
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.files import existing_file
from mirrordepth_edge.preprocess import Frame

NO_DEPTH = "None"
KB_CROP_HW = (352, 1216)


@dataclass(frozen=True, kw_only=True)
class ListedDataset:
    """Pairs that a list names.

    NYU Depth v2: 16-bit PNG in millimetres, 24,231 training and 654 test pairs. KITTI: annotated
    depth, 256 a metre, 23,158 training and 697 test lines of which 652 have depth.
    """

    list_file: Path
    root: Path
    """Folder of the pictures."""
    depth_root: Path
    """Folder of the depth."""
    units_per_metre: float
    kb_crop: bool = False
    """Cut picture and depth to 352x1216 at the bottom middle, as KITTI's depth benchmark does."""

    def names(self) -> list[tuple[Path, Path]]:
        """Picture and depth file of every line that has both.

        Raises:
            InputError: a line is no pair, or none has depth.
        """
        existing_file(self.list_file, "list of files")
        pairs = []
        for number, line in enumerate(self.list_file.read_text(encoding="utf-8").splitlines(), 1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) < 2:
                raise InputError(
                    f"Line {number} of {self.list_file} is no pair of files: {line!r}.",
                    "A line is PICTURE DEPTH FOCAL_PX.",
                    "Use the lists that come with BTS, AdaBins or ZoeDepth.",
                )
            if fields[1] != NO_DEPTH:
                # BTS writes NYU's paths with a leading slash; they are relative all the same.
                pairs.append((self.root / fields[0].lstrip("/"), self.depth_root / fields[1].lstrip("/")))
        if not pairs:
            raise InputError(f"{self.list_file} names no pictures with depth.", "It is empty.", "Check the list.")
        return pairs

    def __len__(self) -> int:
        return len(self.names())

    def __iter__(self) -> Iterator[Sample]:
        for picture, depth in self.names():
            sample = Sample(picture.stem, read_picture(picture), read_depth_png(depth, self.units_per_metre))
            if sample.frame.shape[:2] != sample.depth_m.shape:
                raise InputError(
                    f"{picture} and {depth} differ in size.",
                    f"The picture is {sample.frame.shape[:2]}, its depth {sample.depth_m.shape} (rows, columns).",
                    "Pair each picture with depth registered to it.",
                )
            yield kb_cropped(sample) if self.kb_crop else sample


def kb_cropped(sample: Sample) -> Sample:
    """The KITTI benchmark's crop: top = h - 352, left = int((w - 1216) / 2).

    Raises:
        InputError: the picture is smaller.
    """
    height, width = sample.depth_m.shape
    crop_h, crop_w = KB_CROP_HW
    if height < crop_h or width < crop_w:
        raise InputError(
            f"{sample.name} is too small for the KB crop.",
            f"It has {width}x{height} pixels; the crop is {crop_w}x{crop_h}.",
            "Use KITTI's raw pictures, as they come.",
        )
    top, left = height - crop_h, int((width - crop_w) / 2)
    window = slice(top, top + crop_h), slice(left, left + crop_w)
    frame: Frame = sample.frame[window]
    return Sample(sample.name, frame, sample.depth_m[window])
