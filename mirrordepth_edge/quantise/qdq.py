"""INT8 as explicit Q/DQ: passes from ONNX to ONNX that choose the quantised layers and insert Q/DQ pairs.

Weights have one scale per channel, activations one per tensor. Layers with weights are quantised: Conv, ConvTranspose,
Gemm, MatMul. Everything that transformers are sensitive to stays in floating point: residual sums, whose few outlier
channels would determine the scale of all others, LayerNormalization, Softmax, activation functions, the products of
attention, and the metric head. (NVIDIA Model Optimizer quantises the sums by default, which reduces a ViT-B/16 from
85 % top-1 to 5 %: github.com/onnxsim/onnxsim, issue 1742.)

Model Optimizer's own quantiser is not used, because it holds the activations of all frames in memory (4.2 GB for four
frames of a ViT-B/16) and calibrates again for every choice of layers; the gate and the sweep try dozens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.config import QuantisationScheme
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.graph.activations import Range, Ranges
from mirrordepth_edge.graph.names import HEAD_PREFIX, POSITIONS_PREFIX

if TYPE_CHECKING:
    import onnx

CHANNEL_AXIS: Final = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1, "Gemm": 1}
"""Axis of the output channels in a weight (0 for a Gemm with transB)."""
CONVOLUTIONS = ("Conv", "ConvTranspose")
ACTIVATIONS = ("Relu", "Clip")
"""Functions that integer convolution kernels fuse, because they only clip what the scale clips anyway."""
VALUE_PRESERVING = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Split", "Cast", "Identity")
"""Operators that do not change values."""
WEIGHT_LIMIT = 127
"""Largest magnitude of a quantised weight; TensorRT requires a range that is symmetric about zero."""
MIN_OPSET = {"float32": 13, "float16": 19}
"""First ONNX opset whose Q/DQ has per-channel scales, by the type of the scales."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where Q/DQ pairs are inserted."""

    inputs: tuple[str, ...]
    """Activations that quantised layers read."""
    outputs: tuple[str, ...]
    """Outputs of quantised convolutions. All their readers get the dequantised values, also floating-point layers.
    None of them is an operand of a transformer's residual sum."""
    residuals: tuple[str, ...]
    """Names of Adds whose residual operand is read dequantised."""


def opset_of(model: onnx.ModelProto) -> int:
    """Return the opset version of a model's standard operators."""
    return next(int(opset.version) for opset in model.opset_import if opset.domain in ("", "ai.onnx"))


def weight_nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return the nodes that multiply by constant weights, by name, in execution order."""
    constants = {initializer.name for initializer in model.graph.initializer}
    return {node.name: node for node in model.graph.node if node.op_type in CHANNEL_AXIS and node.input[1] in constants}


def quantisable(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the nodes that are quantised by default: all with weights, with three exceptions.

    Exceptions are the metric head, the nodes that resize position embeddings, and products that read a transformer's
    residual sum without a normalisation in between, as the decoder reads the taps of a ViT: the outlier channels of
    the sum would determine the scale of all others.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    constants = {initializer.name for initializer in model.graph.initializer}

    def reads_residual_sum(node: onnx.NodeProto) -> bool:
        name = node.input[0]
        while name in producers and producers[name].op_type in VALUE_PRESERVING:
            name = producers[name].input[0]
        producer = producers.get(name)
        return producer is not None and producer.op_type == "Add" and constants.isdisjoint(producer.input)

    return tuple(
        name
        for name, node in weight_nodes(model).items()
        if not name.startswith((HEAD_PREFIX, POSITIONS_PREFIX))
        and (node.op_type in CONVOLUTIONS or not reads_residual_sum(node))
    )


def layer_groups(nodes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Group nodes by module: `tower/…/resblocks/3/attn` contains `…/attn/qkv/MatMul` and others."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in nodes:
        groups[name.rsplit("/", 2)[0] if name.count("/") > 1 else name].append(name)
    return {group: tuple(names) for group, names in groups.items()}


def is_quantised(model: onnx.ModelProto) -> bool:
    """Whether a model has Q/DQ nodes."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)


