"""The artefact that a case of a suite runs: as it ships or as it was named, else exported once and kept in a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mirrordepth_edge import __version__
from mirrordepth_edge.artefact import CHECKPOINT_SUFFIX, NANO_CHECKPOINT, NANO_ONNX, SHIPPED, Artefact
from mirrordepth_edge.config import ExportConfig, ModelConfig, Precision, SizeHW, get_preset
from mirrordepth_edge.errors import InputError, MissingError, OptionError
from mirrordepth_edge.manifest import Manifest
from mirrordepth_edge.support.cache import digest, user_cache

PRESET = "preset:"
"""Before a preset's name: the preset with random weights, fit to measure speed."""
TORCH = "torch"
ENGINES = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a case asks for; None is what the model is anyway."""

    model: str
    """A checkpoint, an ONNX file or an engine; `nano`, `nano.fp16`, or `preset:NAME`."""
    precision: Precision | None = None
    size_hw: SizeHW | None = None
    batch: int = 1
    backend: str | None = None


def cache_folder() -> Path:
    """Where artefacts of suites are kept; they may be deleted at any time."""
    return user_cache("suites")


def find_or_make(
    wanted: Wanted,
    folder: Path,
    *,
    clip_weights: Path | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Artefact:
    """The file to run.

    PyTorch takes a checkpoint as it is, engines are built of ONNX on this machine, all others run ONNX. What is made
    is kept in `folder` by the checkpoint's hash, the export's settings and this package's version.

    Args:
        folder: the cache, such as `cache_folder()`.
        clip_weights: for a checkpoint whose towers are not embedded.
        on_stage: told what is being done.

    Raises:
        InputError: the model cannot be read.
        OptionError: it cannot become what is wanted.
        MissingError: what would make it is not installed.
        GateError: what was made does not give the model's depth.
    """
    if wanted.backend == TORCH:
        return _checkpoint_as_it_is(wanted)
    artefact = _onnx(wanted, folder, clip_weights, on_stage)
    return _engine(artefact, wanted.backend, folder, on_stage) if wanted.backend in ENGINES else artefact


def _checkpoint_as_it_is(wanted: Wanted) -> Artefact:
    path = NANO_CHECKPOINT if wanted.model in SHIPPED else Path(wanted.model)
    if path.suffix != CHECKPOINT_SUFFIX:
        raise _cannot(wanted, "PyTorch runs checkpoints.", "Name a .safetensors file, or nano.")
    artefact = Artefact.open(path)
    own_hw = artefact.checkpoint_info.model.size_hw
    if wanted.precision not in (None, "fp32") or wanted.batch != 1 or wanted.size_hw not in (None, own_hw):
        raise _cannot(
            wanted, "PyTorch runs a checkpoint in FP32 at its own size, frame by frame.", "Leave these settings out."
        )
    return artefact


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What ONNX files are exported of."""

    stem: str
    """How their names begin."""
    model: ModelConfig
    sha256: str
    checkpoint: Path | None
    """None for random weights."""


def _source(model: str) -> _Source:
    if not model.startswith(PRESET):
        artefact = Artefact.open(NANO_CHECKPOINT if model in SHIPPED else model)
        path, info = artefact.path, artefact.checkpoint_info
        return _Source(stem=path.stem, model=info.model, sha256=artefact.sha256, checkpoint=path)
    name = model.removeprefix(PRESET)
    config = get_preset(name, f"{PRESET}vitb16")
    return _Source(stem=name, model=config, sha256=digest(config), checkpoint=None)


