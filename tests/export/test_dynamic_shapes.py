"""Dynamic shapes: depth matches a network of that size, in every precision and backend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("open_clip", reason="open_clip is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

import onnx
import torch
import torch.nn.functional as F

from mirrordepth_edge.artefact import Artefact
from mirrordepth_edge.backends.openvino import probe as probe_openvino
from mirrordepth_edge.backends.registry import open_session
from mirrordepth_edge.commands.parameters import parse_range
from mirrordepth_edge.config import ExportConfig, QuantiseConfig, SessionOptions
from mirrordepth_edge.engines.build import build_engine, plan_build
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.export.dynamic_shapes import fix_shapes, options_per_size
from mirrordepth_edge.export.fold import DynamicPositions, resize_weights
from mirrordepth_edge.export.produce import produce_onnx
from mirrordepth_edge.export.trace import export_onnx
from mirrordepth_edge.export.verify import verify
from mirrordepth_edge.graph.audit import audit_onnx
from mirrordepth_edge.graph.cost import graph_cost
from mirrordepth_edge.graph.names import POSITIONS_PREFIX
from mirrordepth_edge.imaging.preprocess import Frame, Preprocessor
from mirrordepth_edge.machine.device import nvidia_gpus
from mirrordepth_edge.manifest import read_manifest
from mirrordepth_edge.model.clip import resize_input
from mirrordepth_edge.model.network import DepthNetwork
from mirrordepth_edge.predictor import load
from mirrordepth_edge.quantise.pipeline import Int8Quantizer
from mirrordepth_edge.quantise.write_calibration_set import folder_as_set

SIZES = parse_range("1x64x64,1x64x96,3x96x128")
CPU = SessionOptions(device="cpu", threads=1)
INSIDE = [(1, 64, 64), (2, 64, 128), (3, 96, 128)]


@pytest.fixture(scope="module", params=["vit", pytest.param("map", marks=pytest.mark.slow)])
def network(request: pytest.FixtureRequest) -> DepthNetwork:
    """Each kind of tower in turn; a graph of maps with open sizes takes the exporter long."""
    name = {"vit": "tiny_network", "map": "tiny_map_network"}[request.param]
    return request.getfixturevalue(name)


@pytest.fixture(scope="module")
def opened(network: DepthNetwork, frames: list[Frame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP32 file of each kind of tower."""
    path = tmp_path_factory.mktemp("open") / "open.onnx"
    size_hw = network.config.size_hw
    config = ExportConfig(sizes=SIZES, size_hw=size_hw)
    produce_onnx(network, config, path, frames, checkpoint_sha256="1" * 64, trained=False)
    return path


def expected_m(network: DepthNetwork, frames: list[Frame], size: tuple[int, int, int]) -> np.ndarray:
    """PyTorch's depth from a network of this size."""
    batch, height, width = size
    single = network.at((height, width))
    prepare = Preprocessor(single.config.preprocess, "float")
    with torch.no_grad():
        return np.concatenate([single(torch.from_numpy(prepare(frame))).numpy() for frame in frames[:batch]])


def fed(network: DepthNetwork, frames: list[Frame], size: tuple[int, int, int]) -> np.ndarray:
    batch, height, width = size
    prepare = Preprocessor(replace(network.config.preprocess, size_hw=(height, width)))
    return np.concatenate([prepare(frame).copy() for frame in frames[:batch]])


def at(size: tuple[int, int, int], options: SessionOptions = CPU) -> SessionOptions:
    return replace(options, network_hw=size[1:], batch=size[0])


@pytest.mark.parametrize("size", INSIDE, ids=str)
def test_depth_at_all_sizes_in_the_range(
    size: tuple[int, int, int], opened: Path, network: DepthNetwork, frames: list[Frame]
) -> None:
    session, manifest = open_session(opened, at(size))
    with session:
        found = session.infer({"image": fed(network, frames, size)})["depth"]
        assert session.inputs[0].size == session.outputs[0].size == size
    assert manifest is not None
    assert (manifest.sizes, manifest.preprocess.size_hw, manifest.model.size_hw) == (None, size[1:], size[1:])
    np.testing.assert_allclose(found, expected_m(network, frames, size), rtol=1e-4)


def test_openvino_supports_dynamic_shapes(opened: Path, network: DepthNetwork, frames: list[Frame]) -> None:
    if not hasattr(probe_openvino(), "version"):
        pytest.skip("OpenVINO is not installed")
    for size in INSIDE:
        session, _ = open_session(opened, at(size, replace(CPU, backend="openvino")))
        with session:
            found = session.infer({"image": fed(network, frames, size)})["depth"]
            np.testing.assert_allclose(found, expected_m(network, frames, size), rtol=1e-3)


