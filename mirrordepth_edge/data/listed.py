"""Data sets described by a list of files, as BTS and its successors distribute NYU and KITTI.

A line is `IMAGE DEPTH FOCAL_PX` with relative paths. `None` as depth marks an image without ground truth (45 of
KITTI's 697 Eigen test images), which is skipped. NYU Depth v2: 16-bit PNG in millimetres, 24,231 training and
654 test pairs. KITTI: annotated depth, 256 units per metre, 23,158 training and 697 test lines, 652 with depth.
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
    """Read the relative paths of image and depth of every line with both.

    Raises:
        InputError: the file is not a list, a line is not a pair, or no line has depth.
    """
    existing_file(list_file, "list of files")
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{list_file} is not a list of files.",
            "It is not UTF-8 text.",
            "Save it as UTF-8 text with one line IMAGE DEPTH FOCAL_PX per pair.",
        ) from error
    pairs = []
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) < 2:
            raise InputError(
                f"Line {number} of {list_file} is not a pair of files: {line[:80]!r}.",
                "Expected IMAGE DEPTH FOCAL_PX.",
                "Use the lists of BTS, AdaBins or ZoeDepth.",
            )
        if fields[1] != NO_DEPTH:
            # BTS writes NYU's relative paths with a leading slash.
            pairs.append((fields[0].lstrip("/"), fields[1].lstrip("/")))
    if not pairs:
        raise InputError(
            f"{list_file} lists no image with depth.", "It is empty, or every depth is None.", "Check the list."
        )
    return pairs


def listed_dataset(
    list_file: Path, picture_folders: Sequence[Path], depth_folders: Sequence[Path], units_per_metre: float
) -> FilePairs:
    """Open the pairs of a list.

    Args:
        list_file: the list.
        picture_folders, depth_folders: folders that the list's paths may be relative to; the first that has
            the file is used. KITTI's annotated depth lies below `train` and `val`, which its lists omit.
        units_per_metre: depth PNG value of one metre.

    Raises:
        InputError: the list cannot be read, or files are missing.
    """
    pictures, depths = zip(*read_list(list_file), strict=True)
    picture_paths = _resolve(list_file, pictures, picture_folders, "images", "--root")
    depth_paths = _resolve(list_file, depths, depth_folders, "depth files", "--depth-root")
    return FilePairs(pairs=tuple(zip(picture_paths, depth_paths, strict=True)), units_per_metre=units_per_metre)


def _resolve(list_file: Path, names: Sequence[str], folders: Sequence[Path], what: str, option: str) -> list[Path]:
    """Find the path of each name."""
    paths: list[Path] = []
    missing: list[str] = []
    folder_of: dict[str, Path] = {}
    for name in names:
        # Files of one directory lie together: try where the last one was, which saves a look-up per folder.
        near = folder_of.get(posixpath.dirname(name))
        candidates = [*([near] if near else []), *folders]
        folder = next((candidate for candidate in candidates if (candidate / name).is_file()), None)
        if folder is None:
            missing.append(name)
        else:
            folder_of[posixpath.dirname(name)] = folder
            paths.append(folder / name)
    if missing:
        looked_in = [str(folder) for folder in folders if folder.is_dir()] or [f"{folders[0]}, which does not exist"]
        raise InputError(
            f"{len(missing)} of {len(names)} {what} in {list_file} are missing, such as {missing[0]}.",
            f"Searched in {', '.join(looked_in)}.",
            f"Point {option} at the folder that the list's paths are relative to.",
        )
    return paths


def kb_cropped(sample: Sample) -> Sample:
    """Apply the KITTI benchmark's crop to 352x1216: top = h - 352, left = int((w - 1216) / 2).

    Raises:
        InputError: the image is smaller.
    """
    # This function's name is part of the data set's fingerprint (`sample.Mapped`).
    height, width = sample.depth_m.shape
    crop_h, crop_w = KB_CROP_HW
    if height < crop_h or width < crop_w:
        raise InputError(
            f"{sample.name} is too small for the KB crop.",
            f"It has {width}x{height} pixels; the crop needs {crop_w}x{crop_h}.",
            "Use KITTI's raw images in full size.",
        )
    top, left = height - crop_h, int((width - crop_w) / 2)
    window = slice(top, top + crop_h), slice(left, left + crop_w)
    frame: Frame = sample.frame[window]
    return Sample(sample.name, frame, sample.depth_m[window])
