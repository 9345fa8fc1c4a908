"""MACs match PyTorch's counter, and bytes match closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mirrordepth_edge.artefact import NANO_ONNX
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.graph.cost import NodeCost, graph_cost, node_costs


@pytest.mark.parametrize("tower", ["tiny_network", "tiny_map_network"])
def test_macs_match_pytorch(
    tower: str, exported: Callable[[Any], onnx.ModelProto], request: pytest.FixtureRequest
) -> None:
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch's FLOP counter")
    from torch.utils.flop_counter import FlopCounterMode

    from mirrordepth_edge.export.fold import FoldedNetwork

    network = request.getfixturevalue(tower)
    folded = FoldedNetwork(network)
    image = torch.zeros(1, *network.config.size_hw, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        folded(image)
    model = exported(network)
    assert 2 * graph_cost(model).macs == counter.get_total_flops()
    assert 2 * sum(cost.macs for cost in node_costs(model)) == counter.get_total_flops()


def convolution(*, quantised: bool, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """x [1,3,8,8] -> Conv 5x3x3x3, no padding -> Relu -> y [1,5,6,6]."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    x = helper.make_tensor_value_info("x", dtype, (1, 3, 8, 8))
    y = helper.make_tensor_value_info("y", dtype, (1, 5, 6, 6))
    constants = {"w": np.zeros((5, 3, 3, 3), kind), "b": np.zeros(5, kind)}
    nodes = []
    if quantised:
        constants |= {"w": np.zeros((5, 3, 3, 3), np.int8), "w_s": np.ones(5, kind), "w_z": np.zeros(5, np.int8)}
        constants |= {"s": np.ones((), kind), "z": np.zeros((), np.int8)}
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x_q"], "x/Q"),
            helper.make_node("DequantizeLinear", ["x_q", "s", "z"], ["x_dq"], "x/DQ"),
            helper.make_node("DequantizeLinear", ["w", "w_s", "w_z"], ["w_dq"], "w/DQ", axis=0),
        ]
    inputs = ["x_dq", "w_dq", "b"] if quantised else ["x", "w", "b"]
    nodes += [helper.make_node("Conv", inputs, ["c"], "conv"), helper.make_node("Relu", ["c"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(v, k) for k, v in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])


WORK = 5 * 6 * 6 * 3 * 3 * 3
READ, WRITTEN, WEIGHTS, BIAS = 3 * 8 * 8, 5 * 6 * 6, 5 * 3 * 3 * 3, 5


def cost(name: str, work: int = 0, weights: int = 0, activations: int = 0) -> NodeCost:
    return NodeCost(name=name, macs=work, weight_bytes=weights, activation_bytes=activations)


@pytest.mark.parametrize(("dtype", "width"), [(TensorProto.FLOAT, 4), (TensorProto.FLOAT16, 2)])
def test_bytes_of_a_convolution(dtype: int, width: int) -> None:
    assert node_costs(convolution(quantised=False, dtype=dtype)) == (
        cost("conv", WORK, width * (WEIGHTS + BIAS), width * (READ + WRITTEN)),
        cost("y", 0, 0, width * 2 * WRITTEN),
    )


def test_quantised_tensors_are_read_as_integers() -> None:
    model = convolution(quantised=True)
    assert node_costs(model) == (
        cost("x/Q", 0, 4 + 1, 4 * READ + READ),
        cost("x/DQ"),
        cost("w/DQ"),
        cost("conv", WORK, WEIGHTS + 4 * BIAS, READ + 4 * WRITTEN),
        cost("y", 0, 0, 4 * 2 * WRITTEN),
    )
    assert graph_cost(model).parameters == graph_cost(convolution(quantised=False)).parameters == WEIGHTS + BIAS


def product(weight: list[onnx.NodeProto], constants: dict[str, np.ndarray], batch: int | str = 1) -> onnx.ModelProto:
    """x [batch,4,6] @ w -> y, with `weight` the nodes that make w."""
    graph = helper.make_graph(
        [*weight, helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, 4, 6))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (batch, 4, 7))],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])


SCALE = {"s": np.float32(1), "z": np.int8(0)}


@pytest.mark.parametrize(
    ("weight", "constants", "bytes_read"),
    [
        ([], {"w": np.zeros((6, 7), np.float32)}, 4 * 42),
        (
            # a file that keeps its weights in FP32 behind QuantizeLinear: the runtime keeps the integers
            [
                helper.make_node("QuantizeLinear", ["w_f", "s", "z"], ["w_q"]),
                helper.make_node("DequantizeLinear", ["w_q", "s", "z"], ["w"]),
            ],
            {"w_f": np.zeros((6, 7), np.float32), **SCALE},
            42,
        ),
        (
            [
                helper.make_node("DequantizeLinear", ["w_q", "s", "z"], ["w_t"]),
                helper.make_node("Transpose", ["w_t"], ["w"]),
            ],
            {"w_q": np.zeros((7, 6), np.int8), **SCALE},
            42,
        ),
    ],
    ids=["float", "quantised in the graph", "transposed"],
)
def test_bytes_of_a_product(weight: list[onnx.NodeProto], constants: dict[str, np.ndarray], bytes_read: int) -> None:
    *others, last = node_costs(product(weight, constants))
    assert last == cost("product", 4 * 6 * 7, bytes_read, 4 * (24 + 28))
    assert all(other.weight_bytes == other.activation_bytes == other.macs == 0 for other in others)


def test_dynamic_batch_is_refused() -> None:
    with pytest.raises(InputError, match=r"shape of '[xy]' is not fixed") as caught:
        node_costs(product([], {"w": np.zeros((6, 7), np.float32)}, batch="frames"))
    assert "make_dynamic_shape_fixed" in caught.value.cure


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_weight_bytes_match_the_size_of_shipped_files(precision: str) -> None:
    """Weight bytes are the file size, without the graph and a few constants for shapes."""
    path = NANO_ONNX[precision]
    read = sum(cost.weight_bytes for cost in node_costs(onnx.load(path)))
    assert 0.95 < read / path.stat().st_size < 1
