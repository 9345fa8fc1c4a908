"""`mde calibrate`: choose the frames that INT8 ranges are taken from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mirrordepth_edge.imaging.preprocess import Frame
    from mirrordepth_edge.quantise.calibration_set import CalibrationSet
    from mirrordepth_edge.quantise.select_frames import Chooser, Key
    from mirrordepth_edge.sources.open import FrameSource

FEW = 128
"""Ranges of fewer frames may miss what the camera will see."""
CANDIDATES = 4
"""Looked at for each frame wanted, unless told otherwise."""


def calibrate(
    source: Annotated[
        str, typer.Option("--from", help="Folder of pictures, video file, camera number, /dev/videoN, or URL.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="NAME", help="Recipe to write: calib/NAME.toml, or a .toml file.")
    ],
    count: Annotated[int, typer.Option(min=1, help="Frames to choose.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Which frame is the first; another seed, another choice.")] = 0,
    model: Annotated[str, typer.Option(help="Whose tower tells frames apart: nano, or an .onnx file.")] = "nano",
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames to look at, spread evenly.  [four for each one wanted]")
    ] = None,
) -> None:
    """Choose the frames that INT8 is calibrated with.

    Those that differ most, of a folder, a video or a camera; black, blurred and noisy frames and near-duplicates
    are left out. A camera's frames are kept beside the recipe; Ctrl-C ends the taking, and what there is is used.
    """
    from mirrordepth_edge.commands.terminal import console, errors
    from mirrordepth_edge.quantise.calibration_set import recipe_path
    from mirrordepth_edge.quantise.select_frames import Chooser, TowerFeatures
    from mirrordepth_edge.quantise.write_calibration_set import refuse_foreign_sheet, sheet_path
    from mirrordepth_edge.support.files import ensure_folder, require_suffix

    path = recipe_path(output)
    require_suffix(path, (".toml",), "a calibration set")
    refuse_foreign_sheet(path)
    ensure_folder(path.parent)
    chooser = Chooser(TowerFeatures(model))
    made = _choose(chooser, source, path, count=count, seed=seed, most=frames or CANDIDATES * count)
    selection, dropped = made.recipe.selection, made.recipe.dropped
    console.print(f"{selection.found} frames, {selection.candidates} looked at; dropped: {str(dropped) or 'none'}")
    if dropped.noise:
        errors.print(
            f"note: {dropped.noise} dropped as noise; their neighbouring pixels hardly correlate", style="yellow"
        )
    if made.count < count:
        errors.print(f"note: no more than {made.count} of {count} are fit and differ", style="yellow")
    if made.count < FEW:
        errors.print(f"note: {made.count} frames are few for INT8; {FEW} or more are better", style="yellow")
    console.print(
        f"{path}: {made.count} frames, some of them in {sheet_path(path)}; mde export --int8 --calib {output}"
    )


def _choose(chooser: Chooser, source: str, path: Path, *, count: int, seed: int, most: int) -> CalibrationSet:
    """Look at the source's frames, pick, and write the recipe."""
    from mirrordepth_edge.quantise.write_calibration_set import (
        keep_only,
        make_set,
        new_folder,
        no_pictures,
        picture_files,
        pictures_of,
        spread_evenly,
    )
    from mirrordepth_edge.sources.files import video_frames, video_length
    from mirrordepth_edge.sources.open import open_source

    place, kept = Path(source), path.with_suffix("")
    if place.is_dir():
        files = picture_files(place)
        if not files:
            raise no_pictures(place)
        wanted = spread_evenly(files, most)
        _look(chooser, pictures_of(place, wanted), len(wanted))
        return make_set(
            path, place, chooser.pick(count, seed, source), seed=seed, found=len(files), features=chooser.features
        )
    with open_source(source) as opened:
        if opened.live:
            with new_folder(kept):
                _take(chooser, opened, kept, most)
                choice = chooser.pick(count, seed, opened.name)
                keep_only(kept, choice)
                return make_set(path, kept, choice, seed=seed, found=chooser.seen, features=chooser.features)
        length = opened.length or video_length(place)
    numbers = spread_evenly(range(length), most)
    _look(chooser, video_frames(place, set(numbers)), len(numbers))
    return make_set(path, place, chooser.pick(count, seed, source), seed=seed, found=length, features=chooser.features)


def _look(chooser: Chooser, candidates: Iterator[tuple[Key, Frame | None]], total: int) -> None:
    from mirrordepth_edge.commands.terminal import progress_bar

    with progress_bar() as bar:
        for key, frame in bar.track(candidates, total=total, description="looking at frames"):
            chooser.look(key, frame)


def _take(chooser: Chooser, source: FrameSource, folder: Path, most: int) -> None:
    """A live source's frames, until there are so many, it ends, or the user has had enough."""
    from mirrordepth_edge.commands.terminal import errors
    from mirrordepth_edge.quantise.write_calibration_set import kept_as_file

    def taken() -> Iterator[tuple[Key, Frame]]:
        frame = source.read()
        for number in range(most):
            if frame is None:
                return
            yield kept_as_file(folder, number, frame), frame
            frame = source.read(frame) if number + 1 < most else None

    errors.print("show the camera all that it will see: every place, near and far, bright and dim; Ctrl-C ends it")
    try:
        _look(chooser, taken(), most)
    except KeyboardInterrupt:
        if not chooser.seen:
            raise
