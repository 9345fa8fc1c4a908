"""Which frames make a calibration set: those that are fit, and of these the ones that differ most.

A frame is told from another by what the model's own tower makes of it: the deepest feature, averaged over the picture.
What is looked at leaves nothing behind but that feature and a few figures, so that any number of frames fits in memory.
ONNX Runtime alone is needed.
"""

from __future__ import annotations

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
from mirrordepth_edge.export.dynamic_shapes import fixed
from mirrordepth_edge.imaging.preprocess import Frame, Preprocessor
from mirrordepth_edge.manifest import read_manifest
from mirrordepth_edge.quantise.calibration_set import Dropped, Statistics

if TYPE_CHECKING:
    import onnx

Key = str | int
"""A file below the source, or a frame's number in a video."""

TOWER = "tower/"
"""How the names of the tower's nodes begin in files of `mde export`."""
# Of NYU's 795 training pictures, 480x640: brightness deviates by 36 and more, neighbours correlate with 0.95 and more,
# the least sharp has 0.30 of the median sharpness, and the two most alike are 0.33 apart. Of those same pictures, the
# ones blurred by a Gaussian of 3 pixels have 0.06, and ones shifted by 2 pixels are 0.12 away from themselves.
LEAST_DEVIATION = 5.0
"""Standard deviation of brightness, of 255, below which a frame is uniform."""
LEAST_CORRELATION = 0.5
"""Of neighbouring pixels' brightness, below which a frame is noise."""
LEAST_SHARPNESS = 0.15
"""Share of the set's median sharpness below which a frame is blurred."""
LEAST_DISTANCE = 0.2
"""Of two features, over their mean length, below which a frame is a duplicate."""