def _onnx(wanted: Wanted, folder: Path, clip_weights: Path | None, on_stage: Callable[[str], None]) -> Artefact:
    """An ONNX file, or an engine where that is what was named."""
    named = Path(wanted.model)
    if wanted.model not in SHIPPED and not wanted.model.startswith(PRESET) and named.suffix != CHECKPOINT_SUFFIX:
        artefact = Artefact.open(named)
        _require_is(wanted, artefact.manifest)
        return artefact
    source = _source(wanted.model)
    precision: Precision = wanted.precision or ("fp16" if wanted.model == "nano.fp16" else "fp32")
    size_hw = wanted.size_hw or source.model.size_hw
    as_it_ships = wanted.model in SHIPPED and size_hw == source.model.size_hw and wanted.batch == 1
    if as_it_ships and precision in NANO_ONNX:
        return Artefact.open(NANO_ONNX[precision])
    config = ExportConfig(precision=precision, size_hw=size_hw, batch=wanted.batch)
    return _exported(source, config, folder, clip_weights, on_stage)


def _require_is(wanted: Wanted, manifest: Manifest) -> None:
    """Refuse a finished file that is not what is wanted."""
    size_hw, batch = manifest.preprocess.size_hw, manifest.inputs[0].shape[0]
    wants = (wanted.precision or manifest.precision, wanted.size_hw or size_hw, wanted.batch)
    if wants != (manifest.precision, size_hw, batch):
        what = f"It is {manifest.precision.upper()}, {size_hw[0]}x{size_hw[1]} pixels, {batch} at once, and stays so."
        raise _cannot(wanted, what, "Name the checkpoint that it was made from, of which others are exported.")


def _exported(
    source: _Source,
    config: ExportConfig,
    folder: Path,
    clip_weights: Path | None,
    on_stage: Callable[[str], None],
) -> Artefact:
    from mirrordepth_edge.export.parity import reference_frames
    from mirrordepth_edge.export.produce import produce_onnx, untrained_network
    from mirrordepth_edge.export.trace import require_export_packages

    assert config.size_hw is not None, "the caller knows the size"
    height, width = config.size_hw
    batch = f".batch{config.batch}" if config.batch > 1 else ""
    key = digest(source.sha256, config, __version__)
    path = folder / key[:16] / f"{source.stem}.{height}x{width}.{config.precision}{batch}.onnx"
    if (artefact := _whole(path)) is not None:
        return artefact
    require_export_packages()
    on_stage("loading the model")
    if source.checkpoint is None:
        network, sha256 = untrained_network(source.model.preset, config.size_hw)
    else:
        from mirrordepth_edge.model.checkpoint import load_checkpoint

        network, _ = load_checkpoint(source.checkpoint, clip_weights=clip_weights, size_hw=config.size_hw)
        sha256 = source.sha256
    produce_onnx(
        network,
        config,
        path,
        reference_frames(),
        checkpoint_sha256=sha256,
        trained=source.checkpoint is not None,
        on_stage=on_stage,
    )
    return Artefact.open(path)


def _engine(artefact: Artefact, flavour: str | None, folder: Path, on_stage: Callable[[str], None]) -> Artefact:
    """The engine of an ONNX file for this machine's GPU; one that was named is taken as it is."""
    from mirrordepth_edge.engines.build import HERE, plan_build
    from mirrordepth_edge.engines.cache import cached_engine

    if artefact.kind == "plan":
        return artefact
    plan = plan_build(HERE)
    if plan.flavour != flavour:
        raise MissingError(
            f"Engines of {flavour} are not built here.", f"This machine's are built by {plan.flavour}.", "Use that."
        )
    return cached_engine(artefact, folder=folder, plan=plan, on_stage=on_stage).artefact


def _whole(path: Path) -> Artefact | None:
    """A cached artefact; None if it is missing, damaged or without its manifest."""
    try:
        return Artefact.open(path)
    except InputError:
        return None


def _cannot(wanted: Wanted, why: str, cure: str) -> OptionError:
    size = f"{wanted.size_hw[0]}x{wanted.size_hw[1]}" if wanted.size_hw else None
    batch = f"{wanted.batch} at once" if wanted.batch > 1 else None
    asked = ", ".join(each for each in (wanted.precision, size, batch, wanted.backend) if each)
    return OptionError(f"{wanted.model} does not fit this case{f' ({asked})' if asked else ''}.", why, cure)
