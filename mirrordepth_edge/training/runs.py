"""The folder of a training run: settings, history, a checkpoint an epoch, and what to resume from.

config.json        settings, resolved; --recipe takes it again
environment.json   machine and versions
data.json          what was trained and validated on, with fingerprints
history.jsonl      an epoch a line: loss, learning rate, seconds, errors on the held-out pictures
checkpoints/       epoch-001.safetensors, ...: each a whole model, by its running mean of weights
best.safetensors   the one of least AbsRel
state.pt           to resume from
tensorboard/       scalars and depth pictures
bad-batch-0.safetensors   what made the loss not finite, if anything did
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from mirrordepth_edge.config import DataConfig, ModelConfig, Strict, TrainConfig
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.evaluation.evaluate import Protocol
from mirrordepth_edge.evaluation.metrics import DepthMetrics
from mirrordepth_edge.machine.device import installed_versions, machine
from mirrordepth_edge.support.files import atomic_write, ensure_folder, existing_file, write_json
from mirrordepth_edge.support.schema import read_strict
from mirrordepth_edge.training.distributed import rank

PACKAGES = ("mirrordepth-edge", "torch", "open_clip_torch", "timm", "numpy", "opencv-python")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Strict):
    """Everything that decides what a training gives."""

    model: ModelConfig
    train: TrainConfig
    data: DataConfig
    validation: DataConfig | None = None
    hold_out: float = 0.0
    """Share of the training scenes kept for validation."""
    start_from: Path | None = None
    """Checkpoint whose mirror and decoder are trained on; fresh ones where None."""
    protocol: Protocol
    """How the held-out pictures are evaluated."""


@dataclass(frozen=True, kw_only=True)
class EpochResult(Strict):
    """One line of a run's history."""

    epoch: int
    """From 1."""
    loss: float
    learning_rate: float
    seconds: float
    skipped: int
    """Samples that could not be read, since the run or its last resumption began."""
    metrics: DepthMetrics | None
    """On the held-out pictures."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Where a run keeps everything."""

    path: Path

    @property
    def state(self) -> Path:
        return self.path / "state.pt"

    @property
    def best(self) -> Path:
        return self.path / "best.safetensors"

    @property
    def history(self) -> Path:
        return self.path / "history.jsonl"

    @property
    def bad_batch(self) -> Path:
        return self.path / f"bad-batch-{rank()}.safetensors"

    def checkpoint(self, epoch: int) -> Path:
        """Model after an epoch, counted from 1."""
        return self.path / "checkpoints" / f"epoch-{epoch:03d}.safetensors"

    def start(self, config: RunConfig, data: dict[str, Any]) -> None:
        """Describe a new run.

        Raises:
            OptionError: there is one already.
            InputError: the folder cannot be written.
        """
        if self.state.is_file():
            raise OptionError(
                f"There is a training in {self.path} already.",
                "A new one would overwrite its checkpoints.",
                f"Add --resume to go on with it, or name another folder: --run-dir {self.path}2",
            )
        ensure_folder(self.path / "checkpoints")
        about = {
            "machine": asdict(machine()),
            "packages": installed_versions(PACKAGES),
            "threads": torch.get_num_threads(),
        }
        write_json(self.path / "config.json", asdict(config))
        write_json(self.path / "environment.json", about)
        write_json(self.path / "data.json", data)

    def resume(self, config: RunConfig, data: dict[str, Any]) -> dict[str, Any] | None:
        """State to go on from; None where the run ended before its first epoch did.

        Raises:
            InputError: there is none, or the run had other settings or other data.
        """
        existing_file(self.path / "config.json", "training to resume")
        for name, here in (("config.json", asdict(config)), ("data.json", data)):
            there = json.loads(existing_file(self.path / name, "description of the run").read_text(encoding="utf-8"))
            different = differences(there, json.loads(json.dumps(here, default=str)))
            if different:
                raise InputError(
                    f"The training in {self.path} was started with other settings.",
                    "; ".join(different[:5]) + ".",
                    f"Give the same options again ({self.path / 'config.json'} has them), or take another --run-dir.",
                )
        if not self.state.is_file():
            return None
        state: dict[str, Any] = torch.load(self.state, weights_only=True, map_location="cpu")
        return state

    def write_state(self, state: dict[str, Any]) -> None:
        """Write what `resume` reads."""
        buffer = BytesIO()  # a full disk is then Python's own error, which `written_whole` knows
        torch.save(state, buffer)
        with atomic_write(self.state) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def write_history(self, results: list[EpochResult]) -> None:
        """Write an epoch a line."""
        with atomic_write(self.history) as temporary:
            temporary.write_text("".join(json.dumps(asdict(each)) + "\n" for each in results), encoding="utf-8")

    def results(self) -> list[EpochResult]:
        """History so far."""
        if not self.history.is_file():
            return []
        lines = self.history.read_text(encoding="utf-8").splitlines()
        return [read_strict(EpochResult, json.loads(line), str(self.history), "Start a new run.") for line in lines]


def best_of(results: list[EpochResult]) -> EpochResult | None:
    """The epoch of least AbsRel; None where nothing was validated."""
    validated = [result for result in results if result.metrics is not None]
    return min(validated, key=lambda result: result.metrics.abs_rel, default=None)  # type: ignore[union-attr]


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """Where two JSON values differ, in words; where data lies on the disk does not count."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted({*there, *here} - {"root", "list_file", "depth_root", "start_from"})
        return [
            text for key in keys for text in differences(there.get(key), here.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if there == here else [f"{name} was {there}, now {here}"]
