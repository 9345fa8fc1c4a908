"""`mde calibrate-camera`: measure focal length and distortion with a chessboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.commands.parameters import parse_size


def calibrate_camera(
    source: Annotated[
        str, typer.Option(help="Camera number, /dev/videoN, video file, URL, or a folder of images.")
    ] = "0",
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Camera frame size; use the same for mde live.")
    ] = None,
    board: Annotated[str, typer.Option(metavar="CxR", help="Inner corners of the board, columns x rows.")] = "9x6",
    square: Annotated[str, typer.Option(help="Side of a square; affects printed distances only.")] = "20mm",
    output: Annotated[Path, typer.Option("--output", "-o", help="YAML file to write, in the format of ROS.")] = Path(
        "camera.yaml"
    ),
    views: Annotated[int, typer.Option(min=8, metavar="N", help="Views to collect from a camera or video.")] = 15,
    anyway: Annotated[bool, typer.Option("--anyway", help="Write the calibration despite warnings.")] = False,
    print_board: Annotated[Path | None, typer.Option(metavar="PNG", help="Write a board to print, and exit.")] = None,
    dpi: Annotated[int, typer.Option(min=50, max=1200, metavar="N", help="Resolution of --print-board.")] = 300,
) -> None:
    """Calibrate a camera with a chessboard.

    Show the board near and far, in every corner of the image, and tilted. Views are selected automatically, with a
    beep each. Recording from a camera ends after 30 seconds without the board. Use the result with
    mde run, live and evaluate: --calibration camera.yaml
    """
    from mirrordepth_edge.commands.calibrate_camera.main import calibrate_from, parse_board, write_board

    chessboard = parse_board(board, square)
    if print_board is not None:
        write_board(chessboard, print_board, dpi)
    else:
        calibrate_from(source, parse_size(size), chessboard, views, output, anyway=anyway)
