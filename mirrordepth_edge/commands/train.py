"""`mde train`: fit a mirror and a decoder to pictures with measured depth."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mirrordepth_edge.commands.parameters import ClipWeights, Root, UnitsPerMetre, data_config


def train(
    root: Root,
    preset: Annotated[str, typer.Option(help="Model: nano, vitb16, mobileclip2-s0, rn50.")] = "nano",
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.")] = Path("model.safetensors"),
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the pictures.  [the preset's]")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures a step.  [the preset's]")] = None,
    units_per_metre: UnitsPerMetre = None,
    validation: Annotated[Path | None, typer.Option(help="Folder to evaluate on at the end, as --root.")] = None,
    eigen_crop: Annotated[bool, typer.Option("--eigen-crop", help="Evaluate inside NYU's Eigen crop.")] = False,
    clip_weights: ClipWeights = None,
    seed: Annotated[int, typer.Option(help="Seed of initial weights, order and augmentation.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that augment pictures.")] = 2,
) -> None:
    """Train on pictures with measured depth.

    CLIP stays frozen; only the mirror and the decoder learn. The checkpoint holds them alone
    (nano, whose towers are small, carries those too).
    """
    from mirrordepth_edge.commands.terminal import console, progress_bar
    from mirrordepth_edge.config import PRESETS, TRAINING, TrainConfig
    from mirrordepth_edge.data.choose import choose_dataset
    from mirrordepth_edge.errors import OptionError, missing_package
    from mirrordepth_edge.files import ensure_folder, require_suffix

    if preset not in PRESETS:
        raise OptionError(
            f"There is no preset named {preset!r}.", f"The presets are {', '.join(PRESETS)}.", "--preset nano"
        )
    try:
        import torch  # noqa: F401 - absent on a Jetson; say so before anything slow happens
    except ImportError as error:
        raise missing_package("PyTorch", "mde train", "train") from error
    from mirrordepth_edge.core.checkpoint import save_checkpoint
    from mirrordepth_edge.core.nano import create_nano
    from mirrordepth_edge.core.network import create_network
    from mirrordepth_edge.core.trainer import Progress, evaluate
    from mirrordepth_edge.core.trainer import train as run_training
    from mirrordepth_edge.evaluation import Protocol

    require_suffix(output, (".safetensors",), "a checkpoint")
    ensure_folder(output.parent)
    config = replace(TRAINING.get(preset, TrainConfig()), seed=seed)
    config = replace(config, epochs=epochs or config.epochs, batch_size=batch_size or config.batch_size)
    dataset = choose_dataset(data_config(root, units_per_metre=units_per_metre), "train")
    held_out = (
        None if validation is None else choose_dataset(data_config(validation, units_per_metre=units_per_metre), "test")
    )
    # Everything is read before anything is trained: a bad file must not cost a night's work.
    with progress_bar() as bar:
        samples = list(bar.track(dataset, total=len(dataset), description="reading pictures"))
        unseen = [] if held_out is None else list(bar.track(held_out, total=len(held_out), description="held-out ones"))
    if eigen_crop and any(sample.depth_m.shape != (480, 640) for sample in unseen):
        raise OptionError(
            "--eigen-crop does not fit the held-out pictures.", "It is for 640x480 pixels.", "Leave it out."
        )
    network = create_nano(seed=seed) if preset == "nano" else create_network(PRESETS[preset], clip_weights, seed)
    with progress_bar() as bar:
        task = bar.add_task("training", total=None)

        def show(state: Progress) -> None:
            text = f"epoch {state.epoch + 1}/{config.epochs}  loss {state.loss:.3f}"
            bar.update(task, total=state.steps, completed=state.step, description=text)

        run_training(network, samples, config, show, workers)
    training: dict[str, Any] = {"pictures": len(samples), "settings": asdict(config)}
    save_checkpoint(network, output, training=training)
    if unseen:
        protocol = Protocol(limits_m=network.config.depth_limits_m, crop="eigen" if eigen_crop else "none")
        metrics = evaluate(network, unseen, protocol)
        training["validation"] = {"pictures": len(unseen), "eigen_crop": eigen_crop, **asdict(metrics)}
        save_checkpoint(network, output, training=training)
        console.print(
            f"{len(unseen)} held-out pictures: AbsRel {metrics.abs_rel:.3f}, RMSE {metrics.rmse:.3f} m, "
            f"delta1 {metrics.delta1:.3f}; {protocol}"
        )
    console.print(f"wrote {output}")
