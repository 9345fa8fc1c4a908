"""What an artefact's precision really is: which work runs in INT8, FP16 and FP32, and what undoes the gain.

A precision in a file's name is a wish. What a runtime multiplies in is decided by the graph: TensorRT builds strongly
typed networks, and ONNX Runtime takes integer kernels only where quantised tensors meet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from mirrordepth_edge.config import Precision
from mirrordepth_edge.deploy.cost import COUNTED, LAYOUT, QUANTISERS, Tensors, bits, node_cost
from mirrordepth_edge.deploy.export import HEAD_PREFIX
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.manifest import Manifest

if TYPE_CHECKING:
    import onnx

HALF = ("FP16", "BF16")
LOWEST_FP16_SHARE = 0.9
"""Of the multiply-adds of what is called FP16: the metric head stays FP32, little else does."""
LOWEST_INT8_SHARE = 0.5
"""Of the multiply-adds of what is called INT8, where its manifest does not name its layers."""
HEAD_DIMS = range(16, 257, 8)
INT8_SEQUENCE = 512
"""Longest sequence of fused INT8 attention."""

MOVING = (*LAYOUT, "Split", "Slice", "Gather", "Expand", "Pad", "MaxPool", "Resize")
"""Operators that take integers as they take floats, so that Q and DQ can move over them; Concat is another."""
INTEGER_READERS = (*COUNTED, "Add", "AveragePool", "GlobalAveragePool", "QuantizeLinear")
"""Operators that a DequantizeLinear in front of them becomes part of."""
FLOAT_ONLY = (
    *("LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax", "Softplus", "Exp", "Log", "Pow", "Sqrt"),
    *("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Gelu", "Erf"),
)
"""Normalisations and activation functions: integers are of no use to them."""
NOT_COUNTED = (
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "Einsum", "Attention", "DeformConv"),
    *("LSTM", "GRU", "RNN", "If", "Loop", "Scan"),
)
"""Operators that multiply, and whose multiply-adds are not counted."""
IN_ATTENTION = (*LAYOUT, *QUANTISERS, "Cast", "Add", "Mul", "Div", "Sub", "Where")
"""What may lie between the products of an attention and its Softmax: scale, mask and changes of type."""
SHORT_NAMES: Final = {
    "FLOAT": "FP32",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    "DOUBLE": "FP64",
    "UINT8": "INT8",
    "UINT4": "INT4",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that costs speed, size or metric depth."""

    kind: str
    text: str
    """What it is and what it costs, in sentences."""
    cure: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Attention:
    """One product, Softmax, product."""

    node: str
    """Its Softmax."""
    precision: str
    """Of its first product."""
    sequence: int
    head_dim: int
    unfused: str | None
    """Why TensorRT cannot run it as one kernel; None where it can."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an artefact is what was asked for."""

    asked: Precision
    holds: bool
    text: str
    cure: str


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an artefact's precision is."""

    unit: Literal["multiply-adds", "layers"]
    work: dict[str, int]
    """So many of `unit` in each precision, such as `INT8`. An engine's layers are counted by what they write: how long
    each takes is unknown."""
    parts: dict[str, dict[str, int]]
    """Operators of one kind in each precision."""
    attention: tuple[Attention, ...]
    casts: int
    """Changes of type at run time; for an engine, its reformatting layers."""
    cast_bytes: int | None
    """Read and written by them in one inference; unknown for an engine."""
    findings: tuple[Finding, ...]
    verdict: Verdict | None
    """None where nothing says what was asked for."""

    def share(self, *precisions: str) -> float:
        """Of all work, 0 to 1."""
        return sum(self.work.get(each, 0) for each in precisions) / max(1, sum(self.work.values()))


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file of any origin, with its weights.

    Raises:
        InputError: it is none, or its weights are in a file that is not there.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # comes with onnx

    try:
        model = onnx.load(path)
        why = "" if model.graph.node else "it holds no graph"
    except (DecodeError, OSError, onnx.checker.ValidationError) as error:
        why = str(error)
    if why:
        raise InputError(
            f"{path} is no readable ONNX file.",
            f"It is truncated, something else, or its weights are in a file that is not there: {why}.",
            "Copy it again with everything beside it, or make it again with mde export.",
        )
    return model


