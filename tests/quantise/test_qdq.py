"""INT8 passes: placement of Q/DQ, quantised values, and layers that do not change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mirrordepth_edge.config import QuantisationScheme
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.graph.activations import Range
from mirrordepth_edge.quantise.qdq import (
    calibrated_tensors,
    is_quantised,
    layer_groups,
    placement,
    quantisable,
    quantise,
    quantised_weight,
    weight_nodes,
)

Array = npt.NDArray[Any]
SCHEMES: tuple[QuantisationScheme, ...] = ("gpu", "cpu")


def graph_of(
    nodes: list[Any],
    constants: Mapping[str, Array],
    x_shape: tuple[int, ...],
    y_shape: tuple[int, ...],
    opset: int = 19,
) -> ModelProto:
    dtype = TensorProto.FLOAT16 if any(each.dtype == np.float16 for each in constants.values()) else TensorProto.FLOAT
    x, y = (helper.make_tensor_value_info(n, dtype, s) for n, s in (("x", x_shape), ("y", y_shape)))
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9, producer_name="test")


def run(model: ModelProto, x: Array) -> Array:
    """Run ONNX's reference implementation, which has no integer kernels."""
    (y,) = ReferenceEvaluator(model).run(None, {"x": x})
    return np.asarray(y)


def rounded_to_scale(values: Array, scale: Array | float, lowest: int) -> Array:
    steps = np.rint(values.astype(np.float64) / scale).clip(lowest, 127)
    return np.asarray(steps * scale, np.float32)


LAYERS = {
    # operator: (weight shape, axis of the output channels, attributes, input shape, output shape)
    "Conv": ((5, 3, 3, 3), 0, {"pads": [1, 1, 1, 1]}, (1, 3, 6, 7), (1, 5, 6, 7)),
    "ConvTranspose": ((3, 5, 2, 2), 1, {"strides": [2, 2]}, (1, 3, 4, 5), (1, 5, 8, 10)),
    "MatMul": ((6, 4), 1, {}, (1, 3, 6), (1, 3, 4)),
    "Gemm": ((6, 4), 1, {}, (3, 6), (3, 4)),
    "Gemm transB": ((4, 6), 0, {"transB": 1}, (3, 6), (3, 4)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_multiplies_quantised_values(layer: str) -> None:
    """Against weights and activations rounded in float64 here, with one scale for each output channel."""
    shape, axis, attributes, x_shape, y_shape = LAYERS[layer]
    rng = np.random.default_rng(0)
    weight = rng.normal(size=shape).astype(np.float32)
    weight *= (
        np.moveaxis(10.0 ** np.arange(shape[axis])[None] * np.ones((1, 1)), 1, -1)
        .reshape([-1 if place == axis else 1 for place in range(weight.ndim)])
        .astype(np.float32)
    )  # channels of very different size, so that one scale for all would show
    x = rng.uniform(-2, 2, x_shape).astype(np.float32)
    operator = layer.split()[0]
    model = graph_of(
        [helper.make_node(operator, ["x", "w"], ["y"], "a/b/layer", **attributes)], {"w": weight}, x_shape, y_shape
    )

    quantised = quantise(model, ["a/b/layer"], {"x": Range(-1.5, 1.0)}, "gpu")

    others = tuple(place for place in range(weight.ndim) if place != axis)
    scale = np.abs(weight.astype(np.float64)).max(axis=others, keepdims=True) / 127
    rounded = graph_of(
        [helper.make_node(operator, ["x", "w"], ["y"], "a/b/layer", **attributes)],
        {"w": rounded_to_scale(weight, scale, -127)},
        x_shape,
        y_shape,
    )
    expected = run(rounded, rounded_to_scale(x, 1.5 / 127, -128))
    np.testing.assert_allclose(run(quantised, x), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_cpu_activations_use_the_whole_range() -> None:
    """uint8 with a zero point: zero stays exact, and both ends are reached within a step."""
    weight = np.eye(4, dtype=np.float32)
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], "a/b/layer")], {"w": weight}, (1, 4), (1, 4))
    quantised = quantise(model, ["a/b/layer"], {"x": Range(-1.0, 3.0)}, "cpu")
    x = np.array([[-1.0, 0.0, 3.0, 7.0]], np.float32)
    y = run(quantised, x)
    assert y[0, 1] == 0
    np.testing.assert_allclose(y, [[-1.0, 0.0, 3.0, 3.0]], atol=4 / 255)


