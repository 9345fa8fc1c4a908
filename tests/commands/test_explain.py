"""`mde explain`, end to end: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("open_clip", reason="open-clip is not installed")

import open_clip
import torch

from mirrordepth_edge.artefact import NANO_CHECKPOINT, NANO_ONNX
from mirrordepth_edge.cli import run_app
from mirrordepth_edge.config import ModelConfig, SessionOptions
from mirrordepth_edge.data.folder import folder_dataset
from mirrordepth_edge.evaluation.evaluate import Protocol, evaluate
from mirrordepth_edge.model.checkpoint import save_checkpoint
from mirrordepth_edge.model.network import DepthNetwork
from mirrordepth_edge.predictor import load


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    root = tmp_path / "pictures"
    for index in range(3):
        frame = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (96, 72), interpolation=cv2.INTER_CUBIC)
        for kind, picture in (("rgb", frame), ("depth", rng.integers(500, 9500, (72, 96), np.uint16))):
            (root / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / kind / f"{index}.png"), picture)
    return root


@pytest.fixture
def reader(tiny_vit_config: ModelConfig, tmp_path: Path) -> list[str]:
    """Checkpoint and CLIP weights of a model whose CLIP counts as trained on text, and its training's folder."""
    from mirrordepth_edge.model.network import create_network

    network = create_network(tiny_vit_config)
    torch.save(network.clip.state_dict() | native_positions(tiny_vit_config), tmp_path / "clip.pt")
    network.config = replace(tiny_vit_config, pretrained="some-tag")
    for epoch in (1, 2):
        with torch.no_grad():
            network.mirror.embeddings.add_(0.5)
        save_checkpoint(network, tmp_path / "run" / "checkpoints" / f"epoch-{epoch:03d}.safetensors")
    shutil.copy(tmp_path / "run" / "checkpoints" / "epoch-002.safetensors", tmp_path / "reader.safetensors")
    return ["explain", "reader.safetensors", "--clip-weights", "clip.pt", "--device", "cpu"]


def native_positions(config: ModelConfig) -> dict[str, torch.Tensor]:
    """What a network resized in its own copy of CLIP."""
    from mirrordepth_edge.model.clip import create_clip

    name = "visual.positional_embedding"
    return {name: create_clip(config).state_dict()[name]}


