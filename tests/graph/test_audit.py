"""Audits of graphs and engines small enough to know the answer: shares in closed form, each finding by one graph that
has it and one that does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mirrordepth_edge.artefact import NANO_ONNX
from mirrordepth_edge.errors import DeviceError, InputError, MdeError, MissingError
from mirrordepth_edge.graph.audit import Audit, audit_onnx, read_onnx
from mirrordepth_edge.graph.audit_engine import audit_engine, layer_information
from mirrordepth_edge.manifest import EngineInfo, Manifest, Quantisation, read_manifest

F32, F16, S8, U8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8


class Graph:
    """Builds a graph; each method returns the name of its output."""

    def __init__(self, dtype: int = F32) -> None:
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    def input(self, *shape: int, dtype: int | None = None) -> str:
        name = f"input_{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, dtype or self.dtype, shape))
        return name

    def constant(self, value: Any, dtype: int | None = None) -> str:
        name = f"constant_{len(self.constants)}"
        kind = helper.tensor_dtype_to_np_dtype(dtype or self.dtype)
        self.constants.append(numpy_helper.from_array(np.asarray(value).astype(kind), name))
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(np.linspace(-1, 1, int(np.prod(shape))).reshape(shape))

    def add(self, op_type: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def pair(self, tensor: str, zero: int = 0, dtype: int = S8) -> str:
        """`tensor` through QuantizeLinear and DequantizeLinear."""
        scale, point = self.constant(0.01), self.constant(zero, dtype)
        return self.add("DequantizeLinear", self.add("QuantizeLinear", tensor, scale, point), scale, point)

    def integers(self, *shape: int, axis: int | None = 0) -> str:
        """Weights stored as int8 with a scale per channel; with one scale if `axis` is None."""
        channels = () if axis is None else shape[axis]
        constants = (self.constant(np.ones(shape), S8), self.constant(np.ones(channels)))
        attributes = {} if axis is None else {"axis": axis}
        return self.add("DequantizeLinear", *constants, self.constant(np.zeros(channels), S8), **attributes)

    def model(self, *outputs: str, dtype: int | None = None) -> onnx.ModelProto:
        results = [helper.make_tensor_value_info(name, dtype or self.dtype, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "g", self.inputs, results, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
        model = onnx.shape_inference.infer_shapes(model)  # for the outputs' shapes
        onnx.checker.check_model(model)
        return model


def audit_of(graph: Graph, *outputs: str, dtype: int | None = None) -> Audit:
    return audit_onnx(graph.model(*outputs, dtype=dtype), None)


def kinds(audit: Audit) -> set[str]:
    return {finding.kind for finding in audit.findings}


def nodes(audit: Audit, kind: str) -> tuple[str, ...]:
    return next(finding.nodes for finding in audit.findings if finding.kind == kind)


def chain(dtypes: Sequence[str]) -> onnx.ModelProto:
    """Three products on [1,10] with 1000, 300 and 600 MACs, in different precisions."""
    graph = Graph()
    x = graph.input(1, 10)
    for number, (precision, (rows, columns)) in enumerate(zip(dtypes, ((10, 100), (100, 3), (3, 200)), strict=True)):
        name = f"layer{number}"
        if precision == "int8":
            x = graph.add("MatMul", graph.pair(x), graph.integers(rows, columns, axis=1), name=name)
        elif precision == "fp16":
            half = graph.add("Cast", x, to=F16)
            weight = graph.constant(np.ones((rows, columns)), F16)
            x = graph.add("Cast", graph.add("MatMul", half, weight, name=name), to=F32)
        else:
            x = graph.add("MatMul", x, graph.weight(rows, columns), name=name)
    return graph.model(x)


@pytest.mark.parametrize(
    ("dtypes", "work"),
    [
        (("fp32", "fp32", "fp32"), {"FP32": 1900}),
        (("int8", "fp16", "fp32"), {"INT8": 1000, "FP16": 300, "FP32": 600}),
        (("fp16", "int8", "int8"), {"INT8": 900, "FP16": 1000}),
    ],
)
def test_shares(dtypes: Sequence[str], work: dict[str, int]) -> None:
    audit = audit_onnx(chain(dtypes), None)
    assert audit.work == work
    assert audit.verdict is None
    for precision, number in work.items():
        assert audit.share(precision) == pytest.approx(number / 1900)
    assert audit.share(*work) == 1


def test_unsigned_activations_count_as_int8_and_are_reported() -> None:
    for zero, dtype, expected in ((0, S8, False), (128, U8, True), (0, U8, True), (3, S8, True)):
        graph = Graph()
        product = graph.add("MatMul", graph.pair(graph.input(1, 4), zero, dtype), graph.integers(4, 5, axis=1))
        audit = audit_of(graph, product)
        assert audit.work == {"INT8": 20}
        assert ("asymmetric" in kinds(audit)) is expected


def test_layout_operators_keep_int8() -> None:
    graph = Graph()
    shape = graph.constant([1, 4, 3], TensorProto.INT64)
    moved = graph.add("Transpose", graph.add("Reshape", graph.pair(graph.input(1, 12)), shape), perm=[0, 2, 1])
    audit = audit_of(graph, graph.add("MatMul", moved, graph.integers(4, 5, axis=1)))
    assert audit.work == {"INT8": 3 * 4 * 5}
    assert not audit.findings


@pytest.mark.parametrize(("quantised", "kind"), [("weights", "weights-only"), ("activations", "activations-only")])
def test_one_sided_quantisation_counts_as_floating_point(quantised: str, kind: str) -> None:
    graph = Graph()
    x = graph.input(1, 3, 8, 8)
    sides = (graph.pair(x), graph.weight(5, 3, 3, 3)) if quantised == "activations" else (x, graph.integers(5, 3, 3, 3))
    audit = audit_of(graph, graph.add("Conv", *sides, name="conv"))
    assert audit.work == {"FP32": 5 * 6 * 6 * 3 * 3 * 3}
    assert kinds(audit) == {kind}
    assert nodes(audit, kind) == ("conv",)
    (finding,) = audit.findings
    # A layer that mde export --int8 keeps in floating point looks like the latter; exporting again would not help.
    assert "mde export" not in finding.cure
    assert ("kept in floating point" in finding.cure) is (quantised == "activations")


def test_layer_quantised_on_both_sides_has_no_findings() -> None:
    graph = Graph()
    audit = audit_of(graph, graph.add("Conv", graph.pair(graph.input(1, 3, 8, 8)), graph.integers(5, 3, 3, 3)))
    assert audit.share("INT8") == 1
    assert not audit.findings


def attention(
    dtype: int, head_dim: int = 32, sequence: int = 10, quantised: str = "", softmax_type: int | None = None
) -> Audit:
    """Two heads, scaled and masked; `quantised` is "", "first" or "both"."""
    graph = Graph(dtype)
    q, v = (graph.input(1, 2, sequence, head_dim) for _ in range(2))
    k = graph.input(1, 2, head_dim, sequence)
    if quantised:
        q, k = graph.pair(q), graph.pair(k)
    scores = graph.add("Mul", graph.add("MatMul", q, k, name="scores"), graph.constant(0.125))
    scores = graph.add("Add", scores, graph.constant(np.zeros((sequence, sequence))))
    if softmax_type is not None:
        scores = graph.add("Cast", scores, to=softmax_type)
    weights = graph.add("Softmax", scores, name="softmax")
    if softmax_type is not None:
        weights = graph.add("Cast", weights, to=dtype)
    if quantised == "both":
        weights, v = graph.pair(weights), graph.pair(v)
    return audit_of(graph, graph.add("MatMul", weights, v, name="values"))


@pytest.mark.parametrize(
    ("audit", "why"),
    [
        (lambda: attention(F16), None),
        (lambda: attention(F16, head_dim=16), None),
        (lambda: attention(F16, head_dim=256), None),
        (lambda: attention(F16, quantised="both", sequence=512), None),
        (lambda: attention(F16, sequence=600), None),
        (lambda: attention(F32), "it is FP32, not FP16 or BF16"),
        (lambda: attention(F16, head_dim=20), "head dimension 20 "),
        (lambda: attention(F16, head_dim=8), "head dimension 8 "),
        (lambda: attention(F16, head_dim=264), "head dimension 264 "),
        (lambda: attention(F16, quantised="first"), "one product is INT8, the other is FP16"),
        (lambda: attention(F16, quantised="both", sequence=513), "sequence of 513 is longer than 512"),
        (lambda: attention(F16, softmax_type=F32), "its type changes (FP16, FP32)"),
    ],
)
def test_attention_that_tensorrt_can_fuse(audit: Callable[[], Audit], why: str | None) -> None:
    found = audit()
    (block,) = found.attention
    assert block.node == "softmax"
    if why is None:
        assert block.unfused is None
        assert "attention" not in kinds(found)
    else:
        assert block.unfused is not None
        assert why in block.unfused
        assert nodes(found, "attention") == ("softmax",)


def test_attention_products_with_both_sides_quantised_count_as_int8() -> None:
    # scores: 2 heads of 10x10 by 32; values: 2 heads of 10x32 by 10
    assert attention(F16, quantised="both").work == {"INT8": 2 * 2 * 10 * 10 * 32}
    assert attention(F16, quantised="first").work == {"INT8": 6400, "FP16": 6400}


def test_softmax_of_a_classifier_is_not_attention() -> None:
    graph = Graph()
    audit = audit_of(graph, graph.add("Softmax", graph.add("MatMul", graph.input(1, 4), graph.weight(4, 5))))
    assert audit.attention == ()
    assert audit.parts["Softmax"] == {"FP32": 1}


def test_layer_normalisation_in_fp16() -> None:
    for dtype, expected in ((F16, {"layernorm-fp16"}), (F32, set())):
        graph = Graph(dtype)
        audit = audit_of(graph, graph.add("LayerNormalization", graph.input(1, 4, 8), graph.constant(np.ones(8))))
        assert kinds(audit) == expected
        assert audit.parts["LayerNormalization"] == {"FP16" if dtype == F16 else "FP32": 1}


@pytest.mark.parametrize("square", ["Pow", "Mul"])
def test_decomposed_layer_normalisation(square: str) -> None:
    graph = Graph(F16)
    x = graph.input(1, 4, 8)
    centred = graph.add("Sub", x, graph.add("ReduceMean", x, graph.constant([-1], TensorProto.INT64)))
    other = graph.constant(2.0) if square == "Pow" else centred
    squared = graph.add(square, centred, other)
    variance = graph.add("ReduceMean", squared, graph.constant([-1], TensorProto.INT64))
    # the constant first: the sum is looked through, whichever side it is on
    deviation = graph.add("Sqrt", graph.add("Add", graph.constant(1e-3), variance), name="deviation")
    audit = audit_of(graph, graph.add("Div", centred, deviation))
    assert nodes(audit, "layernorm-pieces") == ("deviation",)
    assert audit.parts["LayerNormalization in pieces"] == {"FP16": 1}


def test_other_square_root_is_not_a_normalisation() -> None:
    graph = Graph()
    x = graph.input(1, 4)
    audit = audit_of(graph, graph.add("Div", x, graph.add("Sqrt", graph.add("Abs", x))))
    assert not audit.findings


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
def test_metric_head(kind: str) -> None:
    graph = Graph(F16 if kind == "fp16" else F32)
    x = graph.input(1, 3, 8, 8)
    weight = graph.integers(1, 3, 1, 1) if kind == "int8" else graph.weight(1, 3, 1, 1)
    out = graph.add("Conv", graph.pair(x) if kind == "int8" else x, weight, name="decoder/head/0/Conv")
    audit = audit_of(graph, graph.add("Softplus", out, name="decoder/head/1/Softplus"))
    low = {
        "fp32": (),
        "fp16": ("decoder/head/0/Conv", "decoder/head/1/Softplus"),
        "int8": ("decoder/head/0/Conv",),
    }[kind]
    assert kinds(audit) == ({"head"} if low else set())
    if low:
        assert nodes(audit, "head") == low
    assert sum(audit.parts["metric head"].values()) == 2


def test_exponential_before_the_output_is_a_metric_head() -> None:
    graph = Graph(F16)
    metres = graph.add("Exp", graph.input(1, 1, 4, 4), name="metres")
    audit = audit_of(graph, graph.add("Cast", graph.add("Squeeze", metres), to=F32), dtype=F32)
    assert nodes(audit, "head") == ("metres",)


def casted(*types: int, between: str = "Squeeze") -> Audit:
    """A tensor cast to several types in turn, with an operator between the first two."""
    graph = Graph(types[0])
    x = graph.add("Relu", graph.input(1, 6, 4))
    for number, each in enumerate(types[1:]):
        x = graph.add("Cast", x, to=each, name=f"cast{number}")
        if number == 0:
            x = graph.add(between, x)
    return audit_of(graph, graph.add("Relu", x), dtype=types[-1])


@pytest.mark.parametrize(
    ("audit", "kind"),
    [
        (lambda: casted(F16, F32, F16), "cast-pair"),
        (lambda: casted(F32, F16, F32), "cast-rounds"),
        (lambda: casted(F32, F16), None),
        (lambda: casted(F16, F32, F16, between="Relu"), None),
        (lambda: casted(F16, F32, TensorProto.DOUBLE), None),
    ],
)
def test_redundant_casts(audit: Callable[[], Audit], kind: str | None) -> None:
    found = audit()
    assert kinds(found) == ({kind} if kind else set())
    if kind:
        assert nodes(found, kind) == ("cast1",)


def test_bytes_of_casts() -> None:
    audit = casted(F16, F32, F16)
    assert audit.casts == 2
    assert audit.cast_bytes == 2 * 24 * (2 + 4)


def test_casts_of_constants() -> None:
    for dtype, expected in ((F16, {"cast-constant"}), (F32, set())):
        graph = Graph()
        weight = graph.constant(np.ones((4, 5)), dtype)
        audit = audit_of(
            graph,
            graph.add("MatMul", graph.input(1, 4), graph.add("Cast", weight, to=F32) if dtype == F16 else weight),
        )
        assert kinds(audit) == expected
        assert audit.casts == 0


@pytest.mark.parametrize("op_type", ["Softmax", "Relu", "Sigmoid", "Tanh"])
def test_quantised_input_of_activation_functions(op_type: str) -> None:
    graph = Graph()
    x = graph.input(1, 8)
    assert not audit_of(graph, graph.add(op_type, x)).findings
    reader = graph.add(op_type, graph.add("Transpose", graph.pair(x)), name="reader")
    assert nodes(audit_of(graph, reader), "dq-float-only") == ("reader",)


def test_quantised_input_that_no_kernel_fuses() -> None:
    graph = Graph()
    x = graph.input(1, 8)
    audit = audit_of(graph, graph.add("Div", graph.pair(x), x, name="reader"))
    assert nodes(audit, "dq-unfused") == ("reader",)
    # pooling, sums of convolutions, requantisation and the graph's output take them
    graph = Graph()
    x = graph.input(1, 3, 8, 8)
    conv = graph.add("Conv", graph.pair(x), graph.integers(3, 3, 1, 1))
    total = graph.add("Add", conv, graph.pair(x))
    pooled = graph.add("AveragePool", graph.pair(graph.pair(total)), kernel_shape=[2, 2])
    assert not audit_of(graph, graph.pair(pooled)).findings


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_quantised_residual_sums_of_transformers(norm: bool, bias: bool) -> None:
    """A residual sum is identified by the product it adds, or by the normalisation that reads it."""

    def block(quantised: bool) -> Audit:
        graph = Graph()
        x = graph.input(1, 4, 8)
        branch = graph.add("MatMul", x, graph.weight(8, 8)) if bias else graph.input(1, 4, 8)
        if bias:
            branch = graph.add("Add", branch, graph.constant(np.ones(8)))
        total = graph.add("Add", graph.pair(x) if quantised else x, branch, name="sum")
        return audit_of(graph, graph.add("LayerNormalization", total, graph.constant(np.ones(8))) if norm else total)

    assert not block(quantised=False).findings
    assert kinds(block(quantised=True)) == ({"dq-residual"} if norm or bias else set())


def test_weights_with_one_scale_per_tensor() -> None:
    for axis, channels, expected in ((0, 5, False), (None, 5, True), (None, 1, False)):
        graph = Graph()
        weight = graph.integers(channels, 3, 1, 1, axis=axis)
        audit = audit_of(graph, graph.add("Conv", graph.pair(graph.input(1, 3, 8, 8)), weight))
        assert kinds(audit) == ({"per-tensor"} if expected else set())


def test_weights_stored_in_floating_point() -> None:
    graph = Graph()
    weight = graph.pair(graph.weight(1000, 1000))
    audit = audit_of(graph, graph.add("MatMul", graph.pair(graph.input(1, 1000)), weight))
    assert audit.share("INT8") == 1
    (finding,) = (each for each in audit.findings if each.kind == "float-weights")
    assert "3.00 MB" in finding.text  # a million numbers of 4 bytes instead of 1


def test_operators_that_are_not_counted_are_reported() -> None:
    graph = Graph()
    x = graph.input(2, 3)
    assert not audit_of(graph, graph.add("MatMul", x, graph.weight(3, 4))).findings
    audit = audit_of(graph, graph.add("Einsum", x, graph.weight(3, 4), equation="ij,jk->ik", name="einsum"))
    assert nodes(audit, "not-counted") == ("einsum",)


# --- against the requested precision ---


def manifest(precision: str, int8_nodes: tuple[str, ...] | None = None) -> Manifest:
    quantisation = None
    if int8_nodes is not None:
        quantisation = Quantisation(
            scheme="gpu",
            method="max",
            calibration="frames",
            calibration_sha256="0" * 64,
            calibration_frames=4,
            int8_nodes=int8_nodes,
            fp_fallback=(),
            accuracy=None,
        )
    known = read_manifest(NANO_ONNX["fp32"])
    return replace(known, precision=precision, quantisation=quantisation)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtypes", "asked", "int8_nodes", "holds"),
    [
        (("fp32", "fp32", "fp32"), "fp32", None, True),
        (("fp32", "fp16", "fp32"), "fp32", None, False),
        (("fp16", "fp16", "fp16"), "fp16", None, True),
        (("fp16", "int8", "fp16"), "fp16", None, True),
        (("fp16", "fp32", "fp16"), "fp16", None, False),  # 1600 of 1900: 84 %
        (("int8", "fp32", "fp32"), "int8", None, True),  # 1000 of 1900: 53 %
        (("fp32", "int8", "int8"), "int8", None, False),  # 47 %
        (("fp32", "fp32", "fp32"), "int8", None, False),
        (("fp32", "int8", "fp16"), "int8", ("layer1",), True),
        (("fp32", "int8", "fp16"), "int8", ("layer1", "layer2"), False),
        (("int8", "int8", "int8"), "int8", (), False),
    ],
)
def test_verdicts(dtypes: Sequence[str], asked: str, int8_nodes: tuple[str, ...] | None, holds: bool) -> None:
    verdict = audit_onnx(chain(dtypes), manifest(asked, int8_nodes)).verdict
    assert verdict is not None
    assert (verdict.asked, verdict.holds) == (asked, holds)
    if int8_nodes == ("layer1", "layer2"):
        assert "layer2" in verdict.text


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_shipped_models_have_their_precision(precision: str) -> None:
    path = NANO_ONNX[precision]
    audit = audit_onnx(read_onnx(path), read_manifest(path))
    assert audit.verdict is not None
    assert audit.verdict.holds
    assert audit.share(precision.upper()) > 0.99
    assert audit.parts["LayerNormalization"] == {"FP32": 4}
    assert set(audit.parts["metric head"]) == {"FP32"}
    assert [block.unfused is None for block in audit.attention] == [precision == "fp16"] * 2


@pytest.mark.parametrize("content", [b"\xff\xff\xff", b"", b"# words\n"])
def test_file_that_is_not_onnx_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as an ONNX file"):
        read_onnx(path)


def test_missing_weights_file_is_refused(tmp_path: Path) -> None:
    graph = Graph()
    model = graph.model(graph.add("MatMul", graph.input(1, 100), graph.weight(100, 100)))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert audit_onnx(read_onnx(path), None).work == {"FP32": 10_000}
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match="cannot be read as an ONNX file"):
        read_onnx(path)


# --- engines, as TensorRT's inspector writes them (sources: `audit_engine`'s module) ---


def tensor(words: str, name: str = "t") -> dict[str, Any]:
    """Format up to TensorRT 10; since 11, type and format are separate fields."""
    return {"Name": name, "Location": "Device", "Dimensions": [1, 64, 485], "Format/Datatype": words}


def layer(name: str, read: Any, written: Any, **fields: Any) -> dict[str, Any]:
    inputs, outputs = ([tensor(each) if isinstance(each, str) else each] for each in (read, written))
    return {"Name": name, "LayerType": "kgen", "Inputs": inputs, "Outputs": outputs, "TacticName": "", **fields}


CASK = "sm75_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32"
ENGINE = {
    "Layers": [
        layer(
            "image/Q",
            "Row major linear FP32",
            "Four wide channel vectorized row major Int8 format",
            LayerType="Reformat",
        ),
        layer(
            "weight + conv + PWN(clip)",
            "Four wide channel vectorized row major Int8 format",
            "Thirty-two wide channel vectorized row major Int8 format",
            LayerType="CaskConvolution",
            TacticName=CASK,
        ),
        layer(
            "Reformatting CopyNode for Input Tensor 0 to gemm",
            "Int8",
            "Channel major FP16 format where channel % 8 == 0",
        ),
        layer("qkv", "Int8", "Half", LayerType="gemm", Metadata="[ONNX Layer: blocks/0/attn/qkv/MatMul]"),
        layer(
            "_gemm_mha_v2_myl0_4",
            "Half",
            "Half",
            Metadata="[ONNX Layer: blocks/0/attn/MatMul]\x1f[ONNX Layer: blocks/0/attn/Softmax]",
        ),
        layer("__myl_MaxSubExpSum_myl0_5", "Half", "Half", Metadata="[ONNX Layer: blocks/1/attn/Softmax]"),
        {"Name": "__mye6916", "LayerType": "wait", "Inputs": [], "Outputs": [], "TacticName": "", "StreamId": 1},
        layer(
            "head",
            {"Name": "a", "DataType": "Float", "Format": "Row major linear format"},
            {"Name": "b", "DataType": "Float", "Format": "Row major linear format"},
        ),
    ],
    "Bindings": ["image", "depth"],
}


@pytest.mark.parametrize("as_text", [True, False])
def test_layers_of_an_engine(as_text: bool) -> None:
    audit = audit_engine(json.dumps(ENGINE) if as_text else ENGINE)
    assert audit.unit == "layers"
    assert audit.work == {"INT8": 2, "FP16": 4, "FP32": 1}
    assert audit.parts["layers that read"] == {"FP32": 2, "INT8": 3, "FP16": 2}
    assert audit.parts["fused attention"] == {"FP16": 1}
    assert audit.casts == 2
    assert nodes(audit, "attention") == ("blocks/1/attn/Softmax",)
    assert len(nodes(audit, "reformat")) == 2
    assert audit.verdict is None
    assert kinds(audit) == {"attention", "reformat"}


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        ("Row major linear FP16 format (kLINEAR)", "FP16"),
        ("Row major linear FP32 format (kLINEAR)", "FP32"),
        ("Four wide channel vectorized row major INT8 format (kCHW4)", "INT8"),
        ("Row major linear BFloat16 format", "BF16"),
        ("Row major linear UInt8 format", "UINT8"),
        ("Row major linear FP8 format (kLINEAR)", "FP8"),
        ("BFloat16", "BF16"),
        ("Float", "FP32"),
        ("N/A due to dynamic shapes", "unknown"),
    ],
)
def test_types_in_tensorrt_layer_information(words: str, precision: str) -> None:
    assert audit_engine({"Layers": [layer("one", words, words)]}).work == {precision: 1}


def test_engine_with_layer_names_only() -> None:
    names = [
        "image/Q",
        "Reformatting CopyNode for Input Tensor 0 to {ForeignNode[w...Softmax]}",
        "{ForeignNode[w...Softmax]}",
    ]
    audit = audit_engine({"Layers": names, "Bindings": []}, manifest("fp16"))
    assert audit.work == {"unknown": 3}
    assert kinds(audit) == {"no-details", "opaque", "reformat"}
    assert audit.verdict is None


@pytest.mark.parametrize(
    ("types", "asked", "holds"),
    [
        ((("Float", "Float"),), "fp32", True),
        ((("Float", "Float"), ("Float", "Half")), "fp32", False),
        ((("Float", "Float"), ("Float", "Half")), "fp16", True),
        ((("Float", "Float"),), "fp16", False),
        ((("Int8", "Half"),), "int8", True),
        ((("Half", "Half"),), "int8", False),
    ],
)
def test_verdicts_for_engines(types: Sequence[tuple[str, str]], asked: str, holds: bool) -> None:
    layers = [layer(f"layer{number}", *each) for number, each in enumerate(types)]
    verdict = audit_engine({"Layers": layers}, manifest(asked)).verdict
    assert verdict is not None
    assert verdict.holds is holds


@pytest.mark.parametrize("text", ["", "words", "[]", "{}", '{"Layers": 3}', '{"Layers": [3]}'])
def test_invalid_layer_information_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="engine inspector"):
        audit_engine(text)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_tensorrt_has_the_inspector(name: str) -> None:
    """TensorRT's Python modules import without a GPU; the lean runtime has no inspector."""
    try:
        trt = import_module(name)
    except (ImportError, OSError) as error:
        pytest.skip(f"{name} is not usable here: {error}")
    assert hasattr(trt.ICudaEngine, "create_engine_inspector")
    assert hasattr(trt.EngineInspector, "get_engine_information")
    assert hasattr(trt.LayerInformationFormat, "JSON")
    assert hasattr(trt.Runtime, "deserialize_cuda_engine")


