"""`mde train`: fit a mirror and a decoder to pictures with measured depth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirrordepth_edge.commands.parameters import (
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
)

if TYPE_CHECKING:
    from mirrordepth_edge.core.fit import Watch
    from mirrordepth_edge.core.runs import EpochResult
    from mirrordepth_edge.core.trainer import Progress
    from mirrordepth_edge.core.views import Problem
    from mirrordepth_edge.evaluation import Protocol


def train(
    root: Root,
    data: Data = "auto",
    list_file: ListFile = None,
    depth_root: DepthRoot = None,
    kb_crop: KbCrop = None,
    units_per_metre: UnitsPerMetre = None,
    preset: Annotated[str | None, typer.Option(help="Model: nano, vitb16, mobileclip2-s0, rn50.  [nano]")] = None,
    recipe: Annotated[Path | None, typer.Option(help="TOML with [model] and [train], or a run's config.json.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.")] = Path("model.safetensors"),
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the run.  [the output's, as NAME.run]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run-dir.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the pictures.  [the preset's]")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures a step.  [the preset's]")] = None,
    size: Size = None,
    validation: Annotated[Path | None, typer.Option(help="Held-out pictures, which choose the best epoch.")] = None,
    hold_out: Annotated[float, typer.Option(min=0, max=0.5, help="Or hold out this share of the scenes.")] = 0.0,
    validate_every: Annotated[int, typer.Option(min=1, help="Epochs between two looks at held-out pictures.")] = 1,
    cache_features: Annotated[Path | None, typer.Option(help="Keep the tower's features in this folder.")] = None,
    copies: Annotated[int, typer.Option(min=1, help="Augmented copies in that folder.")] = 4,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable samples out, and count them.")] = False,
    clip_weights: ClipWeights = None,
    seed: Annotated[int | None, typer.Option(help="Of initial weights, order and augmentation.  [0]")] = None,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that read and augment pictures.")] = 2,
    compile_: Annotated[bool, typer.Option("--compile", help="torch.compile; pays on GPUs.")] = False,
) -> None:
    """Train on pictures with measured depth.

    CLIP stays frozen; only the mirror and the decoder learn. With several GPUs: torchrun
    --nproc-per-node 4 -m mirrordepth_edge train and the same options.
    """
    from dataclasses import replace

    from mirrordepth_edge.commands.parameters import parse_size, torch_device
    from mirrordepth_edge.commands.terminal import console
    from mirrordepth_edge.data.choose import CONVENTIONS, kind_of, training_focal
    from mirrordepth_edge.evaluation import Protocol
    from mirrordepth_edge.files import ensure_folder, require_suffix, written_whole
    from mirrordepth_edge.recipes import load_training

    require_suffix(output, (".safetensors",), "a checkpoint")
    model, config = load_training(recipe, preset)
    config = replace(
        config,
        epochs=epochs or config.epochs,
        batch_size=batch_size or config.batch_size,
        seed=config.seed if seed is None else seed,
        feature_copies=copies if cache_features is not None else 0,
    )
    source = data_config(root, data, list_file, depth_root, kb_crop, units_per_metre)
    convention = CONVENTIONS[kind_of(source)]
    if recipe is None:
        model = replace(model, depth_limits_m=convention.depth_limits_m)
    model = replace(model, focal=model.focal or training_focal(source))
    if size is not None:
        model = replace(model, size_hw=parse_size(size))
    where = torch_device(device)

    from mirrordepth_edge.core.fit import Means, fit
    from mirrordepth_edge.core.processes import is_first
    from mirrordepth_edge.core.runs import RunConfig, RunFolder
    from mirrordepth_edge.core.trainer import Resources

    ensure_folder(output.parent)
    run = RunConfig(
        model=model,
        train=config,
        data=source,
        validation=None if validation is None else replace(source, root=validation, list_file=None),
        hold_out=hold_out,
        protocol=Protocol(limits_m=model.depth_limits_m, crop=convention.crop),
    )
    means = Means(
        resources=Resources(device=where, workers=workers, compile=compile_),
        clip_weights=clip_weights,
        cache=cache_features,
        skip_bad=skip_bad,
        validate_every=validate_every,
    )
    folder = RunFolder(path=run_dir or output.with_suffix(".run"))
    with _watched(config.epochs, run.protocol) as watch:
        best = fit(run, folder, means, watch, resume=resume)
    if not is_first():
        return
    with written_whole(output) as temporary:
        temporary.write_bytes(best.read_bytes())
    console.print(f"wrote {output}; everything else is in {folder.path} (tensorboard --logdir {folder.path})")


@contextmanager
def _watched(epochs: int, protocol: Protocol) -> Iterator[Watch]:
    """Two bars, a line an epoch, and a line for each sample that was skipped."""
    from mirrordepth_edge.commands.terminal import console, errors, progress_bar
    from mirrordepth_edge.core.fit import Watch

    with progress_bar() as bar:
        cache, training = bar.add_task("tower features", visible=False), bar.add_task("training", visible=False)

        def cached(done: int, views: int) -> None:
            bar.update(cache, total=views, completed=done, visible=done < views)

        def step(now: Progress) -> None:
            text = f"epoch {now.epoch + 1}/{epochs}  loss {now.loss:.3f}"
            bar.update(training, total=now.steps, completed=now.step, description=text, visible=True)

        def epoch(result: EpochResult) -> None:
            line = f"epoch {result.epoch}/{epochs}: loss {result.loss:.3f}, {result.seconds:.1f} s"
            if (m := result.metrics) is not None:
                line += f"; held out: AbsRel {m.abs_rel:.3f}, RMSE {m.rmse:.3f} m, delta1 {m.delta1:.3f} ({protocol})"
            console.print(line + (f"; {result.skipped} samples skipped" if result.skipped else ""))

        def problem(problem: Problem) -> None:
            errors.print(f"skipped: {problem.what} {problem.why}", style="yellow")

        yield Watch(step=step, epoch=epoch, problem=problem, cached=cached)
