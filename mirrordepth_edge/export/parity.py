"""Parity: the difference between an exported file's depth and that of the model it was made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.artefact import MAX_REFERENCE_FRAMES, Artefact, Reference
from mirrordepth_edge.backends.base import Session
from mirrordepth_edge.backends.onnxruntime import OnnxRuntimeSession, create_inference_session
from mirrordepth_edge.config import InputKind, Precision, SessionOptions
from mirrordepth_edge.errors import GateError, InputError
from mirrordepth_edge.imaging.images import IMAGE_SUFFIXES, read_image
from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.imaging.preprocess import Frame, Preprocessor
from mirrordepth_edge.manifest import Parity

if TYPE_CHECKING:
    from mirrordepth_edge.model.network import DepthNetwork

FRAMES_DIR = Path(__file__).parent.parent / "models" / "frames"
MAX_RELATIVE_FP32 = 1e-4
"""Limit of the worst pixel in FP32, whose only difference is the order of float32 sums."""
MEAN_RELATIVE_FP16 = 4e-3
"""Limit of the mean over pixels. FP16 rounds to 5e-4, and rounding adds up over a tower's fifty layers: `nano` has
2.1e-3 on the package's frames and 1.1e-3 on NYU's, and the same errors against measured depth to four digits."""
BLOCK_PX: Final = 8
"""Side of the blocks that are averaged. A single pixel beside a depth edge may differ much; a whole block may not."""


class Figures(Protocol):
    """Measured depth differences, as in `Parity`."""

    @property
    def max_relative(self) -> float: ...
    @property
    def mean_relative(self) -> float: ...
    @property
    def block_relative(self) -> float | None: ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest accepted relative differences of depth."""

    mean: float
    """Over all pixels of the frames; finds depth that is wrong everywhere."""
    block: float
    """Over the worst `BLOCK_PX` x `BLOCK_PX` pixels; finds depth that is wrong in one place, which the mean hides."""

    def __str__(self) -> str:
        return f"mean <= {self.mean:g}, worst {BLOCK_PX}x{BLOCK_PX} pixels <= {self.block:g} relative"

    def hold(self, measured: Figures) -> bool:
        """Whether the figures are within the limits; NaN never is."""
        return measured.mean_relative <= self.mean and (measured.block_relative or 0.0) <= self.block


LIMITS_ENGINE: Final[dict[Precision, Limits]] = {
    "fp32": Limits(mean=4e-3, block=3e-2),
    "fp16": Limits(mean=4e-3, block=3e-2),
    "int8": Limits(mean=3.5e-2, block=0.16),
}
"""Limits of an engine against its ONNX file, from `nano` on the package's frames.

FP32 engines multiply in TF32, whose significand is as long as FP16's: 1.0e-3 and 3.3e-3 with its rounding imitated in
PyTorch. FP16 against FP32: 2.1e-3 and 1.1e-2. In INT8, a difference in the last bit moves whole quantisation steps:
changing one bit of one input pixel makes 1.4e-2 and 5.7e-2. For two files quantised for CPUs and GPUs, OpenVINO
differs from ONNX Runtime by 9.9e-3 and 4.2e-2, and by 2.3e-2 and 0.11. A patch that is 20 % too far has 0.2 in its
blocks.
"""
LIMITS_ELSEWHERE: Final[dict[str, Limits]] = {
    "fp32": Limits(mean=2e-3, block=2e-2),
    "fp16": Limits(mean=1e-2, block=6e-2),
    "bf16": Limits(mean=3e-2, block=0.15),
    "int8": Limits(mean=6e-2, block=0.3),
}
"""Limits on other hardware than the artefact was verified on, also against PyTorch in FP32.

Other kernels round differently, by a few units in the last place (TF32 and FP16: 11 bits, BF16: 8). `nano` has 1.0e-2
and 4.6e-2 in BF16, and up to 4.4e-2 and 0.16 in INT8 against FP32. INT8 was compared with measured depth when it was
made; these limits only find broken files.
"""