def audit_onnx(model: onnx.ModelProto, manifest: Manifest | None) -> Audit:
    """Say what runs in which precision.

    A layer with weights, or a product of two activations, runs in INT8 if both sides come through DequantizeLinear of
    int8 or uint8; otherwise in the type of its inputs. No integers are multiplied where only one side is quantised.

    Args:
        model: an ONNX model with fixed shapes.
        manifest: what was asked for; None for a foreign file, which gets no verdict.

    Raises:
        InputError: a shape is not fixed.
    """
    graph = _Graph(model)
    work: Counter[str] = Counter()
    for node in graph.products:
        work[graph.arithmetic(node)] += node_cost(node, graph.tensors).multiply_adds
    attention = tuple(graph.attention())
    casts = graph.casts()
    audit = Audit(
        unit="multiply-adds",
        work=dict(work),
        parts={label: dict(counts) for label, counts in graph.parts().items() if counts},
        attention=attention,
        casts=len(casts),
        cast_bytes=sum(node_cost(node, graph.tensors).activation_bytes for node in casts),
        findings=tuple(finding for check in CHECKS for finding in check(graph)),
        verdict=None,
    )
    if manifest is None:
        return audit
    return replace(audit, verdict=_verdict(audit, graph, manifest))


class _Graph:
    """A graph with its tensors, and the questions that several checks ask."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.tensors = Tensors.of(model)
        self.nodes = [n for n in model.graph.node if not all(name in self.tensors.constants for name in n.output)]
        """All that run; the others are constants to a runtime."""
        self.products = [node for node in self.nodes if node.op_type in COUNTED]
        self.outputs = {value.name for value in model.graph.output}

    def type_of(self, tensor: str) -> str:
        """Such as `FP32`; `unknown` where inference found none."""
        import onnx

        name = onnx.TensorProto.DataType.Name(self.tensors.dtypes.get(tensor, 0))
        return "unknown" if name == "UNDEFINED" else SHORT_NAMES.get(name, "FP8" if "FLOAT8" in name else name)

    def is_constant(self, tensor: str) -> bool:
        return tensor in self.tensors.constants

    def maker(self, tensor: str, through: Sequence[str]) -> onnx.NodeProto | None:
        """What a tensor comes from, past operators that `through` names."""
        while (maker := self.tensors.makers.get(tensor)) is not None and maker.op_type in through:
            tensor = next((name for name in maker.input if not self.is_constant(name)), maker.input[0])
        return maker

    def readers(self, tensor: str, through: Sequence[str]) -> Iterator[onnx.NodeProto]:
        """What reads a tensor, past operators that `through` names."""
        for reader in self.tensors.readers.get(tensor, ()):
            if reader.op_type in through:
                for output in reader.output:
                    yield from self.readers(output, through)
            else:
                yield reader

    def quantised(self, tensor: str) -> str | None:
        """The integers' type, such as `INT8`, of what comes through DequantizeLinear."""
        maker = self.maker(tensor, MOVING)
        if maker is not None and maker.op_type == "Concat":
            types = {self.quantised(name) for name in maker.input}
            return types.pop() if len(types) == 1 else None
        return None if maker is None or maker.op_type != "DequantizeLinear" else self.type_of(maker.input[0])

    def arithmetic(self, node: onnx.NodeProto) -> str:
        """What a product multiplies in."""
        sides = {self.quantised(name) for name in node.input[:2]}
        return (len(sides) == 1 and sides.pop()) or self.type_of(node.input[0])

    def is_decomposed_norm(self, node: onnx.NodeProto) -> bool:
        """Whether a square root is the deviation of a LayerNormalization in pieces: the mean of squares under it, a
        division over it."""
        if node.op_type != "Sqrt":
            return False
        mean = self.maker(node.input[0], ("Add", "Cast"))
        if mean is None or mean.op_type != "ReduceMean":
            return False
        square = self.maker(mean.input[0], ("Cast",))
        squared = square is not None and (
            square.op_type == "Pow" or (square.op_type == "Mul" and square.input[0] == square.input[1])
        )
        return squared and any(r.op_type in ("Div", "Reciprocal") for r in self.readers(node.output[0], ("Cast",)))

    def head(self) -> list[onnx.NodeProto]:
        """The metric head: the nodes of that name, and the last operator that works on the values of an output."""
        nodes = [node for node in self.nodes if node.name.startswith(HEAD_PREFIX)]
        for output in self.outputs:
            last = self.maker(output, (*LAYOUT, "Cast", *QUANTISERS))
            if last is not None and last.op_type in ("Softplus", "Exp") and last not in nodes:
                nodes.append(last)
        return [node for node in nodes if node.op_type not in (*QUANTISERS, "Cast")]

    def head_type(self, node: onnx.NodeProto) -> str:
        return self.arithmetic(node) if node.op_type in COUNTED else self.type_of(node.output[0])

    def parts(self) -> dict[str, Counter[str]]:
        parts = {
            kind: Counter(self.type_of(node.input[0]) for node in self.nodes if node.op_type == kind)
            for kind in ("LayerNormalization", "Softmax")
        }
        norms = Counter(self.type_of(node.input[0]) for node in self.nodes if self.is_decomposed_norm(node))
        parts["LayerNormalization in pieces"] = norms
        # A comparison gives booleans: no precision of the head's.
        head = (self.head_type(node) for node in self.head())
        parts["metric head"] = Counter(each for each in head if each not in ("BOOL", "unknown"))
        return parts

    def casts(self) -> list[onnx.NodeProto]:
        """Those that run and change a type."""
        casts = (node for node in self.nodes if node.op_type == "Cast")
        return [node for node in casts if self.type_of(node.input[0]) != self.type_of(node.output[0])]

    def attention(self) -> Iterator[Attention]:
        """Every product, Softmax, product."""
        for node in self.nodes:
            if node.op_type != "Softmax":
                continue
            scores = self._product_behind(node.input[0])
            after = self.readers(node.output[0], (*LAYOUT, *QUANTISERS, "Cast"))
            values = next((reader for reader in after if reader.op_type == "MatMul"), None)
            if scores is None or values is None:
                continue
            yield Attention(
                node=_name(node),
                precision=self.arithmetic(scores),
                sequence=max(self.tensors.shape(node.input[0])[-2:]),
                head_dim=self.tensors.shape(scores.input[0])[-1],
                unfused=self._why_unfused(scores, node, values),
            )

    def _product_behind(self, tensor: str) -> onnx.NodeProto | None:
        maker = self.tensors.makers.get(tensor)
        if maker is None or maker.op_type == "MatMul":
            return maker
        if maker.op_type not in IN_ATTENTION:
            return None
        behind = (self._product_behind(name) for name in maker.input if name and not self.is_constant(name))
        return next((product for product in behind if product is not None), None)

    def _why_unfused(self, scores: onnx.NodeProto, softmax: onnx.NodeProto, values: onnx.NodeProto) -> str | None:
        """What TensorRT's fused attention asks for: a GPU of compute capability 7.5 or more, FP16 or BF16 throughout,
        and heads of 16 to 256 numbers, divisible by 8; in INT8, sequences of at most 512.

        Source: NVIDIA TensorRT documentation, "Fused Attention" (docs.nvidia.com/deeplearning/tensorrt, Working with
        Transformers), and its issue 3243 on GitHub, by which both products need Q/DQ.
        """
        first, second = self.arithmetic(scores), self.arithmetic(values)
        types = tuple(dict.fromkeys(map(self.type_of, (scores.output[0], softmax.input[0], values.output[0]))))
        dims = {self.tensors.shape(scores.input[0])[-1], self.tensors.shape(values.output[0])[-1]}
        sequence = max(self.tensors.shape(softmax.input[0])[-2:])
        if first != second:
            return f"one product is {first}, the other {second}"
        if len(types) > 1:
            return f"it changes type on its way ({', '.join(types)})"
        if types[0] not in HALF:
            return f"it is {types[0]}, not FP16 or BF16"
        if not dims <= set(HEAD_DIMS):
            return f"heads of {max(dims - set(HEAD_DIMS))} are not of 16 to 256 numbers, divisible by 8"
        if first == "INT8" and sequence > INT8_SEQUENCE:
            return f"in INT8 a sequence of {sequence} is longer than {INT8_SEQUENCE}"
        return None


