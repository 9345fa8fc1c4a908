"""Complete training runs: folder, interruption and several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("open_clip", reason="open_clip is not installed")
pytest.importorskip("tensorboard", reason="TensorBoard is not installed")

import torch

from mirrordepth_edge.config import DataConfig, ModelConfig, TrainConfig
from mirrordepth_edge.data.folder import folder_dataset
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.evaluation.evaluate import Protocol
from mirrordepth_edge.manifest import read_checkpoint_info
from mirrordepth_edge.model.checkpoint import load_checkpoint
from mirrordepth_edge.training.fit import Callbacks, TrainOptions, fit
from mirrordepth_edge.training.runs import EpochResult, RunConfig, RunFolder, best_of
from mirrordepth_edge.training.trainer import Resources, evaluate

PROTOCOL = Protocol(limits_m=(1e-3, 10.0))

# What a test runs in another process: the same training, perhaps killed, perhaps one of two.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from mirrordepth_edge.training.fit import Callbacks, TrainOptions, fit
from mirrordepth_edge.training.runs import RunConfig, RunFolder
from mirrordepth_edge.support.schema import read_strict

root, die_after = Path(sys.argv[1]), int(sys.argv[2])
config = read_strict(RunConfig, json.loads((root / "run.json").read_text()), "run.json", "")
losses = []

def step(progress):
    losses.append(progress.loss)
    if progress.step == die_after:
        os.kill(os.getpid(), signal.SIGKILL)

fit(config, RunFolder(path=root / "run"), TrainOptions(), Callbacks(step=step))
if losses:
    (root / "losses.json").write_text(json.dumps(losses))
"""


@pytest.fixture
def config(rgbd_folder: Path, tiny_map_config: ModelConfig) -> RunConfig:
    return RunConfig(
        model=replace(tiny_map_config, size_hw=(64, 64)),
        train=TrainConfig(epochs=3, batch_size=4, warmup_steps=0, ema_decay=0.9, learning_rate=3e-3),
        data=DataConfig(root=rgbd_folder),
        validation=DataConfig(root=rgbd_folder),
        protocol=PROTOCOL,
    )


def in_another_process(root: Path, config: RunConfig, *launcher: str, die_after: int = 0) -> int:
    from mirrordepth_edge.support.files import write_json

    write_json(root / "run.json", asdict(config))
    (root / "script.py").write_text(SCRIPT)
    command = [sys.executable, *launcher, str(root / "script.py"), str(root), str(die_after)]
    # As many threads as here: sums of floats depend on how they are split up.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(command, env=environment, check=False, capture_output=True, timeout=600).returncode