CPU: Final = SessionOptions(device="cpu")


def reference_frames(source: Path | None = None) -> list[Frame]:
    """Read the images to compare on.

    Args:
        source: a folder or a single image; the package's own photos if None.

    Raises:
        InputError: there is no image.
    """
    folder = source or FRAMES_DIR
    if folder.is_file():
        return [read_image(folder)]
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise InputError(f"There are no images in {folder}.", "Parity needs real frames.", "--frames FOLDER")
    return [read_image(path) for path in paths]


def batches(frames: Sequence[Frame], prepare: Preprocessor, batch: int) -> Iterator[npt.NDArray[Any]]:
    """Yield network inputs `[batch, ...]` until every frame was used; the last one wraps around to the first frames."""
    for first in range(0, len(frames), batch):
        yield np.concatenate([prepare(frames[(first + offset) % len(frames)]).copy() for offset in range(batch)])


def measure_parity(
    onnx_path: Path,
    network: DepthNetwork,
    frames: Sequence[Frame],
    precision: Precision,
    io: InputKind,
    batch: int = 1,
) -> Parity:
    """Compare `onnx_path` in ONNX Runtime with `network` in PyTorch on the same frames.

    PyTorch gets one frame at a time, so that a file that mixes the frames of a batch is detected.

    Returns:
        The figures, for `check_parity`.
    """
    import onnxruntime
    import torch

    session = create_inference_session(onnx_path, CPU)
    name = session.get_inputs()[0].name
    for_onnx = Preprocessor(network.config.preprocess, io)
    for_network = Preprocessor(network.config.preprocess, "float")

    def pairs() -> Iterator[tuple[DepthMap, DepthMap]]:
        for feed, images in zip(batches(frames, for_onnx, batch), batches(frames, for_network, batch), strict=True):
            with torch.no_grad():
                expected = [network(torch.from_numpy(image[None])).numpy() for image in images]
            yield session.run(None, {name: feed})[0], np.concatenate(expected)

    return _compare(pairs(), "onnxruntime", f"{onnxruntime.__version__} CPU", _limit(precision))


def make_reference(network: DepthNetwork, frames: Sequence[Frame], io: InputKind) -> Reference:
    """Run `network` in PyTorch on the first frames, to store the result with an export."""
    import torch

    prepare, for_network = (Preprocessor(network.config.preprocess, kind) for kind in (io, "float"))
    images, depths_m = [], []
    for frame in frames[:MAX_REFERENCE_FRAMES]:
        images.append(prepare(frame)[0].copy())
        with torch.no_grad():
            depths_m.append(network(torch.from_numpy(for_network(frame)))[0].numpy())
    return Reference(np.stack(images), np.stack(depths_m))


def measure_parity_with(session: Session, source: Artefact, limits: Limits) -> Parity:
    """Compare a session with the ONNX file that it was made from, on the package's photos; closes the session.

    Args:
        session: of an engine, or of an ONNX file in another precision.
        source: the ONNX file, which runs in ONNX Runtime on the CPU at the session's size.
        limits: the limits that will be checked, for the record.
    """
    batch, height, width = session.inputs[0].size
    manifest = source.manifest.at((height, width), batch)
    options = replace(CPU, network_hw=(height, width), batch=batch)
    (image,), (depth,) = manifest.inputs, manifest.outputs
    prepare = Preprocessor(manifest.preprocess, image.io)
    details = f"{session.version} on {session.device} against its {manifest.precision.upper()} ONNX"
    with session, OnnxRuntimeSession(source.path, source.manifest, options) as reference:
        feeds = ({image.name: images} for images in batches(reference_frames(), prepare, image.shape[0]))
        pairs = ((session.infer(feed)[depth.name], reference.infer(feed)[depth.name]) for feed in feeds)
        return _compare(pairs, session.backend, details, str(limits))


