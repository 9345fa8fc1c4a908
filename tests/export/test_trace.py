"""Content of the exported graph."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

torch = pytest.importorskip("torch", reason="exporting needs PyTorch")

from mirrordepth_edge.config import ExportConfig  # noqa: E402
from mirrordepth_edge.errors import GateError  # noqa: E402
from mirrordepth_edge.export.fp16 import to_fp16  # noqa: E402
from mirrordepth_edge.export.parity import check_parity, measure_parity  # noqa: E402
from mirrordepth_edge.export.trace import export_onnx  # noqa: E402
from mirrordepth_edge.graph.cost import graph_cost  # noqa: E402
from mirrordepth_edge.imaging.preprocess import Frame  # noqa: E402
from mirrordepth_edge.manifest import Parity, input_spec  # noqa: E402
from mirrordepth_edge.model.network import DepthNetwork  # noqa: E402

Export = Callable[[DepthNetwork], onnx.ModelProto]


@pytest.fixture(scope="module")
def vit_model(tiny_network: DepthNetwork, exported: Export) -> onnx.ModelProto:
    return exported(tiny_network)


@pytest.fixture(scope="module")
def map_model(tiny_map_network: DepthNetwork, exported: Export) -> onnx.ModelProto:
    return exported(tiny_map_network)


def constants(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_inputs_and_outputs(vit_model: onnx.ModelProto, tiny_network: DepthNetwork) -> None:
    (image,), (depth,) = vit_model.graph.input, vit_model.graph.output
    height, width = tiny_network.config.size_hw
    assert image.name == "image"
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value for d in image.type.tensor_type.shape.dim] == [1, height, width, 3]
    assert depth.name == "depth"
    assert depth.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [d.dim_value for d in depth.type.tensor_type.shape.dim] == [1, height, width]
    assert vit_model.opset_import[0].version >= 18


def test_uint8_is_cast_before_it_is_transposed(vit_model: onnx.ModelProto, map_model: onnx.ModelProto) -> None:
    for model in (vit_model, map_model):
        first, second = model.graph.node[:2]
        assert (first.op_type, second.op_type) == ("Cast", "Transpose")
        assert list(first.input) == ["image"]


def test_graph_has_no_text_tower_mirror_or_film(vit_model: onnx.ModelProto, tiny_network: DepthNetwork) -> None:
    present = constants(vit_model).values()
    text = {name: p for name, p in tiny_network.clip.named_parameters() if not name.startswith("visual.")}
    gone = text | {"mirror": tiny_network.mirror.embeddings} | dict(tiny_network.decoder.film.named_parameters())
    for name, parameter in gone.items():
        values = parameter.detach().numpy()
        if values.size < 2 or np.ptp(values) == 0:
            continue  # a scalar or a fresh LayerNorm's ones and zeros are nobody's own
        for candidate in (values, values.T):
            assert not any(c.shape == candidate.shape and np.array_equal(c, candidate) for c in present), name
    assert not [node.name for node in vit_model.graph.node if "film" in node.name or "text" in node.name]


def test_film_is_in_the_deepest_reduce(vit_model: onnx.ModelProto, tiny_network: DepthNetwork) -> None:
    with torch.no_grad():
        gamma, beta = tiny_network.decoder.film.constants(tiny_network.text_feature())
        layer = tiny_network.decoder.reduces[0]
        weight = (gamma[:, None] * layer.weight).numpy()
        bias = (gamma * layer.bias + beta).numpy()
    present = constants(vit_model).values()
    assert any(c.shape in (weight.shape, weight.T.shape) and np.allclose(c, weight.T, atol=1e-7) for c in present)
    assert any(c.shape == bias.shape and np.allclose(c, bias, atol=1e-7) for c in present)


def test_tower_stops_at_the_last_tap(tiny_network: DepthNetwork) -> None:
    """With fewer taps the blocks behind them leave the file."""
    config = replace(tiny_network.config, taps=(0, 1))
    from mirrordepth_edge.model.network import create_network

    shallow = export_onnx(create_network(config).eval(), ExportConfig())
    names = " ".join(node.name for node in shallow.graph.node)
    assert "resblocks/1/" in names
    assert "resblocks/2/" not in names
    assert "ln_post" not in names


def test_normalisation_is_folded_into_the_patch_convolution(
    vit_model: onnx.ModelProto, map_model: onnx.ModelProto
) -> None:
    assert vit_model.graph.node[2].op_type == "Conv"
    # SAME padding pads with zeros after normalisation, so a convolutional tower keeps it explicit.
    assert [node.op_type for node in map_model.graph.node[2:5]] == ["Mul", "Add", "Conv"]


def test_attention_is_explicit_with_scaled_queries(vit_model: onnx.ModelProto, tiny_network: DepthNetwork) -> None:
    count = operators(vit_model)
    attentions = len(tiny_network.config.taps) + len(tiny_network.decoder.blocks)
    assert count["Softmax"] == attentions
    assert count["LayerNormalization"] == 1 + 2 * attentions  # ln_pre, then two a block
    assert not count["ReduceMean"]
    producers = {output: node for node in vit_model.graph.node for output in node.output}
    for softmax in (node for node in vit_model.graph.node if node.op_type == "Softmax"):
        assert producers[softmax.input[0]].op_type == "MatMul", "a scale stands between product and softmax"


def test_position_embedding_is_a_constant(vit_model: onnx.ModelProto, tiny_network: DepthNetwork) -> None:
    expected = tiny_network.clip.visual.positional_embedding.detach().numpy()
    assert any(np.array_equal(np.squeeze(c), expected) for c in constants(vit_model).values())
    assert not operators(vit_model)["Resize"]


def test_parameter_count_includes_only_what_runs(tiny_network: DepthNetwork) -> None:
    network = copy.deepcopy(tiny_network)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # fresh biases and LayerNorms are equal to one another, and would be stored once
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    visual = network.clip.visual
    parts = [visual.conv1.weight, visual.class_embedding, visual.positional_embedding, *visual.ln_pre.parameters()]
    parts += [p for index in range(3) for p in visual.transformer.resblocks[index].parameters()]
    runs = sum(p.numel() for p in parts)
    runs += sum(p.numel() for name, p in network.decoder.named_parameters() if not name.startswith("film."))
    runs += visual.conv1.out_channels  # the bias that normalisation became
    delivered = graph_cost(export_onnx(network, ExportConfig())).parameters
    assert runs <= delivered <= runs + 16  # a handful of scalars, such as QuickGELU's 1.702


def test_batch_norm_is_folded(map_model: onnx.ModelProto) -> None:
    assert not operators(map_model)["BatchNormalization"]


def test_names_are_unique_and_readable(vit_model: onnx.ModelProto) -> None:
    names = [node.name for node in vit_model.graph.node]
    assert len(set(names)) == len(names)
    assert "decoder/head/5/Softplus" in names


def test_file_has_no_data_of_the_exporting_machine(vit_model: onnx.ModelProto) -> None:
    blob = vit_model.SerializeToString()
    assert str(Path(__file__).parent.parent.parent).encode() not in blob
    assert b"site-packages" not in blob


@pytest.mark.parametrize(
    ("tower", "io"),
    [
        ("tiny_network", "uint8"),
        ("tiny_network", "float"),
        ("tiny_map_network", "uint8"),
        pytest.param("tiny_map_network", "float", marks=pytest.mark.slow),
    ],
)
def test_fp32_parity(
    tower: str, io: str, frames: list[Frame], tmp_path: Path, exported: Export, request: pytest.FixtureRequest
) -> None:
    network: DepthNetwork = request.getfixturevalue(tower)
    path = tmp_path / "model.onnx"
    model = exported(network) if io == "uint8" else export_onnx(network, ExportConfig(io="float"))
    onnx.save(model, path)
    parity = measure_parity(path, network, frames, "fp32", io)  # type: ignore[arg-type]
    check_parity(parity, "fp32")
    assert parity.frames == len(frames)
    assert parity.max_relative < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["tiny_network", "tiny_map_network"])
def test_fp16_is_strongly_typed_with_fp32_exceptions(
    tower: str, frames: list[Frame], tmp_path: Path, exported: Export, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("modelopt.onnx.autocast", reason="FP16 export needs NVIDIA Model Optimizer")
    network: DepthNetwork = request.getfixturevalue(tower)
    path = tmp_path / "fp32.onnx"
    onnx.save(exported(network), path)
    model = to_fp16(path, frames, network.config.preprocess, input_spec(network.config, ExportConfig()))
    half = tmp_path / "fp16.onnx"
    onnx.save(model, half)
    check_parity(measure_parity(half, network, frames, "fp16", "uint8"), "fp16")

    typed = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*typed.graph.value_info, *typed.graph.input, *typed.graph.output)
    }
    types |= {each.name: each.data_type for each in typed.graph.initializer}
    for node in typed.graph.node:
        if node.op_type in ("LayerNormalization", "Softplus") or node.name.startswith("decoder/head/"):
            assert types[node.output[0]] == onnx.TensorProto.FLOAT or node.op_type in ("Cast", "Greater"), node.name
    heavy = [node for node in typed.graph.node if node.op_type in ("MatMul", "Conv")]
    outside = [node for node in heavy if not node.name.startswith("decoder/head/")]
    assert outside
    assert all(types[node.output[0]] == onnx.TensorProto.FLOAT16 for node in outside)


def test_gate_refuses_a_wrong_file(
    tiny_network: DepthNetwork, frames: list[Frame], tmp_path: Path, exported: Export
) -> None:
    model = exported(tiny_network)
    largest = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    values = numpy_helper.to_array(largest) * np.float32(1.01)
    largest.CopyFrom(numpy_helper.from_array(values, largest.name))
    path = tmp_path / "wrong.onnx"
    onnx.save(model, path)
    with pytest.raises(GateError, match="nothing was written"):
        check_parity(measure_parity(path, tiny_network, frames, "fp32", "uint8"), "fp32")


@pytest.mark.parametrize(("precision", "figures"), [("fp32", (1.1e-4, 0.0)), ("fp16", (0.0, 4.1e-3))])
def test_gate_limits(precision: str, figures: tuple[float, float]) -> None:
    beyond = Parity(runner="", frames=1, max_relative=figures[0], mean_relative=figures[1], limit="")
    with pytest.raises(GateError):
        check_parity(beyond, precision)  # type: ignore[arg-type]
    for broken in (np.nan, np.inf):
        with pytest.raises(GateError):
            check_parity(replace(beyond, max_relative=broken, mean_relative=broken), precision)  # type: ignore[arg-type]
