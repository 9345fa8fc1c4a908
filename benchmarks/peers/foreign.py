"""Predictors of third-party ONNX depth models from a description, for `mirrordepth_edge.bench`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import onnx

from mirrordepth_edge.backends.base import Arrays, Session
from mirrordepth_edge.backends.onnxruntime import OnnxRuntimeSession
from mirrordepth_edge.config import SessionOptions, SizeHW, Strict
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.imaging.postprocess import DepthMap, Postprocessor
from mirrordepth_edge.imaging.preprocess import Frame, check_frame, resize_frame
from mirrordepth_edge.manifest import TensorSpec
from mirrordepth_edge.predictor import DepthPredictor
from mirrordepth_edge.support.files import existing_file
from mirrordepth_edge.support.schema import read_strict

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MODELS = Path(__file__).parent / "models"
CURE = f"Compare it with {MODELS.parent / 'README.md'}."
MIN_OUTPUT = 1e-6
"""Minimum output of a non-metric model, because some output zero for infinite depth."""
WEIGHTS = {"float32": "fp32", "float16": "fp16"}


@dataclass(frozen=True, kw_only=True)
class InputDescription(Strict):
    """The input image: (pixel / 255 - mean) / std as float32, or uint8 pixels."""

    name: str
    layout: Literal["NCHW", "NHWC"]
    dtype: Literal["float32", "uint8"]
    size_hw: SizeHW
    """Frames are resized to it without keeping the aspect ratio, as for our models."""
    channels: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """In the order of `channels`, as is `std`."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.dtype == "uint8" and (any(self.mean) or set(self.std) != {1.0}):
            raise ValueError("a uint8 input cannot have mean and std")
        if min(*self.size_hw, *self.std) <= 0:
            raise ValueError("size_hw and std must be positive")

    @property
    def spec(self) -> TensorSpec:
        shape = (1, 3, *self.size_hw) if self.layout == "NCHW" else (1, *self.size_hw, 3)
        return TensorSpec(name=self.name, dtype=self.dtype, shape=shape, layout=self.layout, range="", unit="")


@dataclass(frozen=True, kw_only=True)
class OutputDescription(Strict):
    """The output: float32 depth per pixel."""

    name: str
    shape: tuple[int, ...]
    """Shape for one frame: height, width and dimensions of 1."""
    kind: Literal["metric", "relative", "inverse"]
    """`inverse` increases towards the camera."""
    scale: float = 1.0
    """Depth is the output times this (in metres if `metric`); for `inverse`, this over the output."""

    def __post_init__(self) -> None:
        if len(self.size_hw) != 2 or min(self.shape) < 1 or self.scale <= 0:
            raise ValueError("shape must be height, width and dimensions of 1, and scale positive")

    @property
    def size_hw(self) -> tuple[int, ...]:
        return tuple(length for length in self.shape if length != 1)

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(name=self.name, dtype="float32", shape=self.shape, layout="", range="", unit=self.kind)


@dataclass(frozen=True, kw_only=True)
class Description(Strict):
    """The description of a model."""

    name: str
    source: str
    """Sources of the model and of this description."""
    input: InputDescription
    output: OutputDescription


