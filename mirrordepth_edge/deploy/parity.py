"""The gate every exported file passes: its depth against the PyTorch model's, on real frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mirrordepth_edge.config import InputKind, Precision, SessionOptions
from mirrordepth_edge.data.folder import PICTURE_SUFFIXES, read_picture
from mirrordepth_edge.errors import GateError, InputError
from mirrordepth_edge.manifest import Parity
from mirrordepth_edge.preprocess import Frame, Preprocessor

if TYPE_CHECKING:
    from mirrordepth_edge.core.network import DepthNetwork

FRAMES_DIR = Path(__file__).parent.parent / "models" / "frames"
MAX_RELATIVE_FP32 = 1e-4
"""Worst pixel: float32 sums in another order, nothing more."""
MEAN_RELATIVE_FP16 = 2e-3
"""Mean over pixels: a few units in the last of FP16's 11 bits."""


def reference_frames(source: Path | None = None) -> list[Frame]:
    """Pictures to compare on: those of a folder, a single one, or the package's own.

    Raises:
        InputError: there is no picture.
    """
    folder = source or FRAMES_DIR
    if folder.is_file():
        return [read_picture(folder)]
    pictures = sorted(p for p in folder.glob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    if not pictures:
        raise InputError(
            f"There are no pictures in {folder}.", "Parity needs real frames.", "--frames FOLDER_WITH_PICTURES"
        )
    return [read_picture(picture) for picture in pictures]


def measure_parity(
    onnx_path: Path, network: DepthNetwork, frames: Sequence[Frame], precision: Precision, io: InputKind
) -> Parity:
    """Run `onnx_path` in ONNX Runtime and `network` in PyTorch on the same frames.

    Returns:
        The figures; `check_parity` judges them.
    """
    import onnxruntime
    import torch

    from mirrordepth_edge.backends.onnxruntime import bare_session

    session = bare_session(onnx_path, SessionOptions(device="cpu"))
    name = session.get_inputs()[0].name
    to_engine = Preprocessor(network.config.preprocess, io)
    to_network = Preprocessor(network.config.preprocess, "float")
    worst, total = 0.0, 0.0
    for frame in frames:
        with torch.no_grad():
            expected = network(torch.from_numpy(to_network(frame))).numpy()
        (delivered,) = session.run(None, {name: to_engine(frame)})
        relative = np.abs(delivered.astype(np.float64) - expected) / expected
        # A NaN compares false with every limit, so it is made the worst there is.
        relative = np.nan_to_num(relative, nan=np.inf)
        worst, total = max(worst, float(relative.max())), total + float(relative.mean())
    limit = (
        f"worst pixel <= {MAX_RELATIVE_FP32:g} relative"
        if precision == "fp32"
        else f"mean <= {MEAN_RELATIVE_FP16:g} relative"
    )
    return Parity(
        runner=f"onnxruntime {onnxruntime.__version__} CPU",
        frames=len(frames),
        max_relative=worst,
        mean_relative=total / len(frames),
        limit=limit,
    )


def check_parity(parity: Parity, precision: Precision) -> None:
    """Hold the gate.

    Raises:
        GateError: the figures are beyond the limit.
    """
    figure, limit = (
        (parity.max_relative, MAX_RELATIVE_FP32) if precision == "fp32" else (parity.mean_relative, MEAN_RELATIVE_FP16)
    )
    if figure <= limit:
        return
    raise GateError(
        f"The {precision.upper()} export differs from the PyTorch model; nothing was written.",
        f"Relative depth error over {parity.frames} frames: worst pixel {parity.max_relative:.1e}, "
        f"mean {parity.mean_relative:.1e}; the gate is {parity.limit}.",
        "Export with --fp32." if precision == "fp16" else "Please report this with the checkpoint's manifest.",
    )
