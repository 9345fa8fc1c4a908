"""INT8 as explicit Q/DQ: pure passes from ONNX to ONNX that say which layers multiply in integers, and on which scales.

Weights have one scale a channel, activations one a tensor. What carries weights is quantised: Conv, ConvTranspose,
Gemm, MatMul. What a transformer does not survive never is: residual sums, whose few outlier channels would set the
scale of all others, LayerNormalization, Softmax, activation functions, products of attention, and the metric head.
(NVIDIA Model Optimizer's default quantises the sums too; that takes a ViT-B/16 from 85 % top-1 to 5 %:
github.com/onnxsim/onnxsim, issue 1742.)

Model Optimizer's own quantiser is not used here, because it holds the activations of all frames at once (4.2 GB for
four frames of a ViT-B/16) and calibrates anew for every choice of layers; the gate and the sweep try dozens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
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
"""Axis of a weight along which each index is one output channel (a Gemm with transB has it at 0)."""
CONVOLUTIONS = ("Conv", "ConvTranspose")
ACTIVATIONS = ("Relu", "Clip")
"""Functions that a convolution's integer kernel takes along, if they only cut off what the scale cuts off anyway."""
PASSING_ON = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Split", "Cast", "Identity")
"""Operators whose values are those of what they read."""
WEIGHT_LIMIT = 127
"""Weights take -127 to 127, so that negating one is possible, as TensorRT demands."""
FEWEST_OPSET = {"float32": 13, "float16": 19}
"""Versions of ONNX from which Q/DQ has one scale a channel, and scales of that type."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where Q/DQ pairs go."""

    inputs: tuple[str, ...]
    """Activations that quantised layers read."""
    outputs: tuple[str, ...]
    """Activations that quantised convolutions make; whoever reads them reads the dequantised ones, layers that stay
    floating point too. None of them is an operand of a transformer's residual sum."""
    residuals: tuple[str, ...]
    """Names of Adds whose residual operand is read dequantised."""


def opset_of(model: onnx.ModelProto) -> int:
    """Version of ONNX's own operators."""
    return next(int(each.version) for each in model.opset_import if each.domain in ("", "ai.onnx"))


def weight_nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Nodes that multiply by constant weights, by name, in the order in which they run."""
    constants = {initializer.name for initializer in model.graph.initializer}
    return {node.name: node for node in model.graph.node if node.op_type in CHANNEL_AXIS and node.input[1] in constants}


def quantisable(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes that are quantised by default: all with weights, but for three kinds.

    The metric head's, those that resize positions, and products that read a transformer's residual sum with no
    normalisation between, as the decoder reads a ViT's taps: the sum's outlier channels would set the scale of all
    others.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    constants = {initializer.name for initializer in model.graph.initializer}

    def reads_a_sum(node: onnx.NodeProto) -> bool:
        name = node.input[0]
        while name in producers and producers[name].op_type in PASSING_ON:
            name = producers[name].input[0]
        maker = producers.get(name)
        return maker is not None and maker.op_type == "Add" and constants.isdisjoint(maker.input)

    return tuple(
        name
        for name, node in weight_nodes(model).items()
        if not name.startswith((HEAD_PREFIX, POSITIONS_PREFIX))
        and (node.op_type in CONVOLUTIONS or not reads_a_sum(node))
    )


def layer_groups(nodes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Nodes by the module that they are part of: `tower/…/resblocks/3/attn` has `…/attn/qkv/MatMul` and others."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in nodes:
        groups[name.rsplit("/", 2)[0] if name.count("/") > 1 else name].append(name)
    return {group: tuple(names) for group, names in groups.items()}


def is_quantised(model: onnx.ModelProto) -> bool:
    """Whether a model has Q/DQ already."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)


