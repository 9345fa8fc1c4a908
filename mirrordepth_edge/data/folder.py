"""Any folder of pictures with depth: `rgb/[SCENE/]NAME.{jpg,png}` beside `depth/[SCENE/]NAME.png`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mirrordepth_edge.data.sample import FilePairs
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.pictures import PICTURE_SUFFIXES

PICTURE_FOLDERS = ("rgb", "image", "images", "color", "colour")
DEPTH_FOLDERS = ("depth", "depths")


def folder_dataset(root: Path, units_per_metre: float = 1000.0) -> FilePairs:
    """Pairs found under `root`, in name order.

    Pictures are in `rgb`, or else in `image`, `images`, `color` or `colour`; 16-bit depth of the same
    names in `depth` or `depths`.

    Raises:
        InputError: there are none, a picture has no partner, or it is not clear which belong together.
    """
    existing_folder(root)
    rgb, depth = only_folder(root, PICTURE_FOLDERS), only_folder(root, DEPTH_FOLDERS)
    if rgb is None or depth is None:
        missing, names = ("pictures", PICTURE_FOLDERS) if rgb is None else ("depth", DEPTH_FOLDERS)
        raise InputError(
            f"{root} has no folder of {missing}.",
            f"It would be called {' or '.join(names)}; pictures are rgb/NAME.jpg or .png, depth is depth/NAME.png.",
            "Point --root at the folder that holds both, or rename what it holds.",
        )
    files = [path for path in sorted(rgb.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        holds = f"It holds {len(files)} other files, such as {files[0].name}." if files else "It is empty."
        raise InputError(
            f"There are no pictures in {rgb}.", holds, f"Put pictures there: {', '.join(PICTURE_SUFFIXES)}."
        )
    pairs = tuple((path, depth / path.relative_to(rgb).with_suffix(".png")) for path in pictures)
    lonely = [picture for picture, partner in pairs if not partner.is_file()]
    if lonely:
        raise InputError(
            f"{len(lonely)} pictures in {rgb} have no depth, such as {lonely[0].name}.",
            f"Each needs a 16-bit PNG of the same name in {depth}.",
            "Add the depth or move the pictures away.",
        )
    shared, count = Counter(partner for _, partner in pairs).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"Several pictures in {rgb} are called {shared.stem}.",
            f"They differ in their ending only, so that {shared} would belong to each.",
            "Keep one kind of picture and move the others away.",
        )
    return FilePairs(pairs=pairs, units_per_metre=units_per_metre)


def existing_folder(root: Path) -> None:
    """Say so where `root` is no folder.

    Raises:
        InputError: it is not there, or a file.
    """
    if not root.exists():
        raise InputError(f"There is no folder {root}.", "No such file or folder.", "Check --root for a typing error.")
    if not root.is_dir():
        raise InputError(f"{root} is not a folder.", "It is a file.", "Point --root at the folder that holds the data.")


def only_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    """That folder in `root` which has one of `names`.

    Raises:
        InputError: there are several.
    """
    found = [root / name for name in names if (root / name).is_dir()]
    if len(found) > 1:
        raise InputError(
            f"{root} has both {found[0].name} and {found[1].name}.",
            "It is not clear which of them is meant.",
            "Rename one, so that it is passed over.",
        )
    return found[0] if found else None
