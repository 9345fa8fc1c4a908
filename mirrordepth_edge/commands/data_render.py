"""`mde data render`: make indoor pictures with exact depth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def render(
    folder: Annotated[Path, typer.Argument(help="Folder to fill with rgb, depth and camera.json.")],
    count: Annotated[int, typer.Option(min=1, help="Rooms, a picture each.")] = 1000,
    size: Annotated[str, typer.Option(metavar="HxW", help="Picture size in pixels.")] = "480x640",
    fov_deg: Annotated[
        float | None, typer.Option(min=5, max=150, help="Horizontal field of view.  [63.3, NYU's Kinect]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which rooms; another seed, other rooms.")] = 0,
) -> None:
    """Render furnished rooms with exact depth.

    No download and no GPU. Started again, it goes on where it stopped. Several may fill one folder
    at the same time, each with a --seed of its own.
    """
    from mirrordepth_edge.commands.sizes import parse_size
    from mirrordepth_edge.commands.terminal import console, progress_bar
    from mirrordepth_edge.data.rooms.render import NYU_FOV_DEG, RenderedRooms, write_rooms

    rooms = RenderedRooms(count=count, seed=seed, size_hw=parse_size(size), fov_deg=fov_deg or NYU_FOV_DEG)
    with progress_bar() as bar:
        new = sum(bar.track(write_rooms(rooms, folder), total=count, description="rendering rooms"))
    console.print(f"{count} pictures with depth in {folder}, {new} of them new; train: mde train --root {folder}")
