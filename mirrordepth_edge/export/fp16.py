"""Convert FP32 ONNX to strongly typed FP16 with NVIDIA Model Optimizer's AutoCast."""

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
"""Operators that overflow or lose metric precision in FP16 in any layer."""
FP16_MAX = 65504.0
ACTIVATION_LIMIT = 32768.0
"""Nodes whose activations exceed this on the given frames stay FP32: half of FP16's range, as a margin."""


def to_fp16(
    onnx_path: Path, frames: Sequence[Frame], preprocess: PreprocessConfig, image: TensorSpec
) -> onnx.ModelProto:
    """Convert everything except LayerNormalization and the metric head to FP16; inputs and outputs keep their types.

    Args:
        onnx_path: the FP32 model.
        frames: real photos, whose activations show what would overflow.
        image: the specification of the input, at a fixed size.

    Raises:
        MissingError: Model Optimizer is not installed.
        InputError: the metric head was not found.
    """
    import onnx

    model = onnx.load(onnx_path, load_external_data=False)
    head = [node.name for node in model.graph.node if node.name.startswith(HEAD_PREFIX)]
    if not head:
        raise InputError(
            f"{onnx_path} has no node under {HEAD_PREFIX}.",
            "The metric head must stay FP32 and is identified by its node names.",
            "Install the torch version from constraints.txt and export again.",
        )
    with quiet_log(logging.WARNING), warnings.catch_warnings():  # AutoCast logs every tensor
        warnings.simplefilter("ignore")
        # Everything downstream of the head too: FP16 has too few digits for metres.
        fp32_nodes = [node.name for node in downstream(fix_shapes(model, [image]), head).graph.node]
        fp32_nodes += [node.name for node in model.graph.node if node.name.startswith(POSITIONS_PREFIX)]
        return _autocast(onnx_path, fp32_nodes, batches(frames, Preprocessor(preprocess, image.io), image.size[0]))


def check_range(onnx_path: Path, half: onnx.ModelProto, images: Iterable[npt.NDArray[Any]]) -> None:
    """Check that no activation that was converted to FP16 exceeds its range on real frames.

    Args:
        onnx_path: the FP32 model.
        half: its FP16 version, from `to_fp16`.
        images: network inputs.

    Raises:
        GateError: an activation exceeds FP16's largest number.
    """
    import onnx

    model, tensors = onnx.load(onnx_path), Tensors.of(half)
    computed = {name for node in model.graph.node for name in node.output}
    halves = {tensors.uncast(name) for name, dtype in tensors.dtypes.items() if dtype == onnx.TensorProto.FLOAT16}
    # The FP32 model runs, because the FP16 model would hide an overflow: ONNX Runtime's CPU kernels compute in FP32
    # and remove the casts in between.
    ranges = collect(model, sorted(halves & computed), images).ranges("max")
    overflows = {name: limits.extent for name, limits in ranges.items() if limits.extent > FP16_MAX}
    if overflows:
        worst = max(overflows, key=lambda name: overflows[name])
        raise GateError(
            "FP16 cannot represent the activations of this model; nothing was written.",
            f"{len(overflows)} activations exceed {FP16_MAX:.0f}; {worst} reaches {overflows[worst]:.3g}.",
            "Convert with photos on which they occur, so that those nodes stay FP32: --frames FOLDER; or use --fp32.",
        )


def _autocast(onnx_path: Path, fp32_nodes: Sequence[str], images: Iterable[npt.NDArray[Any]]) -> onnx.ModelProto:
    try:
        from modelopt.onnx.autocast import convert_to_mixed_precision
    except ImportError as error:
        raise missing_package("NVIDIA Model Optimizer", "FP16 export", "export") from error

    with tempfile.TemporaryDirectory() as folder:
        for index, image in enumerate(images):  # AutoCast reads one batch per file
            arrays: dict[str, Any] = {INPUT_NAME: image}
            np.savez(Path(folder) / f"{index}.npz", **arrays)
        model: onnx.ModelProto = convert_to_mixed_precision(
            str(onnx_path),
            low_precision_type="fp16",
            nodes_to_exclude=[f"^{re.escape(name)}$" for name in fp32_nodes],
            op_types_to_exclude=list(FP32_OPERATORS),
            data_max=ACTIVATION_LIMIT,
            keep_io_types=True,
            calibration_data=folder,
            providers=["cpu"],
        )
    return model
