"""Sensitivity of each group of layers: the depth error when it alone is quantised.

Only the nodes downstream of a group run again. Tensors upstream are the same as in FP32; they are computed once per
frame and kept on disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.backends.onnxruntime import create_inference_session
from mirrordepth_edge.config import QuantisationScheme
from mirrordepth_edge.export.parity import CPU
from mirrordepth_edge.graph.activations import Ranges
from mirrordepth_edge.graph.subgraph import downstream, with_outputs
from mirrordepth_edge.quantise.qdq import quantise

if TYPE_CHECKING:
    import onnx


def measure_sensitivity(
    model: onnx.ModelProto,
    groups: Mapping[str, Sequence[str]],
    ranges: Ranges,
    scheme: QuantisationScheme,
    images: Sequence[npt.NDArray[Any]],
    known: Mapping[str, float] | None = None,
    on_group: Callable[[str, float], object] = lambda group, sensitivity: None,
) -> dict[str, float]:
    """Quantise one group of layers at a time and measure the depth error.

    Args:
        model: FP32, with depth as its only output.
        groups: names of nodes by group.
        ranges: of their activations.
        images: network inputs.
        known: sensitivities that need not be measured again, by group.
        on_group: called with each group and its sensitivity once measured.

    Returns:
        Mean |d - d32| / d32 over all pixels of all images, by group, the most sensitive first.
    """
    sensitivity = dict(known or {})
    missing = [group for group in groups if group not in sensitivity]
    parts = {group: downstream(model, groups[group]) for group in missing}
    inputs = {value.name for part in parts.values() for value in part.graph.input}
    with tempfile.TemporaryDirectory() as folder:
        store = _TensorStore(Path(folder))
        if missing:
            store.fill(model, inputs, images)
        for group, part in parts.items():
            quantised = quantise(part, groups[group], ranges, scheme).SerializeToString()
            session = create_inference_session(quantised, CPU, qdq_as_written=scheme == "gpu")
            names = [value.name for value in part.graph.input]
            errors = []
            for frame in range(len(images)):
                (depth_m,) = session.run(None, {name: store.read(frame, name) for name in names})
                fp32_m = store.read(frame, model.graph.output[0].name)
                errors.append(np.mean(np.abs(depth_m - fp32_m) / fp32_m, dtype=np.float64))
            # NaN depth is the worst case, and NaN would break the sorting.
            sensitivity[group] = float(np.nan_to_num(np.mean(errors), nan=np.inf))
            on_group(group, sensitivity[group])
    return dict(sorted(((group, sensitivity[group]) for group in groups), key=lambda item: -item[1]))


class _TensorStore:
    """FP32 tensors of each frame, on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.numbers: dict[str, int] = {}

    def fill(self, model: onnx.ModelProto, names: set[str], images: Sequence[npt.NDArray[Any]]) -> None:
        """Run the model on all images and store the named tensors, its input and its output."""
        (image,), (depth,) = model.graph.input, model.graph.output
        outputs = [depth.name, *sorted(names - {image.name, depth.name})]
        self.numbers = {name: number for number, name in enumerate([*outputs, image.name])}
        session = create_inference_session(with_outputs(model, outputs[1:]).SerializeToString(), CPU)
        for frame, array in enumerate(images):
            tensors = dict(zip(outputs, session.run(outputs, {image.name: array}), strict=True))
            for name, value in {**tensors, image.name: array}.items():
                np.save(self._path(frame, name), value)

    def read(self, frame: int, name: str) -> npt.NDArray[Any]:
        """Read one tensor of one frame."""
        tensor: npt.NDArray[Any] = np.load(self._path(frame, name))
        return tensor

    def _path(self, frame: int, name: str) -> Path:
        return self.folder / f"{frame}.{self.numbers[name]}.npy"
