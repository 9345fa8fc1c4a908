"""`mde run`: write the metric depth of images and videos to files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.commands.parameters import (
    NANO,
    Far,
    LensOptions,
    Model,
    Near,
    RuntimeOptions,
    Target,
    flat_options,
)


@flat_options
def run(
    *,
    files: Annotated[list[Path], typer.Argument(help="Images, videos, or folders of images.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder.")] = Path("depth"),
    model: Model = NANO,
    formats: Annotated[str, typer.Option(help="Output formats, separated by commas.")] = "png,npy,colour",
    ply: Annotated[bool, typer.Option("--ply", help="Also write NAME.ply, a coloured point cloud.")] = False,
    near: Near = None,
    far: Far = None,
    target: Target = None,
    lens: LensOptions,
    runtime: RuntimeOptions,
) -> None:
    """Write the metric depth of images and videos to files.

    An image gives NAME.depth.png (16-bit, mm), NAME.depth.npy (float32, m) and NAME.colour.png. A video gives
    NAME/000000.depth.png and .npy for each frame, and NAME.colour.mp4. Point clouds are in metres (x right, y down,
    z forward) and use the given camera, or the one that the model was trained with.
    """
    from mirrordepth_edge.commands.run.main import run_files

    run_files(
        files,
        model,
        target,
        lens.camera(),
        runtime.session(),
        folder=output,
        formats=formats,
        ply=ply,
        near_m=near,
        far_m=far,
    )
