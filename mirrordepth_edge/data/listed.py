"""Data sets named by a list of files: the form in which BTS and its successors share NYU and KITTI.

A line is `PICTURE DEPTH FOCAL_PX`, with paths relative to the data; `None` as depth is a picture
without ground truth (45 of KITTI's 697 Eigen test pictures), which is passed over. NYU Depth v2:
16-bit PNG in millimetres, 24,231 training and 654 test pairs. KITTI: annotated depth, 256 a metre,
23,158 training and 697 test lines of which 652 have depth.
"""

from __future__ import annotations

from pathlib import Path

from mirrordepth_edge.data.sample import FilePairs, Sample
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.files import existing_file
from mirrordepth_edge.preprocess import Frame

NO_DEPTH = "None"
KB_CROP_HW = (352, 1216)


def listed_dataset(list_file: Path, root: Path, depth_root: Path, units_per_metre: float) -> FilePairs:
    """Picture and depth of every line that has both.

    Args:
        root, depth_root: folders that the paths of pictures and depth start from.

    Raises:
        InputError: a line is no pair, or none has depth.
    """
    existing_file(list_file, "list of files")
    pairs = []
    for number, line in enumerate(list_file.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) < 2:
            raise InputError(
                f"Line {number} of {list_file} is no pair of files: {line!r}.",
                "A line is PICTURE DEPTH FOCAL_PX.",
                "Use the lists that come with BTS, AdaBins or ZoeDepth.",
            )
        if fields[1] != NO_DEPTH:
            # BTS writes NYU's paths with a leading slash; they are relative all the same.
            pairs.append((root / fields[0].lstrip("/"), depth_root / fields[1].lstrip("/")))
    if not pairs:
        raise InputError(f"{list_file} names no pictures with depth.", "It is empty.", "Check the list.")
    return FilePairs(pairs=tuple(pairs), units_per_metre=units_per_metre)


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
