"""`mde train`: train the mirror prompt and the decoder on RGB-D data."""

from __future__ import annotations

from mirrordepth_edge.commands.parameters import DatasetOptions, flat_options, torch_device
from mirrordepth_edge.commands.train.options import TrainOptions
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.support.files import require_suffix


@flat_options
def train(options: TrainOptions, dataset: DatasetOptions) -> None:
    """Train the mirror prompt and the decoder on RGB-D data.

    CLIP stays frozen. With several GPUs: torchrun --nproc-per-node 4 -m mirrordepth_edge train, and the same options.
    """
    require_suffix(options.output, (".safetensors",), "a checkpoint")
    check_options(options)
    device = torch_device(options.device)  # before the modules that import PyTorch: its message says how to install it

    from mirrordepth_edge.commands.train.main import train_model

    train_model(options, dataset.config(options.root), device)


def check_options(options: TrainOptions) -> None:
    """Refuse options that contradict each other or have no effect.

    Raises:
        OptionError: They do.
    """
    if options.validation is not None and options.hold_out:
        why = "Both name the validation data."
        raise OptionError("--validation and --hold-out exclude each other.", why, "Leave one of them out.")
    if options.copies is not None and options.cache_features is None:
        why = "It is the number of copies in that cache."
        raise OptionError("--copies requires --cache-features.", why, "--cache-features DIR")
