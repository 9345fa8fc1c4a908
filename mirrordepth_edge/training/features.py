"""Feature cache: outputs of the frozen image tower on disk, so that an epoch only computes the decoder.

A cache holds N augmented copies of a data set. A view is one row of float16 values: the taps, deepest first, then depth
in metres (rounded by at most 0.05 %). Rows are stored in `.npy` shards that training maps into memory. Shards are
written atomically, so an interrupted cache continues where it stopped. `cache.json` describes what the features were
computed from; a cache with another description is refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mirrordepth_edge.config import Strict, TrainConfig
from mirrordepth_edge.data.sample import DepthDataset
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.model.clip import Taps
from mirrordepth_edge.model.network import DepthNetwork, normalise_pixels
from mirrordepth_edge.support.files import atomic_write, ensure_folder, read_json, write_json
from mirrordepth_edge.support.schema import read_strict
from mirrordepth_edge.training.distributed import barrier, rank, world_size
from mirrordepth_edge.training.views import Draw, FreshViews, UnreadableSample, View, collate, limit_worker_threads

CACHE_VERSION = 1
SHARD_BYTES = 128 * 2**20
FLOAT16_MAX = 65504.0
CHUNK = 16
"""Batch size of the image tower."""
AUGMENTATION = ("seed", "flip_probability", "zoom_min", "rotate_deg", "jitter", "bf16")
"""Training settings that affect views or their features."""


@dataclass(frozen=True, kw_only=True)
class CacheInfo(Strict):
    """Contents of `cache.json`: what the features were computed from, and their layout."""

    version: int = CACHE_VERSION
    clip_sha256: str
    clip_model: str
    taps: tuple[int, ...]
    size_hw: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    augmentation: dict[str, float | bool]
    data: str
    """Fingerprint of the data set."""
    samples: int
    skip_bad: bool
    """Whether unreadable samples may be replaced by readable ones."""
    copies: int
    tap_shapes: tuple[tuple[int, ...], ...]
    prefix: int
    rows_per_shard: int

    @property
    def row_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parts of a row: taps, then depth."""
        return (*self.tap_shapes, self.size_hw)

    @property
    def row_length(self) -> int:
        return sum(prod(shape) for shape in self.row_shapes)

    @property
    def rows(self) -> int:
        return self.samples * self.copies

    @property
    def shards(self) -> int:
        return -(-self.rows // self.rows_per_shard)


class CachedViews(Dataset):
    """Views of a complete cache; epoch e uses copy e mod N."""

    def __init__(self, folder: Path, info: CacheInfo) -> None:
        self.folder = folder
        self.info = info

    def __len__(self) -> int:
        return self.info.samples

    def __getitem__(self, draw: Draw) -> View:
        epoch, index = draw
        shard, place = divmod(epoch % self.info.copies * self.info.samples + index, self.info.rows_per_shard)
        # Opened on each access: there may be more shards than a process may keep open.
        row = torch.from_numpy(np.array(np.load(shard_path(self.folder, shard), mmap_mode="r")[place]))
        shapes = self.info.row_shapes
        *taps, truth_m = (part.view(shape) for part, shape in zip(row.split([*map(prod, shapes)]), shapes, strict=True))
        return View(index, taps, truth_m)


def cached_views(
    network: DepthNetwork,
    dataset: DepthDataset,
    config: TrainConfig,
    folder: Path,
    *,
    workers: int = 0,
    skip_bad: bool = False,
    on_rows: Callable[[int, int], None] = lambda done, rows: None,
    on_problem: Callable[[UnreadableSample], None] = lambda problem: None,
) -> CachedViews:
    """Open the feature cache in `folder`; compute what is missing first.

    Training processes share the work by shards.

    Args:
        network: its image tower computes the features, on its device.
        dataset: images with depth.
        config: `feature_copies` copies are computed; copy k equals the views of epoch k without a cache.
        folder: folder of the cache.
        workers: number of data loader processes.
        skip_bad: replace unreadable samples by readable ones.
        on_rows: called with the number of finished views and of all views.
        on_problem: called for each unreadable sample.

    Raises:
        InputError: the folder holds another cache, the disk is too small, a sample cannot be read, or a feature
            exceeds the range of float16.
    """
    info = cache_info(network, dataset, config, skip_bad=skip_bad)
    if rank() == 0:
        _create_or_check(folder, info)
    barrier()
    missing = [shard for shard in range(info.shards) if not shard_path(folder, shard).is_file()]
    _check_space(folder, info, len(missing))
    views = FreshViews(dataset, info.size_hw, config, skip_bad=skip_bad)
    done = info.rows - sum(len(_rows_of(info, shard)) for shard in missing)
    for shard in (shard for shard in missing if shard % world_size() == rank()):
        rows = np.empty((len(_rows_of(info, shard)), info.row_length), np.float16)
        place = 0
        for chunk in _features(network, views, config, [*_rows_of(info, shard)], workers, on_problem):
            rows[place : place + len(chunk)] = chunk
            place += len(chunk)
            on_rows(done + place, info.rows)
        with atomic_write(shard_path(folder, shard)) as temporary:
            np.save(temporary, rows)
        done += len(rows)
    barrier()
    return CachedViews(folder, info)


def shard_path(folder: Path, shard: int) -> Path:
    """Path of a shard."""
    return folder / f"{shard:05d}.npy"


def cache_info(network: DepthNetwork, dataset: DepthDataset, config: TrainConfig, *, skip_bad: bool) -> CacheInfo:
    """Describe the cache for these settings."""
    model = network.config
    with torch.no_grad():
        taps = network.tower(torch.zeros(1, 3, *model.size_hw, device=next(network.parameters()).device))
    shapes = tuple(tuple(tap.shape[1:]) for tap in taps.features)
    row_bytes = 2 * sum(prod(shape) for shape in (*shapes, model.size_hw))
    return CacheInfo(
        clip_sha256=network.clip_sha256,
        **{name: getattr(model, name) for name in ("clip_model", "taps", "size_hw", "mean", "std")},
        augmentation={name: getattr(config, name) for name in AUGMENTATION},
        data=dataset.fingerprint(),
        samples=len(dataset),
        skip_bad=skip_bad,
        copies=config.feature_copies,
        tap_shapes=shapes,
        prefix=taps.prefix,
        rows_per_shard=max(1, SHARD_BYTES // row_bytes),
    )


def _create_or_check(folder: Path, info: CacheInfo) -> None:
    """Write `cache.json`, or compare it with the existing one."""
    ensure_folder(folder)
    description = folder / "cache.json"
    if not description.is_file():
        write_json(description, asdict(info))
        return
    cure = f"Name another folder with --cache-features, or delete {folder} to recompute it."
    existing = read_strict(CacheInfo, read_json(description, "feature cache", cure), str(description), cure)
    if existing == info:
        return
    if replace(existing, skip_bad=True) == info:  # computed without unreadable samples: the rows are the same
        write_json(description, asdict(info))
        return
    there, here = asdict(existing), asdict(info)
    name = next(name for name in here if there[name] != here[name])
    words = {"clip_sha256": "other CLIP weights", "data": "other images"}.get(name, f"another {name}")
    raise InputError(
        f"The feature cache in {folder} was made with {words}.",
        f"{name} is {there[name]} there and {here[name]} here.",
        cure,
    )


def _check_space(folder: Path, info: CacheInfo, missing: int) -> None:
    needed = 2 * info.row_length * min(missing * info.rows_per_shard, info.rows)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"The feature cache does not fit into {folder}.",
            f"{info.copies} copies of {info.samples} images need {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free.",
            "Reduce --copies, free space, or name a folder on another disk.",
        )


def _rows_of(info: CacheInfo, shard: int) -> range:
    return range(shard * info.rows_per_shard, min((shard + 1) * info.rows_per_shard, info.rows))


def _features(
    network: DepthNetwork,
    views: FreshViews,
    config: TrainConfig,
    rows: list[int],
    workers: int,
    on_problem: Callable[[UnreadableSample], None],
) -> Iterator[npt.NDArray[np.float16]]:
    """Compute rows of the cache in order, in chunks `[n, row_length]`."""
    draws: list[Draw] = [divmod(row, len(views)) for row in rows]
    loader = DataLoader(
        views,
        batch_sampler=[draws[start : start + CHUNK] for start in range(0, len(draws), CHUNK)],
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=limit_worker_threads,
    )
    for batch in loader:
        for problem in batch.problems:
            on_problem(problem)
        if not batch.inputs:
            raise batch.unreadable()
        taps = tower_features(network, batch.inputs[0], config)
        truth_m = batch.truth_m.where(batch.truth_m.abs() <= FLOAT16_MAX, 0.0)  # and NaN, which compares false
        parts = [*taps.features, truth_m.to(taps.features[0].device)]
        chunk = torch.cat([part.flatten(1).half() for part in parts], dim=1)
        if not torch.isfinite(chunk).all():
            raise InputError(
                "A feature of the image tower does not fit into 16 bits.",
                f"It exceeds {FLOAT16_MAX:.0f} or is NaN.",
                "Train without --cache-features.",
            )
        yield chunk.cpu().numpy()


def tower_features(network: DepthNetwork, frames: Tensor, config: TrainConfig) -> Taps:
    """Run the frozen image tower on uint8 frames `[B, H, W, 3]`, in bfloat16 if configured; returns float32 taps."""
    device = next(network.parameters()).device
    images = normalise_pixels(frames.to(device, non_blocking=True), network.config.preprocess)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
        taps = network.tower(images)
    return Taps([feature.float() for feature in taps.features], taps.prefix)
