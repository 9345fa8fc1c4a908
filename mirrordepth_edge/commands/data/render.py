"""`mde data render`: render synthetic rooms with exact depth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.commands.parameters import parse_size
from mirrordepth_edge.commands.terminal import console, progress_bar
from mirrordepth_edge.data.rooms.render import NYU_FOV_DEG, RenderedRooms, write_rooms


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
    rooms = RenderedRooms(count=count, seed=seed, size_hw=parse_size(size), fov_deg=fov_deg or NYU_FOV_DEG)
    with progress_bar() as bar:
        new = sum(bar.track(write_rooms(rooms, folder), total=count, description="rendering rooms"))
    console.print(f"{count} images with depth in {folder}, {new} of them new; train: mde train --root {folder}")
