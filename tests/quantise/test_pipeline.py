"""From FP32 to INT8 that was judged: the gate, what goes back, what is written, and the sweep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

from onnx import load

from mirrordepth_edge.artefact import Artefact, read_reference
from mirrordepth_edge.commands.export.sweep import estimate_cost
from mirrordepth_edge.config import ExportConfig, QuantiseConfig
from mirrordepth_edge.data.sample import InMemory, Sample
from mirrordepth_edge.errors import GateError, InputError, OptionError
from mirrordepth_edge.evaluation.evaluate import Protocol, evaluate
from mirrordepth_edge.export.accuracy import AccuracyEvaluator, GateFrames
from mirrordepth_edge.export.parity import LIMITS_ELSEWHERE, Limits
from mirrordepth_edge.export.produce import produce_onnx
from mirrordepth_edge.graph.audit import audit_onnx
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.manifest import Accuracy, DepthFigures, Manifest, read_manifest
from mirrordepth_edge.model.network import DepthNetwork
from mirrordepth_edge.predictor import load as load_predictor
from mirrordepth_edge.quantise import sweep as sweeping
from mirrordepth_edge.quantise.pipeline import Int8Quantizer
from mirrordepth_edge.quantise.sweep import Cost, pick_point, point_counts, sweep
from mirrordepth_edge.quantise.write_calibration_set import folder_as_set
from mirrordepth_edge.recipes import load_target
from mirrordepth_edge.support.cache import read_checked, write_checked


def smooth(count: int) -> list[Frame]:
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (count, 5, 7, 3)).astype(np.float32)
    resized = (cv2.resize(each, (96, 64), interpolation=cv2.INTER_CUBIC) for each in coarse)
    return [each.clip(0, 255).astype(np.uint8) for each in resized]


@pytest.fixture(scope="module")
def folder(tiny_map_network: DepthNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP32 file and seventeen pictures."""
    folder = tmp_path_factory.mktemp("int8")
    produce_onnx(
        tiny_map_network, ExportConfig(), folder / "fp32.onnx", smooth(2), checkpoint_sha256="1" * 64, trained=False
    )
    (folder / "pictures").mkdir()
    for number, picture in enumerate(smooth(17)):
        cv2.imwrite(str(folder / "pictures" / f"{number:02d}.png"), picture[:, :, ::-1])
    return folder


def quantizer_of(
    folder: Path, tmp_path: Path, config: QuantiseConfig, labelled: GateFrames | None = None
) -> Int8Quantizer:
    return Int8Quantizer(
        fp32=Artefact.open(folder / "fp32.onnx"),
        calibration=folder_as_set(folder / "pictures"),
        config=config,
        folder=tmp_path,
        labelled=labelled,
    )


FOR_CPU = QuantiseConfig(scheme="cpu")


def labelled(path: Path, farther: float = 1.1) -> GateFrames:
    with load_predictor(path) as predict:
        samples = [Sample(f"{k}", frame, predict(frame) * np.float32(farther)) for k, frame in enumerate(smooth(3))]
    return GateFrames(
        samples=InMemory(samples=samples), protocol=Protocol(limits_m=(1e-3, 100.0)), data="three pictures"
    )


def test_fp32_file_has_no_loss(folder: Path, tmp_path: Path) -> None:
    path = folder / "fp32.onnx"
    fp32 = Artefact.open(path)
    accuracy = AccuracyEvaluator(fp32, labelled(path), tmp_path).evaluate(path, fp32.manifest, 0.01)
    assert accuracy.loss == 0
    assert accuracy.mean_relative == accuracy.max_relative == 0
    assert accuracy.fp32 == accuracy.figures
    assert accuracy.figures.abs_rel == pytest.approx(1 - 1 / 1.1, rel=1e-4)  # |d - 1.1 d| / 1.1 d
    assert accuracy.frames == 3