def placement(model: onnx.ModelProto, nodes: Sequence[str], scheme: QuantisationScheme) -> Placement:
    """Where Q/DQ pairs go if `nodes` are to multiply in integers.

    GPUs: in front of each layer; a sum whose other operand comes from a quantised convolution reads its residual
    operand dequantised if that has a pair anyway, so that TensorRT runs both as one kernel (NVIDIA, TensorRT
    developer guide, Q/DQ placement recommendations). CPUs: ONNX Runtime's integer convolutions need their outputs
    quantised too, and run in floats otherwise. Whole residual sums of transformers are worth that, layers that stay
    floating point are not: they read what the convolution before them rounded. (For the shipped network's head alone,
    the whole network would take about a tenth longer.)
    """
    chosen = [node for node in model.graph.node if node.name in set(nodes)]
    inputs = tuple(dict.fromkeys(node.input[0] for node in chosen))
    readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    made = {}
    for node in chosen:
        if node.op_type in CONVOLUTIONS:
            out, after = node.output[0], readers[node.output[0]]
            made[out] = after[0].output[0] if len(after) == 1 and after[0].op_type in ACTIVATIONS else out
    summed = _summed_for_norms(model)
    if scheme == "cpu":
        whole = {each.name for each in model.graph.output} | summed
        outputs = (name for name in dict.fromkeys(made.values()) if name not in whole)
        return Placement(inputs=inputs, outputs=tuple(outputs), residuals=())
    sums = (
        node.name
        for node in model.graph.node
        if node.op_type == "Add"
        and node.output[0] not in summed
        and any(node.input[1 - place] in made and node.input[place] in inputs for place in (0, 1))
    )
    return Placement(inputs=inputs, outputs=(), residuals=tuple(sums))


def _summed_for_norms(model: onnx.ModelProto) -> set[str]:
    """Tensors that a transformer's residual sums read or make: those of Adds that a LayerNormalization reads, directly
    or by further Adds. Sums of convolutions are read by convolutions, and carry no outliers."""
    producers = {name: node for node in model.graph.node for name in node.output}
    summed: set[str] = set()
    above = [(node.input[0], False) for node in model.graph.node if node.op_type == "LayerNormalization"]
    seen = set(above)
    while above:
        name, is_operand = above.pop()
        maker = producers.get(name)
        is_sum = maker is not None and maker.op_type == "Add"
        if is_sum or is_operand:
            summed.add(name)
        if maker is not None and (is_sum or maker.op_type in (*PASSING_ON, "Concat")):
            new = {(each, is_sum or is_operand) for each in maker.input} - seen
            seen |= new
            above.extend(new)
    return summed


def calibrated_tensors(model: onnx.ModelProto, nodes: Sequence[str], scheme: QuantisationScheme) -> tuple[str, ...]:
    """Activations whose ranges `quantise` will ask for."""
    places = placement(model, nodes, scheme)
    return tuple(dict.fromkeys((*places.inputs, *places.outputs)))


