"""The gate every exported file passes: its depth against the PyTorch model's, on real frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.backends.base import Session
from mirrordepth_edge.backends.onnxruntime import OnnxRuntimeSession, create_inference_session
from mirrordepth_edge.config import InputKind, Precision, SessionOptions
from mirrordepth_edge.errors import GateError, InputError
from mirrordepth_edge.imaging.pictures import PICTURE_SUFFIXES, read_picture
from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.imaging.preprocess import Frame, Preprocessor
from mirrordepth_edge.manifest import Manifest, Parity
from mirrordepth_edge.reference import MAX_FRAMES, Reference

if TYPE_CHECKING:
    from mirrordepth_edge.model.network import DepthNetwork

FRAMES_DIR = Path(__file__).parent.parent / "models" / "frames"
MAX_RELATIVE_FP32 = 1e-4
"""Worst pixel: float32 sums in another order, nothing more."""
MEAN_RELATIVE_FP16 = 4e-3
"""Mean over pixels. FP16 rounds to 5e-4, and rounding adds up over a tower's fifty layers: `nano` has 2.1e-3 on the
package's frames and 1.1e-3 on NYU's, and the same errors against measured depth to four digits."""
BLOCK_PX: Final = 8
"""A pixel beside a depth edge may honestly be far off; so many by so many together are not."""


class Figures(Protocol):
    """What was measured of depth, as `Parity` has it."""

    @property
    def max_relative(self) -> float: ...
    @property
    def mean_relative(self) -> float: ...
    @property
    def block_relative(self) -> float | None: ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far depth may be from what it is held to, relative."""

    mean: float
    """Over all pixels of the frames: wrong everywhere."""
    block: float
    """Over the worst `BLOCK_PX` x `BLOCK_PX` pixels: wrong in one place, which the mean does not show."""

    def __str__(self) -> str:
        return f"mean <= {self.mean:g}, worst {BLOCK_PX}x{BLOCK_PX} pixels <= {self.block:g}"

    def hold(self, found: Figures) -> bool:
        """Whether the figures are within; a NaN is within no limit."""
        return found.mean_relative <= self.mean and (found.block_relative or 0.0) <= self.block


LIMITS_ENGINE: Final[dict[Precision, Limits]] = {
    "fp32": Limits(mean=4e-3, block=3e-2),
    "fp16": Limits(mean=4e-3, block=3e-2),
    "int8": Limits(mean=3.5e-2, block=0.16),
}
"""Of an engine against its ONNX file, from `nano` on the package's frames. FP32 engines multiply in TF32, whose
significand is FP16's: 1.0e-3 and 3.3e-3 where its roundings are imitated in PyTorch. FP16 against FP32: 2.1e-3 and
1.1e-2. In INT8 a difference in the last bit moves whole steps: one changed bit of one input pixel makes 1.4e-2 and
5.7e-2, and of two files quantised for CPUs and for GPUs OpenVINO differs from ONNX Runtime by 9.9e-3 and 4.2e-2, and by
2.3e-2 and 0.11. A patch that is a fifth too far has 0.2 in its blocks."""
LIMITS_ELSEWHERE: Final[dict[str, Limits]] = {
    "fp32": Limits(mean=2e-3, block=2e-2),
    "fp16": Limits(mean=1e-2, block=6e-2),
    "bf16": Limits(mean=3e-2, block=0.15),
    "int8": Limits(mean=6e-2, block=0.3),
}
"""Where an artefact runs on other hardware than it was proven on, also against PyTorch in FP32: other kernels round
otherwise, by a few units in the last bit of what they multiply in (TF32 and FP16: 11 bits, BF16: 8). `nano` has in BF16
1.0e-2 and 4.6e-2, in INT8 against FP32 up to 4.4e-2 and 0.16. INT8 was held to measured depth when it was made; this
only finds what is broken. What is beyond is wrong."""


