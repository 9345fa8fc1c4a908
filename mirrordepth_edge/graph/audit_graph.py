"""A graph as an audit looks at it: what multiplies in which precision, and where attention is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mirrordepth_edge.graph.cost import COUNTED, LAYOUT, QUANTISERS, Tensors
from mirrordepth_edge.graph.names import HEAD_PREFIX

if TYPE_CHECKING:
    import onnx

HALF = ("FP16", "BF16")
HEAD_DIMS = range(16, 257, 8)
INT8_SEQUENCE = 512
"""Longest sequence of fused INT8 attention."""

MOVING = (*LAYOUT, "Split", "Slice", "Gather", "Expand", "Pad", "MaxPool", "Resize")
"""Operators that take integers as they take floats, so that Q and DQ can move over them; Concat is another."""
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


class Graph:
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
                node=name_of(node),
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


def name_of(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])
