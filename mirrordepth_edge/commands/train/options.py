"""Options of `mde train` that other verbs do not have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.commands.parameters import ClipWeights, Device, Root, Size

VALIDATION = "Validation options"
validation_option = partial(typer.Option, rich_help_panel=VALIDATION)
RUN = "Run options"
run_option = partial(typer.Option, rich_help_panel=RUN)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Data, model, training settings and the run."""

    root: Root
    preset: Annotated[str | None, typer.Option(help="nano, vitb16, mobileclip2-s0 or rn50.  [default: nano]")] = None
    recipe: Annotated[
        Path | None, typer.Option(help="Settings: a .toml file, config.json of a run, or the name of a preset.")
    ] = None
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.")] = Path("model.safetensors")
    run_dir: Annotated[Path | None, run_option(help="Folder of the run.  [default: OUTPUT.run]")] = None
    start_from: Annotated[
        Path | None, typer.Option(help="Initial weights: a checkpoint, or nano.  [default: random]")
    ] = None
    resume: Annotated[bool, run_option("--resume", help="Resume the run in --run-dir.")] = False
    epochs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Passes over the data.  [default: preset's]")
    ] = None
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images per step.  [default: preset's]")
    ] = None
    size: Size = None
    validation: Annotated[Path | None, validation_option(help="Validation data, used to choose the best epoch.")] = None
    hold_out: Annotated[
        float, validation_option(min=0, max=0.5, metavar="SHARE", help="Or hold out this share of the scenes.")
    ] = 0.0
    validate_every: Annotated[int, validation_option(min=1, metavar="N", help="Epochs between validations.")] = 1
    cache_features: Annotated[Path | None, run_option(help="Cache the features of the tower in this folder.")] = None
    copies: Annotated[
        int | None, run_option(min=1, metavar="N", help="Augmented copies in the cache.  [default: 4]")
    ] = None
    skip_bad: Annotated[bool, run_option("--skip-bad", help="Skip and count unreadable samples.")] = False
    clip_weights: ClipWeights = None
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Seed of weights, order and augmentation.  [default: 0]")
    ] = None
    device: Device = "auto"
    workers: Annotated[int, run_option(min=0, metavar="N", help="Processes that load and augment images.")] = 2
    compile_: Annotated[bool, run_option("--compile", help="Use torch.compile; pays off on GPUs.")] = False
