"""Select calibration images and write the set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mirrordepth_edge.commands.terminal import console, errors, progress_bar
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.quantise.calibration_set import CalibrationSet, recipe_path
from mirrordepth_edge.quantise.select_frames import Chooser, Key, TowerFeatures
from mirrordepth_edge.quantise.write_calibration_set import (
    build_set,
    keep_only,
    list_images,
    new_folder,
    read_images,
    refuse_foreign_sheet,
    save_frame,
    sheet_path,
    spread_evenly,
)
from mirrordepth_edge.sources.files import video_frames, video_length
from mirrordepth_edge.sources.open import open_source
from mirrordepth_edge.sources.source import FrameSource
from mirrordepth_edge.support.files import ensure_folder, require_suffix

MIN_RECOMMENDED = 128
"""With fewer frames, the ranges may miss what the camera will see."""


def write_set(source: str, output: str, model: str, *, count: int, seed: int, max_candidates: int) -> None:
    """Select frames, write the calibration set, and print what was selected.

    Raises:
        OptionError: The output is not a name or a `.toml` file, or its contact sheet would overwrite an image.
        InputError: The source or the model cannot be read, or no frame is usable.
    """
    path = recipe_path(output)
    require_suffix(path, (".toml",), "a calibration set")
    refuse_foreign_sheet(path)
    ensure_folder(path.parent)
    chooser = Chooser(TowerFeatures(model))
    calibration = _select(chooser, source, path, count=count, seed=seed, max_candidates=max_candidates)
    selection, dropped = calibration.recipe.selection, calibration.recipe.dropped
    console.print(f"{selection.found} frames, {selection.candidates} candidates; dropped: {str(dropped) or 'none'}")
    if dropped.noise:
        errors.print(
            f"note: {dropped.noise} dropped as noise: their neighbouring pixels hardly correlate", style="yellow"
        )
    frame_s = "frame" if calibration.count == 1 else "frames"
    if calibration.count < count:
        errors.print(f"note: only {calibration.count} usable {frame_s} found ({count} requested)", style="yellow")
    if calibration.count < MIN_RECOMMENDED:
        errors.print(f"note: INT8 works better with {MIN_RECOMMENDED} or more frames", style="yellow")
    console.print(
        f"{path}: {calibration.count} {frame_s}; preview: {sheet_path(path)}; next: mde export --int8 --calib {output}"
    )


def _select(chooser: Chooser, source: str, path: Path, *, count: int, seed: int, max_candidates: int) -> CalibrationSet:
    """Score the frames of the source, select, and write the calibration set."""
    place, kept = Path(source), path.with_suffix("")
    if place.is_dir():
        files = list_images(place)
        wanted = spread_evenly(files, max_candidates)
        _score(chooser, read_images(place, wanted), len(wanted))
        return build_set(
            path, place, chooser.pick(count, seed, source), seed=seed, found=len(files), features=chooser.features
        )
    with open_source(source) as opened:
        if opened.live:
            with new_folder(kept):
                _record(chooser, opened, kept, max_candidates)
                choice = chooser.pick(count, seed, opened.name)
                keep_only(kept, choice)
                return build_set(path, kept, choice, seed=seed, found=chooser.seen, features=chooser.features)
        length = opened.length or video_length(place)
    numbers = spread_evenly(range(length), max_candidates)
    _score(chooser, video_frames(place, set(numbers)), len(numbers))
    return build_set(path, place, chooser.pick(count, seed, source), seed=seed, found=length, features=chooser.features)


def _score(chooser: Chooser, candidates: Iterator[tuple[Key, Frame | None]], total: int) -> None:
    with progress_bar() as bar:
        for key, frame in bar.track(candidates, total=total, description="comparing frames"):
            chooser.look(key, frame)


def _record(chooser: Chooser, source: FrameSource, folder: Path, max_frames: int) -> None:
    """Store and score frames of a live source until `max_frames`, its end, or Ctrl-C."""

    def recorded() -> Iterator[tuple[Key, Frame]]:
        frame = source.read()
        for number in range(max_frames):
            if frame is None:
                return
            yield save_frame(folder, number, frame), frame
            frame = source.read(frame) if number + 1 < max_frames else None

    errors.print("show the camera everything it will see: all places, near and far, bright and dim; Ctrl-C stops")
    try:
        _score(chooser, recorded(), max_frames)
    except KeyboardInterrupt:
        if not chooser.seen:
            raise
