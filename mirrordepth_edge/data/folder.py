"""Any folder of pictures with depth: `rgb/NAME.{jpg,png}` beside `depth/NAME.png`."""

from __future__ import annotations

from pathlib import Path

from mirrordepth_edge.data.sample import PICTURE_SUFFIXES, FilePairs
from mirrordepth_edge.errors import InputError


def folder_dataset(root: Path, units_per_metre: float = 1000.0) -> FilePairs:
    """Pairs found under `root`, in name order.

    Raises:
        InputError: there are none, or a picture has no partner.
    """
    rgb, depth = root / "rgb", root / "depth"
    pictures = sorted(p for p in rgb.glob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    if not pictures:
        raise InputError(
            f"There are no pictures in {rgb}.",
            "A folder data set is rgb/NAME.jpg or .png beside depth/NAME.png.",
            "Point --root at the folder that holds rgb and depth.",
        )
    pairs = tuple((picture, depth / f"{picture.stem}.png") for picture in pictures)
    lonely = [picture.name for picture, partner in pairs if not partner.is_file()]
    if lonely:
        raise InputError(
            f"{len(lonely)} pictures in {rgb} have no depth, such as {lonely[0]}.",
            f"Each needs a file of the same name in {depth}.",
            "Add the depth or move the pictures away.",
        )
    return FilePairs(pairs=pairs, units_per_metre=units_per_metre)
