"""Select the frames of a calibration set: usable ones that differ as much as possible.

Frames are compared by the deepest feature of a model's image tower, averaged over the image. Only this feature and two
statistics are kept of each candidate, so any number of them fits in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.artefact import SHIPPED
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import InputError, MissingError, OptionError
from mirrordepth_edge.export.dynamic_shapes import fix_shapes
from mirrordepth_edge.imaging.preprocess import Frame, Preprocessor
from mirrordepth_edge.manifest import read_manifest
from mirrordepth_edge.quantise.calibration_set import Dropped, Statistics

if TYPE_CHECKING:
    import onnx

Key = str | int
"""A file relative to the source, or the number of a video frame."""

TOWER = "tower/"
"""Prefix of the names of the tower's nodes in files from `mde export`."""
# The thresholds separate NYU's 795 training images (480x640) from degraded copies. The originals have a brightness
# deviation of at least 36, a neighbour correlation of at least 0.95, a sharpness of at least 0.30 of the median, and a
# distance of at least 0.33. A Gaussian blur of 3 pixels lowers the sharpness to 0.06 of the median, and a shift by 2
# pixels gives a distance of 0.12 to the original.
MIN_DEVIATION = 5.0
"""Standard deviation of brightness (0..255) below which a frame is uniform."""
MIN_CORRELATION = 0.5
"""Correlation of the brightness of neighbouring pixels below which a frame is noise."""
MIN_SHARPNESS = 0.15
"""Fraction of the median sharpness of all candidates below which a frame is blurred."""
MIN_DISTANCE = 0.2
"""Distance of two features, relative to their mean norm, below which a frame is a duplicate."""


