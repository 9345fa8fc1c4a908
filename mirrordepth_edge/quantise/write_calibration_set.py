"""From pictures, a video or a camera to the recipe of a calibration set and its contact sheet."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from mirrordepth_edge.config import SizeHW
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.imaging.draw import GAP_PX, side_by_side, stacked, titled
from mirrordepth_edge.imaging.pictures import PICTURE_SUFFIXES, read_picture
from mirrordepth_edge.imaging.preprocess import Frame, resize_frame
from mirrordepth_edge.quantise.calibration_set import CalibrationSet, ChosenFrame, Dropped, Recipe, Selection
from mirrordepth_edge.quantise.select_frames import Choice, Key, TowerFeatures
from mirrordepth_edge.support.files import atomic_write, sha256_of, unwritable

T = TypeVar("T")

SHEET_MOST = 120
"""Pictures on a contact sheet."""
SHEET_COLUMNS = 12
SHEET_QUALITY, KEPT_QUALITY = 85, 95
"""Of JPEGs: contact sheets, and a camera's frames."""
THUMBNAIL_HW: SizeHW = (96, 128)


def spread_evenly(all_of_them: Sequence[T], most: int) -> list[T]:
    """At most so many, with the same steps in between."""
    shown = min(most, len(all_of_them))
    return [all_of_them[place * len(all_of_them) // shown] for place in range(shown)]


def pictures_of(folder: Path, files: Sequence[str]) -> Iterator[tuple[Key, Frame | None]]:
    """Pictures with their names; None for one that cannot be read."""
    for file in files:
        try:
            yield file, read_picture(folder / file)
        except InputError:
            yield file, None


def kept_as_file(folder: Path, number: int, frame: Frame) -> str:
    """Store a camera's frame, uint8 RGB `[H, W, 3]`, whole.

    Returns:
        The file's name, which has the frame's number.

    Raises:
        InputError: the folder cannot be written.
    """
    name = f"{number:06d}.jpg"
    with atomic_write(folder / name, durable=False) as temporary:
        temporary.write_bytes(_jpeg(frame, KEPT_QUALITY))
    return name


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that was not there before, and is not there afterwards if the block raises anything.

    Raises:
        InputError: it is there, or cannot be made.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise InputError(
            f"{folder} is there already.", "It may hold the frames of another set.", "Delete it, or name another set."
        ) from error
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def keep_only(folder: Path, choice: Choice) -> None:
    """Delete the frames in a folder that were not picked."""
    for file in folder.iterdir():
        if file.name not in choice.picked:
            file.unlink()


def picture_files(folder: Path) -> list[str]:
    """Pictures at any depth below a folder, as paths from there on with forward slashes, in order.

    Left out are contact sheets (a `.jpg` beside a `.toml` of the same stem), hidden files and folders, names that are
    no text, and PNGs of 16 bits in one channel, which are depth and no pictures.
    """
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() not in PICTURE_SUFFIXES or _is_depth(path):
                continue
            if not (path.suffix == ".jpg" and path.with_suffix(".toml").is_file()):
                found.append(path.relative_to(folder).as_posix())
    return sorted(name for name in found if name.isprintable())


def _is_depth(path: Path) -> bool:
    """Whether a file is a PNG of 16 bits in one channel (PNG specification, 11.2.1: IHDR)."""
    if path.suffix.lower() != ".png":
        return False
    try:
        with path.open("rb") as file:
            return file.read(26)[24:] == b"\x10\x00"
    except OSError:
        return False


def make_set(
    path: Path, source: Path, choice: Choice, *, seed: int, found: int, features: TowerFeatures
) -> CalibrationSet:
    """Write the recipe of a choice, with its contact sheet.

    Args:
        path: of the recipe.
        source: the folder, or the video, that the choice's keys are of.
        seed: it was picked with.
        found: frames that the source has.
        features: it was picked by.

    Raises:
        InputError: a frame can no longer be read, or the recipe cannot be written.
    """
    selection = Selection(
        method="farthest-point",
        model=features.model,
        model_sha256=features.sha256,
        found=found,
        candidates=choice.candidates,
    )
    recipe = Recipe(
        name=path.stem,
        source=_from(path, source),
        source_sha256=sha256_of(source) if source.is_file() else None,
        count=len(choice.picked),
        seed=seed,
        selection=selection,
        dropped=choice.dropped,
        statistics=choice.statistics,
        frames=tuple(_chosen(source, key) for key in choice.picked),
    )
    return save_calibration(path, recipe)


def pictures_as_set(folder: Path, name: str = "") -> CalibrationSet:
    """All pictures of a folder as a set that has no file, and that nobody has looked through.

    Raises:
        InputError: there are none.
    """
    files = picture_files(folder)
    if not files:
        raise no_pictures(folder)
    recipe = Recipe(
        name=name or folder.name,
        source=".",
        count=len(files),
        seed=0,
        selection=Selection(method="all", found=len(files), candidates=len(files)),
        dropped=Dropped(),
        frames=tuple(_chosen(folder, file) for file in files),
    )
    return CalibrationSet(path=folder / f"{recipe.name}.toml", sha256=_sha256(recipe), recipe=recipe)


def no_pictures(folder: Path) -> InputError:
    """The one wording for a folder without pictures."""
    return InputError(
        f"There are no pictures in {folder}.",
        f"No file in it or below is a {', '.join(suffix[1:] for suffix in PICTURE_SUFFIXES)}; 16-bit depth is none.",
        "Name another folder, or a video.",
    )


def _chosen(source: Path, key: Key) -> ChosenFrame:
    if isinstance(key, int):
        return ChosenFrame(number=key)
    return ChosenFrame(file=key, sha256=sha256_of(source / key))


def _from(recipe: Path, source: Path) -> str:
    """The way from a recipe to its source, with forward slashes; from the root on where there is no other."""
    try:
        way = Path(os.path.relpath(source.resolve(), recipe.parent.resolve())).as_posix()
    except ValueError:  # on another drive
        way = source.resolve().as_posix()
    if not (way + recipe.stem).isprintable():
        raise InputError(f"{way!r} cannot stand in a recipe.", "A recipe is text; this name is none.", "Rename it.")
    return way


def _sha256(recipe: Recipe) -> str:
    return hashlib.sha256(recipe.text().encode()).hexdigest()


def save_calibration(path: Path, recipe: Recipe) -> CalibrationSet:
    """Write a recipe and its contact sheet beside it; both are complete before either takes its place.

    Raises:
        InputError: a frame cannot be read, or the folder cannot be written.
    """
    calibration = CalibrationSet(path=path, sha256=_sha256(recipe), recipe=recipe)
    sheet = _jpeg(contact_sheet(calibration), SHEET_QUALITY)
    with atomic_write(path) as file, atomic_write(sheet_path(path)) as picture:
        picture.write_bytes(sheet)
        file.write_bytes(recipe.text().encode())
    return calibration


def _jpeg(picture: Frame, quality: int) -> bytes:
    ordered = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", ordered, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def sheet_path(recipe: Path) -> Path:
    """The contact sheet's name: `calib/office.toml` has `calib/office.jpg`."""
    return recipe.with_suffix(".jpg")


def refuse_foreign_sheet(recipe: Path) -> None:
    """Keep a picture of the user's from being taken for an old contact sheet and written over.

    Raises:
        OptionError: there is a picture of the sheet's name and no recipe beside it.
    """
    if sheet_path(recipe).exists() and not recipe.exists():
        raise OptionError(
            f"{sheet_path(recipe)} would be overwritten.",
            f"A set's contact sheet is called so, and there is no {recipe.name} that it could be of.",
            "Name another set.",
        )


def contact_sheet(calibration: CalibrationSet) -> Frame:
    """Small pictures of the set, at most `SHEET_MOST` of them and spread evenly, under a title that counts them.

    Returns:
        uint8 RGB `[H, W, 3]`.
    """
    places = spread_evenly(range(calibration.count), SHEET_MOST)
    small = [_thumbnail(frame) for frame in calibration.some_frames(places)]
    gap_px = GAP_PX // 3
    rows = [side_by_side(small[left : left + SHEET_COLUMNS], gap_px) for left in range(0, len(small), SHEET_COLUMNS)]
    name = calibration.name.encode("ascii", "replace").decode()
    return titled(stacked(rows, gap_px), f"{name}: {len(small)} of {calibration.count} frames")


def _thumbnail(frame: Frame) -> Frame:
    """The picture in its own proportions, in the middle of a white field of `THUMBNAIL_HW`."""
    height, width = frame.shape[:2]
    shrink = min(THUMBNAIL_HW[0] / height, THUMBNAIL_HW[1] / width)
    rows, columns = (max(1, round(shrink * side)) for side in (height, width))
    field = np.full((*THUMBNAIL_HW, 3), 255, np.uint8)
    top, left = (THUMBNAIL_HW[0] - rows) // 2, (THUMBNAIL_HW[1] - columns) // 2
    field[top : top + rows, left : left + columns] = resize_frame(frame, (rows, columns))
    return field