def _name(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])


def _finding(kind: str, nodes: Iterable[onnx.NodeProto], text: str, cure: str) -> Iterator[Finding]:
    """One finding, or none without nodes. `text` may name their number: `{n}`, and `{s}` for a plural."""
    names = tuple(map(_name, nodes))
    if names:
        number = text.format(n=len(names), s="" if len(names) == 1 else "s")
        yield Finding(kind=kind, text=number, cure=cure, nodes=names)


def _one_sided(graph: _Graph) -> Iterator[Finding]:
    sides = {"weights-only": 0, "activations-only": 1}
    for kind, place in sides.items():
        nodes = [
            node
            for node in graph.products
            if graph.quantised(node.input[place]) is None and graph.quantised(node.input[1 - place]) is not None
        ]
        own, other = ("weights", "activations") if kind == "weights-only" else ("activations", "weights")
        text = (
            f"{{n}} layer{{s}} with quantised {own} only: no integer arithmetic. The {other} are floats, so the "
            "integers are turned back first; that saves bytes at most, no multiplications."
        )
        yield from _finding(kind, nodes, text, f"Quantise their {other} too: mde export --int8")


def _norms(graph: _Graph) -> Iterator[Finding]:
    low = [n for n in graph.nodes if n.op_type == "LayerNormalization" and graph.type_of(n.input[0]) == "FP16"]
    yield from _finding(
        "layernorm-fp16",
        low,
        "{n} LayerNormalization{s} in FP16: the variance of an outlier channel overflows 65504, and depth becomes NaN.",
        "Make the file with mde export --fp16, which keeps them FP32.",
    )
    pieces = [node for node in graph.nodes if graph.is_decomposed_norm(node)]
    types = ", ".join(dict.fromkeys(graph.type_of(node.input[0]) for node in pieces))
    yield from _finding(
        "layernorm-pieces",
        pieces,
        f"{{n}} LayerNormalization{{s}} in pieces (Pow, ReduceMean, Sqrt, Div), in {types}: each piece is a pass over "
        "memory, and in FP16 the square of anything above 255 overflows.",
        "Export with ONNX opset 17 or later, which has LayerNormalization; mde export does.",
    )


