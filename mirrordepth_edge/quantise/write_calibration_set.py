"""Write the recipe of a calibration set and its contact sheet."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from mirrordepth_edge.config import SizeHW
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.imaging.draw import GAP_PX, side_by_side, stacked, titled
from mirrordepth_edge.imaging.images import IMAGE_SUFFIXES, read_image
from mirrordepth_edge.imaging.jpeg import encode_jpeg
from mirrordepth_edge.imaging.preprocess import Frame, resize_frame
from mirrordepth_edge.quantise.calibration_set import CalibrationSet, ChosenFrame, Dropped, Recipe, Selection
from mirrordepth_edge.quantise.select_frames import Choice, Key, TowerFeatures
from mirrordepth_edge.support.files import atomic_write, sha256_of, unwritable

T = TypeVar("T")

MAX_SHEET_IMAGES = 120
SHEET_COLUMNS = 12
SHEET_QUALITY, FRAME_QUALITY = 85, 95
"""JPEG quality of contact sheets, and of frames from a camera."""
THUMBNAIL_HW: SizeHW = (96, 128)


def spread_evenly(items: Sequence[T], max_count: int) -> list[T]:
    """Return at most `max_count` evenly spaced items."""
    count = min(max_count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def read_images(folder: Path, files: Sequence[str]) -> Iterator[tuple[Key, Frame | None]]:
    """Yield image files with their content, uint8 RGB `[H, W, 3]`; None if a file cannot be read."""
    for file in files:
        try:
            yield file, read_image(folder / file)
        except InputError:
            yield file, None


def save_frame(folder: Path, number: int, frame: Frame) -> str:
    """Save a camera frame, uint8 RGB `[H, W, 3]`, as JPEG.

    Returns:
        The file name, made from the number.

    Raises:
        InputError: the folder is not writable.
    """
    name = f"{number:06d}.jpg"
    with atomic_write(folder / name, durable=False) as temporary:
        temporary.write_bytes(encode_jpeg(frame, FRAME_QUALITY))
    return name


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Create a folder, and delete it if the block raises an exception.

    Raises:
        InputError: the folder exists, or cannot be created.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise InputError(
            f"{folder} already exists.",
            "It may contain the frames of another set.",
            "Delete it, or choose another name.",
        ) from error
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def keep_only(folder: Path, choice: Choice) -> None:
    """Delete the frames in a folder that were not selected."""
    for file in folder.iterdir():
        if file.name not in choice.picked:
            file.unlink()


def list_images(folder: Path) -> list[str]:
    """List the images in a folder and its subfolders, as sorted relative paths with forward slashes.

    Left out are contact sheets (a `.jpg` next to a `.toml` of the same name), hidden files and folders, names that are
    not printable, and single-channel 16-bit PNGs, which are depth maps.

    Raises:
        InputError: the folder has no images.
    """
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() not in IMAGE_SUFFIXES or _is_depth(path):
                continue
            if not (path.suffix == ".jpg" and path.with_suffix(".toml").is_file()):
                files.append(path.relative_to(folder).as_posix())
    files = sorted(file for file in files if file.isprintable())
    if not files:
        raise InputError(
            f"No images found in {folder}.",
            f"Expected {', '.join(suffix[1:] for suffix in IMAGE_SUFFIXES)} files, here or in subfolders; 16-bit "
            "depth maps are ignored.",
            "Pass another folder, or a video.",
        )
    return files


def _is_depth(path: Path) -> bool:
    """Whether a file is a single-channel 16-bit PNG (PNG specification, 11.2.1: IHDR)."""
    if path.suffix.lower() != ".png":
        return False
    try:
        with path.open("rb") as file:
            return file.read(26)[24:] == b"\x10\x00"
    except OSError:
        return False


def build_set(
    path: Path, source: Path, choice: Choice, *, seed: int, found: int, features: TowerFeatures
) -> CalibrationSet:
    """Write the recipe of a selection, with its contact sheet.

    Args:
        path: recipe file to write.
        source: the folder or video of the selected frames.
        choice: the selection.
        seed: seed of the selection.
        found: number of frames in the source.
        features: the features of the selection.

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
        source=_relative_source(path, source),
        source_sha256=sha256_of(source) if source.is_file() else None,
        count=len(choice.picked),
        seed=seed,
        selection=selection,
        dropped=choice.dropped,
        statistics=choice.statistics,
        frames=tuple(_frame_entry(source, key) for key in choice.picked),
    )
    return save_calibration(path, recipe)


