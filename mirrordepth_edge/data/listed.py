"""Data sets named by a list of files: the form in which BTS and its successors share NYU and KITTI.

A line is `PICTURE DEPTH FOCAL_PX`, with paths relative to the data; `None` as depth is a picture
without ground truth (45 of KITTI's 697 Eigen test pictures), which is passed over. NYU Depth v2:
16-bit PNG in millimetres, 24,231 training and 654 test pairs. KITTI: annotated depth, 256 a metre,
23,158 training and 697 test lines of which 652 have depth.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path

from mirrordepth_edge.data.sample import FilePairs, Sample
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.support.files import existing_file

NO_DEPTH = "None"
KB_CROP_HW = (352, 1216)


def read_list(list_file: Path) -> list[tuple[str, str]]:
    """Names of picture and depth of every line that has both.

    Raises:
        InputError: the file is no list, a line is no pair, or none has depth.
    """
    existing_file(list_file, "list of files")
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{list_file} is no list of files.",
            "It is not UTF-8 text.",
            "A list is text with a line PICTURE DEPTH FOCAL_PX for each pair.",
        ) from error
    pairs = []
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) < 2:
            raise InputError(
                f"Line {number} of {list_file} is no pair of files: {line[:80]!r}.",
                "A line is PICTURE DEPTH FOCAL_PX.",
                "Use the lists that come with BTS, AdaBins or ZoeDepth.",
            )
        if fields[1] != NO_DEPTH:
            # BTS writes NYU's paths with a leading slash; they are relative all the same.
            pairs.append((fields[0].lstrip("/"), fields[1].lstrip("/")))
    if not pairs:
        raise InputError(f"{list_file} names no pictures with depth.", "It is empty.", "Check the list.")
    return pairs


def listed_dataset(
    list_file: Path, picture_folders: Sequence[Path], depth_folders: Sequence[Path], units_per_metre: float
) -> FilePairs:
    """The pairs of a list.

    Args:
        picture_folders, depth_folders: where the list's paths may start; the first that has a file
            counts. KITTI's annotated depth lies below `train` and `val`, which its lists leave out.

    Raises:
        InputError: the list cannot be read, or names files that are not there.
    """
    pictures, depths = zip(*read_list(list_file), strict=True)
    return FilePairs(
        pairs=tuple(
            zip(
                _found(list_file, pictures, picture_folders, "pictures", "--root"),
                _found(list_file, depths, depth_folders, "depth files", "--depth-root"),
                strict=True,
            )
        ),
        units_per_metre=units_per_metre,
    )


def _found(list_file: Path, names: Sequence[str], folders: Sequence[Path], what: str, option: str) -> list[Path]:
    """Where each name is."""
    paths: list[Path] = []
    missing: list[str] = []
    last: dict[str, Path] = {}
    for name in names:
        # Neighbours lie together: one look for each, rather than one in every folder.
        near = last.get(posixpath.dirname(name))
        folder = next((folder for folder in ([near] if near else []) + [*folders] if (folder / name).is_file()), None)
        if folder is None:
            missing.append(name)
        else:
            last[posixpath.dirname(name)] = folder
            paths.append(folder / name)
    if missing:
        looked_in = [str(folder) for folder in folders if folder.is_dir()] or [f"{folders[0]}, which is not there"]
        raise InputError(
            f"{len(missing)} of {len(names)} {what} in {list_file} are not there, such as {missing[0]}.",
            f"Looked in {', '.join(looked_in)}.",
            f"Point {option} at the folder from which the list's paths start.",
        )
    return paths


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