class FakeRuntime:
    """A fake runtime whose engine returns `ENGINE`, or that cannot load it; CUDA must be called first."""

    __version__ = "11.4"

    class Logger:
        ERROR = 2

        def __init__(self, severity: int) -> None: ...

    class LayerInformationFormat:
        JSON = "json"

    def __init__(self, asked: list[int], loads: bool = True) -> None:
        self.asked, self.loads = asked, loads

    def Runtime(self, logger: Any) -> FakeRuntime:  # noqa: N802  # TensorRT's name
        assert self.asked == [0], "TensorRT is started before CUDA was asked"
        return self

    def deserialize_cuda_engine(self, plan: bytes) -> FakeRuntime | None:
        return self if self.loads and plan == b"plan" else None

    def create_engine_inspector(self) -> FakeRuntime:
        return self

    def get_engine_information(self, form: str) -> str:
        assert form == "json"
        return json.dumps(ENGINE)


class FakeCuda:
    """A fake CUDA runtime that returns an error code for device 0."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.asked: list[int] = []

    def cudaSetDevice(self, device: int) -> tuple[int]:  # noqa: N802
        self.asked.append(device)
        return (self.code,)


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Manifest]:
    path = tmp_path / "model.plan"
    path.write_bytes(b"plan")
    info = EngineInfo(flavour=request.param, version="1", compute_capabilities=("8.9",), build_seconds=1.0)
    return path, replace(manifest("fp16"), kind="plan", engine=info)


def test_plan_is_inspected_with_its_runtime(plan: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    from mirrordepth_edge.backends.trt import cuda
    from mirrordepth_edge.backends.trt import session as engine
    from mirrordepth_edge.graph import audit_engine as audit_module

    _, known = plan
    monkeypatch.setattr(engine, "nvidia_gpus", lambda: ())
    with pytest.raises(MissingError, match="needs an NVIDIA GPU"):
        layer_information(*plan)
    monkeypatch.setattr(engine, "nvidia_gpus", lambda: ("a GPU",))
    for loads in (True, False):
        fake = FakeCuda()
        monkeypatch.setattr(cuda, "runtime", lambda fake=fake: fake)
        monkeypatch.setattr(
            audit_module, "import_runtime", lambda flavour, fake=fake, loads=loads: FakeRuntime(fake.asked, loads=loads)
        )
        if loads:
            assert audit_engine(layer_information(*plan), known).work == {"INT8": 2, "FP16": 4, "FP32": 1}
        else:
            with pytest.raises(InputError, match="cannot load"):
                layer_information(*plan)


@pytest.mark.parametrize(("code", "kind"), [(35, MissingError), (803, MissingError), (700, DeviceError)])
def test_cuda_errors_are_reported_before_the_runtime_starts(
    code: int, kind: type[MdeError], plan: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mirrordepth_edge.backends.trt import cuda
    from mirrordepth_edge.backends.trt import session as engine
    from mirrordepth_edge.graph import audit_engine as audit_module

    fake = FakeCuda(code)
    monkeypatch.setattr(engine, "nvidia_gpus", lambda: ("a GPU",))
    monkeypatch.setattr(cuda, "runtime", lambda: fake)
    monkeypatch.setattr(
        audit_module, "import_runtime", lambda flavour: FakeRuntime([])
    )  # its Runtime is not to be started
    with pytest.raises(kind, match="CUDA call cudaSetDevice failed") as caught:
        layer_information(*plan)
    assert f"({code})" in caught.value.why
