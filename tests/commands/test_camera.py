"""`mde evaluate` with another camera, from options to printed line."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from mirrordepth_edge.artefact import NANO_ONNX
from mirrordepth_edge.cli import run_app
from mirrordepth_edge.manifest import manifest_path

TIMES = 1.7


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """`nano`, trained with a camera of 90 by 90 degrees."""
    pytest.importorskip("onnxruntime", reason="nano runs in ONNX Runtime")
    path = tmp_path / "square.onnx"
    shutil.copy(NANO_ONNX["fp32"], path)
    manifest = json.loads(manifest_path(NANO_ONNX["fp32"]).read_text(encoding="utf-8"))
    manifest["model"]["focal"] = [0.5, 0.5]
    manifest_path(path).write_text(json.dumps(manifest), encoding="utf-8")
    return path


def test_errors_are_those_of_scaled_metres(
    model: Path, rgbd_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As large as those of the plain metres where the truth is smaller by the same factor."""
    common = ["evaluate", str(model), "--root", str(rgbd_folder), "--device", "cpu", "--json"]
    plain, scaled = tmp_path / "plain.json", tmp_path / "scaled.json"
    assert run_app([*common, str(plain), "--units-per-metre", str(3000 * TIMES)]) == 0
    assert "camera" not in capsys.readouterr().out
    # 80x60 frames: kx = F / 40, ky = F / 30.
    focal_px = TIMES * math.sqrt(40 * 30)
    options = ["--units-per-metre", "3000", "--focal-px", str(focal_px)]
    assert run_app([*common, str(scaled), *options]) == 0
    told = capsys.readouterr()
    assert f"metric, no alignment; depth scaled to a camera of fx {focal_px:.1f} px" in told.out
    assert f"camera: fx {focal_px:.1f} px of 80 (68° wide); depth scaled by 1.7" in told.err
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in (plain, scaled)]
    errors = [report["models"][str(model)]["evaluation"]["mean"]["abs_rel"] for report in reports]
    assert errors[1] == pytest.approx(errors[0], rel=1e-4)
    assert "scaled" not in reports[0]["data"]["source"]
    assert "scaled to a camera" in reports[1]["data"]["source"]


def test_one_camera_and_a_model_that_knows_its_own(
    model: Path, rgbd_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["evaluate", "--root", str(rgbd_folder), "--device", "cpu"]
    assert run_app([*common, str(model), "--fov-deg", "70", "--focal-px", "60"]) == 2
    assert "--focal-px and --fov-deg cannot be combined" in capsys.readouterr().err
    assert run_app([*common, str(model), "--fov-deg", "200"]) == 2
    assert "200 degrees is not a valid field of view" in capsys.readouterr().err
    calibration = rgbd_folder / "camera.json"
    calibration.write_text(json.dumps({"width": 1280, "height": 720, "fx": 900, "fy": 900}))
    assert run_app([*common, str(model), "--calibration", str(calibration)]) == 2
    assert "The frames are 80x60, but the camera was calibrated at 1280x720" in capsys.readouterr().err
