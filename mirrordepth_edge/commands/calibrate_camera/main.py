"""Calibrate a camera from views of a chessboard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirrordepth_edge.camera.calibration import calibrate
from mirrordepth_edge.camera.chessboard import Board, ViewPicker
from mirrordepth_edge.commands.terminal import console, errors
from mirrordepth_edge.config import SizeHW
from mirrordepth_edge.errors import GateError, InputError
from mirrordepth_edge.imaging.images import IMAGE_SUFFIXES, read_image
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.sources.cameras import CameraOptions
from mirrordepth_edge.sources.open import open_source
from mirrordepth_edge.support.files import ensure_folder, require_suffix
from mirrordepth_edge.support.units import parse_length

TIMEOUT_S = 30.0
"""Recording from a camera ends after this time without a board."""


def parse_board(board: str, square: str) -> Board:
    """Return the chessboard of --board and --square.

    Raises:
        OptionError: One of them cannot be parsed.
    """
    return Board.parse(board, parse_length(square, "--square", "20mm"))


def calibrate_from(
    source: str, size_hw: SizeHW | None, board: Board, views: int, output: Path, *, anyway: bool
) -> None:
    """Collect views of the board, and write the calibration.

    Raises:
        OptionError, InputError: The output or the source cannot be used, or no board was found.
        GateError: The calibration has warnings, and `anyway` is False.
    """
    require_suffix(output, (".yaml", ".yml"), "a calibration")
    ensure_folder(output.parent)
    picker = ViewPicker(board, views, moving=not _is_images(source))
    _collect(picker, source, size_hw)
    calibration = calibrate(picker)
    console.print("\n".join(calibration.lines))
    if calibration.warnings and not anyway:
        raise GateError(
            "The calibration is unreliable and was not written.",
            "\n".join(calibration.warnings),
            "Show the board in more places, near, far and tilted, and keep it flat; or add --anyway.",
        )
    calibration.save(output)
    for warning in calibration.warnings:
        errors.print(f"note: {warning}", style="yellow")
    console.print(f"{output}: mde live --calibration {output}")


def _is_images(source: str) -> bool:
    path = Path(source)
    return path.is_dir() or (path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


@contextmanager
def _frames_of(source: str, size_hw: SizeHW | None) -> Iterator[tuple[Iterator[tuple[str, Frame]], bool]]:
    """Yield frames with their names, and whether the source is endless."""
    if _is_images(source):
        path = Path(source)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        yield ((file.name, read_image(file)) for file in files if file.suffix.lower() in IMAGE_SUFFIXES), False
        return

    def read() -> Iterator[tuple[str, Frame]]:
        frame, number = opened.read(), 0
        while frame is not None:
            yield f"frame {number}", frame
            frame, number = opened.read(frame), number + 1

    with open_source(source, CameraOptions(size_hw=size_hw)) as opened:
        yield read(), opened.live


def _collect(picker: ViewPicker, source: str, size_hw: SizeHW | None) -> None:
    """Collect views; a camera or video ends when there are enough."""
    skipped, seen_s = [], time.monotonic()
    with _frames_of(source, size_hw) as (frames, endless), errors.status("looking for the board") as status:
        for name, frame in frames:
            seen = picker.seen
            if picker.look(name, frame) and endless:
                errors.bell()  # the user looks at the board, not at the screen
            if picker.seen > seen:
                seen_s = time.monotonic()
            elif not picker.moving:
                skipped.append(name)
            enough = picker.moving and picker.hint is None
            if enough or (endless and time.monotonic() - seen_s > TIMEOUT_S):
                break
            status.update(f"{len(picker.views)} of {picker.wanted} views; {picker.hint or 'enough'}  ({name})")
    if not picker.seen:
        raise InputError(
            f"No board with {picker.board} inner corners was found in {source}.",
            "All inner corners must be visible, sharp and evenly lit, with a white margin around the squares.",
            "Count the inner corners (one less than the squares in each direction): --board 9x6",
        )
    if skipped:
        errors.print(f"no board found in {', '.join(skipped)}")


def write_board(board: Board, path: Path, dpi: int) -> None:
    """Write an image of the board to print."""
    width_mm, height_mm = board.save_image(path, dpi)
    console.print(
        f"{path}: {width_mm:.0f}x{height_mm:.0f} mm; print it, glue it to a flat surface, measure a square: "
        f"mde calibrate-camera --board {board} --square {1e3 * board.square_m:g}mm"
    )