def placement(model: onnx.ModelProto, nodes: Collection[str], scheme: QuantisationScheme) -> Placement:
    """Decide where to insert Q/DQ pairs so that `nodes` run in INT8.

    For GPUs, pairs are inserted in front of each layer. A sum whose other operand comes from a quantised convolution
    reads its residual operand dequantised if that has a pair anyway, so that TensorRT fuses both into one kernel
    (NVIDIA, TensorRT developer guide, Q/DQ placement recommendations).

    For CPUs, outputs of convolutions are quantised too: ONNX Runtime's integer convolutions need that, and run in
    floating point otherwise. Residual sums of transformers are excluded. Layers that stay in floating point are not:
    they read the rounded output of the convolution before them, because excluding them would make the whole shipped
    network about 10 % slower for the sake of its head.
    """
    chosen = [node for node in model.graph.node if node.name in nodes]
    inputs = tuple(dict.fromkeys(node.input[0] for node in chosen))
    sums = _transformer_sums(model)
    if scheme == "cpu":
        outputs = _kernel_outputs(model, chosen)
        excluded = sums | {output.name for output in model.graph.output}
        return Placement(inputs=inputs, outputs=tuple(name for name in outputs if name not in excluded), residuals=())
    convolved = {node.output[0] for node in chosen if node.op_type in CONVOLUTIONS}
    residuals = (
        node.name
        for node in model.graph.node
        if node.op_type == "Add" and node.output[0] not in sums and _fuses(node, convolved, inputs)
    )
    return Placement(inputs=inputs, outputs=(), residuals=tuple(residuals))


