"""Which frames are usable, and which of them are selected."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mirrordepth_edge.artefact import NANO_CHECKPOINT, NANO_ONNX
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.manifest import manifest_path, read_manifest, write_artefact
from mirrordepth_edge.quantise.select_frames import (
    Chooser,
    TowerFeatures,
    brightness,
    distinct_rows,
    farthest_points,
    neighbour_correlation,
    sharpness,
)

from .scenes import scene


def test_neighbour_correlation_matches_numpy() -> None:
    grey = cv2.cvtColor(scene(0), cv2.COLOR_RGB2GRAY).astype(np.float32)
    across = np.corrcoef(grey[:, 1:].ravel().astype(np.float64), grey[:, :-1].ravel())[0, 1]
    down = np.corrcoef(grey[1:].ravel().astype(np.float64), grey[:-1].ravel())[0, 1]
    assert neighbour_correlation(grey) == pytest.approx((across + down) / 2, abs=1e-5)
    noise = np.random.default_rng(0).uniform(0, 255, (200, 200)).astype(np.float32)
    assert abs(neighbour_correlation(noise)) < 0.02
    checked = (np.indices((20, 20)).sum(axis=0) % 2).astype(np.float32)
    assert neighbour_correlation(checked) == pytest.approx(-1)
    assert neighbour_correlation(np.zeros((1, 1), np.float32)) == 1


def test_sharpness_falls_with_blur_but_not_with_contrast() -> None:
    grey = cv2.cvtColor(scene(0), cv2.COLOR_RGB2GRAY).astype(np.float32)
    assert sharpness(0.25 * grey + 10) == pytest.approx(sharpness(grey), rel=1e-3)
    blurred = [sharpness(cv2.GaussianBlur(grey, (0, 0), sigma)) for sigma in (1, 2, 4)]
    assert sharpness(grey) > blurred[0] > blurred[1] > blurred[2]
    # The Laplacian of a wave with w radians per pixel is -2 (1 - cos w) times the wave.
    wave = np.sin(0.5 * np.arange(4000, dtype=np.float32))[None].repeat(3, axis=0)
    assert sharpness(wave) == pytest.approx((2 * (1 - np.cos(0.5))) ** 2, rel=0.01)


def test_farthest_points_match_a_brute_force_search() -> None:
    points = np.random.default_rng(1).normal(0, 1, (40, 6)) * (1, 10, 100, 1, 1, 0) + 5
    chosen = farthest_points(points, 12, seed=3)
    scaled = (points - points.mean(axis=0))[:, :5] / points.std(axis=0)[:5]
    for place in range(1, 12):
        to_nearest = [min(np.linalg.norm(point - scaled[other]) for other in chosen[:place]) for point in scaled]
        assert chosen[place] == int(np.argmax(to_nearest))
    assert farthest_points(points, 12, seed=3) == chosen
    assert len({farthest_points(points, 1, seed)[0] for seed in range(20)}) > 5
    assert sorted(farthest_points(points, 99, seed=0)) == list(range(40))
    assert sorted(farthest_points(np.ones((5, 3)), 5, seed=0)) == list(range(5))


def test_one_point_of_each_distant_group_is_selected() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(8), [1, 50, 3, 20, 2, 9, 30, 5])
    centres = rng.normal(0, 100, (8, 4))
    points = centres[groups] + rng.normal(0, 0.1, (len(groups), 4))
    assert sorted(groups[farthest_points(points, 8, seed=5)]) == list(range(8))


def test_duplicates_are_found_by_relative_distance() -> None:
    base = np.array([3.0, 4.0])
    for scale in (1e-3, 1.0, 1e3):
        near, far = base * 1.19, base * 1.25
        assert distinct_rows([scale * base, scale * near, scale * far]) == [0, 2]
    assert distinct_rows([base, base, -base, base]) == [0, 2]
    assert distinct_rows([]) == []
    rng = np.random.default_rng(2)
    vectors = [np.array([1.0, 0.0]) + rng.normal(0, 0.2, 2) for _ in range(60)]
    kept = distinct_rows(vectors)

    def apart(one: int, other: int) -> float:
        a, b = vectors[one], vectors[other]
        return float(2 * np.linalg.norm(a - b) / (np.linalg.norm(a) + np.linalg.norm(b)))

    assert all(apart(one, other) >= 0.2 for one, other in combinations(kept, 2))
    for place in set(range(60)) - set(kept):
        assert min(apart(place, other) for other in kept if other < place) < 0.2


def test_unusable_frames_are_counted(features: TowerFeatures) -> None:
    rng = np.random.default_rng(0)
    good = {f"{seed:02d}.png": scene(seed) for seed in range(8)}
    bad = {
        "black.png": np.zeros((180, 240, 3), np.uint8),
        "capped.png": rng.integers(0, 6, (180, 240, 3), np.uint8),
        "noise.png": rng.integers(0, 256, (240, 320, 3), np.uint8),
        "normal.png": rng.normal(128, 60, (240, 320, 3)).clip(0, 255).astype(np.uint8),
        "blurred.png": cv2.GaussianBlur(scene(20), (0, 0), 6),
        "x again.png": scene(0),
        "y brighter.png": (scene(1) * 1.02).clip(0, 255).astype(np.uint8),
        "z grainy.png": (scene(2) + rng.normal(0, 1, (180, 240, 3))).clip(0, 255).astype(np.uint8),
        "torn.png": None,
    }
    chooser = Chooser(features)
    for name, frame in [*reversed(bad.items()), *good.items()]:
        chooser.look(name, frame)
    choice = chooser.pick(512, 0, "here")
    assert choice.picked == tuple(good)
    assert choice.candidates == 17
    assert str(choice.dropped) == "1 unreadable, 2 uniform, 2 noise, 1 blurred, 3 duplicate"
    correlations = [neighbour_correlation(brightness(frame)) for frame in good.values()]
    assert choice.statistics.neighbour_correlation == pytest.approx(np.median(correlations), abs=1e-4)
    assert choice.statistics.least_neighbour_correlation == pytest.approx(min(correlations), abs=1e-4)
    half = chooser.pick(4, 0, "here")
    assert len(half.picked) == 4
    assert set(half.picked) < set(good)


def test_a_source_of_noise_is_rejected(features: TowerFeatures) -> None:
    chooser = Chooser(features)
    with pytest.raises(InputError, match=r"No frame of /there can be used"):
        chooser.pick(4, 0, "/there")
    rng = np.random.default_rng(0)
    for number in range(3):
        chooser.look(number, rng.integers(0, 256, (48, 64, 3), np.uint8))
    with pytest.raises(InputError, match="No frame") as raised:
        chooser.pick(4, 0, "there")
    assert "3 noise" in raised.value.why
    assert "random data is never used" in raised.value.why


def tiny_model(path: Path, feature: str, names: str = "tower/") -> Path:
    """Write a model whose tower averages 4x4 blocks of colours, as a map or as tokens, and whose decoder cannot run."""
    nodes = [
        helper.make_node("Cast", ["image"], ["cast"], "preprocess/Cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["first"], f"{names}first", perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["first"], ["map"], f"{names}pool", kernel_shape=[4, 4], strides=[4, 4]),
    ]
    if feature == "tokens":
        nodes += [
            helper.make_node("Reshape", ["map", "shape"], ["flat"], f"{names}flat"),
            helper.make_node("Transpose", ["flat"], ["tokens"], f"{names}tokens", perm=[0, 2, 1]),
        ]
    nodes.append(helper.make_node("Unheard", [feature], ["depth"], "decoder/Unheard", domain="nowhere"))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 16, 24, 3])],
        [helper.make_tensor_value_info("depth", TensorProto.FLOAT, [1, 16, 24])],
        [numpy_helper.from_array(np.array([1, 3, -1]), "shape")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nowhere", 1)]
    content = helper.make_model(graph, ir_version=8, opset_imports=opsets).SerializeToString()
    manifest = read_manifest(NANO_ONNX["fp32"])
    write_artefact(
        path,
        content,
        replace(
            manifest,
            artefact_sha256=hashlib.sha256(content).hexdigest(),
            preprocess=replace(manifest.preprocess, size_hw=(16, 24)),
            inputs=(replace(manifest.inputs[0], shape=(1, 16, 24, 3)),),
        ),
    )
    return path


@pytest.mark.parametrize("feature", ["map", "tokens"])
def test_feature_is_the_average_of_the_last_tower_tensor(feature: str, tmp_path: Path) -> None:
    tower = TowerFeatures(str(tiny_model(tmp_path / "tiny.onnx", feature)))
    frame = scene(0, (16, 24))
    np.testing.assert_allclose(tower.of(tower.prepare(frame)), frame.mean(axis=(0, 1)), rtol=1e-5)
    assert tower.model == "tiny.onnx"
    assert tower.sha256 == read_manifest(tmp_path / "tiny.onnx").artefact_sha256


def test_nanos_feature_is_its_deepest_map(features: TowerFeatures, tmp_path: Path) -> None:
    """Compare with the whole network, with the decoder's deepest input as a further output."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = onnx.load(NANO_ONNX["fp32"])
    (tap,) = (node.input[0] for node in model.graph.node if node.name == "decoder/reduces/0/Conv")
    model.graph.output.append(helper.make_tensor_value_info(tap, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    prepared = features.prepare(scene(0)).copy()
    assert prepared.shape == (1, *features.size_hw, 3)
    (deepest,) = session.run([tap], {"image": prepared})
    np.testing.assert_allclose(features.of(prepared), deepest[0].mean(axis=(1, 2)), rtol=1e-3, atol=1e-4)


def test_unsuitable_models_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot compare frames"):
        TowerFeatures(str(NANO_CHECKPOINT))
    with pytest.raises(InputError, match="no known image tower"):
        TowerFeatures(str(tiny_model(tmp_path / "other.onnx", "map", names="backbone/")))
    path = tiny_model(tmp_path / "batch.onnx", "map")
    manifest = read_manifest(path)
    write_artefact(
        path, path.read_bytes(), replace(manifest, inputs=(replace(manifest.inputs[0], shape=(4, 16, 24, 3)),))
    )
    with pytest.raises(OptionError, match="batch size 4"):
        TowerFeatures(str(path))
    manifest_path(path).unlink()
    with pytest.raises(InputError, match="no manifest"):
        TowerFeatures(str(path))
