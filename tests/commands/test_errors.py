"""Bad input, end to end: a message with what, why and the cure, its exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mirrordepth_edge.artefact import NANO_CHECKPOINT, NANO_ONNX
from mirrordepth_edge.cli import run_app
from mirrordepth_edge.manifest import manifest_path


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files() -> set[str]:
    return {str(path) for path in Path().rglob("*")}


def check(arguments: list[str], code: int, *words: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Run `mde`, and hold the exit code, the three-part message and the folder as it was."""
    before = files()
    assert run_app(arguments) == code
    message = " ".join(capfd.readouterr().err.split())
    assert "error:" in message
    assert "why:" in message
    assert "next:" in message
    assert "Traceback" not in message
    for word in words:
        assert word in message, message
    assert files() == before


@pytest.fixture
def model() -> Path:
    """A good ONNX file with its manifest."""
    for source in (NANO_ONNX["fp32"], manifest_path(NANO_ONNX["fp32"])):
        shutil.copy(source, Path(source.name.replace("nano", "model")))
    return Path("model.onnx")


@pytest.fixture
def picture() -> Path:
    path = Path("picture.png")
    cv2.imwrite(str(path), np.full((48, 64, 3), 90, np.uint8))
    return path


def test_missing_checkpoint(capfd: pytest.CaptureFixture[str]) -> None:
    check(["export", "absent.safetensors"], 1, "absent.safetensors", "No such file", capfd=capfd)


def test_truncated_checkpoint(capfd: pytest.CaptureFixture[str]) -> None:
    Path("short.safetensors").write_bytes(NANO_CHECKPOINT.read_bytes()[:100_000])
    check(["export", "short.safetensors"], 1, "truncated", capfd=capfd)


def test_altered_checkpoint(capfd: pytest.CaptureFixture[str]) -> None:
    content = bytearray(NANO_CHECKPOINT.read_bytes())
    content[-1] ^= 0xFF
    Path("altered.safetensors").write_bytes(content)
    check(["export", "altered.safetensors"], 1, "altered.safetensors", capfd=capfd)