def _kernel_outputs(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> tuple[str, ...]:
    """Outputs of the convolutions among `nodes`, behind the activation function if the kernel fuses it."""
    readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = []
    for node in nodes:
        if node.op_type in CONVOLUTIONS:
            following = readers[node.output[0]]
            is_fused = len(following) == 1 and following[0].op_type in ACTIVATIONS
            outputs.append(following[0].output[0] if is_fused else node.output[0])
    return tuple(dict.fromkeys(outputs))


def _fuses(add: onnx.NodeProto, convolved: Collection[str], inputs: Collection[str]) -> bool:
    """Whether TensorRT can fuse a sum with the quantised convolution that makes one of its operands."""
    first, second = add.input
    return (first in convolved and second in inputs) or (second in convolved and first in inputs)


def _transformer_sums(model: onnx.ModelProto) -> set[str]:
    """Operands and results of a transformer's residual sums.

    These are the Adds that a LayerNormalization reads, directly or through further Adds. Sums of convolutions are read
    by convolutions, and have no outliers.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    sums: set[str] = set()
    pending = [(node.input[0], False) for node in model.graph.node if node.op_type == "LayerNormalization"]
    seen = set(pending)
    while pending:
        name, is_operand = pending.pop()
        producer = producers.get(name)
        is_sum = producer is not None and producer.op_type == "Add"
        if is_sum or is_operand:
            sums.add(name)
        if producer is not None and (is_sum or producer.op_type in (*VALUE_PRESERVING, "Concat")):
            new = {(source, is_sum or is_operand) for source in producer.input} - seen
            seen |= new
            pending.extend(new)
    return sums


def calibrated_tensors(model: onnx.ModelProto, nodes: Sequence[str], scheme: QuantisationScheme) -> tuple[str, ...]:
    """Return the activations whose ranges `quantise` needs."""
    places = placement(model, nodes, scheme)
    return tuple(dict.fromkeys((*places.inputs, *places.outputs)))


def quantise(
    model: onnx.ModelProto, nodes: Sequence[str], ranges: Ranges, scheme: QuantisationScheme
) -> onnx.ModelProto:
    """Insert Q/DQ pairs so that `nodes` run in INT8.

    Layers share Q/DQ pairs, so they are placed for all layers at once.

    Args:
        model: FP32, or FP16 from `to_fp16`, without Q/DQ and with an opset of at least `MIN_OPSET`; it is not changed.
        nodes: names of nodes with constant weights, such as `quantisable(model)`.
        ranges: of the activations that `calibrated_tensors` returns for the FP32 model. An FP16 model differs from it
            only by casts.
        scheme: `gpu` is symmetric int8, as TensorRT requires; `cpu` is asymmetric uint8, which is three times as fast
            in ONNX Runtime's x86 kernels.

    Raises:
        InputError: an activation has no range.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    chosen = set(nodes) & weight_nodes(result).keys()
    _QdqInserter(result, ranges, scheme).run(chosen, placement(result, chosen, scheme))
    onnx.checker.check_model(result)
    return result


class _QdqInserter:
    """Walks through a graph in execution order and inserts each Q/DQ pair before its first use."""

    def __init__(self, model: onnx.ModelProto, ranges: Ranges, scheme: QuantisationScheme) -> None:
        self.model, self.ranges, self.scheme = model, ranges, scheme
        self.graph = model.graph
        self.constants = {initializer.name: initializer for initializer in self.graph.initializer}
        self.producers = {name: node for node in self.graph.node for name in node.output}
        self.dequantised: dict[str, str] = {}
        """Names of dequantised tensors, by the original tensor."""
        self.scales: dict[str, npt.NDArray[Any]] = {}
        """Scales by the dequantised tensor."""
        self.nodes: list[onnx.NodeProto] = []

    def run(self, chosen: set[str], places: Placement) -> None:
        """Insert the pairs and replace the graph's nodes and initializers."""
        residuals, outputs, inputs = set(places.residuals), set(places.outputs), set(places.inputs)
        replaced: dict[str, str] = {}
        for node in [*self.graph.node]:
            self._rename_inputs(node, replaced)
            if node.name in chosen:
                self._quantise_node(node, inputs)
            elif node.name in residuals:
                self._rename_inputs(node, self.dequantised)
            self.nodes.append(node)
            for name in node.output:
                if name in outputs:
                    replaced[name] = self._activation(name, "float32")
        self._replace_graph()

    def _rename_inputs(self, node: onnx.NodeProto, names: Mapping[str, str]) -> None:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)

    def _quantise_node(self, node: onnx.NodeProto, inputs: set[str]) -> None:
        import onnx

        if node.input[0] in inputs:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(self.constants[node.input[1]].data_type)
            node.input[0] = self._activation(node.input[0], dtype)
        node.input[1] = self._weight(node)
        if self.scheme == "cpu" and node.op_type == "Conv" and len(node.input) > 2:
            node.input[2] = self._bias(node)

    def _activation(self, name: str, dtype: npt.DTypeLike) -> str:
        """Insert a Q/DQ pair behind an activation and return the dequantised tensor."""
        if name in self.dequantised:
            return self.dequantised[name]
        low, high = self._range(name)
        if self.scheme == "gpu":
            step, zero = max(-low, high) / WEIGHT_LIMIT, np.array(0, np.int8)
        else:
            step = (high - low) / 255
            zero = np.array(round(-low / step) if step > 0 else 0, np.uint8)
        scale = rounded_up(np.array(step if step > 0 else 1), dtype)
        ends = self._constant(f"{name}_scale", scale), self._constant(f"{name}_zero", zero)
        self._add("QuantizeLinear", [name, *ends], f"{name}_q", f"{name}/Q")
        return self._dequantise(name, [f"{name}_q", *ends], scale)

    def _range(self, name: str) -> tuple[float, float]:
        # Ranges have the names of the FP32 model; an FP16 model has casts in between.
        origin = name
        while origin not in self.ranges and origin in self.producers and self.producers[origin].op_type == "Cast":
            origin = self.producers[origin].input[0]
        if origin not in self.ranges:
            raise InputError(
                f"The activation {name} has no calibrated range.",
                "The ranges were calibrated on another model.",
                "Calibrate this model: mde export --int8 --calib NAME",
            )
        limits: Range = self.ranges[origin]
        return limits.low, limits.high

    def _weight(self, node: onnx.NodeProto) -> str:
        """Store a node's weights as integers and return the dequantised tensor."""
        import onnx

        name = node.input[1]
        if name in self.dequantised:
            return self.dequantised[name]
        axis = CHANNEL_AXIS[node.op_type]
        if node.op_type == "Gemm" and any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
            axis = 0
        values, scale = quantised_weight(onnx.numpy_helper.to_array(self.constants[name]), axis)
        ends = [
            self._constant(f"{name}_q", values),
            self._constant(f"{name}_scale", scale),
            self._constant(f"{name}_zero", np.zeros(len(scale), np.int8)),
        ]
        return self._dequantise(name, ends, scale, axis=axis)

    def _bias(self, node: onnx.NodeProto) -> str:
        """Store a convolution's bias as int32 with the accumulator's scale and return the dequantised tensor.

        ONNX Runtime's integer convolutions need it. Version 1.24 converts an FP32 bias itself; 1.22 does so for only 23
        of `nano`'s 57 and is then 2.3 times slower than FP32; 1.20 does so for none.
        """
        import onnx

        input_scale, weight_scale = (self.scales[name] for name in node.input[:2])
        scale = (input_scale.astype(np.float64) * weight_scale).astype(np.float32)
        bias = onnx.numpy_helper.to_array(self.constants[node.input[2]]).astype(np.float64)
        integers = np.rint(bias / scale)
        if np.abs(integers).max() > np.iinfo(np.int32).max:
            return str(node.input[2])
        name = f"{node.name}/bias"
        ends = [self._constant(f"{name}_q", integers.astype(np.int32)), self._constant(f"{name}_scale", scale)]
        return self._dequantise(name, ends, scale, axis=0)

    def _dequantise(self, name: str, inputs: list[str], scale: npt.NDArray[Any], **attributes: Any) -> str:
        output = self._add("DequantizeLinear", inputs, f"{name}_dq", f"{name}/DQ", **attributes)
        self.dequantised[name], self.scales[output] = output, scale
        return output

    def _constant(self, name: str, value: npt.NDArray[Any] | np.generic) -> str:
        import onnx

        self.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def _add(self, operator: str, inputs: list[str], output: str, name: str, **attributes: Any) -> str:
        import onnx

        self.nodes.append(onnx.helper.make_node(operator, inputs, [output], name, **attributes))
        return output

    def _replace_graph(self) -> None:
        # Copies, because deleting the graph's nodes invalidates references to them.
        nodes = [type(node).FromString(node.SerializeToString()) for node in self.nodes]
        read = {name for node in nodes for name in node.input}
        kept = [initializer for initializer in self.graph.initializer if initializer.name in read]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(kept)


def quantised_weight(weight: npt.NDArray[Any], axis: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[Any]]:
    """Quantise weights per channel.

    Args:
        weight: float16 or float32.
        axis: axis of the output channels.

    Returns:
        int8 weights -127 to 127 of `weight`'s shape, and scales `[channels]` of `weight`'s type. Their product is the
        weight to half a step. A channel of zeros has scale 1.
    """
    others = tuple(index for index in range(weight.ndim) if index != axis)
    largest = np.abs(weight.astype(np.float64)).max(axis=others)
    # The scale is rounded first, so that the integers match the stored scale.
    scale = rounded_up(np.where(largest > 0, largest / WEIGHT_LIMIT, 1), weight.dtype)
    shape = [1] * weight.ndim
    shape[axis] = -1
    integers = np.rint(weight.astype(np.float64) / scale.astype(np.float64).reshape(shape))
    return integers.astype(np.int8), scale


def rounded_up(scale: npt.NDArray[np.float64], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Round up to the next number of a type, so that nothing is clipped even where FP16 is coarse."""
    rounded = scale.astype(dtype)
    up = np.nextafter(rounded, np.asarray(np.inf, dtype))
    return np.where(rounded.astype(np.float64) < scale, up, rounded)