class TowerFeatures:
    """Frames to one vector each: the deepest feature of a model's image tower, averaged over the picture.

    Runs on the CPU, where the same frame always gives the same feature, so that a choice can be made again.

    Args:
        model: `nano`, `nano.fp16` or an ONNX file of `mde export`, whose manifest is beside it.

    Raises:
        OptionError: the model is of another kind.
        InputError: it cannot be read, or its nodes do not have our names.
        MissingError: ONNX Runtime is not installed.
    """

    def __init__(self, model: str = "nano") -> None:
        import onnx

        from mirrordepth_edge.backends.onnxruntime import create_inference_session, probe
        from mirrordepth_edge.machine.unavailable import Unavailable

        path = SHIPPED.get(model, Path(model))
        if path.suffix != ".onnx":
            raise OptionError(f"{model} tells no frames apart.", "Features are taken of an ONNX file.", "--model nano")
        found = probe()
        if isinstance(found, Unavailable):
            raise MissingError("Choosing frames needs ONNX Runtime.", found.reason, found.cure)
        manifest = read_manifest(path).at()
        image = manifest.inputs[0]
        if image.shape[0] != 1:
            raise OptionError(f"{model} takes {image.shape[0]} frames at once.", "One is looked at.", "--model nano")
        self.model = model if model in SHIPPED else path.name
        self.sha256 = manifest.artefact_sha256
        self.size_hw = manifest.preprocess.size_hw
        self._prepare = Preprocessor(manifest.preprocess, image.io)
        self._input = image.name
        alone = bytes(_tower_of(fixed(onnx.load(path), manifest.inputs), path).SerializeToString())
        self._session = create_inference_session(alone, SessionOptions(device="cpu"))

    @property
    def image(self) -> Frame:
        """The last frame at the network's size, uint8 RGB `[h, w, 3]`; valid until the next one is prepared."""
        return self._prepare.image

    def prepare(self, frame: Frame) -> npt.NDArray[Any]:
        """The network's input of a frame, uint8 RGB `[H, W, 3]`."""
        return self._prepare(frame)

    def of(self, prepared: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """The feature of what `prepare` gave, `[channels]`."""
        feature = self._session.run(None, {self._input: prepared})[0][0].astype(np.float64)
        # A map is [channels, h, w]; a ViT's tokens are [tokens, channels].
        pooled: npt.NDArray[np.float64] = feature.mean(axis=(1, 2) if feature.ndim == 3 else 0)
        return pooled


def _tower_of(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The part of a graph that leads to the last tensor that a node of the tower makes, which is its output."""
    from onnx import ModelProto, ValueInfoProto

    tower = [node for node in model.graph.node if node.name.startswith(TOWER)]
    if not tower:
        raise InputError(
            f"{path} has no image tower that can be found.",
            f"None of its nodes' names begins with {TOWER}; another tool made or renamed it.",
            "Pass a file of mde export, or --model nano.",
        )
    needed = {tower[-1].output[0]}
    nodes = []
    for node in reversed(model.graph.node):  # in order: what a node takes was made before it
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    alone = ModelProto()
    alone.CopyFrom(model)
    graph = alone.graph
    for kept in (graph.node, graph.output, graph.initializer, graph.value_info):
        del kept[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(each for each in model.graph.initializer if each.name in needed)
    graph.output.append(ValueInfoProto(name=tower[-1].output[0]))  # ONNX Runtime infers type and shape
    return alone


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What became of all candidates."""

    picked: tuple[Key, ...]
    """In order."""
    candidates: int
    dropped: Dropped
    statistics: Statistics


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What is kept of a frame."""

    correlation: float
    sharpness: float
    feature: npt.NDArray[np.float64]


class Chooser:
    """Looks at candidates one by one, then picks.

    Args:
        features: how frames are told apart.
    """

    def __init__(self, features: TowerFeatures) -> None:
        self.features = features
        self._looks: dict[Key, _Look] = {}
        self._unreadable = self._uniform = self._noise = 0

    @property
    def seen(self) -> int:
        """Candidates so far."""
        return len(self._looks) + self._unreadable + self._uniform + self._noise

    def look(self, key: Key, frame: Frame | None) -> None:
        """Take in one candidate; nothing refers to the frame afterwards.

        Args:
            key: its file or number, each once; either all are files or all are numbers.
            frame: uint8 RGB `[H, W, 3]`; None where it could not be read.
        """
        if frame is None:
            self._unreadable += 1
            return
        prepared = self.features.prepare(frame)
        grey = brightness(self.features.image)
        deviation = float(grey.std())
        correlation = neighbour_correlation(brightness(frame))
        if deviation < LEAST_DEVIATION:
            self._uniform += 1
        elif correlation < LEAST_CORRELATION:
            self._noise += 1
        else:
            feature = self.features.of(prepared)
            self._looks[key] = _Look(correlation=correlation, sharpness=sharpness(grey), feature=feature)

    def pick(self, count: int, seed: int, source: str) -> Choice:
        """The frames that differ most, of those that are neither blurred nor duplicates. What was looked at in
        another order gives the same choice.

        Args:
            count: how many; all that are fit where they are fewer.
            seed: which frame is the first.
            source: where they are from, for the message.

        Raises:
            InputError: none is fit.
        """
        keys = sorted(self._looks)
        looks = [self._looks[key] for key in keys]
        limit = LEAST_SHARPNESS * float(np.median([look.sharpness for look in looks])) if looks else 0.0
        sharp = [place for place, look in enumerate(looks) if look.sharpness >= limit]
        distinct = [sharp[place] for place in first_of_their_like([looks[each].feature for each in sharp])]
        dropped = Dropped(
            unreadable=self._unreadable,
            uniform=self._uniform,
            noise=self._noise,
            blurred=len(looks) - len(sharp),
            duplicate=len(sharp) - len(distinct),
        )
        if not distinct:
            raise InputError(
                f"No frame of {source} can be used to calibrate.",
                f"{self.seen} looked at{f': {dropped}' if self.seen else ''}; random data is never used instead.",
                "Name pictures or a video of the camera where it will work.",
            )
        features = np.stack([looks[each].feature for each in distinct])
        picked = sorted(distinct[place] for place in farthest_points(features, count, seed))
        correlations = [looks[place].correlation for place in picked]
        return Choice(
            picked=tuple(keys[place] for place in picked),
            candidates=self.seen,
            dropped=dropped,
            statistics=Statistics(
                neighbour_correlation=round(float(np.median(correlations)), 4),
                least_neighbour_correlation=round(min(correlations), 4),
            ),
        )


def brightness(frame: Frame) -> npt.NDArray[np.float32]:
    """uint8 RGB `[H, W, 3]` to float32 `[H, W]`, 0..255, weighted as Rec. ITU-R BT.601 has it."""
    grey: Any = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return grey.astype(np.float32)  # type: ignore[no-any-return]


def neighbour_correlation(grey: npt.NDArray[np.float32]) -> float:
    """Pearson's correlation of pixels with their right and their lower neighbours, the mean of both.

    Args:
        grey: float32 `[H, W]`.

    Returns:
        -1..1; 1 where a picture does not vary in a direction.
    """

    def correlation(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
        if not one.size:
            return 1.0
        one, other = one - one.mean(), other - other.mean()
        spread = float(np.sqrt(np.vdot(one, one) * float(np.vdot(other, other))))
        return float(np.vdot(one, other)) / spread if spread > 0 else 1.0

    return (correlation(grey[:, 1:], grey[:, :-1]) + correlation(grey[1:], grey[:-1])) / 2


def sharpness(grey: npt.NDArray[np.float32]) -> float:
    """Variance of the Laplacian over that of the picture: the same in bright light and in dim, less where blurred.

    The numerator is Pech-Pacheco et al. 2000 (Diatom autofocusing in brightfield microscopy).

    Args:
        grey: float32 `[h, w]`, not uniform.
    """
    return float(cv2.Laplacian(grey, cv2.CV_32F).var()) / float(grey.var())


def first_of_their_like(features: Sequence[npt.NDArray[np.float64]]) -> list[int]:
    """Places of the vectors that are `LEAST_DISTANCE` or more away from each one kept before them.

    The distance of two is |a - b| / ((|a| + |b|) / 2): 0 for the same, whatever the features' scale.
    """
    places: list[int] = []
    if not features:
        return places
    kept = np.empty((len(features), len(features[0])))
    lengths = np.empty(len(features))
    for place, feature in enumerate(features):
        length = np.linalg.norm(feature)
        before = slice(len(places))
        apart = np.linalg.norm(kept[before] - feature, axis=1)
        if (apart >= LEAST_DISTANCE * (lengths[before] + length) / 2).all():
            kept[len(places)], lengths[len(places)] = feature, length
            places.append(place)
    return places


def farthest_points(features: npt.NDArray[np.float64], count: int, seed: int) -> list[int]:
    """Rows that cover all rows best, one after the other: each next one is the farthest from all before it.

    The greedy k-centre method (Gonzalez 1985), whose largest distance to a centre is at most twice the least
    possible. Channels are standardised first, so that each counts as much as the others.

    Args:
        features: `[N, channels]`.
        count: rows wanted; all N where they are fewer.
        seed: chooses the first row.

    Returns:
        Row numbers in the order in which they were chosen; the lower one of two that are as far.
    """
    spread = features.std(axis=0)
    points = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    chosen = [int(np.random.default_rng(seed).integers(len(points)))]
    distance = np.full(len(points), np.inf)
    while len(chosen) < min(count, len(points)):
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
        distance[chosen[-1]] = -1.0  # never again, not even where all are the same
        chosen.append(int(distance.argmax()))
    return chosen
