"""The folder of a training run: settings, history, checkpoints and state.

config.json        resolved settings, accepted by --recipe
environment.json   machine and versions
data.json          training and validation data with fingerprints
history.jsonl      one line per epoch: loss, learning rate, seconds, validation metrics
checkpoints/       epoch-001.safetensors, ...: complete models with averaged weights
best.safetensors   the checkpoint with the lowest AbsRel
state.pt           state to resume from
tensorboard/       scalars and depth images
bad-batch-0.safetensors   the batch that made the loss not finite, if any
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
from mirrordepth_edge.support.files import atomic_write, ensure_folder, existing_file, read_json, write_json
from mirrordepth_edge.support.schema import read_strict
from mirrordepth_edge.training.distributed import rank

PACKAGES = ("mirrordepth-edge", "torch", "open_clip_torch", "timm", "numpy", "opencv-python")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Strict):
    """All settings that affect the result of a training."""

    model: ModelConfig
    train: TrainConfig
    data: DataConfig
    validation: DataConfig | None = None
    hold_out: float = 0.0
    """Share of the training data held out for validation."""
    start_from: Path | None = None
    """Checkpoint to initialise mirror and decoder from; None for random ones."""
    protocol: Protocol
    """Evaluation protocol of the validation."""


@dataclass(frozen=True, kw_only=True)
class EpochResult(Strict):
    """One line of a run's history."""

    epoch: int
    """From 1."""
    loss: float
    learning_rate: float
    seconds: float
    skipped: int
    """Unreadable samples since the run started or was last resumed."""
    metrics: DepthMetrics | None
    """Validation metrics; None if the epoch was not validated."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Paths and files of a training run."""

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
        """Checkpoint of an epoch, counted from 1."""
        return self.path / "checkpoints" / f"epoch-{epoch:03d}.safetensors"

    def start(self, config: RunConfig, data: dict[str, Any]) -> None:
        """Create the folder and write the description of a new run.

        Raises:
            OptionError: the folder already has a run.
            InputError: the folder cannot be written.
        """
        if self.state.is_file():
            raise OptionError(
                f"{self.path} already holds a training.",
                "A new training would overwrite its checkpoints.",
                f"Add --resume to continue it, or name another folder: --run-dir {self.path}2",
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
        """Read the state to resume from; None if the run stopped before its first epoch was complete.

        Raises:
            InputError: there is no run, or it has other settings or data.
        """
        existing_file(self.path / "config.json", "training to resume")
        for name, here in (("config.json", asdict(config)), ("data.json", data)):
            there = read_json(self.path / name, "description of the run", "Start a new run.")
            if different := differences(there, json.loads(json.dumps(here, default=str))):
                raise InputError(
                    f"The training in {self.path} was started with other settings.",
                    "; ".join(different[:5]) + ".",
                    f"Use the same options ({self.path / 'config.json'}), or another --run-dir.",
                )
        if not self.state.is_file():
            return None
        state: dict[str, Any] = torch.load(self.state, weights_only=True, map_location="cpu")
        return state

    def write_state(self, state: dict[str, Any]) -> None:
        """Write the state that `resume` reads."""
        buffer = BytesIO()  # a full disk then raises OSError, which `atomic_write` reports
        torch.save(state, buffer)
        with atomic_write(self.state) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def write_history(self, results: list[EpochResult]) -> None:
        """Write one line per epoch."""
        with atomic_write(self.history) as temporary:
            temporary.write_text("".join(json.dumps(asdict(result)) + "\n" for result in results), encoding="utf-8")

    def results(self) -> list[EpochResult]:
        """Read the history."""
        if not self.history.is_file():
            return []
        lines = self.history.read_text(encoding="utf-8").splitlines()
        return [read_strict(EpochResult, json.loads(line), str(self.history), "Start a new run.") for line in lines]


def best_of(results: list[EpochResult]) -> EpochResult | None:
    """The epoch with the lowest AbsRel; None if none was validated."""
    validated = [result for result in results if result.metrics is not None]
    return min(validated, key=lambda result: result.metrics.abs_rel, default=None)  # type: ignore[union-attr]


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """List the differences of two JSON values; paths of data are ignored."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted({*there, *here} - {"root", "list_file", "depth_root", "start_from"})
        return [
            text for key in keys for text in differences(there.get(key), here.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if there == here else [f"{name} was {there}, now {here}"]