def test_run_folder_contents(config: RunConfig, tmp_path: Path) -> None:
    folder, results = RunFolder(path=tmp_path / "run"), []
    best = fit(config, folder, callbacks=Callbacks(epoch=results.append))
    assert best == folder.best
    assert [result.epoch for result in results] == [1, 2, 3]
    assert folder.results() == results
    assert [folder.checkpoint(epoch).is_file() for epoch in (1, 2, 3)] == [True] * 3
    written = json.loads((folder.path / "config.json").read_text())
    assert written["train"]["learning_rate"] == 3e-3
    assert written["data"]["root"] == str(config.data.root)
    data = json.loads((folder.path / "data.json").read_text())
    assert data["pictures"] == 12
    assert data["fingerprint"] == folder_dataset(config.data.root).fingerprint()
    environment = json.loads((folder.path / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert not folder.bad_batch.exists()


def test_checkpoint_stores_its_validation_metrics(config: RunConfig, tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path / "run")
    fit(config, folder)
    network, info = load_checkpoint(folder.checkpoint(2))
    assert info.training is not None
    assert info.training["epoch"] == 2
    again = evaluate(network, folder_dataset(config.data.root), PROTOCOL).mean
    assert info.training["validation"]["abs_rel"] == pytest.approx(again.abs_rel, rel=1e-9)
    assert folder.results()[1].metrics == pytest.approx(again)


def test_best_epoch_has_lowest_absrel(config: RunConfig, tmp_path: Path) -> None:
    # The rate grows from epoch to epoch until it spoils what was learned.
    wild = replace(config.train, learning_rate=0.01, final_learning_rate=3.0, epochs=4, ema_decay=0)
    folder = RunFolder(path=tmp_path / "run")
    best = fit(replace(config, train=wild), folder)
    errors = [result.metrics.abs_rel for result in folder.results() if result.metrics]
    assert errors.index(min(errors)) < 3
    info = read_checkpoint_info(best)
    assert info.training is not None
    assert info.training["epoch"] == errors.index(min(errors)) + 1


def test_last_epoch_is_returned_without_validation(config: RunConfig, tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path / "run")
    best = fit(replace(config, validation=None), folder)
    assert best == folder.checkpoint(3)
    assert not folder.best.exists()
    assert best_of(folder.results()) is None


def test_training_starts_from_a_checkpoint(config: RunConfig, tmp_path: Path) -> None:
    first = fit(config, RunFolder(path=tmp_path / "first"))
    frozen = replace(config.train, epochs=1, learning_rate=1e-30, final_learning_rate=0.0, weight_decay=0.0)
    second = RunFolder(path=tmp_path / "second")
    fit(replace(config, train=frozen, start_from=first), second)
    start, unmoved = (load_checkpoint(path)[0].trainable() for path in (first, second.checkpoint(1)))
    assert all(torch.equal(start[name], unmoved[name]) for name in start)
    described = json.loads((second.path / "data.json").read_text())
    assert described["started_from"] == read_checkpoint_info(first).weights_sha256


def test_starting_from_another_model_is_refused(config: RunConfig, tmp_path: Path) -> None:
    first = fit(replace(config, validation=None), RunFolder(path=tmp_path / "first"))
    wider = replace(config.model, width=64)
    with pytest.raises(InputError, match="width is 128, here it is 64"):
        fit(replace(config, model=wider, start_from=first), RunFolder(path=tmp_path / "second"))
    other_towers = replace(config.model, pretrained="random-1")
    with pytest.raises(InputError, match="other CLIP weights"):
        fit(replace(config, model=other_towers, start_from=first), RunFolder(path=tmp_path / "third"))


def test_held_out_scenes_are_not_trained_on(config: RunConfig, tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path / "run")
    fit(replace(config, validation=None, hold_out=0.25, train=replace(config.train, epochs=1)), folder)
    data = json.loads((folder.path / "data.json").read_text())
    assert data["held_out"] >= 2
    assert data["pictures"] + data["held_out"] <= 12
    assert data["fingerprint"] != data["held_out_fingerprint"]


def test_tensorboard_has_scalars_and_images(config: RunConfig, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, steps = RunFolder(path=tmp_path / "run"), []
    fit(config, folder, callbacks=Callbacks(step=steps.append))
    board = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    losses = board.Scalars("train/loss")
    assert [event.step for event in losses] == list(range(1, 10))
    assert [event.value for event in losses] == pytest.approx([progress.loss for progress in steps])
    assert [event.step for event in board.Scalars("validation/abs_rel")] == [3, 6, 9]
    assert len(board.Tags()["images"]) == 4


def test_a_run_is_not_overwritten(config: RunConfig, tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path / "run")
    short = replace(config, train=replace(config.train, epochs=1))
    fit(short, folder)
    with pytest.raises(OptionError, match="already") as caught:
        fit(short, folder)
    assert "--resume" in caught.value.cure


@pytest.mark.parametrize("name", ["train", "model"])
def test_a_run_resumes_with_its_own_settings_only(name: str, config: RunConfig, tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path / "run")
    fit(replace(config, train=replace(config.train, epochs=1)), folder)
    before = folder.state.read_bytes()
    other: dict[str, Any] = {
        "train": replace(config, train=replace(config.train, epochs=2)),
        "model": replace(config, model=replace(config.model, width=64), train=replace(config.train, epochs=1)),
    }
    with pytest.raises(InputError, match="other settings") as caught:
        fit(other[name], folder, resume=True)
    assert {"train": "train.epochs was 1, now 2", "model": "model.width was 128, now 64"}[name] in caught.value.why
    assert folder.state.read_bytes() == before


def test_a_run_resumes_with_its_own_data_only(config: RunConfig, tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path / "run")
    config = replace(config, validation=None, train=replace(config.train, epochs=1))
    fit(config, folder)
    for part in ("rgb", "depth"):
        (config.data.root / part / "11.png").unlink()
    with pytest.raises(InputError, match="other settings") as caught:
        fit(config, folder, resume=True)
    assert "pictures was 12, now 11" in caught.value.why


def test_a_run_resumes_with_its_own_clip_only(config: RunConfig, tiny_vit_config: ModelConfig, tmp_path: Path) -> None:
    import open_clip

    short = replace(config.train, epochs=1)
    model = replace(tiny_vit_config, pretrained="somewhere", size_hw=(64, 64))
    for seed in (0, 1):
        torch.manual_seed(seed)
        clip = open_clip.create_model(model.clip_model, pretrained_image=False, pretrained_text=False)
        torch.save(clip.state_dict(), tmp_path / f"clip{seed}.pt")
    folder, of_clip = RunFolder(path=tmp_path / "run"), replace(config, model=model, train=short)
    fit(of_clip, folder, TrainOptions(clip_weights=tmp_path / "clip0.pt"))
    with pytest.raises(InputError, match="other settings") as caught:
        fit(of_clip, folder, TrainOptions(clip_weights=tmp_path / "clip1.pt"), resume=True)
    assert "clip_sha256" in caught.value.why


def test_run_without_a_complete_epoch_restarts(config: RunConfig, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(progress: Any) -> None:
        raise StopError

    folder = RunFolder(path=tmp_path / "run")
    with pytest.raises(StopError):
        fit(config, folder, callbacks=Callbacks(step=stop))
    fit(config, folder, resume=True)
    assert len(folder.results()) == 3


def test_invalid_validation_image_is_reported_before_training(config: RunConfig, tmp_path: Path) -> None:
    victim, steps = config.data.root / "depth" / "05.png", []
    cv2.imwrite(str(victim), np.zeros((60, 80), np.uint16))
    folder = RunFolder(path=tmp_path / "run")
    with pytest.raises(InputError, match="05 has no valid depth"):
        fit(config, folder, callbacks=Callbacks(step=steps.append))
    assert not steps


def test_epoch_without_validation_has_no_metrics(config: RunConfig, tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path / "run")
    fit(config, folder, TrainOptions(validate_every=2))
    trainings = [read_checkpoint_info(folder.checkpoint(epoch)).training or {} for epoch in (1, 2, 3)]
    assert ["validation" in training for training in trainings] == [False, True, True]
    assert [result.metrics is not None for result in folder.results()] == [False, True, True]


def test_resume_without_a_run_is_refused(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training to resume"):
        fit(config, RunFolder(path=tmp_path / "run"), resume=True)


def test_killed_run_resumes_to_the_same_numbers(config: RunConfig, tmp_path: Path) -> None:
    whole = RunFolder(path=tmp_path / "whole")
    fit(config, whole, TrainOptions(resources=Resources()))
    (tmp_path / "killed").mkdir()
    assert in_another_process(tmp_path / "killed", config, die_after=5) == -9  # in the second epoch of three steps
    folder = RunFolder(path=tmp_path / "killed" / "run")
    assert [result.epoch for result in folder.results()] == [1]
    fit(config, folder, resume=True)
    for epoch in (1, 2, 3):
        resumed, straight = (read_checkpoint_info(f.checkpoint(epoch)).weights_sha256 for f in (folder, whole))
        assert resumed == straight, f"epoch {epoch}"

    def figures(results: list[EpochResult]) -> list[EpochResult]:
        return [replace(result, seconds=0.0) for result in results]

    assert figures(folder.results()) == figures(whole.results())
    assert read_checkpoint_info(folder.best).weights_sha256 == read_checkpoint_info(whole.best).weights_sha256


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_like_one(accumulate: int, config: RunConfig, tmp_path: Path) -> None:
    """The same batch, split over two processes: losses are equal, and only mirror and decoder change."""
    config = replace(config, validation=None, train=replace(config.train, edge_weight=0.5))
    alone: list[float] = []
    kept = fit(config, RunFolder(path=tmp_path / "alone"), callbacks=Callbacks(step=lambda p: alone.append(p.loss)))
    shared = replace(config, train=replace(config.train, accumulate=accumulate))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert in_another_process(tmp_path, shared, *launcher) == 0
    together = json.loads((tmp_path / "losses.json").read_text())
    # Parts of a step have losses of their own, whose mean is near the whole's, not equal to it.
    assert together == pytest.approx(alone, rel=1e-4 if accumulate == 1 else 0.3)
    assert np.mean(together) == pytest.approx(np.mean(alone), rel=0.1)
    if accumulate == 1:
        a, b = (load_checkpoint(path)[0] for path in (kept, RunFolder(path=tmp_path / "run").checkpoint(3)))
        for (name, one), two in zip(a.trainable().items(), b.trainable().values(), strict=True):
            torch.testing.assert_close(one, two, rtol=2e-3, atol=2e-4, msg=name)


def test_run_resumes_after_an_image_became_unreadable(config: RunConfig, tmp_path: Path) -> None:
    folder, victim = RunFolder(path=tmp_path / "run"), config.data.root / "rgb" / "07.png"
    config = replace(config, validation=None)
    good = victim.read_bytes()

    def damage(result: EpochResult) -> None:
        if result.epoch == 2:
            victim.write_bytes(good[: len(good) // 2].replace(b"IDAT", b"????"))

    with pytest.raises(InputError, match=r"07\.png") as caught:
        fit(config, folder, callbacks=Callbacks(epoch=damage))
    assert "--skip-bad" in caught.value.cure
    assert len(folder.results()) == 2
    victim.write_bytes(good)
    fit(config, folder, resume=True)
    assert len(folder.results()) == 3


def test_skipped_samples_are_counted_and_reported_once(config: RunConfig, tmp_path: Path) -> None:
    (config.data.root / "depth" / "02.png").write_bytes(b"no picture")
    folder, skipped = RunFolder(path=tmp_path / "run"), []
    fit(
        replace(config, validation=None),
        folder,
        TrainOptions(skip_bad=True),
        Callbacks(problem=lambda problem: skipped.append(problem.sample)),
    )
    assert skipped == [2]
    assert [result.skipped for result in folder.results()] == [1, 1, 1]


def test_skipped_samples_are_counted_while_caching(config: RunConfig, tmp_path: Path) -> None:
    (config.data.root / "depth" / "02.png").write_bytes(b"no picture")
    folder, skipped = RunFolder(path=tmp_path / "run"), []
    cached = replace(config, validation=None, train=replace(config.train, feature_copies=2, epochs=1))
    options = TrainOptions(skip_bad=True, cache=tmp_path / "cache")
    fit(cached, folder, options, Callbacks(problem=lambda problem: skipped.append(problem.sample)))
    assert skipped == [2]
    assert [result.skipped for result in folder.results()] == [1]


@pytest.mark.slow
def test_failure_of_one_process_ends_both(config: RunConfig, tmp_path: Path) -> None:
    for place in range(12):  # whichever draws the first of them
        if place % 2:
            (config.data.root / "rgb" / f"{place:02d}.png").write_bytes(b"no picture")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "mirrordepth_edge", "train", "--root", str(config.data.root), "--size", "64x64"]
    command += ["--batch-size", "4", "--workers", "0", "--device", "cpu", "-o", str(tmp_path / "model.safetensors")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode != 0
    assert "cannot be read as an image" in done.stderr
    assert not (tmp_path / "model.safetensors").exists()
