"""The gate every exported file passes: its depth against the PyTorch model's, on real frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mirrordepth_edge.backends.base import Session
from mirrordepth_edge.backends.onnxruntime import OnnxRuntimeSession, bare_session
from mirrordepth_edge.config import InputKind, Precision, SessionOptions
from mirrordepth_edge.data.sample import PICTURE_SUFFIXES, read_picture
from mirrordepth_edge.errors import GateError, InputError
from mirrordepth_edge.manifest import Manifest, Parity
from mirrordepth_edge.postprocess import DepthMap
from mirrordepth_edge.preprocess import Frame, Preprocessor

if TYPE_CHECKING:
    from mirrordepth_edge.core.network import DepthNetwork

FRAMES_DIR = Path(__file__).parent.parent / "models" / "frames"
MAX_RELATIVE_FP32 = 1e-4
"""Worst pixel: float32 sums in another order, nothing more."""
MEAN_RELATIVE_FP16 = 2e-3
"""Mean over pixels: a few units in the last of FP16's 11 bits."""
ENGINE_GATE: Precision = "fp16"
"""Engines of any precision: FP32 ones multiply in TF32, whose significand is FP16's."""


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

    session = bare_session(onnx_path, SessionOptions(device="cpu"))
    name = session.get_inputs()[0].name
    to_engine = Preprocessor(network.config.preprocess, io)
    to_network = Preprocessor(network.config.preprocess, "float")

    def pairs() -> Iterator[tuple[DepthMap, DepthMap]]:
        for frame in frames:
            with torch.no_grad():
                expected = network(torch.from_numpy(to_network(frame))).numpy()
            yield session.run(None, {name: to_engine(frame)})[0], expected

    return _compare(pairs(), f"onnxruntime {onnxruntime.__version__} CPU", precision)


def measure_engine_parity(engine: Session, onnx_path: Path, manifest: Manifest) -> Parity:
    """Run an engine and its ONNX file on the package's reference frames; closes the engine.

    Args:
        engine: an open session of the engine.
        onnx_path: what it was built from, run in ONNX Runtime on the CPU.
        manifest: of the ONNX file.
    """
    (image,), (depth,) = manifest.inputs, manifest.outputs
    prepare = Preprocessor(manifest.preprocess, "uint8" if image.dtype == "uint8" else "float")
    runner = f"{engine.backend} {engine.version} on {engine.device} against its ONNX"
    with engine, OnnxRuntimeSession(onnx_path, manifest, SessionOptions(device="cpu")) as reference:
        feeds = ({image.name: prepare(frame)} for frame in reference_frames())
        pairs = ((engine.infer(each)[depth.name], reference.infer(each)[depth.name]) for each in feeds)
        return _compare(pairs, runner, ENGINE_GATE)


def _compare(pairs: Iterable[tuple[DepthMap, DepthMap]], runner: str, precision: Precision) -> Parity:
    """Figures over pairs of delivered and expected depth, each looked at before the next is made."""
    worst, means = 0.0, []
    for delivered, expected in pairs:
        relative = np.abs(delivered.astype(np.float64) - expected) / expected
        # A NaN compares false with every limit, so it is made the worst there is.
        relative = np.nan_to_num(relative, nan=np.inf)
        worst = max(worst, float(relative.max()))
        means.append(float(relative.mean()))
    return Parity(
        runner=runner,
        frames=len(means),
        max_relative=worst,
        mean_relative=sum(means) / len(means),
        limit=_limit(precision),
    )


def _limit(precision: Precision) -> str:
    if precision == "fp32":
        return f"worst pixel <= {MAX_RELATIVE_FP32:g} relative"
    return f"mean <= {MEAN_RELATIVE_FP16:g} relative"


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
        "The new file's depth is not that of the model it was made from; nothing was written.",
        f"Relative depth error over {parity.frames} frames: worst pixel {parity.max_relative:.1e}, "
        f"mean {parity.mean_relative:.1e}; the gate is {parity.limit}.",
        "Try --fp32 where FP16 was asked for; else please report it, with what mde doctor says.",
    )
