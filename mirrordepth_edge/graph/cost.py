"""Cost of an ONNX graph: MACs, parameters and bytes, counted from its shapes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from mirrordepth_edge.errors import InputError

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]

COUNTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operators whose MACs are counted."""
LAYOUT = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
"""Operators that only change shape or order."""
QUANTISERS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, kw_only=True)
class GraphCost:
    """Cost of one inference."""

    macs: int
    """MACs of Conv, ConvTranspose, MatMul and Gemm; one MAC is two FLOPs."""
    parameters: int
    """Number of elements of floating-point and quantised constants, without the scales of quantisation."""
    nodes: int


@dataclass(frozen=True, kw_only=True)
class NodeCost:
    """Cost of one node in one inference. Bytes assume that it is not fused with other nodes."""

    name: str
    """Name of the node, or of its first output if it has none."""
    macs: int
    """0 for operators not in `COUNTED`."""
    weight_bytes: int
    """Bytes of its constants as stored; for dequantised constants, of the integers."""
    activation_bytes: int
    """Bytes of activations read and written. Dequantised tensors count as integers; DequantizeLinear itself is free,
    because runtimes fuse it, and so are nodes that depend on constants only, which run once."""


@dataclass(frozen=True)
class Tensors:
    """Tensors of a graph with fixed shapes, by name.

    Attributes:
        shapes: known shapes.
        dtypes: element types, values of `onnx.TensorProto.DataType`.
        makers: the node that computes a tensor; missing for inputs and initializers.
        readers: the nodes that read a tensor, in the graph's order.
        initializers: initializers by name.
        constants: names of the tensors that do not depend on the input.
    """

    shapes: dict[str, Shape]
    dtypes: dict[str, int]
    makers: dict[str, onnx.NodeProto]
    readers: dict[str, list[onnx.NodeProto]]
    initializers: dict[str, onnx.TensorProto]
    constants: set[str]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Tensors:
        """Read the shapes and types of a model, with ONNX shape inference."""
        import onnx

        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        shapes: dict[str, Shape] = {}
        dtypes: dict[str, int] = {}
        for value in (*graph.value_info, *graph.input, *graph.output):
            tensor = value.type.tensor_type
            dtypes[value.name] = tensor.elem_type
            if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
                shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
        initializers = {initializer.name: initializer for initializer in graph.initializer}
        for name, initializer in initializers.items():
            shapes[name], dtypes[name] = tuple(initializer.dims), initializer.data_type
        constants = set(initializers)
        makers: dict[str, onnx.NodeProto] = {}
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            if all(name in constants for name in node.input if name):
                constants.update(node.output)
            makers.update((name, node) for name in node.output if name)
            for name in dict.fromkeys(filter(None, node.input)):
                readers.setdefault(name, []).append(node)
        return cls(shapes, dtypes, makers, readers, initializers, constants)

    def shape(self, name: str) -> Shape:
        """Return the shape of a tensor.

        Raises:
            InputError: it is not fixed.
        """
        if name not in self.shapes:
            raise InputError(
                f"The shape of '{name}' is not fixed.",
                "Cost is counted at fixed shapes; this model has dynamic shapes, or custom operators.",
                "Fix the shapes: python -m onnxruntime.tools.make_dynamic_shape_fixed --help. Files from mde export do "
                "not need this if their manifest is beside them.",
            )
        return self.shapes[name]

    def source(self, name: str) -> str:
        """Return the tensor that `name` is a reshaped or transposed view of; `name` itself if it is none."""
        while (maker := self.makers.get(name)) is not None and maker.op_type in LAYOUT:
            name = maker.input[0]
        return name

    def uncast(self, name: str) -> str:
        """Return the tensor that `name` is a cast of; `name` itself if it is none."""
        while (maker := self.makers.get(name)) is not None and maker.op_type == "Cast":
            name = maker.input[0]
        return name

    def stored(self, name: str) -> str:
        """Return the tensor that is read from memory for `name`: the integers if it is dequantised."""
        maker = self.makers.get(self.source(name))
        return name if maker is None or maker.op_type != "DequantizeLinear" else maker.input[0]

    def bytes(self, name: str) -> int:
        """Return the size of a tensor in bytes; two 4-bit numbers share a byte."""
        return (prod(self.shape(name)) * bits(self.dtypes[name]) + 7) // 8


def bits(dtype: int) -> int:
    """Return the width of an element type in bits.

    Args:
        dtype: a value of `onnx.TensorProto.DataType`.
    """
    import onnx

    if dtype in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return 4
    return 8 * int(onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize)


def node_costs(model: onnx.ModelProto) -> tuple[NodeCost, ...]:
    """Return the cost of each node of a model, in execution order.

    Args:
        model: an ONNX model with fixed shapes, of any precision.

    Raises:
        InputError: a shape is not fixed.
    """
    tensors = Tensors.of(model)
    return tuple(node_cost(node, tensors) for node in model.graph.node)


def node_cost(node: onnx.NodeProto, tensors: Tensors) -> NodeCost:
    """Return the cost of one node.

    Raises:
        InputError: a shape is not fixed.
    """
    free = node.op_type == "DequantizeLinear" or all(name in tensors.constants for name in node.output)
    inputs = () if free else tuple(filter(None, node.input))
    weights = {tensors.stored(name) for name in inputs if name in tensors.constants}
    read = {tensors.stored(name) for name in inputs if name not in tensors.constants}
    written = () if free else tuple(filter(None, node.output))
    return NodeCost(
        name=node.name or node.output[0],
        macs=_macs(node, tensors),
        weight_bytes=sum(map(tensors.bytes, weights)),
        activation_bytes=sum(map(tensors.bytes, (*read, *written))),
    )


def graph_cost(model: onnx.ModelProto) -> GraphCost:
    """Return the cost of a model.

    Args:
        model: an ONNX model with fixed shapes.

    Raises:
        InputError: a shape is not fixed.
    """
    import onnx

    tensors = Tensors.of(model)
    floating = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    quantisers = [node for node in model.graph.node if node.op_type in QUANTISERS]
    quantised = {node.input[0] for node in quantisers}
    scales = {name for node in quantisers for name in node.input[1:]}
    return GraphCost(
        macs=sum(_macs(node, tensors) for node in model.graph.node),
        parameters=sum(
            prod(initializer.dims)
            for name, initializer in tensors.initializers.items()
            if name in quantised or (initializer.data_type in floating and name not in scales)
        ),
        nodes=len(model.graph.node),
    )


def _macs(node: onnx.NodeProto, tensors: Tensors) -> int:
    if node.op_type not in COUNTED or node.output[0] in tensors.constants:
        return 0
    first, second, output = map(tensors.shape, (node.input[0], node.input[1], node.output[0]))
    if node.op_type == "Conv":
        # weight: [out, in/groups, kh, kw]; each output element sums over the last three
        return prod(output) * prod(second[1:])
    if node.op_type == "ConvTranspose":
        # weight: [in, out/groups, kh, kw]; each input element is spread over the last three
        return prod(first) * prod(second[1:])
    if node.op_type == "MatMul":
        return prod(output) * first[-1]
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return prod(output) * first[0 if transposed else 1]