def test_checkpoint_runs_at_any_size(tiny_checkpoint: Path, tiny_network: DepthNetwork, frames: list[Frame]) -> None:
    with load(tiny_checkpoint, replace(CPU, network_hw=(96, 128))) as predict:
        assert predict.model.size_hw == (96, 128)
        found = predict.session.infer({"image": fed(tiny_network, frames, (1, 96, 128))})["depth"]
        np.testing.assert_allclose(found, expected_m(tiny_network, frames, (1, 96, 128)), rtol=1e-4)


def test_default_is_one_frame_at_the_opt_size(opened: Path, frames: list[Frame]) -> None:
    with load(opened, CPU) as predict:
        assert predict.session.inputs[0].size == (1, 64, 96)
        assert predict(frames[0]).shape == frames[0].shape[:2]


@pytest.mark.parametrize("size", [(1, 64, 160), (4, 64, 96), (1, 64, 80)], ids=["wide", "many", "between"])
def test_sizes_out_of_range_are_refused(size: tuple[int, int, int], opened: Path, network: DepthNetwork) -> None:
    if size[2] % network.config.size_multiple == 0 and size == (1, 64, 80):
        pytest.skip("80 is a multiple of a ViT's patch")
    with pytest.raises(OptionError, match="cannot run") as caught:
        open_session(opened, at(size))
    assert "heights of 64 to 96" in caught.value.why
    assert "--network-size 64x96" in caught.value.cure


def test_fixed_file_suggests_a_dynamic_export(tiny_network: DepthNetwork, frames: list[Frame], opened: Path) -> None:
    manifest = read_manifest(opened).at()
    assert manifest.at((64, 96), 1) is manifest
    with pytest.raises(OptionError, match="cannot run 2 frames of 64x128") as caught:
        manifest.at((64, 128), 2)
    assert "mde export --dynamic 1x64x96,1x64x96,2x64x128" in caught.value.cure


def test_manifest_states_the_accepted_sizes(opened: Path, frames: list[Frame]) -> None:
    manifest = read_manifest(opened)
    assert manifest.sizes == SIZES
    assert (manifest.inputs[0].shape, manifest.outputs[0].shape) == ((-1, -1, -1, 3), (-1, -1, -1))
    assert manifest.parity.frames == 3 * len(frames)
    assert [(each.batch, each.network_hw) for each in options_per_size(manifest, CPU)] == [
        (1, (64, 64)),
        (1, (64, 96)),
        (3, (96, 128)),
    ]
    (image,), (depth,) = onnx.load(opened).graph.input, onnx.load(opened).graph.output
    names = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert names == ["batch", "height", "width", 3]
    assert [dim.dim_param for dim in depth.type.tensor_type.shape.dim] == ["batch", "height", "width"]


def test_dynamic_batch_keeps_positions_constant(tiny_network: DepthNetwork) -> None:
    model = export_onnx(tiny_network, ExportConfig(sizes=parse_range("1x64x96,2x64x96,4x64x96")))
    assert not [node.name for node in model.graph.node if node.name.startswith(POSITIONS_PREFIX)]
    assert [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim] == [0, 64, 96]