def _head(graph: _Graph) -> Iterator[Finding]:
    low = [node for node in graph.head() if graph.head_type(node) in (*HALF, "INT8", "FP8", "INT4")]
    yield from _finding(
        "head",
        low,
        "{n} node{s} of the metric head below FP32: what it rounds are metres.",
        "Make the file with mde export, which keeps the head FP32.",
    )


def _attention(graph: _Graph) -> Iterator[Finding]:
    blocks = list(graph.attention())
    reasons: dict[str, list[str]] = {}
    for block in blocks:
        if block.unfused is not None:
            reasons.setdefault(block.unfused, []).append(block.node)
    for reason, nodes in reasons.items():
        yield Finding(
            kind="attention",
            text=f"{len(nodes)} of {len(blocks)} attention blocks cannot run as one TensorRT kernel: {reason}. Each "
            "then writes its scores to memory and reads them back.",
            cure="Nothing on a CPU; for a GPU, mde export --fp16 keeps attention FP16 throughout."
            if reason.startswith("it is FP32")
            else "Leave attention FP16, unquantised, with heads divisible by 8.",
            nodes=tuple(nodes),
        )


def _casts(graph: _Graph) -> Iterator[Finding]:
    wasted: list[onnx.NodeProto] = []
    rounding: list[onnx.NodeProto] = []
    for node in graph.casts():
        first = graph.maker(node.input[0], LAYOUT)
        if first is None or first.op_type != "Cast" or graph.is_constant(first.output[0]):
            continue
        before, between, after = (
            graph.tensors.dtypes.get(name, 0) for name in (first.input[0], first.output[0], node.output[0])
        )
        if before == after and before != between:
            (rounding if bits(between) < bits(before) else wasted).append(node)
    yield from _finding(
        "cast-pair",
        wasted,
        "{n} Cast{s} undo the one before, with nothing but layout between: two passes over memory for nothing.",
        "Take both out, or move what is between in front of them.",
    )
    yield from _finding(
        "cast-rounds",
        rounding,
        "{n} Cast{s} back to a type that the one before rounded: the digits are lost for nothing, in FP16 up to 0.05 % "
        "of each value, and values beyond 65504 become infinite.",
        "Take both out; nothing between them needs the smaller type.",
    )
    on_constants = [
        node
        for node in graph.model.graph.node
        if node.op_type == "Cast" and graph.is_constant(node.input[0]) and _size(graph, node.input[0]) > 1
    ]
    yield from _finding(
        "cast-constant",
        on_constants,
        "{n} Cast{s} of constants: the file keeps them in their old type, and is larger than what runs.",
        "Store the constants in the type they are used in.",
    )


