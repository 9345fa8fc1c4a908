"""Batches: each frame gets the same depth as alone, and only benchmarks accept such files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="exporting needs PyTorch")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX files run in ONNX Runtime")

from mirrordepth_edge.cli import run_app  # noqa: E402
from mirrordepth_edge.config import ExportConfig, InputKind, SessionOptions  # noqa: E402
from mirrordepth_edge.errors import OptionError  # noqa: E402
from mirrordepth_edge.export.parity import MAX_RELATIVE_FP32, batches, measure_parity  # noqa: E402
from mirrordepth_edge.export.produce import produce_onnx  # noqa: E402
from mirrordepth_edge.export.trace import export_onnx  # noqa: E402
from mirrordepth_edge.imaging.preprocess import Frame, Preprocessor  # noqa: E402
from mirrordepth_edge.manifest import (  # noqa: E402
    input_spec,
    output_spec,
    read_manifest,
)
from mirrordepth_edge.model.network import DepthNetwork  # noqa: E402
from mirrordepth_edge.predictor import load  # noqa: E402

CPU = SessionOptions(device="cpu")


@pytest.fixture(scope="module")
def pair(tiny_network: DepthNetwork, frames: list[Frame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_network` with batch size 2."""
    path = tmp_path_factory.mktemp("batch") / "pair.onnx"
    produce_onnx(tiny_network, ExportConfig(batch=2), path, frames, checkpoint_sha256="0" * 64, trained=True)
    return path


def test_batches_rotate(frames: list[Frame], tiny_network: DepthNetwork) -> None:
    prepare = Preprocessor(tiny_network.config.preprocess)
    alone = [prepare(frame)[0].copy() for frame in frames]
    assert len({each.tobytes() for each in alone}) == 3
    first, second = batches(frames, prepare, 2)
    np.testing.assert_array_equal(first, np.stack([alone[0], alone[1]]))
    np.testing.assert_array_equal(second, np.stack([alone[2], alone[0]]))


@pytest.mark.parametrize(
    ("tower", "io"), [("tiny_network", "uint8"), pytest.param("tiny_map_network", "float", marks=pytest.mark.slow)]
)
def test_frames_of_a_batch_are_independent(
    tower: str, io: InputKind, frames: list[Frame], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    network: DepthNetwork = request.getfixturevalue(tower)
    path, config = tmp_path / "batch.onnx", ExportConfig(io=io, batch=3)
    onnx.save(export_onnx(network, config), path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (image,), (depth,) = session.get_inputs(), session.get_outputs()
    assert tuple(image.shape) == input_spec(network.config, config).shape
    assert tuple(depth.shape) == output_spec(network.config, config).shape == (3, *network.config.size_hw)
    (feed,) = batches(frames, Preprocessor(network.config.preprocess, io), 3)
    (delivered,) = session.run(None, {image.name: feed})
    normalised = Preprocessor(network.config.preprocess, "float")
    with torch.no_grad():
        alone = np.stack([network(torch.from_numpy(normalised(frame)))[0].numpy() for frame in frames])
    assert (np.abs(delivered / alone - 1) < MAX_RELATIVE_FP32).all()


def test_gate_checks_every_frame_of_a_batch(tiny_network: DepthNetwork, frames: list[Frame], tmp_path: Path) -> None:
    """A file that returns the depth of the first frame for all, like a wrong reshape."""
    model = export_onnx(tiny_network, ExportConfig(batch=3))
    (end,) = (node for node in model.graph.node if "depth" in node.output)
    end.output[0] = "right"
    constants = {"starts": [0], "ends": [1], "threefold": [3, 1, 1]}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()
    )
    model.graph.node.extend(
        [
            onnx.helper.make_node("Slice", ["right", "starts", "ends"], ["first"]),
            onnx.helper.make_node("Tile", ["first", "threefold"], ["depth"]),
        ]
    )
    path = tmp_path / "mixed.onnx"
    onnx.save(model, path)
    parity = measure_parity(path, tiny_network, frames, "fp32", "uint8", batch=3)
    assert parity.frames == 3
    assert parity.max_relative > MAX_RELATIVE_FP32


def test_manifest_states_the_batch(pair: Path, frames: list[Frame]) -> None:
    manifest = read_manifest(pair)
    (image,), (depth,) = manifest.inputs, manifest.outputs
    assert (image.shape[0], depth.shape[0]) == (2, 2)
    assert manifest.parity.frames == 4, "three, and the first again to fill the second batch"


def test_predictor_fills_a_batch_with_the_frame(pair: Path, tiny_network: DepthNetwork, frames: list[Frame]) -> None:
    alone = Preprocessor(tiny_network.config.preprocess)(frames[0])
    with load(pair, CPU, batch=2) as predictor:
        (fed,) = predictor.prepare(frames[0]).values()
        np.testing.assert_array_equal(fed, np.concatenate([alone, alone]))
        assert predictor(frames[0]).shape == frames[0].shape[:2]


def test_batch_is_refused_for_cameras(pair: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptionError, match="batch size 2, not 1"):
        load(pair, CPU)
    picture = pair.with_name("picture.png")
    cv2.imwrite(str(picture), np.full((48, 64, 3), 90, np.uint8))
    assert run_app(["run", "--model", str(pair), str(picture), "-o", str(pair.with_name("out"))]) == 2
    assert "batch size 2" in capfd.readouterr().err
    assert run_app(["bench", "--engine", str(pair)]) == 2
