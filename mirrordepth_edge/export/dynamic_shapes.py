"""Models with dynamic shapes: the sizes they accept, session options per size, and copies with fixed shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.config import BuildConfig, SessionOptions, SizeRange, check_size
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.manifest import Manifest, TensorSpec

if TYPE_CHECKING:
    import onnx

Values = dict[str, npt.NDArray[Any]]


def options_per_size(manifest: Manifest, options: SessionOptions) -> Iterator[SessionOptions]:
    """Yield session options for each size to verify: min, opt and max, or only one if the shape is fixed."""
    if manifest.sizes is None:
        yield options
        return
    for batch, height, width in dict.fromkeys(manifest.sizes):
        yield replace(options, network_hw=(height, width), batch=batch)


def resolve_sizes(config: BuildConfig, source: Manifest) -> BuildConfig:
    """Fill in the sizes of an engine: the requested ones, or all that its ONNX file accepts.

    Raises:
        OptionError: the file has a fixed shape, or does not accept the requested sizes.
    """
    accepted, requested = source.sizes, config.dynamic
    if requested is None:
        return replace(config, dynamic=accepted)
    if accepted is None:
        batch, height, width = source.inputs[0].size if requested.dynamic_axes else requested.opt
        raise OptionError(
            "--dynamic needs an ONNX file with dynamic shapes.",
            f"This file has the fixed shape {batch} x {height}x{width} pixels.",
            f"Export it with dynamic shapes: mde export --dynamic {requested}; or omit --dynamic.",
        )
    for _, height, width in requested:
        check_size(source.model, (height, width))
    if not set(requested.dynamic_axes) <= set(accepted.dynamic_axes) or not all(
        accepted.has(size) for size in requested
    ):
        raise OptionError(
            f"--dynamic {requested} exceeds the range of the ONNX file.",
            f"It was exported for {accepted}.",
            f"--dynamic {accepted}, or export it with a wider range.",
        )
    return config


def manifest_for_sizes(source: Manifest, sizes: SizeRange | None) -> Manifest:
    """Return an ONNX file's manifest, restricted to the sizes that an engine of it accepts."""
    if sizes is None:
        return source
    batch, height, width = sizes.opt
    at_opt = source.at((height, width), batch)
    return replace(at_opt, inputs=source.inputs, outputs=source.outputs, sizes=sizes)


def fix_shapes(model: onnx.ModelProto, inputs: Sequence[TensorSpec]) -> onnx.ModelProto:
    """Return a copy of a model with fixed input shapes; the model itself if its shapes are fixed already.

    Values that depend on shapes alone become constants, as they do in a runtime that knows the size. All other names
    are kept, so that results about the copy's nodes and tensors apply to the model.

    Args:
        inputs: specifications of the inputs, with the shapes to use.
    """
    import onnx

    if all(dim.HasField("dim_value") for value in model.graph.input for dim in value.type.tensor_type.shape.dim):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, shapes = copy.graph, {spec.name: spec.shape for spec in inputs}
    for value in graph.input:
        for dim, length in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            dim.dim_value = length
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    del graph.value_info[:]
    values = _shape_values(onnx.shape_inference.infer_shapes(copy).graph)
    kept = [node for node in graph.node if not set(node.output) <= values.keys()]
    del graph.node[:]
    graph.node.extend(kept)
    read = {name for node in kept for name in node.input}
    graph.initializer.extend(onnx.numpy_helper.from_array(values[name], name) for name in sorted(read & values.keys()))
    return onnx.shape_inference.infer_shapes(copy)


def _shape_values(graph: onnx.GraphProto) -> Values:
    """Compute every tensor that depends only on shapes and constants, by name."""
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    shapes = _fixed_shapes(graph)
    constants = {initializer.name: initializer for initializer in graph.initializer}
    values: Values = {}
    for node in graph.node:
        names = {name for name in node.input if name}
        if node.op_type == "Shape" and node.input[0] in shapes:
            attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            lengths = shapes[node.input[0]][attributes.get("start", 0) : attributes.get("end")]
            values[node.output[0]] = np.array(lengths, np.int64)
        # At least one input must come from a shape: nodes that read constants only are left to the runtime.
        elif not names.isdisjoint(values) and names <= values.keys() | constants.keys():
            feeds = {name: values[name] if name in values else numpy_helper.to_array(constants[name]) for name in names}
            outputs: Any = ReferenceEvaluator(node).run(None, feeds)
            values.update(zip(node.output, outputs, strict=True))
    return values


def _fixed_shapes(graph: onnx.GraphProto) -> dict[str, list[int]]:
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info)
        if all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    }
