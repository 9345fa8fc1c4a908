"""`mde train`: train the mirror prompt and the decoder on RGB-D data."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.artefact import NANO_CHECKPOINT
from mirrordepth_edge.commands.parameters import (
    NANO,
    ClipWeights,
    Data,
    DepthRoot,
    Device,
    KbCrop,
    ListFile,
    Root,
    Size,
    UnitsPerMetre,
    data_config,
    parse_size,
    torch_device,
)
from mirrordepth_edge.commands.terminal import console
from mirrordepth_edge.config import DataConfig, ModelConfig, TrainConfig
from mirrordepth_edge.data.choose import CONVENTIONS, kind_of, training_focal
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.evaluation.evaluate import Protocol
from mirrordepth_edge.recipes import load_training
from mirrordepth_edge.support.files import atomic_write, ensure_folder, require_suffix

VALIDATION = "Validation options"
validation_option = partial(typer.Option, rich_help_panel=VALIDATION)
RUN = "Run options"
run_option = partial(typer.Option, rich_help_panel=RUN)
DEFAULT_COPIES = 4


def train(
    root: Root,
    data: Data = "auto",
    list_file: ListFile = None,
    depth_root: DepthRoot = None,
    kb_crop: KbCrop = None,
    units_per_metre: UnitsPerMetre = None,
    preset: Annotated[str | None, typer.Option(help="nano, vitb16, mobileclip2-s0 or rn50.  [default: nano]")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Settings: a .toml file, config.json of a run, or the name of a preset.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.")] = Path("model.safetensors"),
    run_dir: Annotated[Path | None, run_option(help="Folder of the run.  [default: OUTPUT.run]")] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="Initial weights: a checkpoint, or nano.  [default: random]")
    ] = None,
    resume: Annotated[bool, run_option("--resume", help="Resume the run in --run-dir.")] = False,
    epochs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Passes over the data.  [default: preset's]")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images per step.  [default: preset's]")
    ] = None,
    size: Size = None,
    validation: Annotated[
        Path | None, validation_option(help="Validation data, used to choose the best epoch.")
    ] = None,
    hold_out: Annotated[
        float, validation_option(min=0, max=0.5, metavar="SHARE", help="Or hold out this share of the scenes.")
    ] = 0.0,
    validate_every: Annotated[int, validation_option(min=1, metavar="N", help="Epochs between validations.")] = 1,
    cache_features: Annotated[Path | None, run_option(help="Cache the features of the tower in this folder.")] = None,
    copies: Annotated[
        int | None, run_option(min=1, metavar="N", help="Augmented copies in the cache.  [default: 4]")
    ] = None,
    skip_bad: Annotated[bool, run_option("--skip-bad", help="Skip and count unreadable samples.")] = False,
    clip_weights: ClipWeights = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Seed of weights, order and augmentation.  [default: 0]")
    ] = None,
    device: Device = "auto",
    workers: Annotated[int, run_option(min=0, metavar="N", help="Processes that load and augment images.")] = 2,
    compile_: Annotated[bool, run_option("--compile", help="Use torch.compile; pays off on GPUs.")] = False,
) -> None:
    """Train the mirror prompt and the decoder on RGB-D data.

    CLIP stays frozen. With several GPUs: torchrun --nproc-per-node 4 -m mirrordepth_edge train, and the same options.
    """
    require_suffix(output, (".safetensors",), "a checkpoint")
    check_options(validation, hold_out, cache_features, copies)
    source = data_config(root, data, list_file, depth_root, kb_crop, units_per_metre)
    model, config = _training_config(source, recipe, preset, size)
    config = replace(
        config,
        epochs=epochs or config.epochs,
        batch_size=batch_size or config.batch_size,
        seed=config.seed if seed is None else seed,
        feature_copies=(copies or config.feature_copies or DEFAULT_COPIES) if cache_features is not None else 0,
    )
    torch_name = torch_device(device)

    # PyTorch is installed: modules that import it follow.
    from mirrordepth_edge.commands.train.view import show_progress
    from mirrordepth_edge.training.distributed import is_first
    from mirrordepth_edge.training.fit import TrainOptions, fit
    from mirrordepth_edge.training.runs import RunConfig, RunFolder
    from mirrordepth_edge.training.trainer import Resources

    ensure_folder(output.parent)
    run = RunConfig(
        model=model,
        train=config,
        data=source,
        validation=None if validation is None else replace(source, root=validation, list_file=None, depth_root=None),
        hold_out=hold_out,
        start_from=NANO_CHECKPOINT if str(start_from) == NANO else start_from,
        protocol=Protocol(limits_m=model.depth_limits_m, crop=CONVENTIONS[kind_of(source)].crop),
    )
    options = TrainOptions(
        resources=Resources(device=torch_name, workers=workers, compile=compile_),
        clip_weights=clip_weights,
        cache=cache_features,
        skip_bad=skip_bad,
        validate_every=validate_every,
    )
    folder = RunFolder(path=run_dir or output.with_suffix(".run"))
    with show_progress(config.epochs, run.protocol) as callbacks:
        best = fit(run, folder, options, callbacks, resume=resume)
    if not is_first():  # with several GPUs, one process writes
        return
    with atomic_write(output) as temporary:
        temporary.write_bytes(best.read_bytes())
    console.print(f"wrote {output}; the run is in {folder.path} (tensorboard --logdir {folder.path})")


def check_options(validation: Path | None, hold_out: float, cache: Path | None, copies: int | None) -> None:
    """Refuse options that contradict each other or have no effect."""
    if validation is not None and hold_out:
        why = "Both name the validation data."
        raise OptionError("--validation and --hold-out exclude each other.", why, "Leave one of them out.")
    if copies is not None and cache is None:
        why = "It is the number of copies in that cache."
        raise OptionError("--copies requires --cache-features.", why, "--cache-features DIR")


def _training_config(
    source: DataConfig, recipe: Path | None, preset: str | None, size: str | None
) -> tuple[ModelConfig, TrainConfig]:
    """Return the model and the training settings for a data set."""
    model, config = load_training(recipe, preset, CONVENTIONS[kind_of(source)].depth_limits_m)
    model = replace(model, focal=model.focal or training_focal(source))
    return (model if size is None else replace(model, size_hw=parse_size(size))), config
