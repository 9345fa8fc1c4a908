"""`mde calibrate-camera`: focal length and distortion from pictures of a chessboard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mirrordepth_edge.camera.chessboard import Board, ViewPicker
    from mirrordepth_edge.config import SizeHW
    from mirrordepth_edge.imaging.preprocess import Frame

PATIENCE_S = 30.0
"""How long a camera may show no board; then what there is has to do."""


def calibrate_camera(
    source: Annotated[
        str, typer.Option(help="Camera number, /dev/videoN, video file, URL, or a folder of pictures.")
    ] = "0",
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Ask a camera for this size, the one mde live will use.")
    ] = None,
    board: Annotated[str, typer.Option(metavar="CxR", help="Inner corners of the board, across and down.")] = "9x6",
    square: Annotated[str, typer.Option(help="Side of a square; only distances depend on it.")] = "20mm",
    output: Annotated[Path, typer.Option("--output", "-o", help="YAML file to write, as ROS has it.")] = Path(
        "camera.yaml"
    ),
    views: Annotated[int, typer.Option(min=8, help="Views of the board to collect from a camera or a video.")] = 15,
    anyway: Annotated[bool, typer.Option("--anyway", help="Write it in spite of doubts.")] = False,
    print_board: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Only write a board to print, and stop.")
    ] = None,
    dpi: Annotated[int, typer.Option(min=50, max=1200, help="Of the board to print.")] = 300,
) -> None:
    """Calibrate a camera with a chessboard.

    Show the board from near and far, in every corner of the picture and tilted; views are chosen by
    themselves, with a beep each. With a camera, 30 seconds without the board end it, too. The result
    tells mde run, live and evaluate the lens: --calibration camera.yaml
    """
    from mirrordepth_edge.camera.chessboard import Board, ViewPicker, calibrate
    from mirrordepth_edge.commands.sizes import parse_size
    from mirrordepth_edge.commands.terminal import console, errors
    from mirrordepth_edge.errors import GateError
    from mirrordepth_edge.support.files import ensure_folder, require_suffix
    from mirrordepth_edge.support.units import parse_length

    chessboard = Board.parse(board, parse_length(square, "--square", "20mm"))
    if print_board is not None:
        _write_board(chessboard, print_board, dpi)
        return
    require_suffix(output, (".yaml", ".yml"), "a calibration")
    ensure_folder(output.parent)
    picker = ViewPicker(chessboard, views, moving=not _is_pictures(source))
    _collect(picker, source, parse_size(size) if size else None)
    calibration = calibrate(picker)
    console.print("\n".join(calibration.lines))
    if calibration.warnings and not anyway:
        raise GateError(
            "This calibration is not to be trusted; nothing was written.",
            "\n".join(calibration.warnings),
            "Show the board in more places, near, far and tilted, and keep it flat; or --anyway",
        )
    calibration.save(output)
    for warning in calibration.warnings:
        errors.print(f"note: {warning}", style="yellow")
    console.print(f"{output}: mde live --calibration {output}")


def _is_pictures(source: str) -> bool:
    from mirrordepth_edge.imaging.pictures import PICTURE_SUFFIXES

    path = Path(source)
    return path.is_dir() or (path.suffix.lower() in PICTURE_SUFFIXES and path.is_file())


@contextmanager
def _frames_of(source: str, size_hw: SizeHW | None) -> Iterator[tuple[Iterator[tuple[str, Frame]], bool]]:
    """Frames with their names, and whether they go on for ever."""
    from mirrordepth_edge.imaging.pictures import PICTURE_SUFFIXES, read_picture
    from mirrordepth_edge.sources.open import CameraOptions, open_source

    if _is_pictures(source):
        path = Path(source)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        yield ((file.name, read_picture(file)) for file in files if file.suffix.lower() in PICTURE_SUFFIXES), False
        return

    def read() -> Iterator[tuple[str, Frame]]:
        frame, number = opened.read(), 0
        while frame is not None:
            yield f"frame {number}", frame
            frame, number = opened.read(frame), number + 1

    with open_source(source, CameraOptions(size_hw=size_hw)) as opened:
        yield read(), opened.live


def _collect(picker: ViewPicker, source: str, size_hw: SizeHW | None) -> None:
    """Fill the picker; a camera and a video end when it has enough."""
    from mirrordepth_edge.commands.terminal import errors
    from mirrordepth_edge.errors import InputError

    passed_over, seen_s = [], time.monotonic()
    with _frames_of(source, size_hw) as (frames, endless), errors.status("looking for the board") as status:
        for name, frame in frames:
            seen = picker.seen
            if picker.look(name, frame) and endless:
                errors.bell()  # whoever holds the board looks at it, not at the screen
            if picker.seen > seen:
                seen_s = time.monotonic()
            elif not picker.moving:
                passed_over.append(name)
            enough = picker.moving and picker.hint is None
            if enough or (endless and time.monotonic() - seen_s > PATIENCE_S):
                break
            status.update(f"{len(picker.views)} of {picker.wanted} views; {picker.hint or 'enough'}  ({name})")
    if not picker.seen:
        raise InputError(
            f"No board of {picker.board} inner corners was found in {source}.",
            "All of them have to be seen, sharp and in even light, with a white margin around the squares.",
            "Count the inner corners, one less than squares each way, and tell them: --board 9x6",
        )
    if passed_over:
        errors.print(f"no board found in {', '.join(passed_over)}")


def _write_board(board: Board, path: Path, dpi: int) -> None:
    from mirrordepth_edge.commands.terminal import console

    width_mm, height_mm = board.save_image(path, dpi)
    console.print(
        f"{path}: {width_mm:.0f}x{height_mm:.0f} mm; print it, glue it to something flat, measure a square: "
        f"mde calibrate-camera --board {board} --square {1e3 * board.square_m:g}mm"
    )