def test_changed_model_is_refused(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with model.open("ab") as file:
        file.write(b"\0")
    check(["bench", "--engine", str(model)], 1, "sha256", capfd=capfd)


def test_model_without_manifest(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    manifest_path(model).unlink()
    for arguments in (["bench", "--engine", str(model)], ["build", str(model)], ["inspect", str(model)]):
        check(arguments, 1, "no manifest", capfd=capfd)


def test_manifest_without_its_model(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model.unlink()
    check(["inspect", str(model)], 1, "describes model.onnx, which does not exist", capfd=capfd)


def test_broken_manifest(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sidecar = manifest_path(model)
    data = json.loads(sidecar.read_text())
    sidecar.write_text("{")
    check(["inspect", str(model)], 1, "JSON", capfd=capfd)
    sidecar.write_text(json.dumps(data | {"colour": "blue"}))
    check(["inspect", str(model)], 1, "colour", capfd=capfd)


def test_a_model_of_no_known_kind(capfd: pytest.CaptureFixture[str]) -> None:
    Path("model.pt").write_bytes(b"anything")
    check(["bench", "--engine", "model.pt"], 1, "is not a model", capfd=capfd)


def test_a_text_file_as_picture(capfd: pytest.CaptureFixture[str]) -> None:
    Path("notes.png").write_text("no picture")
    check(["run", "notes.png", "-o", "out"], 1, "notes.png", capfd=capfd)


def test_an_empty_video(capfd: pytest.CaptureFixture[str]) -> None:
    Path("clip.mp4").touch()
    check(["run", "clip.mp4", "-o", "out"], 1, "clip.mp4", capfd=capfd)
    check(["live", "--source", "clip.mp4", "--no-window"], 1, "clip.mp4", capfd=capfd)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "--size", "225x288"], ("multiples of 32", "224x288")),
        (["export", "--size", "big"], ("HEIGHTxWIDTH",)),
        (["export", "--dynamic", "100x128,128x128,128x160"], ("100x128", "multiples of 32")),
        (["export", "--dynamic", "128x128,128x128,128x128"], ("has no dynamic axis", "--size 128x128")),
        (
            ["export", "--dynamic", "96x96,128x128,160x160", "--size", "128x128"],
            ("cannot be combined", "Leave --size out"),
        ),
        (["export", "--dynamic", "128x128"], ("not a range of sizes",)),
        (["bench", "--network-size", "big"], ("--network-size", "HEIGHTxWIDTH")),
        (["export", "--target", "gtx-480"], ("gtx-480", "orin-nano")),
        (["export", "--fp32", "--fp16"], ("cannot be combined",)),
        (["export", "--io", "int4"], ("uint8 or float",)),
        (["export", "--untrained", "vitz99"], ("vitb16",)),
        (["build", "model.onnx", "--target", "gtx-480"], ("gtx-480", "rtx-ada")),
        (["bench", "--device", "tpu"], ("auto, cpu or cuda",)),
        (["train", "--root", ".", "--preset", "vitz99"], ("vitb16",)),
    ],
)
def test_options_that_make_no_sense(
    arguments: list[str], words: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    check(arguments, 2, *words, capfd=capfd)


@pytest.mark.parametrize("arguments", [["exprot"], ["export", "--fp4"], ["bench", "--iterations", "0"]])
def test_usage_errors(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run_app(arguments) == 2
    assert "Traceback" not in capfd.readouterr().err


def test_unwritable_output(picture: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("taken").write_text("a file where a folder should be")
    check(["export", "-o", "taken/model.onnx"], 1, "Cannot write", capfd=capfd)
    check(["run", str(picture), "-o", "taken/out"], 1, "Cannot write", capfd=capfd)
    check(["bench", "--json", "taken/bench.json", "--iterations", "1"], 1, "Cannot write", capfd=capfd)


def test_a_plan_without_a_gpu(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from mirrordepth_edge.machine.device import nvidia_gpus

    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    if nvidia_gpus():
        pytest.skip("this machine has a GPU")
    assert run_app(["build", str(model), "--target", "rtx-ada"]) == 0
    capfd.readouterr()
    check(["bench", "--engine", "model.plan"], 4, "NVIDIA GPU", "replace model.plan with nano.", capfd=capfd)
    check(["build", str(model), "--target", "orin-nano"], 4, "mde build model.onnx", capfd=capfd)


def test_a_bug_is_logged_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import platformdirs

    from mirrordepth_edge.backends import registry

    def broken() -> None:
        raise RuntimeError("the unexpected")

    monkeypatch.setattr(registry, "probe_all", broken)
    monkeypatch.setattr(platformdirs, "user_log_dir", lambda name: str(tmp_path / "logs"))
    assert run_app(["doctor"]) == 70
    message = capfd.readouterr().err
    assert "Traceback" not in message
    assert "bug.log" in message
    assert "the unexpected" in (tmp_path / "logs" / "bug.log").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for a child process")
def test_ctrl_c_in_the_middle_of_an_export(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="exporting needs PyTorch")
    # `python -m mirrordepth_edge`, which says when PyTorch begins: the signal comes in the middle of it.
    code = (
        "import runpy, sys, torch\n"
        "export = torch.onnx.export\n"
        "def told(*given, **options):\n"
        "    print('exporting', file=sys.__stdout__, flush=True)\n"
        "    return export(*given, **options)\n"
        "torch.onnx.export = told\n"
        "runpy.run_module('mirrordepth_edge', run_name='__main__', alter_sys=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "export", "-o", "out/model.onnx"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        # PyTorch keeps a cache among temporary files, which is not ours to remove.
        env={**os.environ, "TMPDIR": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "torch")},
    )
    assert process.stdout is not None
    assert "exporting\n" in iter(process.stdout.readline, "")
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=600)
    # Where Ctrl-C met Python code that C was running, Python ends by the signal; to a shell both are 130.
    assert process.returncode in (130, -signal.SIGINT), message
    assert "interrupted" in message
    assert "Traceback" not in message
    assert list((tmp_path / "out").iterdir()) == []
    assert not [path for path in tmp_path.iterdir() if path.name not in ("out", "torch")]


@pytest.mark.slow
def test_a_gate_that_does_not_hold_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="exporting needs PyTorch")
    from mirrordepth_edge.export import parity

    monkeypatch.setattr(parity, "MAX_RELATIVE_FP32", 0.0)
    Path("out").mkdir()
    check(["export", "-o", "out/model.onnx"], 3, "nothing was written", "limit: worst pixel", capfd=capfd)