def test_what_nanos_mirror_is_worth(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--root", str(pictures), "--device", "cpu"]
    assert run_app(["explain", "nano", *common, "--json", "explain.json", "--limit", "9"]) == 0
    text = capsys.readouterr().out
    assert "3 images; no crop, 0.001 to 10 m" in text
    for row in ("trained mirror", "random mirror", "spread of 3 seeds", "zeros", "shuffled rows"):
        assert row in text
    assert "Replacing the mirror changes AbsRel by" in text
    assert "retrains the decoder for each" in text
    assert "its text tower was never trained on text, so its features of words are random" in text
    assert "prompt:" not in text
    assert not Path("explain.png").exists()

    found = json.loads(Path("explain.json").read_text())
    with load(NANO_CHECKPOINT, SessionOptions(device="cpu")) as predictor:  # as mde evaluate has it
        limits_m = predictor.model.depth_limits_m
        expected = evaluate(predictor, folder_dataset(pictures), Protocol(limits_m=limits_m)).mean
    (trained,) = found["ablation"]["results"]["trained mirror"]
    assert trained["mean"] == asdict(expected)
    for figure in (expected.abs_rel, expected.rmse, expected.delta1):
        assert f"{figure:.4f}" in text
    assert len(found["ablation"]["results"]["random mirror"]) == 3
    assert found["reading"] is None


def test_some_of_the_pictures_evenly_spread(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explain", "nano", "--root", str(pictures), "--device", "cpu", "--json", "explain.json"]
    assert run_app([*arguments, "--limit", "2"]) == 0
    assert "2 images" in capsys.readouterr().out
    (trained,) = json.loads(Path("explain.json").read_text())["ablation"]["results"]["trained mirror"]
    assert [picture["name"] for picture in trained["pictures"]] == ["0", "1"]


def test_a_mirror_is_read_without_pictures(reader: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("words.txt").write_text("a window\na [dog]\nfar away\n")
    assert run_app([*reader, "--words", "words.txt", "--json", "out.json", "-o", "bars.png"]) == 0
    text = capsys.readouterr().out
    for words in ("a window", "a [dog]", "random prompt", "row ", "wrote bars.png"):
        assert words in text
    assert "AbsRel" not in text
    data = json.loads(Path("out.json").read_text())
    assert data["ablation"] is None
    assert list(data["reading"]["words"]) == ["a window", "a [dog]", "far away"]
    assert cv2.imread("bars.png").shape[2] == 3


def test_a_mirror_is_followed_through_its_training(
    reader: list[str], pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*reader, "--run", "run", "--root", str(pictures), "--prompt", "a dog", "--json", "out.json"]
    assert run_app(arguments) == 0
    text = capsys.readouterr().out
    assert "prompt: a dog" in text
    assert "wrote explain.png" in text
    reading = json.loads(Path("out.json").read_text())["reading"]
    assert list(reading["epochs"]) == ["1", "2"]
    last = {word: each["cosine"] for word, each in reading["words"].items()}
    assert reading["epochs"]["2"] == pytest.approx(last, abs=1e-6), "the checkpoint is the run's last"
    assert reading["epochs"]["1"] != reading["epochs"]["2"]
    assert len(last) == len(reading["epochs"]["1"]) > 35


def test_the_human_prompt_is_the_published_one(
    reader: list[str], pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app([*reader, "--root", str(pictures), "--limit", "1"]) == 0
    assert "prompt: How far is this location from the camera?" in capsys.readouterr().out


def check(arguments: list[str], code: int, *words: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Run, and hold the exit code, the three-part message, and that nothing was written."""
    before = sorted(Path().rglob("*"))
    assert run_app(arguments) == code
    message = " ".join(capfd.readouterr().err.split())
    for word in ("error:", "why:", "next:", *words):
        assert word in message, message
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("model", ["nano.fp16", str(NANO_ONNX["fp32"]), "model.plan"])
def test_an_exported_model_has_no_mirror(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    check(["explain", model, "--root", "."], 2, "has no mirror prompt", "Give the checkpoint", capfd=capfd)


def test_a_checkpoint_without_its_clip(
    reader: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def offline(*arguments: object, **options: object) -> None:
        raise OSError("no route to host")

    check([*reader[:2], "--clip-weights", "absent.pt"], 1, "CLIP weights absent.pt do not exist", capfd=capfd)
    monkeypatch.setattr(open_clip, "create_model", offline)
    check(reader[:2], 1, "no route to host", "--clip-weights FILE", capfd=capfd)


def test_words_and_runs_that_cannot_be_read(
    reader: list[str], tiny_network: DepthNetwork, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("empty.txt").touch()
    Path("blank.txt").write_text("\n \n")
    Path("other/checkpoints").mkdir(parents=True)
    check([*reader, "--words", "empty.txt"], 1, "empty.txt is empty", capfd=capfd)
    check([*reader, "--words", "blank.txt"], 1, "blank.txt has no words", capfd=capfd)
    check([*reader, "--run", "other"], 1, "other has no epoch checkpoints", capfd=capfd)
    save_checkpoint(tiny_network, Path("other/checkpoints/epoch-001.safetensors"))
    check([*reader, "--run", "other"], 1, "epoch-001.safetensors has another model", capfd=capfd)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ("nothing to show", "never trained on text", "--root DATA")),
        (["--limit", "3"], ("require --root", "--root DATA")),
        (["--prompt", "how far?"], ("require --root", "--root DATA")),
        (["--root", "pictures", "--prompt", "how far?"], ("cannot be given a prompt", "Leave --prompt out")),
        (["--root", "pictures", "--crop", "half"], ("--crop 'half' is unknown",)),
        (["--root", "pictures", "--device", "tpu"], ("auto, cpu or cuda",)),
        (["--root", "pictures", "-o", "explain.jpg"], ("must be .png",)),
    ],
)
def test_options_that_make_no_sense(
    arguments: list[str], words: tuple[str, ...], pictures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    check(["explain", "nano", *arguments], 2, *words, capfd=capfd)


def test_nothing_is_measured_before_a_place_for_it_is_found(pictures: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("taken").write_text("a file where a folder should be")
    common = ["explain", "nano", "--root", "pictures"]
    check([*common, "--json", "taken/out.json"], 1, "Cannot write", capfd=capfd)
    check([*common, "-o", "taken/out.png"], 1, "Cannot write", capfd=capfd)


def test_a_machine_without_open_clip(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from mirrordepth_edge.backends import base

    monkeypatch.setattr(base, "find_spec", lambda name: None if name == "open_clip" else name)
    check(
        ["explain", "nano", "--root", "."],
        4,
        "the package open_clip is not installed",
        "mirrordepth-edge[export]",
        capfd=capfd,
    )
