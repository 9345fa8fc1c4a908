"""Predict the depth of files and write it."""

from __future__ import annotations

from pathlib import Path

from mirrordepth_edge.camera.model import Camera, Lens
from mirrordepth_edge.commands.run.writer import Writer
from mirrordepth_edge.commands.target import resolve
from mirrordepth_edge.commands.terminal import announce, console, print_camera, progress_bar
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.imaging.draw import colour_limits
from mirrordepth_edge.imaging.images import IMAGE_SUFFIXES
from mirrordepth_edge.predictor import load
from mirrordepth_edge.support.files import existing_file

FORMATS = ("png", "npy", "colour")
OWN_SUFFIXES = (".depth.png", ".colour.png")
"""Outputs of an earlier run, which are skipped in a folder of images."""


def run_files(
    files: list[Path],
    model: str,
    target: str | None,
    camera: Camera | Lens | None,
    options: SessionOptions,
    *,
    folder: Path,
    formats: str,
    ply: bool,
    near_m: float | None,
    far_m: float | None,
) -> None:
    """Predict the depth of files, write it, and print a line for each.

    Args:
        formats: Some of `FORMATS`, separated by commas.
        ply: Whether to write point clouds too.
        near_m, far_m: Range of the colour map; the model's if None.

    Raises:
        OptionError, InputError, MissingError: An option, a file or the model cannot be used.
    """
    paths = _input_files(files)
    kinds = _parse_formats(formats) | _ply_format(ply, paths)
    artefact = resolve(model, target, options)
    lines = []
    try:
        with load(artefact, options, camera, on_camera=print_camera) as predictor, progress_bar() as bar:
            announce(predictor, model)
            limits_m = colour_limits(near_m, far_m, predictor.model.depth_limits_m)
            writer = Writer(predictor=predictor, folder=folder, formats=frozenset(kinds), limits_m=limits_m)
            for path in bar.track(paths, description="files"):
                is_image = path.suffix.lower() in IMAGE_SUFFIXES
                lines.append(writer.write_image(path) if is_image else writer.write_video(path, bar))
    finally:  # after the progress bar, which they would break; also if a later file fails
        for line in lines:
            console.print(line)


def _parse_formats(formats: str) -> set[str]:
    kinds = {kind.strip() for kind in formats.split(",")}
    if unknown := sorted(kinds - {*FORMATS}):
        why = f"The formats are {', '.join(FORMATS)}."
        raise OptionError(f"--formats {unknown[0]!r} is unknown.", why, "--formats png,colour")
    return kinds


def _ply_format(ply: bool, paths: list[Path]) -> set[str]:
    if ply and (videos := [path for path in paths if path.suffix.lower() not in IMAGE_SUFFIXES]):
        why = "Point clouds are written for images only; one per video frame would fill the disk."
        raise OptionError(f"--ply does not fit {videos[0]}.", why, "Leave --ply out, or run the images separately.")
    return {"ply"} if ply else set()


def _input_files(files: list[Path]) -> list[Path]:
    """Return the files to read, with folders replaced by their images.

    Raises:
        InputError: A file does not exist, a folder has no images, or two results would have the same name.
    """
    paths: list[Path] = []
    for path in files:
        paths += _images_in(path) if path.is_dir() else [existing_file(path, "image or video")]
    by_name: dict[str, Path] = {}
    for path in paths:
        # Some file systems ignore case.
        if (other := by_name.setdefault(path.stem.casefold(), path)) != path:
            raise InputError(
                f"{other} and {path} would overwrite each other's results.",
                "Results are named after the file, without its extension.",
                "Run them separately, each with its own -o, or rename one.",
            )
    return paths


def _images_in(folder: Path) -> list[Path]:
    images = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES]
    images = [path for path in images if not path.name.endswith(OWN_SUFFIXES)]
    if not images:
        why = f"No file in it ends in {', '.join(IMAGE_SUFFIXES)}."
        raise InputError(f"{folder} contains no images.", why, "Give another folder, or files.")
    return images