@pytest.mark.parametrize(("given", "wanted"), [(4, 4), (4, 6), (4, 3), (14, 22), (14, 5), (3, 40)])
def test_resize_matches_pytorch_antialiased_bicubic(given: int, wanted: int) -> None:
    """PyTorch's is also open_clip's; Pillow defines it."""
    rows = torch.eye(given, dtype=torch.float64)[None, None]
    expected = F.interpolate(rows, size=(wanted, given), mode="bicubic", antialias=True, align_corners=False)[0, 0]
    weights = resize_weights(given, wanted)
    assert weights.shape == (wanted, given)
    torch.testing.assert_close(weights.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("grid_hw", [(4, 4), (6, 8), (3, 2), (7, 5)])
def test_positions_match_a_network_of_that_size(grid_hw: tuple[int, int], tiny_network: DepthNetwork) -> None:
    other = tiny_network.at((grid_hw[0] * 16, grid_hw[1] * 16))
    expected = other.clip.visual.positional_embedding
    found = DynamicPositions(*tiny_network.clip.visual.trained_positions)(*grid_hw)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_repeated_resizing_starts_from_the_trained_positions(tiny_network: DepthNetwork) -> None:
    there = tiny_network.at((128, 128)).at((64, 96))
    assert torch.equal(there.clip.visual.positional_embedding, tiny_network.clip.visual.positional_embedding)
    resize_input(there.clip, (64, 64))
    assert torch.equal(there.clip.visual.positional_embedding, there.clip.visual.trained_positions[0])


@pytest.mark.parametrize("size", [(1, 64, 64), (2, 96, 128)], ids=str)
def test_dynamic_graph_costs_as_much_as_a_fixed_one(
    size: tuple[int, int, int], opened: Path, network: DepthNetwork
) -> None:
    model, manifest = onnx.load(opened), read_manifest(opened).at(size[1:], size[0])
    at_size = fix_shapes(model, manifest.inputs)
    single = export_onnx(network.at(size[1:]), ExportConfig(batch=size[0]))
    assert graph_cost(at_size).macs == graph_cost(single).macs
    names = {node.name for node in model.graph.node}
    assert {node.name for node in at_size.graph.node} <= names
    assert fix_shapes(single, ()) is single
    with pytest.raises(InputError, match="not fixed"):
        graph_cost(model)


def test_verify_runs_at_other_sizes(opened: Path) -> None:
    session, manifest = open_session(opened, CPU)
    assert manifest is not None
    with session:
        assert verify(session, Artefact.open(opened), manifest).holds
    session, manifest = open_session(opened, at((1, 96, 128)))
    assert manifest is not None
    with session, pytest.raises(InputError, match="nothing to compare") as caught:
        verify(session, Artefact.open(opened), manifest)
    assert "another size than 96x128" in caught.value.why


@pytest.mark.slow
def test_dynamic_shapes_remain_in_every_precision(
    opened: Path, network: DepthNetwork, frames: list[Frame], tmp_path: Path
) -> None:
    pytest.importorskip("modelopt.onnx.autocast", reason="Model Optimizer is not installed")
    half = tmp_path / "half.onnx"
    size_hw = network.config.size_hw
    made = produce_onnx(
        network,
        ExportConfig(precision="fp16", sizes=SIZES, size_hw=size_hw),
        half,
        frames,
        checkpoint_sha256="1" * 64,
        trained=False,
    )
    assert made.sizes == SIZES
    typed = onnx.shape_inference.infer_shapes(onnx.load(half), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in typed.graph.value_info}
    for node in typed.graph.node:
        if node.name.startswith(POSITIONS_PREFIX) and node.op_type in ("MatMul", "Div"):
            assert types[node.output[0]] == onnx.TensorProto.FLOAT, node.name
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, frame in enumerate(frames):
        cv2.imwrite(str(pictures / f"{number}.png"), frame[:, :, ::-1])
    quantizer = Int8Quantizer(
        fp32=Artefact.open(opened),
        calibration=folder_as_set(pictures),
        config=QuantiseConfig(scheme="gpu", force=True),
        folder=tmp_path,
    )
    assert not [name for name in quantizer.nodes if name.startswith(POSITIONS_PREFIX)]
    eight = tmp_path / "eight.onnx"
    quantised = quantizer.write(eight, quantizer.fit(), "1" * 64)
    assert quantised.sizes == SIZES
    assert audit_onnx(fix_shapes(onnx.load(eight), quantised.at().inputs), quantised).share("INT8") > 0.5
    assert quantised.parity.mean_relative < 0.1
    for path in (half, eight):
        session, _ = open_session(path, at((2, 64, 128)))
        with session:
            found = session.infer({"image": fed(network, frames, (2, 64, 128))})["depth"]
        off = np.abs(found / expected_m(network, frames, (2, 64, 128)) - 1)
        assert off.mean() < (4e-3 if path == half else 0.1)


@pytest.mark.slow
def test_tensorrt_for_rtx_builds_dynamic_shapes(opened: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    manifest = build_engine(Artefact.open(opened), tmp_path / "open.plan", plan_build("rtx-ada"))
    assert manifest.sizes == SIZES
    assert manifest.engine is not None
    assert (tmp_path / "open.plan").stat().st_size > 10_000


@pytest.mark.gpu
@pytest.mark.slow
def test_engine_gives_the_same_depth_at_all_sizes(
    opened: Path, network: DepthNetwork, frames: list[Frame], tmp_path: Path
) -> None:
    if not nvidia_gpus():
        pytest.skip("no NVIDIA GPU is visible")
    plan = tmp_path / "open.plan"
    assert build_engine(Artefact.open(opened), plan, plan_build("here")).sizes == SIZES
    for size in INSIDE:
        session, _ = open_session(plan, at(size, SessionOptions()))
        with session:
            found = session.infer({"image": fed(network, frames, size)})["depth"]
        assert np.abs(found / expected_m(network, frames, size) - 1).mean() < 4e-3