class TowerFeatures:
    """Compute one vector per frame: the deepest feature of a model's image tower, averaged over the image.

    It runs on the CPU, where equal frames give equal features, so that a selection is reproducible.

    Args:
        model: `nano`, `nano.fp16`, or an ONNX file from `mde export` with its manifest.

    Raises:
        OptionError: the model is not an ONNX file, or has a batch size above 1.
        InputError: the model cannot be read, or has no nodes of an image tower.
        MissingError: ONNX Runtime is not installed.
    """

    def __init__(self, model: str = "nano") -> None:
        import onnx

        from mirrordepth_edge.backends.onnxruntime import create_inference_session, probe
        from mirrordepth_edge.machine.unavailable import Unavailable

        path = SHIPPED.get(model, Path(model))
        if path.suffix != ".onnx":
            raise OptionError(f"{model} cannot compare frames.", "This needs an ONNX file.", "--model nano")
        runtime = probe()
        if isinstance(runtime, Unavailable):
            raise MissingError("Selecting frames needs ONNX Runtime.", runtime.reason, runtime.cure)
        manifest = read_manifest(path).at()
        image = manifest.inputs[0]
        if image.shape[0] != 1:
            raise OptionError(f"{model} has batch size {image.shape[0]}.", "Batch size 1 is required.", "--model nano")
        self.model = model if model in SHIPPED else path.name
        self.sha256 = manifest.artefact_sha256
        self.size_hw = manifest.preprocess.size_hw
        self._prepare = Preprocessor(manifest.preprocess, image.io)
        self._input = image.name
        tower = bytes(_extract_tower(fix_shapes(onnx.load(path), manifest.inputs), path).SerializeToString())
        self._session = create_inference_session(tower, SessionOptions(device="cpu"))

    @property
    def image(self) -> Frame:
        """The last prepared frame at the network's size, uint8 RGB `[h, w, 3]`; valid until the next `prepare`."""
        return self._prepare.image

    def prepare(self, frame: Frame) -> npt.NDArray[Any]:
        """Preprocess a frame, uint8 RGB `[H, W, 3]`, for `of`."""
        return self._prepare(frame)

    def of(self, prepared: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the feature of a frame that `prepare` has preprocessed, `[channels]`."""
        feature = self._session.run(None, {self._input: prepared})[0][0].astype(np.float64)
        # A CNN gives [channels, h, w], a ViT [tokens, channels].
        pooled: npt.NDArray[np.float64] = feature.mean(axis=(1, 2) if feature.ndim == 3 else 0)
        return pooled


def _extract_tower(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Return the subgraph that computes the output of the last node of the tower."""
    import onnx

    tower = [node for node in model.graph.node if node.name.startswith(TOWER)]
    if not tower:
        raise InputError(
            f"{path} has no known image tower.",
            f"None of its node names begins with {TOWER}; it was made or changed by another tool.",
            "Pass a file from mde export, or --model nano.",
        )
    # The extractor needs the type of the output, which files need not state for intermediate tensors.
    extractor = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model))
    return extractor.extract_model([model.graph.input[0].name], [tower[-1].output[0]])


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The result of a selection."""

    picked: tuple[Key, ...]
    """The selected frames, sorted."""
    candidates: int
    dropped: Dropped
    statistics: Statistics


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """What is kept of a usable frame."""

    correlation: float
    sharpness: float
    feature: npt.NDArray[np.float64]


class Chooser:
    """Examine candidates one by one, then select.

    Args:
        features: computes the features by which frames are compared.
    """

    def __init__(self, features: TowerFeatures) -> None:
        self.features = features
        self._candidates: dict[Key, _Candidate] = {}
        self._dropped: Counter[str] = Counter()
        """Rejected candidates by reason, a field of `Dropped`."""

    @property
    def seen(self) -> int:
        """Number of candidates so far."""
        return len(self._candidates) + self._dropped.total()

    def look(self, key: Key, frame: Frame | None) -> None:
        """Examine one candidate. The frame's array may be reused afterwards.

        Args:
            key: unique file or number of the frame; all keys have the same type.
            frame: uint8 RGB `[H, W, 3]`; None if it could not be read.
        """
        if frame is None:
            self._dropped["unreadable"] += 1
            return
        prepared = self.features.prepare(frame)
        grey = brightness(self.features.image)
        deviation = float(grey.std())
        correlation = neighbour_correlation(brightness(frame))
        if deviation < MIN_DEVIATION:
            self._dropped["uniform"] += 1
        elif correlation < MIN_CORRELATION:
            self._dropped["noise"] += 1
        else:
            feature = self.features.of(prepared)
            self._candidates[key] = _Candidate(correlation=correlation, sharpness=sharpness(grey), feature=feature)

    def pick(self, count: int, seed: int, source: str) -> Choice:
        """Select the most diverse frames among those that are neither blurred nor duplicates.

        The order in which candidates were examined does not matter.

        Args:
            count: number of frames to select; all usable ones if there are fewer.
            seed: selects the first frame.
            source: name of the source, for the error message.

        Raises:
            InputError: no candidate is usable.
        """
        keys = sorted(self._candidates)
        candidates = [self._candidates[key] for key in keys]
        median = float(np.median([candidate.sharpness for candidate in candidates])) if candidates else 0.0
        sharp = [index for index, candidate in enumerate(candidates) if candidate.sharpness >= MIN_SHARPNESS * median]
        distinct = [sharp[index] for index in distinct_rows([candidates[index].feature for index in sharp])]
        blurred, duplicate = len(candidates) - len(sharp), len(sharp) - len(distinct)
        dropped = Dropped(**self._dropped, blurred=blurred, duplicate=duplicate)
        if not distinct:
            raise InputError(
                f"No frame of {source} can be used for calibration.",
                f"{self.seen} candidates{f': {dropped}' if self.seen else ''}; random data is never used instead.",
                "Pass images or a video from the camera in its later environment.",
            )
        features = np.stack([candidates[index].feature for index in distinct])
        picked = sorted(distinct[index] for index in farthest_points(features, count, seed))
        correlations = [candidates[index].correlation for index in picked]
        return Choice(
            picked=tuple(keys[index] for index in picked),
            candidates=self.seen,
            dropped=dropped,
            statistics=Statistics(
                neighbour_correlation=round(float(np.median(correlations)), 4),
                least_neighbour_correlation=round(min(correlations), 4),
            ),
        )


def brightness(frame: Frame) -> npt.NDArray[np.float32]:
    """Convert uint8 RGB `[H, W, 3]` to luma, float32 `[H, W]`, 0..255 (Rec. ITU-R BT.601)."""
    grey: Any = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return grey.astype(np.float32)  # type: ignore[no-any-return]


def neighbour_correlation(grey: npt.NDArray[np.float32]) -> float:
    """Return the mean of the Pearson correlations of pixels with their right and their lower neighbours.

    Args:
        grey: float32 `[H, W]`.

    Returns:
        -1..1; a direction in which the image does not vary counts as 1.
    """

    def correlation(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
        if not a.size:
            return 1.0
        a, b = a - a.mean(), b - b.mean()
        norm = float(np.sqrt(np.vdot(a, a) * float(np.vdot(b, b))))
        return float(np.vdot(a, b)) / norm if norm > 0 else 1.0

    return (correlation(grey[:, 1:], grey[:, :-1]) + correlation(grey[1:], grey[:-1])) / 2


def sharpness(grey: npt.NDArray[np.float32]) -> float:
    """Return the variance of the Laplacian divided by that of the image; it falls with blur, but not with contrast.

    The numerator is from Pech-Pacheco et al. 2000 (Diatom autofocusing in brightfield microscopy).

    Args:
        grey: float32 `[h, w]`, not uniform.
    """
    return float(cv2.Laplacian(grey, cv2.CV_32F).var()) / float(grey.var())


def distinct_rows(features: Sequence[npt.NDArray[np.float64]]) -> list[int]:
    """Return the indices of the vectors that are at least `MIN_DISTANCE` away from each one kept before.

    The distance |a - b| / ((|a| + |b|) / 2) does not depend on the scale of the features.
    """
    indices: list[int] = []
    if not features:
        return indices
    kept = np.empty((len(features), len(features[0])))
    norms = np.empty(len(features))
    for index, feature in enumerate(features):
        norm = np.linalg.norm(feature)
        before = slice(len(indices))
        distances = np.linalg.norm(kept[before] - feature, axis=1)
        if (distances >= MIN_DISTANCE * (norms[before] + norm) / 2).all():
            kept[len(indices)], norms[len(indices)] = feature, norm
            indices.append(index)
    return indices


def farthest_points(features: npt.NDArray[np.float64], count: int, seed: int) -> list[int]:
    """Select rows that cover all rows, by farthest-point sampling.

    This is the greedy k-centre method (Gonzalez 1985): each selected row is the farthest from all before. Its largest
    distance to a centre is at most twice the optimum. Channels are standardised first, to give them equal weight.

    Args:
        features: `[N, channels]`.
        count: number of rows; all N if there are fewer.
        seed: selects the first row.

    Returns:
        Row indices in the order of selection; ties go to the lower index.
    """
    deviation = features.std(axis=0)
    points = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    selected = [int(np.random.default_rng(seed).integers(len(points)))]
    distance = np.full(len(points), np.inf)
    while len(selected) < min(count, len(points)):
        distance = np.minimum(distance, np.linalg.norm(points - points[selected[-1]], axis=1))
        distance[selected[-1]] = -1.0  # never select a row twice, even if all rows are equal
        selected.append(int(distance.argmax()))
    return selected
