"""`mde export --int8` and `--sweep`, end to end: what is printed, written and refused."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

from mirrordepth_edge.cli import run_app
from mirrordepth_edge.config import ExportConfig
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.export.produce import produce_onnx
from mirrordepth_edge.manifest import read_manifest
from mirrordepth_edge.model.network import DepthNetwork
from mirrordepth_edge.predictor import load as load_predictor
from mirrordepth_edge.quantise.sweep_result import SweepResult
from mirrordepth_edge.quantise.write_calibration_set import folder_as_set, save_calibration
from mirrordepth_edge.support.files import read_json
from mirrordepth_edge.support.schema import read_strict
from mirrordepth_edge.support.units import parse_share

TO_CPU = ["--target", "cpu", "--calib", "calib/office/office.toml"]


@pytest.fixture(scope="module")
def made(tiny_network: DepthNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP32 file, a calibration set of twelve pictures, and four with depth."""
    folder = tmp_path_factory.mktemp("export")
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (12, 5, 7, 3)).astype(np.float32)
    pictures = [
        cv2.resize(each, (96, 64), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8) for each in coarse
    ]
    config = ExportConfig()
    produce_onnx(tiny_network, config, folder / "tiny.onnx", pictures[:2], checkpoint_sha256="1" * 64, trained=True)
    for part in ("calib/office", "rooms/rgb", "rooms/depth"):
        (folder / part).mkdir(parents=True)
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(folder / "calib" / "office" / f"{number:02d}.png"), picture[:, :, ::-1])
    recipe = folder_as_set(folder / "calib" / "office").recipe
    save_calibration(folder / "calib" / "office" / "office.toml", recipe)
    with load_predictor(folder / "tiny.onnx") as predict:
        for number, picture in enumerate(pictures[:4]):
            depth_mm = (predict(picture) * 1100).astype(np.uint16)
            cv2.imwrite(str(folder / "rooms" / "rgb" / f"{number}.png"), picture[:, :, ::-1])
            cv2.imwrite(str(folder / "rooms" / "depth" / f"{number}.png"), depth_mm)
    return folder