def quantise(
    model: onnx.ModelProto, nodes: Sequence[str], ranges: Ranges, scheme: QuantisationScheme
) -> onnx.ModelProto:
    """Let `nodes` multiply in INT8; everything else stays as it is.

    Layers that are quantised already are left alone, so that a second pass over them changes nothing. A second pass
    cannot add to them: which pairs layers share is decided for all of them at once.

    Args:
        model: FP32, or FP16 as `to_fp16` makes it; it is not changed.
        nodes: names of nodes with constant weights, such as `quantisable(model)`.
        ranges: of the activations that `calibrated_tensors` names in the FP32 model, from which an FP16 model differs
            by casts only.
        scheme: `gpu` is symmetric int8 as TensorRT demands; `cpu` asymmetric uint8, which ONNX Runtime's x86 kernels
            run three times as fast.

    Raises:
        InputError: the opset is too old for Q/DQ of this kind, an activation has no range, or the model has Q/DQ
            already, but not on all of `nodes`.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    pass_ = _Pass(result, ranges, scheme)
    missing = [name for name in nodes if not pass_.is_done(name)]
    if missing and is_quantised(model):
        raise InputError(
            f"{missing[0]} cannot be quantised: other layers of this model are already.",
            "Which Q/DQ pairs layers share is decided for all of them at once.",
            "Name all layers in one pass over the model that has no Q/DQ: mde export --int8",
        )
    pass_.run(set(nodes), placement(result, missing, scheme))
    onnx.checker.check_model(result)
    return result


class _Pass:
    """One run over a graph's nodes in their order; pairs are put in where they are first needed."""

    def __init__(self, model: onnx.ModelProto, ranges: Ranges, scheme: QuantisationScheme) -> None:
        self.model, self.ranges, self.scheme = model, ranges, scheme
        self.graph = model.graph
        self.constants = {initializer.name: initializer for initializer in self.graph.initializer}
        self.producers = {name: node for node in self.graph.node for name in node.output}
        self.by_name = {node.name: node for node in self.graph.node}
        self.twins: dict[str, str] = {}
        """The dequantised twin of each tensor that has a pair."""
        self.scales: dict[str, npt.NDArray[Any]] = {}
        """The scale of each dequantised twin."""
        self.nodes: list[onnx.NodeProto] = []
        self.opset = opset_of(model)

    def is_done(self, name: str) -> bool:
        """Whether a node reads dequantised weights already, or is not there."""
        node = self.by_name.get(name)
        return node is None or node.input[1] not in self.constants

    def run(self, chosen: set[str], places: Placement) -> None:
        residuals, outputs, paired = set(places.residuals), set(places.outputs), set(places.inputs)
        everywhere: dict[str, str] = {}
        for node in [*self.graph.node]:
            wanted = node.name in chosen and not self.is_done(node.name)
            for place, name in enumerate(node.input):
                if name in everywhere:
                    node.input[place] = everywhere[name]
            if wanted:
                dtype = self._dtype(node)
                if node.input[0] in paired:
                    node.input[0] = self._activation(node.input[0], dtype)
                node.input[1] = self._weight(node)
                if self.scheme == "cpu" and node.op_type == "Conv" and len(node.input) > 2:
                    node.input[2] = self._bias(node)
            elif node.name in residuals:
                for place, name in enumerate(node.input):
                    node.input[place] = self.twins.get(name, name)
            self.nodes.append(node)
            for name in node.output:
                if name in outputs:
                    everywhere[name] = self._activation(name, "float32")
        self._put_back()

    def _dtype(self, node: onnx.NodeProto) -> str:
        import onnx

        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(self.constants[node.input[1]].data_type))
        if self.opset < FEWEST_OPSET[dtype]:
            raise InputError(
                f"INT8 needs ONNX opset {FEWEST_OPSET[dtype]} or later; this model has opset {self.opset}.",
                f"Before, Q/DQ has no {'scales in FP16' if dtype == 'float16' else 'scale for each channel'}.",
                "Export it again with this version's mde export.",
            )
        return dtype

    def _activation(self, name: str, dtype: str) -> str:
        """The dequantised twin of an activation."""
        if name in self.twins:
            return self.twins[name]
        low, high = self._range(name)
        if self.scheme == "gpu":
            step, zero = max(-low, high) / WEIGHT_LIMIT, np.array(0, np.int8)
        else:
            step = (high - low) / 255
            zero = np.array(round(-low / step) if step > 0 else 0, np.uint8)
        scale = rounded_up(np.array(step if step > 0 else 1), dtype)
        ends = self._constant(f"{name}_scale", scale), self._constant(f"{name}_zero", zero)
        self._add("QuantizeLinear", [name, *ends], f"{name}_q", f"{name}/Q")
        self.twins[name] = self._add("DequantizeLinear", [f"{name}_q", *ends], f"{name}_dq", f"{name}/DQ")
        self.scales[self.twins[name]] = scale
        return self.twins[name]

    def _range(self, name: str) -> tuple[float, float]:
        """An FP16 model reads through casts what the FP32 model, whose ranges these are, reads directly."""
        origin = name
        while origin not in self.ranges and origin in self.producers and self.producers[origin].op_type == "Cast":
            origin = self.producers[origin].input[0]
        if origin not in self.ranges:
            raise InputError(
                f"The activation {name} has no calibrated range.",
                "The ranges were taken from another model.",
                "Calibrate this model: mde export --int8 --calib NAME",
            )
        found: Range = self.ranges[origin]
        return found.low, found.high

    def _weight(self, node: onnx.NodeProto) -> str:
        """The dequantised twin of a node's weights, which are stored as integers from here on."""
        import onnx

        name = node.input[1]
        if name in self.twins:
            return self.twins[name]
        axis = CHANNEL_AXIS[node.op_type]
        if node.op_type == "Gemm" and any(each.name == "transB" and each.i for each in node.attribute):
            axis = 0
        values, scale = quantised_weight(onnx.numpy_helper.to_array(self.constants[name]), axis)
        ends = [
            self._constant(f"{name}_q", values),
            self._constant(f"{name}_scale", scale),
            self._constant(f"{name}_zero", np.zeros(len(scale), np.int8)),
        ]
        self.twins[name] = self._add("DequantizeLinear", ends, f"{name}_dq", f"{name}/DQ", axis=axis)
        self.scales[self.twins[name]] = scale
        return self.twins[name]

    def _bias(self, node: onnx.NodeProto) -> str:
        """The dequantised twin of a convolution's bias, as integers of the accumulator's own scale.

        ONNX Runtime's integer convolutions want it so. With a bias in FP32 version 1.24 makes one of it itself, 1.22
        does for 23 of `nano`'s 57 and then takes 2.3 times as long as FP32, and 1.20 for none.
        """
        import onnx

        of_input, of_weights = (self.scales[twin] for twin in node.input[:2])
        scale = (of_input.astype(np.float64) * of_weights).astype(np.float32)
        bias = onnx.numpy_helper.to_array(self.constants[node.input[2]]).astype(np.float64)
        integers = np.rint(bias / scale)
        if np.abs(integers).max() > np.iinfo(np.int32).max:
            return str(node.input[2])
        name = f"{node.name}/bias"
        ends = [self._constant(f"{name}_q", integers.astype(np.int32)), self._constant(f"{name}_scale", scale)]
        return self._add("DequantizeLinear", ends, f"{name}_dq", f"{name}/DQ", axis=0)

    def _constant(self, name: str, value: npt.NDArray[Any] | np.generic) -> str:
        import onnx

        self.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def _add(self, operator: str, inputs: list[str], output: str, name: str, **attributes: Any) -> str:
        import onnx

        self.nodes.append(onnx.helper.make_node(operator, inputs, [output], name, **attributes))
        return output

    def _put_back(self) -> None:
        nodes = [type(node).FromString(node.SerializeToString()) for node in self.nodes]
        read = {name for node in nodes for name in node.input}
        kept = [each for each in self.graph.initializer if each.name in read]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(kept)


def quantised_weight(weight: npt.NDArray[Any], axis: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[Any]]:
    """Weights as integers, with the scale of each channel.

    Args:
        weight: float16 or float32.
        axis: of the output channels.

    Returns:
        int8, `weight`'s shape, -127 to 127; and scales `[channels]` of `weight`'s type, such that their product is the
        weight to half a step. A channel of zeros has scale 1.
    """
    others = tuple(each for each in range(weight.ndim) if each != axis)
    largest = np.abs(weight.astype(np.float64)).max(axis=others)
    # Rounded first, so that the integers fit the scale that is stored.
    scale = rounded_up(np.where(largest > 0, largest / WEIGHT_LIMIT, 1), weight.dtype)
    shape = [1] * weight.ndim
    shape[axis] = -1
    integers = np.rint(weight.astype(np.float64) / scale.astype(np.float64).reshape(shape))
    return integers.astype(np.int8), scale


def rounded_up(scale: npt.NDArray[np.float64], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The next number of a type that is not below: nothing is clipped then, however coarse FP16 is near zero."""
    rounded = scale.astype(dtype)
    up = np.nextafter(rounded, np.asarray(np.inf, dtype))
    return np.where(rounded.astype(np.float64) < scale, up, rounded)
