"""What each group of layers does to depth when it alone multiplies in INT8.

Only what follows the group runs again: whatever is in front of it gives what it gives in FP32, which is computed once
for each frame and kept on the disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.backends.onnxruntime import create_inference_session
from mirrordepth_edge.config import QuantisationScheme, SessionOptions
from mirrordepth_edge.graph.activations import Ranges
from mirrordepth_edge.graph.subgraph import downstream, with_outputs
from mirrordepth_edge.quantise.qdq import quantise

if TYPE_CHECKING:
    import onnx

CPU = SessionOptions(device="cpu")


def measure_sensitivity(
    model: onnx.ModelProto,
    groups: Mapping[str, Sequence[str]],
    ranges: Ranges,
    scheme: QuantisationScheme,
    images: Sequence[npt.NDArray[Any]],
    known: Mapping[str, float] | None = None,
    on_group: Callable[[str, float], object] = lambda group, sensitivity: None,
) -> dict[str, float]:
    """Quantise one group at a time.

    Args:
        model: FP32, with one output, depth.
        groups: names of nodes by group.
        ranges: of their activations.
        images: network inputs.
        known: of groups measured before, which are not measured again.
        on_group: told of each that was measured.

    Returns:
        mean |d - d32| / d32 over all pixels of all images, by group, the most harmful first.
    """
    sensitivity = dict(known or {})
    missing = [group for group in groups if group not in sensitivity]
    parts = {group: downstream(model, groups[group]) for group in missing}
    cuts = {each.name for part in parts.values() for each in part.graph.input}
    with tempfile.TemporaryDirectory() as folder:
        kept = _Kept(Path(folder))
        if missing:
            kept.fill(model, cuts, images)
        for group, part in parts.items():
            quantised = quantise(part, groups[group], ranges, scheme).SerializeToString()
            session = create_inference_session(quantised, CPU, qdq_as_written=scheme == "gpu")
            names = [each.name for each in part.graph.input]
            errors = []
            for number in range(len(images)):
                (depth_m,) = session.run(None, {name: kept.read(number, name) for name in names})
                fp32_m = kept.read(number, model.graph.output[0].name)
                errors.append(np.mean(np.abs(depth_m - fp32_m) / fp32_m, dtype=np.float64))
            sensitivity[group] = float(np.nan_to_num(np.mean(errors), nan=np.inf))
            on_group(group, sensitivity[group])
    return dict(sorted(((group, sensitivity[group]) for group in groups), key=lambda each: -each[1]))


class _Kept:
    """Tensors of each frame on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.numbers: dict[str, int] = {}

    def fill(self, model: onnx.ModelProto, names: set[str], images: Sequence[npt.NDArray[Any]]) -> None:
        (image,), (depth,) = model.graph.input, model.graph.output
        wanted = [depth.name, *sorted(names - {image.name, depth.name})]
        self.numbers = {name: number for number, name in enumerate([*wanted, image.name])}
        session = create_inference_session(with_outputs(model, wanted[1:]).SerializeToString(), CPU)
        for number, each in enumerate(images):
            found = dict(zip(wanted, session.run(wanted, {image.name: each}), strict=True))
            for name, value in {**found, image.name: each}.items():
                np.save(self._path(number, name), value)

    def read(self, number: int, name: str) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = np.load(self._path(number, name))
        return found

    def _path(self, number: int, name: str) -> Path:
        return self.folder / f"{number}.{self.numbers[name]}.npy"
