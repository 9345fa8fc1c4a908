"""`mde calibrate`: select calibration images for INT8."""

from __future__ import annotations

from typing import Annotated

import typer

CANDIDATES_PER_IMAGE = 4


def calibrate(
    source: Annotated[
        str, typer.Option("--from", help="Folder of images, video file, camera number, /dev/videoN, or URL.")
    ],
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="NAME", help="Calibration set: calib/NAME.toml, or a .toml file."),
    ],
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Number of images to select.")] = 512,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Another seed gives another selection.")] = 0,
    model: Annotated[str, typer.Option(help="Model used to compare frames: nano, or an .onnx file.")] = "nano",
    frames: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Candidates, evenly spaced.  [default: 4 per image]")
    ] = None,
) -> None:
    """Select calibration images for INT8.

    Selects the most diverse frames of a folder, a video or a camera, without black, blurred or noisy frames and near
    duplicates. Frames of a camera are stored next to the .toml file; Ctrl-C stops the recording and uses what is there.
    """
    from mirrordepth_edge.commands.calibrate.main import write_set

    write_set(source, output, model, count=count, seed=seed, max_candidates=frames or CANDIDATES_PER_IMAGE * count)
