"""`mde evaluate`: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mirrordepth_edge.artefact import NANO_ONNX
from mirrordepth_edge.cli import run_app
from mirrordepth_edge.support.files import sha256_of

MOVING = 4
"""Frames of the data set."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Frames of one texture that moves, before a wall at 2 to 3 m."""
    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.integers(0, 256, (160, 200, 3), dtype=np.uint8), (0, 0), 2)
    depth_m = np.tile(np.linspace(2, 3, 128), (96, 1))
    for index in range(MOVING):
        for kind, content in (
            ("rgb", picture[:96, 2 * index : 2 * index + 128]),
            ("depth", (depth_m * 1000).astype(np.uint16)),
        ):
            (tmp_path / "set" / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "set" / kind / f"{index}.png"), content)
    return tmp_path / "set"


def test_models_are_compared_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder.parent / "errors.json"
    arguments = ["evaluate", "--root", str(folder), "--device", "cpu", "--json", str(output), "nano", "nano.fp16"]
    assert run_app(arguments) == 0
    text = capsys.readouterr().out
    assert f"{MOVING} images; no crop, 0.001 to 10 m" in text
    assert "published" not in text
    models = json.loads(output.read_text())["models"]
    assert list(models) == ["nano", "nano.fp16"]
    for name, path in (("nano", NANO_ONNX["fp32"]), ("nano.fp16", NANO_ONNX["fp16"])):
        assert models[name]["artefact"]["sha256"] == sha256_of(path)
    errors = [models[name]["evaluation"]["mean"]["abs_rel"] for name in models]
    assert len(models["nano"]["evaluation"]["pictures"]) == MOVING
    assert errors[0] == pytest.approx(errors[1], rel=2e-2)
    assert f"{errors[0]:.4f}" in text


def test_consistency_and_a_report(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = folder.parent / "new" / "report.html"
    monkeypatch.chdir(folder.parent)
    arguments = ["evaluate", "--root", "set", "--device", "cpu", "--temporal", "--spatial", "--report", str(page)]
    assert run_app(arguments) == 0
    text = capsys.readouterr().out
    for words in ("OPW (m)", "rTC", "true depth", f"{MOVING - 1} pairs of frames", "the true depth has none"):
        assert words in text, words
    written = page.read_text(encoding="utf-8")
    assert written.startswith("<!doctype html>")
    assert sha256_of(NANO_ONNX["fp32"]) in written
    assert written.count("data:image/jpeg") == 3 * 4
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]


def test_poses_take_the_place_of_flow(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The camera stands still, so that the true depth agrees with itself."""
    (folder / "poses.txt").write_text("".join(f"{k} 0 0 0 0 0 0 1\n" for k in range(MOVING)))
    (folder / "intrinsics.txt").write_text("100 100 64 48\n")
    arguments = ["evaluate", "--root", str(folder), "--device", "cpu", "--temporal", "nano"]
    assert run_app(arguments) == 0
    text = capsys.readouterr().out
    (line,) = (line for line in text.splitlines() if line.startswith("reprojection (m)"))
    assert line.split()[-1] == "0.0000"
    assert "OPW" not in text
    (folder / "poses.txt").write_text("0 0 0 0 0 0 0 1\n")
    assert run_app(arguments) == 1
    assert "no pose for 3 images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "published", "comparable"),
    [
        (["--data", "nyu", "--crop", "none"], True, False),
        (["--data", "nyu", "--crop", "none", "--no-baselines"], False, True),
        (["--data", "kitti", "--no-kb-crop"], True, True),
    ],
)
def test_published_figures_are_below_where_there_are_some(
    options: list[str], published: bool, comparable: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["evaluate", "--root", str(folder), "--units-per-metre", "1000", "--device", "cpu", *options]) == 0
    text = capsys.readouterr().out
    assert ("SPACE-CLIP" in text) == published
    assert ("DO NOT COMPARE" not in text) == comparable


def test_kitti_is_evaluated_to_80_metres(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """nano was made for 10 m, the field's protocol is the data set's."""
    arguments = ["evaluate", "--root", str(folder), "--data", "kitti", "--no-kb-crop", "--units-per-metre", "1000"]
    assert run_app([*arguments, "--device", "cpu"]) == 0
    assert "Garg crop, 0.001 to 80 m" in capsys.readouterr().out


def test_alignment_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["evaluate", "--root", str(folder), "--device", "cpu", "--align", "median"]) == 0
    assert "NOT METRIC" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--crop", "half"], "--crop 'half' is unknown"),
        (["--align", "mean"], "--align 'mean' is unknown"),
        (["--report", "page.pdf"], "page.pdf has the wrong suffix for a report"),
        (["--baselines"], "--baselines has nothing to show"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: list[str], what: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["evaluate", "--root", str(folder), "--device", "cpu", *options]) == 2
    assert what in capfd.readouterr().err


def test_the_eigen_crop_refuses_other_sizes(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_app(["evaluate", "--root", str(folder), "--crop", "eigen"]) == 1
    assert "480x640" in capfd.readouterr().err


def test_one_picture_has_no_consistency_in_time(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for index in range(1, MOVING):
        (folder / "rgb" / f"{index}.png").unlink()
        (folder / "depth" / f"{index}.png").unlink()
    assert run_app(["evaluate", "--root", str(folder), "--device", "cpu", "--temporal"]) == 1
    assert "consistency cannot be measured" in capfd.readouterr().err


def test_baselines_are_refused_before_a_model_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a long evaluation must not come before the refusal")

    monkeypatch.setattr("mirrordepth_edge.commands.evaluate.main.load", load)
    assert run_app(["evaluate", "--root", str(folder), "--baselines"]) == 2
    assert "--baselines has nothing to show" in capsys.readouterr().err