class ForeignPredictor(DepthPredictor):
    """Maps frames to depth with a third-party model; buffers are reused."""

    def __init__(self, session: Session, given: Description) -> None:
        self.session, self.trained, self.camera = session, True, None
        self.described = given
        self._pixels = np.empty((*given.input.size_hw, 3), np.uint8)
        self._image = np.empty(given.input.spec.shape, given.input.dtype)
        self._depth = np.empty((1, *given.output.size_hw), np.float32)
        self._postprocess = Postprocessor()
        # A view of the pixels in the model's channel order and layout.
        planar = given.input.layout == "NCHW"
        ordered = self._pixels[..., ::-1] if given.input.channels == "BGR" else self._pixels
        self._ordered = ordered.transpose(2, 0, 1) if planar else ordered
        shape, std = (3, 1, 1) if planar else (3,), np.array(given.input.std)
        self._gain = (1 / (255 * std)).astype(np.float32).reshape(shape)
        self._offset = (-np.array(given.input.mean) / std).astype(np.float32).reshape(shape)

    def prepare(self, frame: Frame) -> Arrays:
        check_frame(frame)
        resize_frame(frame, self.described.input.size_hw, out=self._pixels)
        if self._image.dtype == np.uint8:
            np.copyto(self._image[0], self._ordered)
        else:
            np.multiply(self._ordered, self._gain, out=self._image[0])
            np.add(self._image, self._offset, out=self._image)
        return {self.described.input.name: self._image}

    def finish(self, outputs: Arrays, size_hw: SizeHW, time_s: float | None = None) -> DepthMap:
        output = self.described.output
        answer, scale = outputs[output.name].reshape(self._depth.shape), np.float32(output.scale)
        if output.kind != "metric":
            answer = np.maximum(answer, np.float32(MIN_OUTPUT), out=self._depth)
        if output.kind == "inverse":
            np.divide(scale, answer, out=self._depth)
        else:
            np.multiply(scale, answer, out=self._depth)
        return self._postprocess(self._depth, size_hw)


def read_description(name: str) -> Description:
    """Read a description by its name in `models/` or by its file."""
    path = Path(name) if name.endswith(".toml") else MODELS / f"{name}.toml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in MODELS.glob("*.toml")))
        raise OptionError(
            f"There is no description {path}.", f"{MODELS} has {names}.", "Pass one of these, or a .toml file."
        )
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid TOML.", str(error), CURE) from error
    return read_strict(Description, data, str(path), CURE)


def open_foreign(path: Path, given: Description, options: SessionOptions) -> tuple[ForeignPredictor, float]:
    """Open and run a model once; return its predictor and the size of its files in MB (10^6 bytes).

    Raises:
        InputError: the file is not an ONNX model, or does not match the description.
    """
    existing_file(path, "model")
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf raises several types
        raise InputError(f"{path} is not an ONNX model.", str(error), "Copy it again.") from error
    fixed = {tensor.name for tensor in graph.initializer}  # old files list them as inputs too
    _check(path, [tensor for tensor in graph.input if tensor.name not in fixed], given.input.spec, "input", alone=True)
    _check(path, graph.output, given.output.spec, "output", alone=False)
    counts = {"none": 0}
    for tensor in graph.initializer:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        counts[dtype] = counts.get(dtype, 0) + int(np.prod(tensor.dims))
    weights = max(counts, key=lambda dtype: counts[dtype])
    described: Any = SimpleNamespace(
        inputs=(given.input.spec,),
        outputs=(given.output.spec,),
        precision=WEIGHTS.get(weights, weights),
        quantisation=None,
        sizes=None,
        at=lambda *_: described,
    )
    session = OnnxRuntimeSession(path, described, options)
    try:
        session.infer({given.input.name: np.zeros(given.input.spec.shape, given.input.dtype)})
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        why = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{path} cannot be run as described.", why, CURE) from error
    external = {
        entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    return ForeignPredictor(session, given), sum(
        file.stat().st_size / 1e6 for file in (path, *(path.parent / name for name in external))
    )


def _check(path: Path, tensors: Sequence[Any], spec: TensorSpec, what: str, *, alone: bool) -> None:
    """Refuse a model without this tensor; a dynamic dimension accepts any size."""
    described = []
    for value in tensors:
        tensor = value.type.tensor_type
        sides = [side.dim_value if side.HasField("dim_value") else None for side in tensor.shape.dim]
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        described.append(f"{value.name} {dtype} [{', '.join('?' if side is None else str(side) for side in sides)}]")
        fits = len(sides) == len(spec.shape) and all(a in (None, b) for a, b in zip(sides, spec.shape, strict=True))
        if (value.name, dtype, fits) == (spec.name, spec.dtype, True) and not (alone and len(tensors) > 1):
            return
    raise InputError(
        f"{path} does not match its description.",
        f"The description has the {what} {spec.name} {spec.dtype} {list(spec.shape)}, the file {', '.join(described)}.",
        "Pass the file of the description, or correct the description.",
    )