@pytest.mark.parametrize(("size", "integers"), [(1.0, True), (1e9, False)])
def test_cpu_biases_have_the_scale_of_the_accumulator(size: float, integers: bool) -> None:
    """The product of the input's and the channel's scale; a bias that 32 bits of it cannot hold stays as it is."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, 3, 3, 3)).astype(np.float32)
    bias = (size * rng.normal(size=5)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "a/b/layer", pads=[1, 1, 1, 1])
    model = graph_of([node], {"w": weight, "b": bias}, (1, 3, 6, 7), (1, 5, 6, 7))
    quantised = quantise(model, ["a/b/layer"], {"x": Range(-1.0, 3.0), "y": Range(-9.0, 9.0)}, "cpu")
    constants = {each.name: numpy_helper.to_array(each) for each in quantised.graph.initializer}
    kinds = [value.dtype for value in constants.values()]
    assert (np.dtype(np.int32) in kinds) is integers
    if not integers:
        assert "b" in constants
        return
    (stored,) = (value for value in constants.values() if value.dtype == np.int32)
    step = 4 / 255 * np.abs(weight).max(axis=(1, 2, 3)) / 127
    np.testing.assert_allclose(stored * step, bias, atol=0.51 * step.max())
    gpu = quantise(model, ["a/b/layer"], {"x": Range(-1.0, 3.0)}, "gpu")
    assert "b" in {each.name for each in gpu.graph.initializer}, "TensorRT adds it as it is"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_are_rounded_to_half_a_step(dtype: str) -> None:
    weight = (np.random.default_rng(0).normal(size=(7, 9)) * 10.0 ** np.arange(-5, 4)).astype(dtype)
    weight[:, 3] = 0
    integers, scale = quantised_weight(weight, 1)
    assert integers.dtype == np.int8
    assert scale.dtype == dtype
    assert scale[3] == 1
    assert np.abs(integers).max() <= 127
    error = np.abs(integers * scale.astype(np.float64) - weight.astype(np.float64))
    # Half a step, and for FP16 what rounding the scale itself moves the largest integers by.
    slack = 0.5 if dtype == "float32" else 0.5 + 127 * 2.0**-11
    assert (error <= slack * scale.astype(np.float64) * (1 + 1e-6)).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_empty_range_has_scale_one(scheme: QuantisationScheme) -> None:
    weight = np.ones((4, 4), np.float32)
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], "a/b/layer")], {"w": weight}, (1, 4), (1, 4))
    quantised = quantise(model, ["a/b/layer"], {"x": Range(0.0, 0.0)}, scheme)
    assert (run(quantised, np.zeros((1, 4), np.float32)) == 0).all()


def conv(number: int, source: str, target: str) -> Any:
    return helper.make_node("Conv", [source, f"w{number}"], [target], f"tower/{number}/Conv", pads=[1, 1, 1, 1])


def inverted_residual() -> ModelProto:
    """x -> conv -> ReLU -> conv -> (+ x's stem) -> conv, as mobile towers are built."""
    rng = np.random.default_rng(1)
    nodes = [
        conv(0, "x", "stem"),
        conv(1, "stem", "wide"),
        helper.make_node("Relu", ["wide"], ["cut"], "tower/1/Relu"),
        conv(2, "cut", "narrow"),
        helper.make_node("Add", ["stem", "narrow"], ["sum"], "tower/Add"),
        conv(3, "sum", "y"),
    ]
    weights = {f"w{number}": rng.normal(size=(3, 3, 3, 3)).astype(np.float32) for number in range(4)}
    return graph_of(nodes, weights, (1, 3, 8, 8), (1, 3, 8, 8))


def test_placement_in_a_convolutional_tower() -> None:
    model = inverted_residual()
    nodes = quantisable(model)
    on_gpu, on_cpu = placement(model, nodes, "gpu"), placement(model, nodes, "cpu")
    assert on_gpu.inputs == ("x", "stem", "cut", "sum")
    assert on_gpu.residuals == ("tower/Add",)
    assert on_gpu.outputs == ()
    # Each convolution's result, behind the function that its kernel takes along; the model's own result stays.
    assert on_cpu.outputs == ("stem", "cut", "narrow")
    assert on_cpu.residuals == ()


def test_sum_reads_the_residual_dequantised() -> None:
    model = inverted_residual()
    ranges = dict.fromkeys(calibrated_tensors(model, quantisable(model), "gpu"), Range(-4.0, 4.0))
    quantised = quantise(model, quantisable(model), ranges, "gpu")
    (total,) = (node for node in quantised.graph.node if node.name == "tower/Add")
    assert list(total.input) == ["stem_dq", "narrow"]


def transformer_on_convolutions(between: int) -> ModelProto:
    """Convolutions with a sum of their own, then tokens whose sum, and `between` more, a normalisation reads."""
    rng = np.random.default_rng(2)
    nodes = [
        conv(0, "x", "stem"),
        conv(1, "stem", "branch"),
        helper.make_node("Add", ["stem", "branch"], ["map"], "tower/Add"),
        conv(2, "map", "taken"),
        helper.make_node("Reshape", ["taken", "shape"], ["view"], "Reshape"),
        helper.make_node("Transpose", ["view"], ["sum0"], "Transpose", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["sum0", "m"], ["attended"], "block/out/MatMul"),
        *(
            helper.make_node("Add", [f"sum{number}", "attended"], [f"sum{number + 1}"], f"block/Add_{number}")
            for number in range(between + 1)
        ),
        helper.make_node("LayerNormalization", [f"sum{between + 1}", "gain"], ["normed"], "block/norm"),
        helper.make_node("Transpose", ["normed"], ["back"], "Transpose_1", perm=[0, 2, 1]),
        helper.make_node("Reshape", ["back", "x_shape"], ["map2"], "Reshape_1"),
        conv(3, "map2", "y"),
    ]
    constants: dict[str, Array] = {
        f"w{number}": rng.normal(size=(3, 3, 3, 3)).astype(np.float32) for number in range(4)
    }
    constants |= {"m": rng.normal(size=(3, 3)).astype(np.float32), "gain": np.ones(3, np.float32)}
    constants |= {"shape": np.array([1, 3, 64]), "x_shape": np.array([1, 3, 8, 8])}
    return graph_of(nodes, constants, (1, 3, 8, 8), (1, 3, 8, 8))


@pytest.mark.parametrize("between", [0, 2])
def test_cpu_placement_excludes_residual_sums_of_transformers(between: int) -> None:
    model = transformer_on_convolutions(between)
    nodes = ["tower/0/Conv", "tower/1/Conv", "tower/2/Conv", "tower/3/Conv", "block/out/MatMul"]
    assert placement(model, nodes, "cpu").outputs == ("stem", "branch")
    ranges = dict.fromkeys(calibrated_tensors(model, nodes, "cpu"), Range(-40.0, 40.0))
    quantised = quantise(model, nodes, ranges, "cpu")
    reads = {node.name: list(node.input) for node in quantised.graph.node}
    assert reads["tower/Add"] == ["stem_dq", "branch_dq"]
    assert reads["Reshape"][0] == "taken"
    assert reads["block/Add_0"] == ["sum0", "attended"]
    assert reads["block/out/MatMul"] == ["sum0_dq", "m_dq"]  # its operand alone is rounded


@pytest.mark.parametrize("scheme", SCHEMES)
def test_sum_before_a_normalisation_counts_as_a_transformers(scheme: QuantisationScheme) -> None:
    model = inverted_residual()
    norm = helper.make_node("LayerNormalization", ["sum", "gain"], ["normed"], "tower/norm")
    model.graph.node.insert(5, norm)
    model.graph.node[6].input[0] = "normed"
    model.graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), "gain"))
    nodes = quantisable(model)
    ranges = dict.fromkeys(calibrated_tensors(model, nodes, scheme), Range(-4.0, 4.0))
    quantised = quantise(model, nodes, ranges, scheme)
    (total,) = (node for node in quantised.graph.node if node.name == "tower/Add")
    assert list(total.input) == ["stem", "narrow"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_names_metadata_and_other_layers_do_not_change(scheme: QuantisationScheme) -> None:
    model = inverted_residual()
    chosen = ["tower/2/Conv"]
    ranges = dict.fromkeys(calibrated_tensors(model, chosen, scheme), Range(-4.0, 4.0))
    before = model.SerializeToString()
    quantised = quantise(model, chosen, ranges, scheme)
    assert model.SerializeToString() == before
    assert is_quantised(quantised)
    assert not is_quantised(model)
    names = [node.name for node in quantised.graph.node]
    assert [name for name in names if name in {node.name for node in model.graph.node}] == [
        node.name for node in model.graph.node
    ]
    assert quantised.producer_name == "test"
    assert quantised.graph.input == model.graph.input
    assert quantised.graph.output == model.graph.output
    kept = {initializer.name for initializer in quantised.graph.initializer}
    for initializer in model.graph.initializer:
        assert (initializer.name in kept) is (initializer.name != "w2")


def test_ranges_apply_to_fp16_models_through_casts() -> None:
    """AutoCast puts casts between an activation, whose range is known by its FP32 name, and the layer."""
    nodes = [
        helper.make_node("Cast", ["x"], ["x_cast_to_fp16"], "x_cast_to_fp16", to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["x_cast_to_fp16", "w"], ["z"], "a/b/layer"),
        helper.make_node("Cast", ["z"], ["y"], "z_cast_to_fp32", to=TensorProto.FLOAT),
    ]
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float16)
    model = graph_of(nodes, {"w": weight}, (1, 4), (1, 4))
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.elem_type = TensorProto.FLOAT
    x = np.array([[-1.0, 0.25, 0.5, 1.0]], np.float32)
    quantised = quantise(model, ["a/b/layer"], {"x": Range(-1.0, 1.0)}, "gpu")
    np.testing.assert_allclose(run(quantised, x), run(model, x), atol=0.03)
    scales = [tensor for tensor in quantised.graph.initializer if tensor.name.endswith("_scale")]
    assert {tensor.data_type for tensor in scales} == {TensorProto.FLOAT16}


