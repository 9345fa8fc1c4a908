"""`mde train`: fit a mirror and a decoder to pictures with measured depth."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer


def train(
    root: Annotated[Path, typer.Option(help="Folder with rgb/NAME.jpg|png and depth/NAME.png.")],
    preset: Annotated[str, typer.Option(help="Model: nano, vitb16, mobileclip2-s0, rn50.")] = "nano",
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.")] = Path("model.safetensors"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pictures.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per step.")] = 16,
    units_per_metre: Annotated[float, typer.Option(min=1e-6, help="Depth PNG value of one metre.")] = 1000.0,
    validation: Annotated[
        Path | None, typer.Option(help="Folder to evaluate on at the end, laid out as --root.")
    ] = None,
    eigen_crop: Annotated[bool, typer.Option("--eigen-crop", help="Evaluate inside NYU's Eigen crop.")] = False,
    clip_weights: Annotated[Path | None, typer.Option(help="Local CLIP weights instead of a download.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of initial weights, order and augmentation.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that augment pictures.")] = 2,
) -> None:
    """Train on pictures with measured depth.

    CLIP stays frozen; only the mirror and the decoder learn. The checkpoint holds them alone
    (nano, whose towers are small, carries those too).
    """
    from mirrordepth_edge.commands.terminal import console, progress_bar
    from mirrordepth_edge.config import PRESETS, TrainConfig
    from mirrordepth_edge.data.folder import FolderDataset
    from mirrordepth_edge.errors import OptionError, missing_package

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
    from mirrordepth_edge.files import ensure_folder
    from mirrordepth_edge.metrics import eigen_crop as eigen_mask

    ensure_folder(output.parent)
    config = TrainConfig(epochs=epochs, batch_size=batch_size, seed=seed, log_l1_weight=2.0, zoom_min=0.75, jitter=0.15)
    dataset = FolderDataset(root=root, units_per_metre=units_per_metre)
    with progress_bar() as bar:
        samples = list(bar.track(dataset, total=len(dataset), description="reading pictures"))
    network = create_nano(seed=seed) if preset == "nano" else create_network(PRESETS[preset], clip_weights, seed)
    with progress_bar() as bar:
        task = bar.add_task("training", total=None)

        def show(state: Progress) -> None:
            text = f"epoch {state.epoch + 1}/{epochs}  loss {state.loss:.3f}"
            bar.update(task, total=state.steps, completed=state.step, description=text)

        run_training(network, samples, config, show, workers)

    training = {"pictures": len(samples), "settings": asdict(config)}
    if validation is not None:
        held_out = list(replace(dataset, root=validation))
        metrics = evaluate(network, held_out, eigen_mask((480, 640)) if eigen_crop else None)
        training["validation"] = {"pictures": len(held_out), "eigen_crop": eigen_crop, **asdict(metrics)}
        console.print(
            f"{len(held_out)} held-out pictures: AbsRel {metrics.abs_rel:.3f}, "
            f"RMSE {metrics.rmse:.3f} m, delta1 {metrics.delta1:.3f} (metric, no alignment, no flip)"
        )
    save_checkpoint(network, output, training=training)
    console.print(f"wrote {output}")