def _size(graph: _Graph, tensor: str) -> int:
    return prod(graph.tensors.shape(tensor))


def _unfused_pairs(graph: _Graph) -> Iterator[Finding]:
    float_only, sums, others = [], [], []
    for node in graph.nodes:
        if node.op_type != "DequantizeLinear":
            continue
        for reader in graph.readers(node.output[0], (*MOVING, "Concat")):
            if reader.op_type in FLOAT_ONLY:
                float_only.append(reader)
            elif reader.op_type == "Add" and _is_residual_sum(graph, reader):
                sums.append(reader)
            elif reader.op_type not in INTEGER_READERS:
                others.append(reader)
    yield from _finding(
        "dq-float-only",
        _once(float_only),
        f"Quantised values go into {_kinds(float_only)} ({{n}}): they work in floats, so the pair is two passes over "
        "memory, and rounding, for nothing.",
        "Take the Q/DQ in front of them out: mde export --int8 puts none there.",
    )
    yield from _finding(
        "dq-residual",
        _once(sums),
        "{n} residual sum{s} of transformer blocks with quantised operands: a few outlier channels set the scale of "
        "all others, which costs the most accuracy of all.",
        "Leave residual sums in floats: mde export --int8 does.",
    )
    yield from _finding(
        "dq-unfused",
        _once(others),
        f"Quantised values go into {_kinds(others)} ({{n}}), which no integer kernel takes along: the pair stays, as "
        "two passes over memory.",
        "Move the Q/DQ to where Conv, MatMul, Gemm or Add read.",
    )