CPU: Final = SessionOptions(device="cpu")


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


def batches(frames: Sequence[Frame], prepare: Preprocessor, batch: int) -> Iterator[npt.NDArray[Any]]:
    """Network inputs of `batch` frames each, `[batch, ...]`, until every frame was in one; the last begins anew."""
    for first in range(0, len(frames), batch):
        yield np.concatenate([prepare(frames[(first + place) % len(frames)]).copy() for place in range(batch)])


def measure_parity(
    onnx_path: Path,
    network: DepthNetwork,
    frames: Sequence[Frame],
    precision: Precision,
    io: InputKind,
    batch: int = 1,
) -> Parity:
    """Run `onnx_path` in ONNX Runtime and `network` in PyTorch on the same frames.

    PyTorch sees one frame at a time, so that a file whose frames of a batch mix is found out.

    Returns:
        The figures; `check_parity` judges them.
    """
    import onnxruntime
    import torch

    session = create_inference_session(onnx_path, CPU)
    name = session.get_inputs()[0].name
    to_engine = Preprocessor(network.config.preprocess, io)
    to_network = Preprocessor(network.config.preprocess, "float")

    def pairs() -> Iterator[tuple[DepthMap, DepthMap]]:
        for fed, images in zip(batches(frames, to_engine, batch), batches(frames, to_network, batch), strict=True):
            with torch.no_grad():
                expected = [network(torch.from_numpy(image[None])).numpy() for image in images]
            yield session.run(None, {name: fed})[0], np.concatenate(expected)

    return _compare(pairs(), f"onnxruntime {onnxruntime.__version__} CPU", _limit(precision))


def make_reference(network: DepthNetwork, frames: Sequence[Frame], io: InputKind) -> Reference:
    """What `network` in PyTorch says of the first of `frames`, to be stored with what is made of it."""
    import torch

    prepare, to_network = (Preprocessor(network.config.preprocess, kind) for kind in (io, "float"))
    images, depths_m = [], []
    for frame in frames[:MAX_FRAMES]:
        images.append(prepare(frame)[0].copy())
        with torch.no_grad():
            depths_m.append(network(torch.from_numpy(to_network(frame)))[0].numpy())
    return Reference(np.stack(images), np.stack(depths_m))


def measure_parity_with(made: Session, onnx_path: Path, manifest: Manifest, limit: str) -> Parity:
    """Run what was made of an ONNX file, and the ONNX file, on the package's reference frames; closes the session.

    Args:
        made: an open session of an engine, or of ONNX in another precision.
        onnx_path: what it was made from, run in ONNX Runtime on the CPU at the session's size.
        manifest: of the ONNX file.
        limit: what will be held, in words.
    """
    batch, height, width = made.inputs[0].size
    here, same = manifest.at((height, width), batch), replace(CPU, network_hw=(height, width), batch=batch)
    (image,), (depth,) = here.inputs, here.outputs
    prepare = Preprocessor(here.preprocess, image.io)
    runner = f"{made.backend} {made.version} on {made.device} against its {manifest.precision.upper()} ONNX"
    with made, OnnxRuntimeSession(onnx_path, manifest, same) as reference:
        feeds = ({image.name: each} for each in batches(reference_frames(), prepare, image.shape[0]))
        pairs = ((made.infer(each)[depth.name], reference.infer(each)[depth.name]) for each in feeds)
        return _compare(pairs, runner, limit)


def worst_parity(each: Iterable[Parity]) -> Parity:
    """Of several measurements of one artefact, such as at its sizes: the worst figures, over all their frames."""
    found = list(each)
    return replace(
        found[0],
        frames=sum(parity.frames for parity in found),
        max_relative=max(parity.max_relative for parity in found),
        mean_relative=max(parity.mean_relative for parity in found),
        block_relative=max((each.block_relative for each in found if each.block_relative is not None), default=None),
    )


