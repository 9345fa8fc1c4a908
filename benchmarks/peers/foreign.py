"""A foreign ONNX depth model, by its description, as a predictor that `mirrordepth_edge.bench` measures."""

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
SMALLEST = 1e-6
"""The least answer of a model without metres: some say zero for infinitely far, and depth has to be finite."""
WEIGHTS = {"float32": "fp32", "float16": "fp16"}


@dataclass(frozen=True, kw_only=True)
class InputDescription(Strict):
    """A picture: (pixel / 255 - mean) / std as float32, or the pixels themselves as uint8."""

    name: str
    layout: Literal["NCHW", "NHWC"]
    dtype: Literal["float32", "uint8"]
    size_hw: SizeHW
    """Frames are stretched to it, as ours are."""
    channels: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """In the order of `channels`, as is `std`."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.dtype == "uint8" and (any(self.mean) or set(self.std) != {1.0}):
            raise ValueError("a uint8 input takes pixels as they are, without mean and std")
        if min(*self.size_hw, *self.std) <= 0:
            raise ValueError("size_hw and std are positive")

    @property
    def spec(self) -> TensorSpec:
        shape = (1, 3, *self.size_hw) if self.layout == "NCHW" else (1, *self.size_hw, 3)
        return TensorSpec(name=self.name, dtype=self.dtype, shape=shape, layout=self.layout, range="", unit="")


@dataclass(frozen=True, kw_only=True)
class OutputDescription(Strict):
    """Depth, float32, one value a pixel."""

    name: str
    shape: tuple[int, ...]
    """As the model gives it for one frame: height and width, and ones around them."""
    kind: Literal["metric", "relative", "inverse"]
    """`inverse` grows towards the camera."""
    scale: float = 1.0
    """Depth is the output times this, in metres where `metric`; where `inverse` it is this over the output."""

    def __post_init__(self) -> None:
        if len(self.size_hw) != 2 or min(self.shape) < 1 or self.scale <= 0:
            raise ValueError("shape is height and width with ones around them, and scale is positive")

    @property
    def size_hw(self) -> tuple[int, ...]:
        return tuple(length for length in self.shape if length != 1)

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(name=self.name, dtype="float32", shape=self.shape, layout="", range="", unit=self.kind)


@dataclass(frozen=True, kw_only=True)
class Description(Strict):
    """What is to be known of a model."""

    name: str
    source: str
    """Where the model is from, and where the facts are."""
    input: InputDescription
    output: OutputDescription


class ForeignPredictor(DepthPredictor):
    """Frames in, depth out, with a foreign model's input and output; buffers are reused."""

    def __init__(self, session: Session, given: Description) -> None:
        self.session, self.trained, self.camera = session, True, None
        self.described = given
        self._pixels = np.empty((*given.input.size_hw, 3), np.uint8)
        self._image = np.empty(given.input.spec.shape, given.input.dtype)
        self._depth = np.empty((1, *given.output.size_hw), np.float32)
        self._postprocess = Postprocessor()
        # A view: what is resized into the pixels shows in it, in the model's order.
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
            answer = np.maximum(answer, np.float32(SMALLEST), out=self._depth)
        if output.kind == "inverse":
            np.divide(scale, answer, out=self._depth)
        else:
            np.multiply(scale, answer, out=self._depth)
        return self._postprocess(self._depth, size_hw)


def read_description(name: str) -> Description:
    """A description, by its name in `models/` or by its file."""
    path = Path(name) if name.endswith(".toml") else MODELS / f"{name}.toml"
    if not path.is_file():
        names = ", ".join(sorted(each.stem for each in MODELS.glob("*.toml")))
        raise OptionError(f"There is no description {path}.", f"In {MODELS} are {names}.", "Name one, or a .toml file.")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no valid TOML.", str(error), CURE) from error
    return read_strict(Description, data, str(path), CURE)


def open_foreign(path: Path, given: Description, options: SessionOptions) -> tuple[ForeignPredictor, float]:
    """A predictor that has run once, and the size of the model's files in MB (10^6 bytes).

    Raises:
        InputError: the file is no ONNX model, or not the one that is described.
    """
    existing_file(path, "model")
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf's, of several kinds
        raise InputError(f"{path} is no ONNX model.", str(error), "Copy it again.") from error
    fixed = {tensor.name for tensor in graph.initializer}  # inputs too, in old files
    _check(path, [each for each in graph.input if each.name not in fixed], given.input.spec, "input", alone=True)
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
        raise InputError(f"{path} does not run as it is described.", why, CURE) from error
    outside = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    return ForeignPredictor(session, given), sum(
        each.stat().st_size / 1e6 for each in (path, *(path.parent / name for name in outside))
    )


def _check(path: Path, found: Sequence[Any], spec: TensorSpec, what: str, *, alone: bool) -> None:
    """Refuse a model without this tensor; a dimension that the model leaves free takes any size."""
    told = []
    for each in found:
        tensor = each.type.tensor_type
        sides = [side.dim_value if side.HasField("dim_value") else None for side in tensor.shape.dim]
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        told.append(f"{each.name} {dtype} [{', '.join('?' if side is None else str(side) for side in sides)}]")
        fits = len(sides) == len(spec.shape) and all(a in (None, b) for a, b in zip(sides, spec.shape, strict=True))
        if (each.name, dtype, fits) == (spec.name, spec.dtype, True) and not (alone and len(found) > 1):
            return
    raise InputError(
        f"{path} is not the model that is described.",
        f"The description has the {what} {spec.name} {spec.dtype} {list(spec.shape)}, the file {', '.join(told)}.",
        "Name the file that the description is for, or correct the description.",
    )