@pytest.fixture(autouse=True)
def _there(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def stored_sweep(path: Path) -> SweepResult:
    return read_strict(SweepResult, read_json(path, "sweep", ""), str(path), "")


def test_without_depth_it_is_judged_against_fp32(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    assert run_app(["export", "tiny.onnx", "--int8", *TO_CPU, "-o", str(output), "--max-absrel-loss", "20%"]) == 0
    printed = capsys.readouterr().out
    assert "INT8, 96x64 pixels" in printed
    assert "against FP32's depth (gate: at most 20.00%)" in printed
    assert "of office (percentile)" in printed
    manifest = read_manifest(output)
    assert manifest.precision == "int8"
    assert manifest.parent_sha256 == read_manifest(Path("tiny.onnx")).artefact_sha256
    assert run_app(["audit", str(output)]) == 0
    assert run_app(["inspect", str(output)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "frames of office" in shown
    assert "against FP32's depth" in shown


def test_with_depth_it_is_judged_against_that(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    arguments = ["export", "tiny.onnx", "--int8", *TO_CPU, "-o", str(output), "--root", "rooms", "--gate-frames", "3"]
    assert run_app([*arguments, "--max-absrel-loss", "0.5"]) == 0
    assert "in FP32" in capsys.readouterr().out
    quantisation = read_manifest(output).quantisation
    assert quantisation is not None
    assert quantisation.accuracy is not None
    assert quantisation.accuracy.fp32 is not None
    assert quantisation.accuracy.frames == 3
    assert quantisation.accuracy.fp32.abs_rel == pytest.approx(1 - 1 / 1.1, abs=0.01)


def test_a_gate_that_fails_writes_nothing_and_ends_with_3(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    assert run_app(["export", "tiny.onnx", "--int8", *TO_CPU, "-o", str(output), "--max-absrel-loss", "0%"]) == 3
    printed = capsys.readouterr().err
    assert "loses too much depth accuracy" in printed
    assert "--force" in printed
    assert list(tmp_path.glob("int8*")) == []


def test_by_force(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    arguments = ["export", "tiny.onnx", "--int8", *TO_CPU, "-o", str(output), "--max-absrel-loss", "0%", "--force"]
    assert run_app(arguments) == 0
    assert "the accuracy gate failed" in capsys.readouterr().out
    quantisation = read_manifest(output).quantisation
    assert quantisation is not None
    assert quantisation.forced


def test_a_sweep_is_a_table_a_page_and_a_file_to_pick_from(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirrordepth_edge.commands.export.sweep.TIMED_FRAMES", 2)
    monkeypatch.setattr("mirrordepth_edge.quantise.sweep.MAX_POINTS", 3)
    output = tmp_path / "swept.onnx"
    arguments = ["export", "tiny.onnx", "--sweep", *TO_CPU, "-o", str(output)]
    assert run_app(arguments) == 0
    printed = capsys.readouterr().out
    assert "vs FP32" in printed
    assert "measured: ONNX Runtime" in printed
    assert not output.exists()
    result = stored_sweep(tmp_path / "swept.sweep.json")
    assert result.points[0].int8_share == 1
    assert "Pareto" in (tmp_path / "swept.sweep.html").read_text(encoding="utf-8")

    assert run_app(["export", "tiny.onnx", "--pick", "1", *TO_CPU, "-o", str(output), "--max-absrel-loss", "50%"]) == 0
    quantisation = read_manifest(output).quantisation
    assert quantisation is not None
    left = {group.group for group in result.groups} - set(result.points[1].int8_groups)
    assert set(quantisation.fp_fallback) == left


def test_a_sweep_for_a_gpu_is_an_estimate_and_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("modelopt.onnx.autocast", reason="Model Optimizer is not installed")
    monkeypatch.setattr("mirrordepth_edge.quantise.sweep.MAX_POINTS", 2)
    output = tmp_path / "swept.onnx"
    calib = ["--calib", "calib/office/office.toml"]
    assert run_app(["export", "tiny.onnx", "--sweep", "--target", "orin-nano", *calib, "-o", str(output)]) == 0
    assert "roofline estimate, not a measurement" in capsys.readouterr().out
    result = stored_sweep(tmp_path / "swept.sweep.json")
    assert result.points[0].cost_ratio < result.baseline.cost_ratio < 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--int8"], 2, "INT8 needs calibration images"),
        (["--int8", "--fp16"], 2, "cannot be combined"),
        (["--int8", "--calib", "nowhere"], 2, "nowhere"),
        (["--int8", *TO_CPU, "--calib-method", "best"], 2, "next: --calib-method percentile"),
        (["--int8", *TO_CPU, "--max-absrel-loss", "little"], 2, "--max-absrel-loss 'little' is not a fraction"),
        (["--int8", *TO_CPU, "--size", "32x32"], 2, "has a fixed size"),
        (["--int8", *TO_CPU, "--root", "nowhere"], 1, "nowhere"),
        (["--fp16"], 2, "is an ONNX file already"),
        (["--calib", "calib/office/office.toml"], 2, "--calib is for FP16 and INT8"),
        (["--fp32", "--force"], 2, "--force is for INT8"),
        (["--sweep", "--target", "rtx-ada,rtx-ampere", "--calib", "calib/office/office.toml"], 2, "exactly one target"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_app(["export", "tiny.onnx", *arguments, "-o", str(tmp_path / "out.onnx")]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()


def test_depth_that_does_not_count_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for part in ("rgb", "depth"):
        (tmp_path / "empty" / part).mkdir(parents=True)
    picture = cv2.imread("rooms/rgb/0.png")
    cv2.imwrite(str(tmp_path / "empty" / "rgb" / "0.png"), picture)
    cv2.imwrite(str(tmp_path / "empty" / "depth" / "0.png"), np.zeros(picture.shape[:2], np.uint16))
    output = tmp_path / "out.onnx"
    code = run_app(["export", "tiny.onnx", "--int8", *TO_CPU, "--root", str(tmp_path / "empty"), "-o", str(output)])
    assert code == 1
    assert "0 has no valid depth" in capsys.readouterr().err
    assert not output.exists()


def test_the_file_that_it_is_made_of_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("tiny.onnx").read_bytes()
    assert run_app(["export", "tiny.onnx", "--int8", *TO_CPU, "-o", "./tiny.onnx", "--max-absrel-loss", "20%"]) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert Path("tiny.onnx").read_bytes() == before


def test_a_full_disk_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mirrordepth_edge.quantise.pipeline.collect", full)
    assert run_app(["export", "tiny.onnx", "--int8", *TO_CPU, "-o", str(tmp_path / "out.onnx")]) == 1
    assert "TMPDIR=" in capsys.readouterr().err


def test_nothing_but_fp32_is_quantised(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    assert run_app(["export", "tiny.onnx", "--int8", *TO_CPU, "-o", str(output), "--max-absrel-loss", "20%"]) == 0
    again = tmp_path / "again.onnx"
    assert run_app(["export", str(output), "--int8", *TO_CPU, "-o", str(again)]) == 1
    assert "INT8 already" in capsys.readouterr().err


def test_fp16_looks_at_the_calibration_set_too(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("modelopt.onnx.autocast", reason="Model Optimizer is not installed")
    output = tmp_path / "half.onnx"
    arguments = ["export", str(tiny_checkpoint), "--fp16", "--calib", "calib/office/office.toml", "-o", str(output)]
    assert run_app([*arguments, "--target", "cpu"]) == 0
    # The package's own three pictures, and every other of the twelve.
    assert "parity: 9 frames against PyTorch" in capsys.readouterr().out


def test_the_manifest_is_readable_json(tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    assert run_app(["export", "tiny.onnx", "--int8", *TO_CPU, "-o", str(output), "--max-absrel-loss", "20%"]) == 0
    data = json.loads((tmp_path / "int8.onnx.manifest.json").read_text(encoding="utf-8"))
    assert data["quantisation"]["accuracy"]["figures"]["abs_rel"] < 0.2
    assert data["quantisation"]["scheme"] == "cpu"


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.5%", 0.005), ("0.02", 0.02), ("0", 0.0), ("100%", 1.0)])
def test_shares(text: str, share: float) -> None:
    assert parse_share(text, "--x") == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "-1%", "101%", "1.5", "nan", "a"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(OptionError, match="is not a fraction"):
        parse_share(text, "--x")
