"""Known causes of wrong depth of a ViT in low precision are detected."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from onnx import ModelProto, TensorProto, helper, load, numpy_helper, save
from onnx.reference import ReferenceEvaluator

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

from mirrordepth_edge.artefact import NANO_ONNX, Artefact
from mirrordepth_edge.backends.onnxruntime import create_inference_session
from mirrordepth_edge.config import ExportConfig, PreprocessConfig, QuantiseConfig, SessionOptions
from mirrordepth_edge.errors import GateError
from mirrordepth_edge.export.accuracy import check_accuracy
from mirrordepth_edge.export.fp16 import check_range, to_fp16
from mirrordepth_edge.export.produce import produce_onnx
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.manifest import TensorSpec
from mirrordepth_edge.model.network import DepthNetwork
from mirrordepth_edge.quantise.calibration_set import CalibrationSet
from mirrordepth_edge.quantise.pipeline import Int8Quantizer
from mirrordepth_edge.quantise.qdq import quantisable, weight_nodes
from mirrordepth_edge.quantise.write_calibration_set import folder_as_set

OUTLIERS = Path(__file__).parents[2] / "benchmarks" / "outliers.py"


def outliers() -> ModuleType:
    if not OUTLIERS.is_file():
        pytest.skip("benchmarks/ is in the repository only")
    spec = spec_from_file_location("outliers", OUTLIERS)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_pictures(folder: Path, pictures: list[Frame]) -> CalibrationSet:
    folder.mkdir()
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(folder / f"{number:03d}.png"), picture[:, :, ::-1])
    return folder_as_set(folder)


def smooth(count: int, seed: int = 0) -> list[Frame]:
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 5, 7, 3)).astype(np.float32)
    resized = (cv2.resize(each, (96, 64), interpolation=cv2.INTER_CUBIC) for each in coarse)
    return [each.clip(0, 255).astype(np.uint8) for each in resized]


@pytest.fixture(scope="module")
def quantizer(tiny_network: DepthNetwork, tmp_path_factory: pytest.TempPathFactory) -> Int8Quantizer:
    """Quantizer of a ViT with outlier channels, calibrated on 32 images and evaluated on four others."""
    folder = tmp_path_factory.mktemp("outliers")
    planted = outliers()
    network = planted.with_varied_depth(planted.with_outliers(tiny_network))
    fp32 = folder / "fp32.onnx"
    produce_onnx(network, ExportConfig(), fp32, smooth(2), checkpoint_sha256="0" * 64, trained=False)
    return Int8Quantizer(
        fp32=Artefact.open(fp32),
        calibration=write_pictures(folder / "pictures", smooth(32)),
        config=QuantiseConfig(scheme="gpu"),
        folder=folder,
    )


def test_default_placement_tolerates_outliers(quantizer: Int8Quantizer) -> None:
    fitted = quantizer.fit()
    assert fitted.fp_fallback == ()
    assert fitted.accuracy.loss < 0.005


def test_gate_detects_quantised_readers_of_residual_sums(quantizer: Int8Quantizer) -> None:
    everything = [name for name in weight_nodes(quantizer.model) if not name.startswith("decoder/head/")]
    assert set(everything) - set(quantisable(quantizer.model))
    tensors = {node.input[0] for node in quantizer.model.graph.node if node.name in everything}
    from mirrordepth_edge.graph.activations import collect

    images = quantizer.preprocess(smooth(16, seed=1))
    quantizer.ranges.update(collect(quantizer.model, sorted(tensors), images).ranges("percentile", symmetric=True))
    with pytest.raises(GateError, match="more depth accuracy than allowed"):
        check_accuracy(quantizer.accuracy(everything))


def test_gate_detects_model_optimizers_default_placement(quantizer: Int8Quantizer) -> None:
    """It quantises residual sums, in which outliers determine the scale."""
    quantization = pytest.importorskip("modelopt.onnx.quantization", reason="Model Optimizer is not installed")
    candidate = quantizer.folder / "model_optimizer.onnx"
    images: npt.NDArray[Any] = np.concatenate(quantizer.preprocess(smooth(16)))
    quantization.quantize(
        str(quantizer.fp32.path),
        calibration_data={"image": images},
        calibration_method="max",
        high_precision_dtype="fp32",
        output_path=str(candidate),
        calibration_eps=["cpu"],
        log_level="ERROR",
    )
    twins = {name for node in load(candidate).graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    assert any(node.op_type == "Add" and twins & set(node.input) for node in load(candidate).graph.node)
    accuracy = quantizer.evaluator.evaluate(candidate, quantizer.manifest_of([]), quantizer.config.max_loss)
    with pytest.raises(GateError, match="more depth accuracy than allowed"):
        check_accuracy(accuracy)
    assert accuracy.loss > 5 * quantizer.accuracy(quantizer.nodes).loss


IMAGE = TensorSpec(name="image", dtype="uint8", shape=(1, 8, 8, 3), layout="NHWC", range="0..255", unit="RGB")


def decomposed_normalisation() -> ModelProto:
    """Decomposed LayerNormalization, as in exports before opset 17, on activations as large as CLIP's."""
    constants = {
        "mean": np.array([127.0], np.float32),
        "large": np.array([1418.0 / 128], np.float32),
        "two": np.array([2.0], np.float32),
        "tiny": np.array([1e-5], np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], "Cast", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["pixels", "mean"], ["centred"], "tower/Sub"),
        helper.make_node("Mul", ["centred", "large"], ["x"], "tower/Mul"),
        helper.make_node("ReduceMean", ["x"], ["m"], "tower/norm/ReduceMean", axes=[-1]),
        helper.make_node("Sub", ["x", "m"], ["d"], "tower/norm/Sub"),
        helper.make_node("Pow", ["d", "two"], ["squares"], "tower/norm/Pow"),
        helper.make_node("ReduceMean", ["squares"], ["variance"], "tower/norm/ReduceMean_1", axes=[-1]),
        helper.make_node("Add", ["variance", "tiny"], ["above"], "tower/norm/Add"),
        helper.make_node("Sqrt", ["above"], ["deviation"], "tower/norm/Sqrt"),
        helper.make_node("Div", ["d", "deviation"], ["y"], "tower/norm/Div"),
        helper.make_node("ReduceMax", ["y"], ["level"], "decoder/head/ReduceMax", axes=[-1], keepdims=0),
        helper.make_node("Softplus", ["level"], ["depth"], "decoder/head/Softplus"),
    ]
    graph = helper.make_graph(
        nodes,
        "decomposed",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 8, 8, 3])],
        [helper.make_tensor_value_info("depth", TensorProto.FLOAT, [1, 8, 8])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)


