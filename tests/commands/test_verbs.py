"""The verbs on the shipped model: what they print and write."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mirrordepth_edge.artefact import NANO_CHECKPOINT, NANO_ONNX
from mirrordepth_edge.bench.result import unpack
from mirrordepth_edge.cli import run_app
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.manifest import read_manifest


@pytest.mark.parametrize("model", ["nano", str(NANO_ONNX["fp16"]), str(NANO_CHECKPOINT)])
def test_inspect(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["inspect", model]) == 0
    text = capsys.readouterr().out
    assert "nano: mirrordepth-nano" in text
    if not model.endswith(".safetensors"):
        assert "image: uint8 [1, 224, 288, 3] NHWC" in text
        assert "metres" in text
        assert "GFLOP" in text


def test_bench_writes_raw_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "bench.json"
    arguments = ["bench", "--device", "cpu", "--iterations", "5", "--warmup", "1", "--json", str(result)]
    assert run_app(arguments) == 0
    text = capsys.readouterr().out
    assert "p50" in text
    assert "640x480 uint8 frame in host memory" in text
    data = json.loads(result.read_text())
    assert [len(unpack(own)) for own in data["samples_ns"].values()] == [5, 5, 5]
    assert data["backend"] == "onnxruntime"
    assert data["artefact_sha256"] == read_manifest(NANO_ONNX["fp32"]).artefact_sha256


def test_doctor_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["backends"]) == {"torch", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"}
    assert report["machine"]["cores"] >= 1


def test_doctor_finds_two_onnx_runtimes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from mirrordepth_edge.commands.doctor import command as doctor

    both = {"onnxruntime": "1.24.4", "onnxruntime-gpu": "1.24.4"}
    monkeypatch.setattr(doctor, "installed_packages", lambda: both)
    assert run_app(["doctor"]) == 0
    assert "overwrite each other" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from mirrordepth_edge import __version__

    assert run_app(["--version"]) == 0
    assert capsys.readouterr().out == f"mirrordepth-edge {__version__}\n"


@pytest.mark.slow
def test_export_at_another_size_and_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="exporting needs PyTorch")
    output = tmp_path / "wide.onnx"
    assert run_app(["export", "--size", "192x320", "--io", "float", "--target", "cpu", "-o", str(output)]) == 0
    manifest = read_manifest(output)
    assert manifest.inputs[0].shape == (1, 3, 192, 320)
    assert manifest.parity.max_relative <= 1e-4
    capsys.readouterr()
    assert run_app(["bench", "--engine", str(output), "--device", "cpu", "--iterations", "2"]) == 0


@pytest.mark.slow
def test_one_file_for_several_sizes(
    tiny_checkpoint: Path, frames: list[Frame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript", reason="exporting needs onnxscript")
    output, picture, written = tmp_path / "open.onnx", tmp_path / "picture.png", tmp_path / "depth"
    cv2.imwrite(str(picture), frames[0])
    sizes = "1x64x64,1x64x96,2x96x128"
    assert run_app(["export", str(tiny_checkpoint), "--dynamic", sizes, "-o", str(output)]) == 0
    assert f"for {sizes} (height x width) pixels" in capsys.readouterr().out
    assert run_app(["inspect", str(output)]) == 0
    assert f"{sizes} (min, opt, max), multiples of 16 pixels" in " ".join(capsys.readouterr().out.split())
    asked = ["--device", "cpu", "--network-size", "96x112"]
    assert run_app(["run", str(picture), "--model", str(output), *asked, "-o", str(written)]) == 0
    assert np.load(written / "picture.depth.npy").shape == frames[0].shape[:2]
    assert run_app(["bench", "--engine", str(output), *asked, "--iterations", "2"]) == 0
    assert run_app(["run", str(picture), "--model", str(output), "--network-size", "96x160", "-o", str(written)]) == 2
    assert "widths of 64 to 128 pixels" in capsys.readouterr().err


def test_a_file_that_is_there_goes_to_triton_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = NANO_ONNX["fp32"]
    assert run_app(["export", str(model), "--triton", str(tmp_path)]) == 0
    assert f"wrote {tmp_path / model.stem}" in capsys.readouterr().out
    assert (tmp_path / model.stem / "1" / "model.onnx").read_bytes() == model.read_bytes()


@pytest.mark.slow
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="exporting needs PyTorch")
    pytest.importorskip("skimage", reason="scikit-image ships the photograph")
    assert run_app(["demo", "-o", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "AbsRel" in text
    assert {"nano.onnx", "nano.fp16.onnx", "bench.json", "motorcycle.png"} <= {p.name for p in tmp_path.iterdir()}


def test_motorcycle_depth_is_the_calibrations() -> None:
    """One pixel by hand: depth = focal * baseline / (disparity + shift)."""
    pytest.importorskip("skimage", reason="scikit-image ships the photograph")
    from skimage.data import stereo_motorcycle

    from mirrordepth_edge.commands.demo import motorcycle

    photo, depth_m = motorcycle()
    disparity = stereo_motorcycle()[2]
    assert photo.shape == (500, 741, 3)
    assert depth_m[250, 370] == pytest.approx(994.978 * 0.193001 / (disparity[250, 370] + 31.086), rel=1e-6)
    assert ((depth_m == 0) == ~np.isfinite(disparity)).all()
    assert 1.5 < depth_m[depth_m > 0].min() < depth_m.max() < 6.0
