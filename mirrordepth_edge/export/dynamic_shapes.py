"""Artefacts that take several sizes: which, and how each of them is opened."""

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


def at_every_size(manifest: Manifest, options: SessionOptions) -> Iterator[SessionOptions]:
    """Options that open a file as it is proven: once, or at the smallest, the usual and the largest of its sizes."""
    if manifest.sizes is None:
        yield options
        return
    for batch, height, width in dict.fromkeys(manifest.sizes):
        yield replace(options, network_hw=(height, width), batch=batch)


def with_sizes(config: BuildConfig, source: Manifest) -> BuildConfig:
    """Options with the sizes that an engine of this ONNX file takes: those asked for, or all that the file takes.

    Raises:
        OptionError: the file's sizes are fixed, or it does not take these.
    """
    own, asked = source.sizes, config.dynamic
    if asked is None:
        return replace(config, dynamic=own)
    if own is None:
        fixed = asked.opt if asked.dynamic_axes == "" else source.inputs[0].size
        raise OptionError(
            "--dynamic has nothing to work on: the ONNX file's sizes are fixed.",
            f"It takes {fixed[0]} of {fixed[1]}x{fixed[2]} pixels.",
            f"Export it with open ones: mde export --dynamic {asked}; or leave --dynamic out.",
        )
    for _, height, width in asked:
        check_size(source.model, (height, width))
    if not set(asked.dynamic_axes) <= set(own.dynamic_axes) or not all(own.has(size) for size in asked):
        raise OptionError(
            f"--dynamic {asked} is more than the ONNX file takes.",
            f"It was exported for {own}.",
            f"--dynamic {own}, or export it with a wider range.",
        )
    return config


def of_sizes(source: Manifest, sizes: SizeRange | None) -> Manifest:
    """What an ONNX file's manifest says of an engine that takes these sizes of its."""
    if sizes is None:
        return source
    batch, height, width = sizes.opt
    usual = source.at((height, width), batch)
    return replace(usual, inputs=source.inputs, outputs=source.outputs, sizes=sizes)


def fixed(model: onnx.ModelProto, inputs: Sequence[TensorSpec]) -> onnx.ModelProto:
    """A copy whose inputs have these shapes, from which all others follow; the model itself if none is open.

    What depends on lengths alone becomes constants, as it does in a runtime that is told the size. All other names
    stay, so that what is found of the copy's nodes and tensors holds for the model's.
    """
    import onnx

    if all(dim.HasField("dim_value") for each in model.graph.input for dim in each.type.tensor_type.shape.dim):
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
    known = _of_lengths_alone(onnx.shape_inference.infer_shapes(copy).graph)
    kept = [node for node in graph.node if not set(node.output) <= known.keys()]
    del graph.node[:]
    graph.node.extend(kept)
    read = {name for node in kept for name in node.input}
    graph.initializer.extend(onnx.numpy_helper.from_array(known[name], name) for name in sorted(read & known.keys()))
    return onnx.shape_inference.infer_shapes(copy)


def _of_lengths_alone(graph: onnx.GraphProto) -> dict[str, npt.NDArray[Any]]:
    """Every value that nodes make of tensors' shapes, and of these and constants, by name."""
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    constants = {each.name: each for each in graph.initializer}
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info)
        if all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    }
    known: dict[str, npt.NDArray[Any]] = {}
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] in shapes:
            told = {each.name: helper.get_attribute_value(each) for each in node.attribute}
            known[node.output[0]] = np.array(shapes[node.input[0]][told.get("start", 0) : told.get("end")], np.int64)
        elif known.keys() & set(node.input) and all(name in known or name in constants for name in node.input if name):
            given = {n: known[n] if n in known else numpy_helper.to_array(constants[n]) for n in node.input if n}
            made: Any = ReferenceEvaluator(node).run(None, given)
            known.update(zip(node.output, made, strict=True))
    return known