def test_decomposed_normalisation_does_not_overflow(tmp_path: Path) -> None:
    """Squares of 1418 overflow in FP16: the conversion avoids it on these frames, or the gate detects it."""
    pytest.importorskip("modelopt.onnx.autocast", reason="Model Optimizer is not installed")
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(2)]
    grey = [np.full((8, 8, 3), 127, np.uint8)]
    path = tmp_path / "fp32.onnx"
    save(decomposed_normalisation(), path)
    preprocess = PreprocessConfig(size_hw=(8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    feed = {"image": frames[0][None]}
    (expected,) = create_inference_session(path, SessionOptions(device="cpu")).run(None, feed)

    half = to_fp16(path, frames, preprocess, IMAGE)
    check_range(path, half, [feed["image"]])
    np.testing.assert_allclose(ReferenceEvaluator(half).run(None, feed)[0], expected, rtol=4e-3)

    blind = to_fp16(path, grey, preprocess, IMAGE)
    with np.errstate(over="ignore"):
        (ruined,) = ReferenceEvaluator(blind).run(None, feed)
    assert not np.allclose(ruined, expected, rtol=0.1)
    with pytest.raises(GateError, match="cannot represent"):
        check_range(path, blind, [feed["image"]])


def test_calibration_on_noise_is_reported(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (224, 288, 3), dtype=np.uint8) for _ in range(16)]
    fp32 = NANO_ONNX["fp32"]
    quantizer = Int8Quantizer(
        fp32=Artefact.open(fp32),
        calibration=write_pictures(tmp_path / "noise", noise),
        config=QuantiseConfig(scheme="gpu"),
        folder=tmp_path,
    )
    problem = quantizer.domain_problem
    quantisation = quantizer.manifest_of(quantizer.nodes).quantisation
    assert quantisation is not None
    assert quantisation.domain_problem == problem
    assert problem is not None
    assert "another domain" in problem