def test_ranges_of_another_model_are_refused() -> None:
    model = inverted_residual()
    with pytest.raises(InputError, match="no calibrated range"):
        quantise(model, quantisable(model), {"x": Range(0.0, 1.0)}, "gpu")


def test_layers_are_grouped_by_module() -> None:
    names = ("a/blocks/0/attn/qkv/MatMul", "a/blocks/0/attn/out/MatMul", "a/blocks/0/mlp/c_fc/MatMul", "stem/Conv")
    assert layer_groups(names) == {
        "a/blocks/0/attn": names[:2],
        "a/blocks/0/mlp": names[2:3],
        "stem/Conv": names[3:],
    }


def test_only_layers_with_weights_are_quantised(network: Any, exported: Any) -> None:
    """Not quantised: sums, normalisation, softmax, activation functions and attention of transformers, and heads."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from mirrordepth_edge.graph.audit import audit_onnx
    from mirrordepth_edge.graph.names import HEAD_PREFIX

    model = exported(network)
    nodes = quantisable(model)
    ranges = dict.fromkeys(calibrated_tensors(model, nodes, "gpu"), Range(-4.0, 4.0))
    quantised = quantise(model, nodes, ranges, "gpu")
    twins = {name for node in quantised.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    readers = [node for node in quantised.graph.node if twins & set(node.input)]
    assert {node.name for node in readers if node.op_type != "Add"} == set(nodes)
    assert {node.op_type for node in readers} <= {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add"}
    assert not any(node.name.startswith(HEAD_PREFIX) for node in readers)
    if network.tower.has_tokens:
        assert "Add" not in {node.op_type for node in readers}
    # With every other layer given back, as the gate may: an audit knows a residual sum by rules of its own.
    for kept in (nodes, nodes[::2]):
        ranges = dict.fromkeys(calibrated_tensors(model, kept, "cpu"), Range(-4.0, 4.0))
        found = audit_onnx(quantise(model, kept, ranges, "cpu"), None).findings
        assert "dq-residual" not in {each.kind for each in found}
        # What made the file is advised for other hardware only.
        assert [each.kind for each in found if "mde export --int8" in each.cure] == ["asymmetric"]
    heads = [name for name in weight_nodes(model) if name.startswith(HEAD_PREFIX)]
    assert heads
    assert set(heads).isdisjoint(nodes)
