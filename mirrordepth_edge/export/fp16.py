"""FP32 ONNX to strongly typed FP16, by NVIDIA Model Optimizer's AutoCast."""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.config import PreprocessConfig
from mirrordepth_edge.errors import GateError, InputError, missing_package
from mirrordepth_edge.export.dynamic_shapes import fix_shapes
from mirrordepth_edge.export.parity import batches
from mirrordepth_edge.graph.activations import collect
from mirrordepth_edge.graph.cost import Tensors
from mirrordepth_edge.graph.names import HEAD_PREFIX, POSITIONS_PREFIX
from mirrordepth_edge.graph.subgraph import downstream
from mirrordepth_edge.imaging.preprocess import Frame, Preprocessor
from mirrordepth_edge.manifest import INPUT_NAME
from mirrordepth_edge.support.quiet import quiet_log

if TYPE_CHECKING:
    import onnx

    from mirrordepth_edge.manifest import TensorSpec

FP32_OPERATORS = ("LayerNormalization", "Softplus")
"""Operators that overflow or lose metric depth in FP16, whatever the layer."""
LARGEST = 65504.0
"""FP16's largest number."""
ACTIVATION_LIMIT = 32768.0
"""Half of FP16's range: nodes whose values on the reference frames exceed it stay FP32."""


def to_fp16(
    onnx_path: Path, frames: Sequence[Frame], preprocess: PreprocessConfig, image: TensorSpec
) -> onnx.ModelProto:
    """Convert all but LayerNormalization and the metric head to FP16; inputs and outputs keep their types.

    Args:
        onnx_path: the FP32 model.
        frames: real pictures, whose activations decide what would overflow.
        image: its input; at one of its sizes, where it takes several.

    Raises:
        MissingError: Model Optimizer is not installed.
        InputError: the metric head cannot be told from the rest.
    """
    import onnx

    model = onnx.load(onnx_path, load_external_data=False)
    head = [node.name for node in model.graph.node if node.name.startswith(HEAD_PREFIX)]
    if not head:
        raise InputError(
            f"{onnx_path} has no node under {HEAD_PREFIX}.",
            "The metric head must stay FP32 and is found by its nodes' names.",
            "Use the torch version that constraints.txt names, and export again.",
        )
    with quiet_log(logging.WARNING), warnings.catch_warnings():  # AutoCast logs every tensor it looks at
        warnings.simplefilter("ignore")
        exact = [node.name for node in downstream(fix_shapes(model, [image]), head).graph.node]
        exact += [node.name for node in model.graph.node if node.name.startswith(POSITIONS_PREFIX)]
        prepare = Preprocessor(preprocess, image.io)
        return _autocast(onnx_path, exact, batches(frames, prepare, image.size[0]))


def check_range(onnx_path: Path, half: onnx.ModelProto, images: Iterable[npt.NDArray[Any]]) -> None:
    """Hold what became FP16 to what FP16 can hold, by the FP32 model's activations on real frames.

    Running the FP16 model itself would not show it: ONNX Runtime's CPU kernels compute in FP32 and drop the casts
    between them, so that what is infinite on a GPU is not there.

    Args:
        onnx_path: the FP32 model.
        half: what `to_fp16` made of it.
        images: network inputs.

    Raises:
        GateError: an activation is beyond FP16's largest number.
    """
    import onnx

    model, tensors = onnx.load(onnx_path), Tensors.of(half)
    made = {name for node in model.graph.node for name in node.output}
    halves = {tensors.uncast(name) for name, dtype in tensors.dtypes.items() if dtype == onnx.TensorProto.FLOAT16}
    found = collect(model, sorted(halves & made), images).ranges("max")
    beyond = {name: each.extent for name, each in found.items() if each.extent > LARGEST}
    if beyond:
        worst = max(beyond, key=lambda name: beyond[name])
        raise GateError(
            "FP16 cannot hold what this model computes; nothing was written.",
            f"{len(beyond)} activations exceed {LARGEST:.0f}, where FP16 ends; {worst} reaches {beyond[worst]:.3g}.",
            "Give pictures that show it to the conversion, which then keeps those parts in FP32: --frames FOLDER; or "
            "take --fp32.",
        )


def _autocast(onnx_path: Path, exact: Sequence[str], images: Iterable[npt.NDArray[Any]]) -> onnx.ModelProto:
    """All but the nodes named `exact`, the head and whatever passes its metres on: FP16 has no digits for them."""
    try:
        from modelopt.onnx.autocast import convert_to_mixed_precision
    except ImportError as error:
        raise missing_package("NVIDIA Model Optimizer", "FP16 export", "export") from error

    with tempfile.TemporaryDirectory() as folder:
        for index, image in enumerate(images):  # AutoCast takes a folder with one batch a file
            arrays: dict[str, Any] = {INPUT_NAME: image}
            np.savez(Path(folder) / f"{index}.npz", **arrays)
        model: onnx.ModelProto = convert_to_mixed_precision(
            str(onnx_path),
            low_precision_type="fp16",
            nodes_to_exclude=[f"^{re.escape(name)}$" for name in exact],
            op_types_to_exclude=list(FP32_OPERATORS),
            data_max=ACTIVATION_LIMIT,
            keep_io_types=True,
            calibration_data=folder,
            providers=["cpu"],
        )
    return model
