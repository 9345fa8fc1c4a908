"""`mde run`: depth of pictures and videos, written to files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.commands.engine_options import Trust
from mirrordepth_edge.commands.parameters import (
    NANO,
    Backend,
    Bf16,
    Calibration,
    ClipWeights,
    Device,
    Far,
    FocalPx,
    FovDeg,
    Model,
    Near,
    announce,
    print_camera,
    session_options,
)
from mirrordepth_edge.commands.run_writer import Writer
from mirrordepth_edge.commands.sizes import NetworkSize
from mirrordepth_edge.commands.target_option import Target, resolve

FORMATS = ("png", "npy", "colour")
OUTPUT_ENDINGS = (".depth.png", ".colour.png")  # of an earlier run: passed over in a folder of pictures


def run(
    files: Annotated[list[Path], typer.Argument(help="Pictures, videos, or folders of pictures.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")] = Path("depth"),
    model: Model = NANO,
    target: Target = None,
    trust: Trust = False,
    device: Device = "auto",
    backend: Backend = None,
    network_size: NetworkSize = None,
    bf16: Bf16 = False,
    near: Near = None,
    far: Far = None,
    focal_px: FocalPx = None,
    fov_deg: FovDeg = None,
    calibration: Calibration = None,
    formats: Annotated[str, typer.Option(help="What to write.")] = ",".join(FORMATS),
    ply: Annotated[bool, typer.Option("--ply", help="Also write NAME.ply, the picture as points in space.")] = False,
    clip_weights: ClipWeights = None,
) -> None:
    """Write the metric depth of pictures and videos.

    A picture gives NAME.depth.png (16-bit millimetres), NAME.depth.npy (float32 metres) and
    NAME.colour.png; a video gives NAME/000000.depth.png and .npy for each frame, and NAME.colour.mp4.
    Points are in metres, x right, y down, z forward, through the camera given or else the model's own.
    """
    from dataclasses import replace

    from mirrordepth_edge.camera.model import camera_of
    from mirrordepth_edge.commands.terminal import console, progress_bar
    from mirrordepth_edge.imaging.draw import colour_limits
    from mirrordepth_edge.imaging.pictures import PICTURE_SUFFIXES
    from mirrordepth_edge.predictor import load

    paths = _inputs(files)
    kinds = _kinds(formats) | _points(ply, paths)
    camera = camera_of(focal_px, fov_deg, calibration)
    options = replace(session_options(device, clip_weights, None, backend, bf16, network_size), trust=trust)
    file = resolve(model, target, options)
    lines = []
    try:
        with load(file, options, camera, on_camera=print_camera) as predictor, progress_bar() as bar:
            announce(predictor, model)
            limits_m = colour_limits(near, far, predictor.model.depth_limits_m)
            writer = Writer(predictor=predictor, folder=output, kinds=kinds, limits_m=limits_m)
            for path in bar.track(paths, description="files"):
                is_picture = path.suffix.lower() in PICTURE_SUFFIXES
                lines.append(writer.picture(path) if is_picture else writer.video(path, bar))
    finally:  # after the bar, which they would tear; and even if a later file is bad
        for line in lines:
            console.print(line)


def _kinds(formats: str) -> set[str]:
    from mirrordepth_edge.errors import OptionError

    kinds = {kind.strip() for kind in formats.split(",")}
    if unknown := sorted(kinds - {*FORMATS}):
        why = f"The formats are {', '.join(FORMATS)}."
        raise OptionError(f"There is no format {unknown[0]!r}.", why, "--formats png,colour")
    return kinds


def _points(ply: bool, paths: list[Path]) -> set[str]:
    from mirrordepth_edge.errors import OptionError
    from mirrordepth_edge.imaging.pictures import PICTURE_SUFFIXES

    if ply and (videos := [path for path in paths if path.suffix.lower() not in PICTURE_SUFFIXES]):
        why = "Point clouds are made of pictures; of a video each frame would be megabytes."
        raise OptionError(f"--ply makes no points of {videos[0]}.", why, "Leave --ply out, or run the pictures alone.")
    return {"ply"} if ply else set()


def _inputs(files: list[Path]) -> list[Path]:
    """The files to read, folders expanded to their pictures; all of them exist."""
    from mirrordepth_edge.errors import InputError
    from mirrordepth_edge.imaging.pictures import PICTURE_SUFFIXES
    from mirrordepth_edge.support.files import existing_file

    paths: list[Path] = []
    for path in files:
        inside = sorted(path.iterdir()) if path.is_dir() else []
        pictures = [p for p in inside if p.suffix.lower() in PICTURE_SUFFIXES]
        pictures = [p for p in pictures if not p.name.endswith(OUTPUT_ENDINGS)]
        if path.is_dir() and not pictures:
            why = f"None of its files ends in {', '.join(PICTURE_SUFFIXES)}."
            raise InputError(f"There are no pictures in {path}.", why, "Name another folder, or files.")
        paths += pictures or [existing_file(path, "picture or video")]
    seen: dict[str, Path] = {}
    for path in paths:
        if (other := seen.setdefault(path.stem.casefold(), path)) != path:  # some file systems ignore case
            what = f"{other} and {path} would overwrite each other's results."
            why = "Results carry the file's name without its ending."
            raise InputError(what, why, "Run them apart, each with its own -o, or rename one.")
    return paths
