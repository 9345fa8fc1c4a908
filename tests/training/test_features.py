"""Feature cache: contents, errors, and equality of training with and without it."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("open_clip", reason="open_clip is not installed")

import torch

from mirrordepth_edge.config import ModelConfig, TrainConfig
from mirrordepth_edge.data.folder import folder_dataset
from mirrordepth_edge.data.sample import DepthDataset, Selected
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.model.network import DepthNetwork, create_network
from mirrordepth_edge.training import features
from mirrordepth_edge.training.features import CachedViews, cached_views, shard_path, tower_features
from mirrordepth_edge.training.trainer import Trainer
from mirrordepth_edge.training.views import FreshViews

CONFIG = TrainConfig(epochs=3, batch_size=4, seed=2, feature_copies=2, warmup_steps=0)


@pytest.fixture
def dataset(rgbd_folder: Path) -> DepthDataset:
    return folder_dataset(rgbd_folder)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows per shard, so that there are several shards."""
    monkeypatch.setattr(features, "SHARD_BYTES", 300_000)


def test_cached_row_equals_the_features_of_the_view(
    network: DepthNetwork, dataset: DepthDataset, tmp_path: Path
) -> None:
    reported: list[tuple[int, int]] = []
    cache = cached_views(network, dataset, CONFIG, tmp_path, on_rows=lambda done, rows: reported.append((done, rows)))
    assert cache.info.shards > 1
    assert reported[-1] == (24, 24)
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)
    fresh = FreshViews(dataset, network.config.size_hw, CONFIG)
    for epoch, index in ((0, 0), (1, 5), (1, 11)):
        view, expected = cache[epoch, index], fresh[epoch, index]
        taps = tower_features(network, expected.inputs[0][None], CONFIG)
        assert cache.info.prefix == taps.prefix
        for stored, computed in zip(view.inputs, taps.features, strict=True):
            torch.testing.assert_close(stored.float(), computed[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(view.truth_m.float(), expected.truth_m, rtol=5e-4, atol=0)
    assert torch.equal(cache[2, 3].inputs[0], cache[0, 3].inputs[0])  # copies in turn


def test_training_on_the_cache_equals_training_without(
    tiny_map_config: ModelConfig, dataset: DepthDataset, tmp_path: Path
) -> None:
    def losses(cached: bool) -> list[float]:
        network, history = create_network(tiny_map_config), []
        fresh = FreshViews(dataset, tiny_map_config.size_hw, CONFIG)
        views = cached_views(network, dataset, CONFIG, tmp_path) if cached else fresh
        trainer = Trainer(network, views, CONFIG)
        for epoch in range(2):  # as many as there are copies: the same views
            trainer.run_epoch(epoch, lambda progress: history.append(progress.loss))
        return history

    cached, fresh = losses(True), losses(False)
    assert cached[0] == pytest.approx(fresh[0], rel=1e-3)
    assert cached == pytest.approx(fresh, rel=2e-2)  # rounding grows from step to step


def test_interrupted_cache_is_completed(tiny_network: DepthNetwork, dataset: DepthDataset, tmp_path: Path) -> None:
    whole = cached_views(tiny_network, dataset, CONFIG, tmp_path)
    before = whole[1, 7].inputs[0].clone()
    last = whole.info.shards - 1
    shard_path(tmp_path, last).unlink()
    kept = {shard: shard_path(tmp_path, shard).stat().st_mtime_ns for shard in range(last)}
    finished: list[int] = []
    again = cached_views(tiny_network, dataset, CONFIG, tmp_path, on_rows=lambda done, rows: finished.append(done))
    assert finished[0] > last * whole.info.rows_per_shard
    assert {shard: shard_path(tmp_path, shard).stat().st_mtime_ns for shard in range(last)} == kept
    assert torch.equal(again[1, 7].inputs[0], before)


def test_complete_cache_does_not_run_the_tower(
    tiny_vit_config: ModelConfig, dataset: DepthDataset, tmp_path: Path
) -> None:
    network = create_network(tiny_vit_config)
    cached_views(network, dataset, CONFIG, tmp_path)
    network.tower.register_forward_hook(lambda module, images, taps: passed.append(len(images[0])))
    passed: list[int] = []
    cached_views(network, dataset, CONFIG, tmp_path)
    assert sum(passed) <= 1  # one black picture, for the shapes


def test_cache_is_pickled_without_memory_maps(
    tiny_network: DepthNetwork, dataset: DepthDataset, tmp_path: Path
) -> None:
    cache = cached_views(tiny_network, dataset, CONFIG, tmp_path)
    expected = cache[0, 2].inputs[0]
    packed = pickle.dumps(cache)
    assert len(packed) < 10_000
    assert torch.equal(pickle.loads(packed)[0, 2].inputs[0], expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": {"seed": 3}}, "augmentation"),
        ({"train": {"feature_copies": 3}}, "copies"),
        ({"model": {"pretrained": "random-1"}}, "other CLIP weights"),
        ({"model": {"size_hw": (32, 96)}}, "size_hw"),
    ],
)
def test_mismatching_cache_is_refused(
    change: dict[str, dict[str, Any]],
    words: str,
    tiny_vit_config: ModelConfig,
    tiny_network: DepthNetwork,
    dataset: DepthDataset,
    tmp_path: Path,
) -> None:
    cached_views(tiny_network, dataset, CONFIG, tmp_path)
    network = create_network(replace(tiny_vit_config, **change.get("model", {})))
    with pytest.raises(InputError, match=words) as caught:
        cached_views(network, dataset, replace(CONFIG, **change.get("train", {})), tmp_path)
    assert "--cache-features" in caught.value.cure


def test_cache_is_reused_if_features_do_not_change(
    tiny_network: DepthNetwork, dataset: DepthDataset, tmp_path: Path
) -> None:
    cached_views(tiny_network, dataset, CONFIG, tmp_path)
    cached_views(tiny_network, dataset, replace(CONFIG, learning_rate=1.0, epochs=9, batch_size=2), tmp_path)


def test_cache_of_other_images_is_refused(
    tiny_network: DepthNetwork, dataset: DepthDataset, rgbd_folder: Path, tmp_path: Path
) -> None:
    cached_views(tiny_network, dataset, CONFIG, tmp_path / "cache")
    for part in ("rgb", "depth"):
        shutil.copy(rgbd_folder / part / "03.png", rgbd_folder / part / "99.png")
    with pytest.raises(InputError, match="other images"):
        cached_views(tiny_network, folder_dataset(rgbd_folder), CONFIG, tmp_path / "cache")


@pytest.mark.parametrize("text", ["{", json.dumps({"version": 1})])
def test_a_damaged_description(text: str, tiny_network: DepthNetwork, dataset: DepthDataset, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cache.json").write_text(text)
    with pytest.raises(InputError, match=r"cache\.json"):
        cached_views(tiny_network, dataset, CONFIG, tmp_path / "cache")


def test_too_little_disk_space_is_reported_first(
    tiny_network: DepthNetwork, dataset: DepthDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        total: int = 10**6
        used: int = 10**6
        free: int = 1000

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage())
    with pytest.raises(InputError, match="does not fit"):
        cached_views(tiny_network, dataset, CONFIG, tmp_path)


def test_full_disk_keeps_complete_shards(
    tiny_network: DepthNetwork, dataset: DepthDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = features.np.save, []

    def full(path: Path, rows: Any) -> None:
        if saved:
            Path(path).write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        saved.append(path)
        save(path, rows)

    monkeypatch.setattr(features.np, "save", full)
    with pytest.raises(InputError, match="Cannot write") as caught:
        cached_views(tiny_network, dataset, CONFIG, tmp_path)
    assert "No space left" in caught.value.why
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == ["00000.npy"]
    assert not list(tmp_path.glob(".*"))
    monkeypatch.setattr(features.np, "save", save)
    assert isinstance(cached_views(tiny_network, dataset, CONFIG, tmp_path), CachedViews)


def test_complete_cache_accepts_skip_bad(
    tiny_network: DepthNetwork,
    dataset: DepthDataset,
    rgbd_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A restart with --skip-bad keeps the features that were computed before the unreadable image."""
    monkeypatch.setattr(features, "SHARD_BYTES", 60_000)
    late = rgbd_folder / "rgb" / "11.png"
    late.write_bytes(late.read_bytes()[:100])
    with pytest.raises(InputError, match=r"11\.png") as caught:
        cached_views(tiny_network, dataset, CONFIG, tmp_path / "cache")
    assert "--skip-bad" in caught.value.cure
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.npy")}
    assert kept
    cache = cached_views(tiny_network, dataset, CONFIG, tmp_path / "cache", skip_bad=True)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    with pytest.raises(InputError, match="another skip_bad"):  # and now it may hold stand-ins
        cached_views(tiny_network, dataset, CONFIG, tmp_path / "cache")
    assert torch.equal(cache[0, 11].inputs[0], cache[0, 0].inputs[0])  # the next readable one stands in


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_reading_keeps_no_shard_open(tiny_network: DepthNetwork, dataset: DepthDataset, tmp_path: Path) -> None:
    cache = cached_views(tiny_network, dataset, CONFIG, tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    views = [cache[epoch, index] for epoch in range(2) for index in range(12)]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    assert len(views) == cache.info.rows


def test_depth_beyond_float16_is_no_depth(tiny_network: DepthNetwork, samples: DepthDataset, tmp_path: Path) -> None:
    class Odd(Selected):
        def __getitem__(self, index: int) -> Any:
            sample = super().__getitem__(index)
            depth_m = sample.depth_m.copy()
            depth_m[:20], depth_m[20:40] = np.nan, 70_000.0
            return sample._replace(depth_m=depth_m)

    cache = cached_views(tiny_network, Odd(of=samples, indices=(0, 1)), CONFIG, tmp_path)
    truth_m = cache[0, 0].truth_m
    assert torch.isfinite(truth_m).all()
    assert truth_m.max() < 10


def test_unreadable_image_raises_or_is_counted(
    tiny_network: DepthNetwork, dataset: DepthDataset, rgbd_folder: Path, tmp_path: Path
) -> None:
    (rgbd_folder / "rgb" / "04.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"04\.png"):
        cached_views(tiny_network, dataset, CONFIG, tmp_path / "a")
    problems: list[int] = []
    cached_views(
        tiny_network, dataset, CONFIG, tmp_path / "b", skip_bad=True, on_problem=lambda p: problems.append(p.sample)
    )
    assert problems == [4, 4]  # once a copy


def test_features_beyond_float16_are_refused(
    tiny_vit_config: ModelConfig, dataset: DepthDataset, tmp_path: Path
) -> None:
    network = create_network(tiny_vit_config)
    with torch.no_grad():
        network.clip.visual.transformer.resblocks[0].mlp.c_proj.bias.fill_(1e5)
    with pytest.raises(InputError, match="16 bits"):
        cached_views(network, dataset, CONFIG, tmp_path)