def figures(found: Figures) -> str:
    """What was measured, in words."""
    block = "" if found.block_relative is None else f", worst {BLOCK_PX}x{BLOCK_PX} pixels {found.block_relative:.1e}"
    return f"mean {found.mean_relative:.1e}{block}, worst pixel {found.max_relative:.1e} relative"


def measure_engine_parity(engine: Session, onnx_path: Path, manifest: Manifest) -> Parity:
    """Run an engine and its ONNX file on the package's reference frames, hold the gate, and close the engine.

    Raises:
        GateError: the engine's depth is not the ONNX file's.
    """
    limits = LIMITS_ENGINE[manifest.precision]
    parity = measure_parity_with(engine, onnx_path, manifest, f"{limits} relative")
    if not limits.hold(parity):
        raise _refused(parity)
    return parity


def measure_agreement(session: Session, reference: Reference) -> Parity:
    """Run an opened artefact on what was stored when it was made."""
    (image,), (depth,) = session.inputs, session.outputs
    size = image.shape[0]

    def pairs() -> Iterator[tuple[DepthMap, DepthMap]]:
        for first in range(0, len(reference.images), size):
            images, expected_m = reference.batch(first, size)
            yield session.infer({image.name: images})[depth.name], expected_m

    runner = f"{session.backend} {session.version} on {session.device} against PyTorch in FP32, stored at export"
    return _compare(pairs(), runner, f"{LIMITS_ELSEWHERE[session.precision]} relative")


def check_agreement(agreement: Parity, session: Session, name: str) -> None:
    """Hold a running artefact to what was stored when it was made.

    Raises:
        GateError: its depth is another.
    """
    if LIMITS_ELSEWHERE[session.precision].hold(agreement):
        return
    raise GateError(
        f"{name} gives wrong depth in {session.backend} {session.version} on {session.device}.",
        f"Against what PyTorch gave at its export, over {agreement.frames} frames: {figures(agreement)}; the limit is "
        f"{agreement.limit}.",
        "Build or export it again here; if it stays, run another precision or backend, and report it with what mde "
        "doctor says.",
    )


def _compare(pairs: Iterable[tuple[DepthMap, DepthMap]], runner: str, limit: str) -> Parity:
    """Figures over pairs of delivered and expected depth, each looked at before the next is made."""
    worst, worst_block, means, frames = 0.0, 0.0, [], 0
    for delivered, expected in pairs:
        relative = np.abs(delivered.astype(np.float64) - expected) / expected
        # A NaN compares false with every limit, so it is made the worst there is.
        relative = np.nan_to_num(relative, nan=np.inf, posinf=np.inf)
        worst = max(worst, float(relative.max()))
        worst_block = max(worst_block, float(_block_means(relative).max()))
        means.append(float(relative.mean()))
        frames += len(delivered)
    return Parity(
        runner=runner,
        frames=frames,
        max_relative=worst,
        mean_relative=sum(means) / len(means),
        block_relative=worst_block,
        limit=limit,
    )


def _block_means(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Means of `[N, H, W]` over tiles of `BLOCK_PX`; those at the right and lower border may be smaller."""
    _, height, width = values.shape
    tops, lefts = np.arange(0, height, BLOCK_PX), np.arange(0, width, BLOCK_PX)
    sums = np.add.reduceat(np.add.reduceat(values, tops, axis=1), lefts, axis=2)
    sizes = np.outer(np.diff(tops, append=height), np.diff(lefts, append=width))
    means: npt.NDArray[np.float64] = sums / sizes
    return means


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
    if not figure <= limit:  # a NaN is beyond every limit
        raise _refused(parity)


def _refused(parity: Parity) -> GateError:
    return GateError(
        "The new file's depth is not that of the model it was made from; nothing was written.",
        f"Depth error over {parity.frames} frames: {figures(parity)}; the gate is {parity.limit}.",
        "Try --fp32 where FP16 was asked for; else please report it, with what mde doctor says.",
    )