def test_figures_match_an_evaluation(folder: Path, tmp_path: Path) -> None:
    """Of a candidate against measured depth, and pixel by pixel against the FP32 file."""
    made = quantizer_of(folder, tmp_path, FOR_CPU, labelled(folder / "fp32.onnx"))
    accuracy = made.accuracy(made.nodes)
    manifest = made.write(tmp_path / "int8.onnx", replace(made.fit(), accuracy=accuracy), "2" * 64)
    frames = made.labelled
    assert frames is not None
    assert frames.protocol is not None
    with load_predictor(tmp_path / "int8.onnx") as ours, load_predictor(folder / "fp32.onnx") as fp32:
        expected = evaluate(ours, frames.samples, frames.protocol).mean
        relative = [np.abs(ours(frame).copy() - fp32(frame)) / fp32(frame) for frame in smooth(3)]
    assert accuracy.figures.abs_rel == pytest.approx(expected.abs_rel, rel=1e-6)
    assert accuracy.figures.delta1 == expected.delta1
    assert accuracy.mean_relative == pytest.approx(np.mean(relative), rel=1e-4)
    assert accuracy.max_relative == pytest.approx(np.max(relative), rel=1e-4)
    assert manifest.quantisation is not None
    assert manifest.quantisation.accuracy == accuracy


def figures(abs_rel: float, delta1: float = 0.9) -> DepthFigures:
    return DepthFigures(abs_rel=abs_rel, delta1=delta1, boundary_f1=None)


def accuracy(abs_rel: float, fp32: float | None, limit: float, delta1: float | None = None) -> Accuracy:
    return Accuracy(
        data="frames",
        frames=1,
        figures=figures(abs_rel, delta1 or (1.0 if fp32 is None else 0.9)),
        fp32=None if fp32 is None else figures(fp32),
        mean_relative=0.0,
        max_relative=0.0,
        limit=limit,
    )


@pytest.mark.parametrize(
    ("abs_rel", "fp32", "loss"), [(0.11, 0.1, 0.1), (0.09, 0.1, -0.1), (0.02, None, 0.02), (float("inf"), 0.1, np.inf)]
)
def test_loss_is_relative_to_fp32_and_absolute_without_labels(abs_rel: float, fp32: float | None, loss: float) -> None:
    found = accuracy(abs_rel, fp32, 0.05)
    assert found.loss == pytest.approx(loss)
    assert found.holds is (loss <= 0.05)


@pytest.mark.parametrize(("fp32", "delta1", "holds"), [(0.1, 0.86, True), (0.1, 0.84, False), (None, 0.94, False)])
def test_gate_checks_delta1(fp32: float | None, delta1: float, holds: bool) -> None:
    """A bias of all depth may make AbsRel better, where it cancels FP32's own error."""
    found = accuracy(0.04, fp32, 0.05, delta1)
    assert found.delta1_loss == pytest.approx((1.0 if fp32 is None else 0.9) - delta1)
    assert found.holds is holds


