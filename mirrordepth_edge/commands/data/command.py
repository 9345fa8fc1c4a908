"""`mde data`: check RGB-D data before training, or render some."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.commands.parameters import DatasetOptions, choice, flat_options, parse_size
from mirrordepth_edge.commands.verbs import SectionedCommand
from mirrordepth_edge.config import Part

data_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Check RGB-D data, or render synthetic rooms.",
)


@data_app.command(cls=SectionedCommand)
@flat_options
def check(
    root: Annotated[Path, typer.Argument(help="Data set, as --root of mde train.")],
    dataset: DatasetOptions,
    part: Annotated[Part, choice(Part, "--part", help="Part of an official split.")] = "train",
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Check N evenly spaced images.  [default: all]")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Write a contact sheet of images and their depth.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all results.")] = None,
) -> None:
    """Check RGB-D data before training.

    Checks files, sizes, depth scale, coverage and alignment of depth with the image. Exits with 1 if training on the
    data would fail or learn wrong depth.
    """
    from mirrordepth_edge.commands.data.main import check_data

    check_data(dataset.config(root), part, limit=limit, sheet=sheet, json_file=json_file)


@data_app.command(cls=SectionedCommand)
def render(
    folder: Annotated[Path, typer.Argument(help="Folder for rgb, depth and camera.json.")],
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Number of rooms, one image each.")] = 1000,
    size: Annotated[str, typer.Option(metavar="HxW", help="Image size in pixels.")] = "480x640",
    fov_deg: Annotated[
        float | None,
        typer.Option(
            min=5, max=150, metavar="DEGREES", help="Horizontal field of view.  [default: 63.3, that of NYU's Kinect]"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Another seed gives other rooms.")] = 0,
) -> None:
    """Render furnished rooms with exact depth.

    Needs no download and no GPU. Continues where an earlier run stopped. Several processes may fill one folder, each
    with its own --seed.
    """
    from mirrordepth_edge.commands.data.main import render_rooms

    render_rooms(folder, count=count, size_hw=parse_size(size), fov_deg=fov_deg, seed=seed)
