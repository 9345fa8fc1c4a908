"""Train a model and write its checkpoint; imports PyTorch."""

from __future__ import annotations

from dataclasses import replace

from mirrordepth_edge.artefact import NANO_CHECKPOINT
from mirrordepth_edge.commands.parameters import NANO, parse_size
from mirrordepth_edge.commands.terminal import console
from mirrordepth_edge.commands.train.options import TrainOptions
from mirrordepth_edge.commands.train.view import show_progress
from mirrordepth_edge.config import DataConfig
from mirrordepth_edge.data.choose import CONVENTIONS, kind_of, training_focal
from mirrordepth_edge.evaluation.evaluate import Protocol
from mirrordepth_edge.recipes import load_training
from mirrordepth_edge.support.files import atomic_write, ensure_folder
from mirrordepth_edge.training.distributed import is_first
from mirrordepth_edge.training.fit import TrainOptions as FitOptions
from mirrordepth_edge.training.fit import fit
from mirrordepth_edge.training.runs import RunConfig, RunFolder
from mirrordepth_edge.training.trainer import Resources

DEFAULT_COPIES = 4


def train_model(options: TrainOptions, data: DataConfig, device: str) -> None:
    """Train a model, print its progress, and write the best checkpoint.

    Args:
        device: PyTorch device.

    Raises:
        OptionError, InputError, DeviceError: An option, the data or the device cannot be used.
    """
    conventions = CONVENTIONS[kind_of(data)]
    model, config = load_training(options.recipe, options.preset, conventions.depth_limits_m)
    model = replace(model, focal=model.focal or training_focal(data), size_hw=parse_size(options.size) or model.size_hw)
    caches = options.cache_features is not None
    config = replace(
        config,
        epochs=options.epochs or config.epochs,
        batch_size=options.batch_size or config.batch_size,
        seed=config.seed if options.seed is None else options.seed,
        feature_copies=(options.copies or config.feature_copies or DEFAULT_COPIES) if caches else 0,
    )
    ensure_folder(options.output.parent)
    validation = None
    if options.validation is not None:
        validation = replace(data, root=options.validation, list_file=None, depth_root=None)
    run = RunConfig(
        model=model,
        train=config,
        data=data,
        validation=validation,
        hold_out=options.hold_out,
        start_from=NANO_CHECKPOINT if str(options.start_from) == NANO else options.start_from,
        protocol=Protocol(limits_m=model.depth_limits_m, crop=conventions.crop),
    )
    fit_options = FitOptions(
        resources=Resources(device=device, workers=options.workers, compile=options.compile_),
        clip_weights=options.clip_weights,
        cache=options.cache_features,
        skip_bad=options.skip_bad,
        validate_every=options.validate_every,
    )
    folder = RunFolder(path=options.run_dir or options.output.with_suffix(".run"))
    with show_progress(config.epochs, run.protocol) as callbacks:
        best = fit(run, folder, fit_options, callbacks, resume=options.resume)
    if not is_first():  # with several GPUs, one process writes
        return
    with atomic_write(options.output) as temporary:
        temporary.write_bytes(best.read_bytes())
    console.print(f"wrote {options.output}; the run is in {folder.path} (tensorboard --logdir {folder.path})")
