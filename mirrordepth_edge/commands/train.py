"""`mde train`: fit a mirror and a decoder to pictures with measured depth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.commands.parameters import (
    NANO,
    ClipWeights,
    Data,
    DepthRoot,
    Device,
    KbCrop,
    ListFile,
    Root,
    UnitsPerMetre,
    data_config,
)
from mirrordepth_edge.commands.sizes import Size, parse_size


def train(
    root: Root,
    data: Data = "auto",
    list_file: ListFile = None,
    depth_root: DepthRoot = None,
    kb_crop: KbCrop = None,
    units_per_metre: UnitsPerMetre = None,
    preset: Annotated[str | None, typer.Option(help="Model: nano, vitb16, mobileclip2-s0, rn50.  [nano]")] = None,
    recipe: Annotated[Path | None, typer.Option(help="TOML, a run's config.json, or a preset's name.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.")] = Path("model.safetensors"),
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the run.  [the output's, as NAME.run]")] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="Checkpoint, or nano, to go on from.  [fresh weights]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run-dir.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the pictures.  [the preset's]")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures a step.  [the preset's]")] = None,
    size: Size = None,
    validation: Annotated[Path | None, typer.Option(help="Held-out pictures, which choose the best epoch.")] = None,
    hold_out: Annotated[float, typer.Option(min=0, max=0.5, help="Or hold out this share of the scenes.")] = 0.0,
    validate_every: Annotated[int, typer.Option(min=1, help="Epochs between two looks at held-out pictures.")] = 1,
    cache_features: Annotated[Path | None, typer.Option(help="Keep the tower's features in this folder.")] = None,
    copies: Annotated[int | None, typer.Option(min=1, help="Augmented copies in that folder.  [4]")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable samples out, and count them.")] = False,
    clip_weights: ClipWeights = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of initial weights, order and augmentation.  [0]")] = None,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that read and augment pictures.")] = 2,
    compile_: Annotated[bool, typer.Option("--compile", help="torch.compile; pays on GPUs.")] = False,
) -> None:
    """Train on pictures with measured depth.

    CLIP stays frozen; only the mirror and the decoder learn. With several GPUs: torchrun
    --nproc-per-node 4 -m mirrordepth_edge train and the same options.
    """
    from dataclasses import replace

    from mirrordepth_edge.artefact import NANO_CHECKPOINT
    from mirrordepth_edge.commands.parameters import torch_device
    from mirrordepth_edge.commands.terminal import console
    from mirrordepth_edge.commands.train_view import watched
    from mirrordepth_edge.data.choose import CONVENTIONS, kind_of, training_focal
    from mirrordepth_edge.evaluation.evaluate import Protocol
    from mirrordepth_edge.recipes import load_training
    from mirrordepth_edge.support.files import atomic_write, ensure_folder, require_suffix

    require_suffix(output, (".safetensors",), "a checkpoint")
    check_options(validation, hold_out, cache_features, copies)
    source = data_config(root, data, list_file, depth_root, kb_crop, units_per_metre)
    convention = CONVENTIONS[kind_of(source)]
    model, config = load_training(recipe, preset, convention.depth_limits_m)
    config = replace(
        config,
        epochs=epochs or config.epochs,
        batch_size=batch_size or config.batch_size,
        seed=config.seed if seed is None else seed,
        feature_copies=(copies or config.feature_copies or 4) if cache_features is not None else 0,
    )
    model = replace(model, focal=model.focal or training_focal(source))
    if size is not None:
        model = replace(model, size_hw=parse_size(size))
    where = torch_device(device)

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
        protocol=Protocol(limits_m=model.depth_limits_m, crop=convention.crop),
    )
    options = TrainOptions(
        resources=Resources(device=where, workers=workers, compile=compile_),
        clip_weights=clip_weights,
        cache=cache_features,
        skip_bad=skip_bad,
        validate_every=validate_every,
    )
    folder = RunFolder(path=run_dir or output.with_suffix(".run"))
    with watched(config.epochs, run.protocol) as callbacks:
        best = fit(run, folder, options, callbacks, resume=resume)
    if not is_first():
        return
    with atomic_write(output) as temporary:
        temporary.write_bytes(best.read_bytes())
    console.print(f"wrote {output}; everything else is in {folder.path} (tensorboard --logdir {folder.path})")


def check_options(validation: Path | None, hold_out: float, cache: Path | None, copies: int | None) -> None:
    """Refuse options of which one would have no effect."""
    from mirrordepth_edge.errors import OptionError

    if validation is not None and hold_out:
        why = "Each names the held-out pictures."
        raise OptionError("--validation and --hold-out exclude one another.", why, "Leave one of them out.")
    if copies is not None and cache is None:
        raise OptionError("--copies goes with --cache-features.", "It is what is kept there.", "--cache-features DIR")