def _once(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return list({_name(node): node for node in nodes}.values())


def _kinds(nodes: Iterable[onnx.NodeProto]) -> str:
    return ", ".join(dict.fromkeys(node.op_type for node in nodes))


def _is_residual_sum(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Whether a sum of two activations belongs to a transformer: a MatMul, with or without bias, is under it, or a
    LayerNormalization reads it. Sums of convolutions carry no such outliers."""
    if any(graph.is_constant(name) for name in node.input):
        return False
    through = (*LAYOUT, *QUANTISERS, "Cast")
    for name in node.input:
        maker = graph.maker(name, through)
        if maker is not None and maker.op_type == "Add" and any(map(graph.is_constant, maker.input)):
            maker = next((graph.maker(each, through) for each in maker.input if not graph.is_constant(each)), None)
        if maker is not None and maker.op_type in ("MatMul", "Gemm"):
            return True
    return any(reader.op_type == "LayerNormalization" for reader in graph.readers(node.output[0], through))


def _scales(graph: _Graph) -> Iterator[Finding]:
    from onnx import TensorProto, numpy_helper

    asymmetric, per_tensor, stored_float = [], [], []
    spare = 0
    for node in graph.model.graph.node:
        if node.op_type not in QUANTISERS:
            continue
        zero = node.input[2] if len(node.input) > 2 else ""
        integers = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
        unsigned = graph.tensors.dtypes.get(integers) == TensorProto.UINT8
        points = graph.tensors.initializers.get(zero)
        if unsigned or (points is not None and numpy_helper.to_array(points).any()):
            asymmetric.append(node)
        if not graph.is_constant(node.input[0]) or _size(graph, node.input[0]) == 1:
            continue
        if node.op_type == "QuantizeLinear":
            stored_float.append(node)
            spare += graph.tensors.bytes(node.input[0]) - graph.tensors.bytes(integers)
        elif _size(graph, node.input[1]) == 1 and _channels(graph, node) > 1:
            per_tensor.append(node)
    yield from _finding(
        "asymmetric",
        asymmetric,
        "{n} Q/DQ node{s} with uint8 or a zero point other than 0: this file is for CPUs. TensorRT refuses it.",
        "Nothing for a CPU; for a GPU, mde export --int8 --target, which quantises symmetrically.",
    )
    yield from _finding(
        "per-tensor",
        per_tensor,
        "{n} weight{s} with one scale for all channels: the largest channel's scale is too coarse for the others, most "
        "of all in depthwise convolutions.",
        "Quantise weights per channel: mde export --int8 does.",
    )
    yield from _finding(
        "float-weights",
        stored_float,
        f"{{n}} weight{{s}} quantised only when the model is loaded: the file holds floats, {spare / 1e6:.2f} MB more "
        "than their integers.",
        "Store the integers: mde export --int8 does.",
    )


def _channels(graph: _Graph, node: onnx.NodeProto) -> int:
    """Output channels of the layer whose weights a DequantizeLinear makes; 0 where it makes none."""
    shape = graph.tensors.shape(node.output[0])
    for reader in graph.tensors.readers.get(node.output[0], ()):
        if reader.op_type in COUNTED and reader.input[1] == node.output[0]:
            transposed = any(attribute.name == "transB" and attribute.i for attribute in reader.attribute)
            return shape[{"Conv": 0, "ConvTranspose": 1}.get(reader.op_type, 0 if transposed else -1)]
    return 0


def _uncounted(graph: _Graph) -> Iterator[Finding]:
    foreign = [n for n in graph.nodes if n.domain not in ("", "ai.onnx") and n.op_type not in QUANTISERS]
    own = _once([*(n for n in graph.nodes if n.op_type in NOT_COUNTED), *foreign])
    yield from _finding(
        "not-counted",
        own,
        f"What {_kinds(own)} ({{n}}) multiply is not counted: the shares are those of the rest.",
        "Audit the file before it was optimised for one runtime.",
    )


CHECKS = (_one_sided, _norms, _head, _attention, _casts, _unfused_pairs, _scales, _uncounted)


def _verdict(audit: Audit, graph: _Graph, manifest: Manifest) -> Verdict:
    asked = manifest.precision
    low = audit.share(*HALF, "INT8", "FP8", "INT4")
    if asked == "fp32":
        holds = low == 0
        text = f"{low:.1%} of the multiply-adds run below FP32."
    elif asked == "fp16":
        holds = low >= LOWEST_FP16_SHARE
        text = f"{low:.1%} of the multiply-adds run in FP16 or lower, {LOWEST_FP16_SHARE:.0%} at least are asked for."
    else:
        holds, text = _int8_verdict(audit, graph, manifest)
    return Verdict(asked=asked, holds=holds, text=text, cure=f"Make the file again: mde export --{asked}")


def _int8_verdict(audit: Audit, graph: _Graph, manifest: Manifest) -> tuple[bool, str]:
    """Against the layers that the manifest names, or against half of the work where it names none."""
    share = f"{audit.share('INT8'):.1%} of the multiply-adds run in INT8"
    if manifest.quantisation is None:
        return audit.share("INT8") >= LOWEST_INT8_SHARE, f"{share}, {LOWEST_INT8_SHARE:.0%} at least are asked for."
    named = manifest.quantisation.int8_nodes
    found = {_name(node) for node in graph.products if graph.arithmetic(node) == "INT8"}
    missing = [name for name in named if name not in found]
    if not named:
        return False, f"{share}; its manifest names no layer that does."
    if missing:
        return False, f"{share}; {len(missing)} of {len(named)} layers in its manifest do not, such as {missing[0]}."
    return True, f"{share}, in all {len(named)} layers that its manifest names."