def worst_parity(measurements: Iterable[Parity]) -> Parity:
    """Merge measurements of one artefact, such as at several sizes: the worst figures, over all frames."""
    parities = list(measurements)
    blocks = [parity.block_relative for parity in parities if parity.block_relative is not None]
    return replace(
        parities[0],
        frames=sum(parity.frames for parity in parities),
        max_relative=max(parity.max_relative for parity in parities),
        mean_relative=max(parity.mean_relative for parity in parities),
        block_relative=max(blocks, default=None),
    )


def figures(measured: Figures) -> str:
    """Format the figures, such as `mean 1.0e-03, worst pixel 2.0e-02 relative`."""
    block = measured.block_relative
    blocks = "" if block is None else f", worst {BLOCK_PX}x{BLOCK_PX} pixels {block:.1e}"
    return f"mean {measured.mean_relative:.1e}{blocks}, worst pixel {measured.max_relative:.1e} relative"


def measure_engine_parity(session: Session, source: Artefact) -> Parity:
    """Compare an engine with its ONNX file on the package's photos and check the limits; closes the session.

    Raises:
        GateError: the depth differs too much.
    """
    limits = LIMITS_ENGINE[source.manifest.precision]
    parity = measure_parity_with(session, source, limits)
    if not limits.hold(parity):
        raise _gate_error(parity)
    return parity


def measure_agreement(session: Session, reference: Reference) -> Parity:
    """Compare a session with the depth that PyTorch computed at export."""
    (image,), (depth,) = session.inputs, session.outputs
    size = image.shape[0]

    def pairs() -> Iterator[tuple[DepthMap, DepthMap]]:
        for first in range(0, len(reference.images), size):
            images, expected_m = reference.batch(first, size)
            yield session.infer({image.name: images})[depth.name], expected_m

    details = f"{session.version} on {session.device} against PyTorch in FP32, stored at export"
    return _compare(pairs(), session.backend, details, str(LIMITS_ELSEWHERE[session.precision]))


def check_agreement(agreement: Parity, session: Session, name: str) -> None:
    """Check the result of `measure_agreement`.

    Raises:
        GateError: the depth differs too much.
    """
    if LIMITS_ELSEWHERE[session.precision].hold(agreement):
        return
    raise GateError(
        f"{name} gives wrong depth in {session.backend} {session.version} on {session.device}.",
        f"Compared with PyTorch at export, over {agreement.frames} frames: {figures(agreement)}; "
        f"limit: {agreement.limit}.",
        "Build or export it again here. If that does not help, use another precision or backend, and report it with "
        "the output of mde doctor.",
    )


def _compare(pairs: Iterable[tuple[DepthMap, DepthMap]], backend: str, details: str, limit: str) -> Parity:
    """Figures over pairs of actual and expected depth. Pairs are consumed one by one, since sessions reuse buffers."""
    worst, worst_block, means, frames = 0.0, 0.0, [], 0
    for actual, expected in pairs:
        relative = np.abs(actual.astype(np.float64) - expected) / expected
        # A NaN compares false with every limit, so it counts as infinite.
        relative = np.nan_to_num(relative, nan=np.inf, posinf=np.inf)
        worst = max(worst, float(relative.max()))
        worst_block = max(worst_block, float(_block_means(relative).max()))
        means.append(float(relative.mean()))
        frames += len(actual)
    return Parity(
        backend=backend,
        runner=f"{backend} {details}",
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
    """Check the result of `measure_parity`.

    Raises:
        GateError: the depth differs too much.
    """
    figure, limit = (
        (parity.max_relative, MAX_RELATIVE_FP32) if precision == "fp32" else (parity.mean_relative, MEAN_RELATIVE_FP16)
    )
    if not figure <= limit:  # written this way because NaN must fail too
        raise _gate_error(parity)


def _gate_error(parity: Parity) -> GateError:
    return GateError(
        "The new file's depth differs from that of the model it was made from; nothing was written.",
        f"Depth difference over {parity.frames} frames: {figures(parity)}; limit: {parity.limit}.",
        "Try --fp32 instead of FP16; otherwise please report it with the output of mde doctor.",
    )