def test_large_difference_on_photos_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mde verify` would refuse it afterwards."""
    monkeypatch.setitem(LIMITS_ELSEWHERE, "int8", Limits(mean=1e-6, block=1e-6))
    output = tmp_path / "far.onnx"
    made = quantizer_of(folder, tmp_path, FOR_CPU)
    with pytest.raises(GateError, match="package's photos") as caught:
        made.write(output, made.fit(), "2" * 64)
    assert "--force" in caught.value.cure
    assert not output.exists()
    forced = replace(made, config=replace(FOR_CPU, force=True))
    quantisation = forced.write(output, forced.fit(), "2" * 64).quantisation
    assert quantisation is not None
    assert quantisation.forced
    verdict = audit_onnx(load(output), read_manifest(output)).verdict
    assert verdict is not None
    assert "written by --force" in verdict.text


def test_old_opset_is_refused_before_calibration(folder: Path, tmp_path: Path) -> None:
    model = load(folder / "fp32.onnx")
    model.opset_import[0].version = 12
    path = tmp_path / "old.onnx"
    path.write_bytes(model.SerializeToString())
    artefact = Artefact(path=path, kind="onnx", sidecar=read_manifest(folder / "fp32.onnx"))
    with pytest.raises(InputError, match="its opset is 12"):
        replace(quantizer_of(folder, tmp_path, FOR_CPU), fp32=artefact)


def test_description_states_that_no_frames_were_held_out(folder: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for file in sorted((folder / "pictures").iterdir())[:4]:
        (few / file.name).write_bytes(file.read_bytes())
    made = replace(quantizer_of(folder, tmp_path, FOR_CPU), calibration=folder_as_set(few))
    assert "the same frames as for calibration" in made.evaluator.frames.data
    assert quantizer_of(folder, tmp_path, FOR_CPU).evaluator.frames.data.endswith("held out")


def test_nan_depth_fails_the_gate() -> None:
    assert not accuracy(float("nan"), 0.1, 1.0).holds


class Scripted(Int8Quantizer):
    """Evaluates by a rule instead of running: the gate holds once certain groups are in floating point."""

    sensitive: frozenset[str] = frozenset()
    evaluations: int = 0

    def accuracy(self, nodes: Sequence[str]) -> Accuracy:
        self.evaluations += 1
        bad = {group for group in self.sensitive if set(self.groups[group]) & set(nodes)}
        return accuracy(0.1 + 0.01 * len(bad), 0.1, self.config.max_loss)


@pytest.mark.parametrize("count", [0, 1, 2, 5, 9])
def test_only_the_most_sensitive_groups_fall_back_to_floating_point(folder: Path, tmp_path: Path, count: int) -> None:
    made = quantizer_of(folder, tmp_path, FOR_CPU)
    scripted = Scripted(**{name: getattr(made, name) for name in Scripted.__dataclass_fields__ if name != "held_out"})
    order = [*scripted.groups]
    scripted.__dict__["sensitivity"] = {group: 1.0 - rank / 100 for rank, group in enumerate(order)}
    scripted.sensitive = frozenset(order[:count])
    fitted = scripted.fit()
    assert fitted.fp_fallback == tuple(order[:count])
    assert set(fitted.nodes) == {node for group in order[count:] for node in scripted.groups[group]}
    assert fitted.accuracy.holds
    assert scripted.evaluations <= 2 + len(order).bit_length()


def test_gate_fails_if_no_choice_of_groups_holds(folder: Path, tmp_path: Path) -> None:
    made = quantizer_of(folder, tmp_path, replace(FOR_CPU, max_loss=0.0))
    with pytest.raises(GateError, match="loses too much depth accuracy") as caught:
        made.fit()
    assert "--sweep" in caught.value.cure


def test_forced_file_is_written_and_marked(folder: Path, tmp_path: Path) -> None:
    made = quantizer_of(folder, tmp_path, replace(FOR_CPU, max_loss=0.0, force=True))
    output = tmp_path / "forced.onnx"
    made.write(output, made.fit(), "2" * 64)
    quantisation = read_manifest(output).quantisation
    assert quantisation is not None
    assert quantisation.forced
    assert quantisation.accuracy is not None
    assert not quantisation.accuracy.holds


def test_manifest_reference_and_size_of_the_written_file(folder: Path, tmp_path: Path) -> None:
    made = quantizer_of(folder, tmp_path, FOR_CPU)
    output = tmp_path / "int8.onnx"
    made.write(output, made.fit(), "2" * 64)
    manifest = read_manifest(output)
    assert manifest.precision == "int8"
    assert manifest.parent_sha256 == "2" * 64
    assert manifest.checkpoint_sha256 == "1" * 64
    quantisation = manifest.quantisation
    assert quantisation is not None
    assert quantisation.calibration_frames == 15
    assert quantisation.calibration == "pictures"
    assert not quantisation.forced
    assert output.stat().st_size < 0.5 * (folder / "fp32.onnx").stat().st_size
    stored, own = read_reference(output), read_reference(folder / "fp32.onnx")
    assert stored is not None
    assert own is not None
    np.testing.assert_array_equal(stored.depth_m, own.depth_m)
    verdict = audit_onnx(load(output), manifest).verdict
    assert verdict is not None
    assert verdict.holds
    with load_predictor(output) as predict, load_predictor(folder / "fp32.onnx") as fp32:
        relative = np.abs(predict(smooth(1)[0]).copy() / fp32(smooth(1)[0]) - 1)
    assert 0 < relative.mean() < 0.05


def test_gpu_file_is_int8_and_fp16_with_the_same_depth(folder: Path, tmp_path: Path) -> None:
    """ONNX Runtime's own kernels round wrongly there, so its session must not use them."""
    pytest.importorskip("modelopt.onnx.autocast", reason="Model Optimizer is not installed")
    made = quantizer_of(folder, tmp_path, QuantiseConfig(scheme="gpu", max_loss=0.05))
    output = tmp_path / "int8.onnx"
    manifest = made.write(output, made.fit(), "2" * 64)
    assert manifest.opset == 19
    found = audit_onnx(load(output), manifest)
    assert found.share("INT8") > 0.9
    assert found.share("FP16") > 0
    with load_predictor(output) as predict, load_predictor(folder / "fp32.onnx") as fp32:
        relative = np.abs(predict(smooth(1)[0]).copy() / fp32(smooth(1)[0]) - 1)
    assert 0 < relative.mean() < 0.05


def test_held_out_frames_are_not_calibrated_on(folder: Path, tmp_path: Path) -> None:
    made = quantizer_of(folder, tmp_path, FOR_CPU)
    assert made.statistics.frames == 15
    assert len(made.held_out) == 2
    np.testing.assert_array_equal(made.held_out[0], smooth(17)[7])


@pytest.mark.parametrize("change", ["precision", "graph"])
def test_quantised_file_is_refused(folder: Path, tmp_path: Path, change: str) -> None:
    made = quantizer_of(folder, tmp_path, FOR_CPU)
    path = folder / "fp32.onnx"
    manifest = read_manifest(path)
    if change == "precision":
        manifest = replace(manifest, precision="fp16")
    else:
        path = tmp_path / "quantised.onnx"
        path.write_bytes(made.make(made.nodes).SerializeToString())
    with pytest.raises(InputError, match="already"):
        replace(made, fp32=Artefact(path=path, kind="onnx", sidecar=manifest))


@pytest.mark.parametrize("groups", [1, 2, 5, 26, 100])
def test_points_range_from_all_groups_to_none(groups: int) -> None:
    counts = point_counts(groups)
    assert counts[0] == 0
    assert counts[-1] == groups
    assert list(counts) == sorted(set(counts))
    assert len(counts) <= 12


class Clock:
    """Counts what it is asked for; the cost is the number of layers that are left in floating point."""

    def __init__(self, layers: int) -> None:
        self.asked = 0
        self.layers = layers

    def __call__(self, nodes: Sequence[str]) -> tuple[float, float]:
        self.asked += 1
        return float(1 + self.layers - len(nodes)), float(1 + self.layers)


def test_interrupted_sweep_continues(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = quantizer_of(folder, tmp_path, FOR_CPU)
    few = {group: made.groups[group] for group in [*made.groups][-3:]}
    made.groups, made.nodes = few, tuple(node for nodes in few.values() for node in nodes)
    clock = Clock(len(made.nodes))
    cost, store = Cost("layers", clock), tmp_path / "sweep.json"

    class BrokenOffError(Exception):
        pass

    def interrupted(self: Int8Quantizer, nodes: Sequence[str]) -> Accuracy:
        raise BrokenOffError

    with monkeypatch.context() as patch:
        patch.setattr(Int8Quantizer, "accuracy", interrupted)
        with pytest.raises(BrokenOffError):
            sweep(made, cost, store)
    stored = read_checked(store)
    assert stored is not None
    assert set(json.loads(stored)["sensitivity"]) == set(few)

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("measured again")

    first = sweep(made, cost, store)
    asked = clock.asked
    assert asked == len(first.points) + 1
    assert first.baseline.int8_groups == ()
    assert first.baseline.loss == 0
    assert first.points[0].int8_share == 1
    assert set(first.points[0].int8_groups) == set(few)

    monkeypatch.setattr(Int8Quantizer, "accuracy", never)
    again = sweep(made, cost, store)
    assert clock.asked == asked
    assert again.points == first.points

    fitted = pick_point(made, cost, store, first, first.points[1].number)
    assert set(fitted.nodes) == {node for group in first.points[1].int8_groups for node in few[group]}
    with pytest.raises(OptionError, match="no point 99"):
        pick_point(made, cost, store, first, 99)


@pytest.mark.parametrize("content", [b"", b"{", b'{"key": 1, "points": []}', None])
def test_store_of_other_settings_or_damaged_is_ignored(folder: Path, tmp_path: Path, content: bytes | None) -> None:
    made = quantizer_of(folder, tmp_path, FOR_CPU)
    store = tmp_path / "sweep.json"
    if content is None:
        write_checked(store, b'{"key": "another"}')
    else:
        store.write_bytes(content)
    kept = sweeping._Store(store, made, Cost("words", Clock(1)))
    assert kept.sensitivity == {}
    assert kept.points == {}


def test_key_depends_on_settings(folder: Path, tmp_path: Path) -> None:
    made = quantizer_of(folder, tmp_path, FOR_CPU)
    key = sweeping.settings_sha256(made, Cost("words", Clock(1)))
    assert key == sweeping.settings_sha256(made, Cost("words", Clock(2)))
    assert key != sweeping.settings_sha256(made, Cost("other words", Clock(1)))
    made.config = replace(made.config, method="max")
    assert key != sweeping.settings_sha256(made, Cost("words", Clock(1)))


def test_key_depends_on_the_targets_figures(folder: Path, tmp_path: Path) -> None:
    """Though it kept its name: a copied recipe in which a figure was changed."""
    made, target = quantizer_of(folder, tmp_path, FOR_CPU), load_target("orin-nano")
    assert target.bandwidth_gb_s is not None
    slower = replace(target, bandwidth_gb_s=target.bandwidth_gb_s / 2)
    key, same, other = (sweeping.settings_sha256(made, estimate_cost(made, [t])) for t in (target, target, slower))
    assert key == same != other


def two_groups(folder: Path, tmp_path: Path) -> Int8Quantizer:
    made = quantizer_of(folder, tmp_path, FOR_CPU)
    few = {group: made.groups[group] for group in [*made.groups][-2:]}
    made.groups, made.nodes = few, tuple(node for nodes in few.values() for node in nodes)
    return made


def test_baseline_has_the_run_time_of_fp32(folder: Path, tmp_path: Path) -> None:
    """Whatever a clock says that is 11 % fast."""
    result = sweep(two_groups(folder, tmp_path), Cost("noise", lambda nodes: (8.9, 10.0)), tmp_path / "sweep.json")
    assert (result.baseline.cost_ratio, result.baseline.cost_ms) == (1.0, 10.0)
    assert {point.cost_ratio for point in result.points} == {8.9 / 10.0}


def test_duration_includes_interrupted_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands still but for 100 s at each point; broken off at the third, which then is timed again."""
    made, now, broken = two_groups(folder, tmp_path), 0.0, False
    monkeypatch.setattr(sweeping, "perf_counter", lambda: now)

    def of(nodes: Sequence[str]) -> tuple[float, float]:
        nonlocal now, broken
        if not nodes and not broken:
            broken = True
            raise KeyboardInterrupt
        now += 100
        return 1.0, 2.0

    cost, store = Cost("clock", of), tmp_path / "sweep.json"
    with pytest.raises(KeyboardInterrupt):
        sweep(made, cost, store)
    now = 1e6
    assert sweep(made, cost, store).seconds == 300
    now = 2e6
    assert sweep(made, cost, store).seconds == 300


def test_picked_point_reuses_the_measured_sensitivity(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost, store = Cost("layers", lambda nodes: (1.0, 2.0)), tmp_path / "sweep.json"
    result = sweep(two_groups(folder, tmp_path), cost, store)
    made = two_groups(folder, tmp_path)
    pick_point(made, cost, store, result, 1)

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Int8Quantizer, "measure_sensitivity", never)
    assert made.sensitivity == {each.group: each.sensitivity for each in result.groups}


def test_fp32_manifest_has_no_quantisation(folder: Path) -> None:
    manifest: Manifest = read_manifest(folder / "fp32.onnx")
    assert manifest.quantisation is None