def folder_as_set(folder: Path, name: str = "") -> CalibrationSet:
    """Return all images of a folder as a calibration set without a recipe file and without selection.

    Raises:
        InputError: the folder has no images.
    """
    files = list_images(folder)
    recipe = Recipe(
        name=name or folder.name,
        source=".",
        count=len(files),
        seed=0,
        selection=Selection(method="all", found=len(files), candidates=len(files)),
        dropped=Dropped(),
        frames=tuple(_frame_entry(folder, file) for file in files),
    )
    return CalibrationSet(path=folder / f"{recipe.name}.toml", sha256=_sha256(recipe), recipe=recipe)


def _frame_entry(source: Path, key: Key) -> ChosenFrame:
    if isinstance(key, int):
        return ChosenFrame(number=key)
    return ChosenFrame(file=key, sha256=sha256_of(source / key))


def _relative_source(recipe: Path, source: Path) -> str:
    """Return the source's path relative to the recipe, with forward slashes; absolute if it is on another drive."""
    try:
        path = Path(os.path.relpath(source.resolve(), recipe.parent.resolve())).as_posix()
    except ValueError:  # on another drive of Windows
        path = source.resolve().as_posix()
    if not (path + recipe.stem).isprintable():
        raise InputError(f"{path!r} cannot be written to a recipe.", "The name is not printable text.", "Rename it.")
    return path


def _sha256(recipe: Recipe) -> str:
    return hashlib.sha256(recipe.text().encode()).hexdigest()


def save_calibration(path: Path, recipe: Recipe) -> CalibrationSet:
    """Write a recipe, and its contact sheet next to it. If one of them fails, neither is written.

    Raises:
        InputError: a frame cannot be read, or the folder is not writable.
    """
    calibration = CalibrationSet(path=path, sha256=_sha256(recipe), recipe=recipe)
    sheet = encode_jpeg(contact_sheet(calibration), SHEET_QUALITY)
    with atomic_write(path) as recipe_file, atomic_write(sheet_path(path)) as sheet_file:
        sheet_file.write_bytes(sheet)
        recipe_file.write_bytes(recipe.text().encode())
    return calibration


def sheet_path(recipe: Path) -> Path:
    """Return the path of the contact sheet: `calib/office.jpg` for `calib/office.toml`."""
    return recipe.with_suffix(".jpg")


def refuse_foreign_sheet(recipe: Path) -> None:
    """Check that the contact sheet does not overwrite an image of the user.

    Raises:
        OptionError: the sheet's file exists, but no recipe for it.
    """
    if sheet_path(recipe).exists() and not recipe.exists():
        raise OptionError(
            f"{sheet_path(recipe)} would be overwritten.",
            f"The set's contact sheet would have this name, but the image is not one: {recipe.name} does not exist.",
            "Choose another name for the set.",
        )


def contact_sheet(calibration: CalibrationSet) -> Frame:
    """Draw thumbnails of at most `MAX_SHEET_IMAGES` evenly spaced frames, under a title with their number.

    Returns:
        uint8 RGB `[H, W, 3]`.
    """
    positions = spread_evenly(range(calibration.count), MAX_SHEET_IMAGES)
    images = [_thumbnail(frame) for frame in calibration.some_frames(positions)]
    gap_px = GAP_PX // 3
    rows = [side_by_side(images[left : left + SHEET_COLUMNS], gap_px) for left in range(0, len(images), SHEET_COLUMNS)]
    name = calibration.name.encode("ascii", "replace").decode()
    return titled(stacked(rows, gap_px), f"{name}: {len(images)} of {calibration.count} frames")


def _thumbnail(frame: Frame) -> Frame:
    """Fit a frame into `THUMBNAIL_HW`, centred on white."""
    height, width = frame.shape[:2]
    scale = min(THUMBNAIL_HW[0] / height, THUMBNAIL_HW[1] / width)
    rows, columns = (max(1, round(scale * side)) for side in (height, width))
    thumbnail = np.full((*THUMBNAIL_HW, 3), 255, np.uint8)
    top, left = (THUMBNAIL_HW[0] - rows) // 2, (THUMBNAIL_HW[1] - columns) // 2
    thumbnail[top : top + rows, left : left + columns] = resize_frame(frame, (rows, columns))
    return thumbnail
