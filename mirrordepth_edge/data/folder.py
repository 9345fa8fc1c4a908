"""Data sets in a folder: `rgb/[SCENE/]NAME.{jpg,png}` and `depth/[SCENE/]NAME.png`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mirrordepth_edge.data.sample import FilePairs
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.images import IMAGE_SUFFIXES

PICTURE_FOLDERS = ("rgb", "image", "images", "color", "colour")
DEPTH_FOLDERS = ("depth", "depths")


def folder_dataset(root: Path, units_per_metre: float = 1000.0) -> FilePairs:
    """Open the RGB-D pairs under `root`, in name order.

    Images are in `rgb`, `image`, `images`, `color` or `colour`; 16-bit depth of the same names in `depth` or
    `depths`.

    Args:
        root: folder of the data set.
        units_per_metre: depth PNG value of one metre.

    Raises:
        InputError: there are no pairs, an image has no depth, or pairs are ambiguous.
    """
    existing_folder(root)
    rgb, depth = only_folder(root, PICTURE_FOLDERS), only_folder(root, DEPTH_FOLDERS)
    if rgb is None or depth is None:
        missing, names = ("images", PICTURE_FOLDERS) if rgb is None else ("depth", DEPTH_FOLDERS)
        raise InputError(
            f"{root} has no folder of {missing}.",
            f"Expected {' or '.join(names)}: images as rgb/NAME.jpg or .png, depth as depth/NAME.png.",
            "Point --root at the folder that holds both, or rename the folders in it.",
        )
    pairs = tuple((path, depth / path.relative_to(rgb).with_suffix(".png")) for path in _images_in(rgb))
    _check_pairs(pairs, rgb, depth)
    return FilePairs(pairs=pairs, units_per_metre=units_per_metre)


def _images_in(rgb: Path) -> list[Path]:
    # macOS adds a ._NAME beside each file that is copied to other file systems.
    files = [path for path in sorted(rgb.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        why = f"It holds {len(files)} other files, such as {files[0].name}." if files else "It is empty."
        raise InputError(f"There are no images in {rgb}.", why, f"Put images there: {', '.join(IMAGE_SUFFIXES)}.")
    return images


def _check_pairs(pairs: tuple[tuple[Path, Path], ...], rgb: Path, depth: Path) -> None:
    """Each image has depth of its own."""
    unpaired = [image for image, partner in pairs if not partner.is_file()]
    if unpaired:
        raise InputError(
            f"{len(unpaired)} images in {rgb} have no depth, such as {unpaired[0].name}.",
            f"Each needs a 16-bit PNG of the same name in {depth}.",
            "Add the depth or remove the images.",
        )
    shared, count = Counter(partner for _, partner in pairs).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"Several images in {rgb} are named {shared.stem}.",
            f"They differ only in their suffix, so {shared} would belong to each of them.",
            "Keep one of them and remove the others.",
        )


def existing_folder(root: Path) -> Path:
    """Return `root` if it is a folder.

    Raises:
        InputError: it does not exist, or is a file.
    """
    if not root.exists():
        raise InputError(f"There is no folder {root}.", "No such file or folder.", "Check --root.")
    if not root.is_dir():
        raise InputError(f"{root} is not a folder.", "It is a file.", "Point --root at the folder that holds the data.")
    return root


def only_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    """Find the folder in `root` that has one of `names`; None if there is none.

    Raises:
        InputError: there are several.
    """
    folders = [root / name for name in names if (root / name).is_dir()]
    if len(folders) > 1:
        raise InputError(
            f"{root} has both {folders[0].name} and {folders[1].name}.",
            "It is ambiguous which one to use.",
            "Rename the one to ignore.",
        )
    return folders[0] if folders else None
