"""The artefact that a case of a suite runs: as it ships or as it was named, else exported once and kept in a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mirrordepth_edge import __version__
from mirrordepth_edge.artefact import NANO_CHECKPOINT, NANO_ONNX, SHIPPED
from mirrordepth_edge.backends.registry import CHECKPOINT_SUFFIX
from mirrordepth_edge.config import PRESETS, ExportConfig, ModelConfig, Precision, SizeHW
from mirrordepth_edge.errors import InputError, MissingError, OptionError
from mirrordepth_edge.manifest import Manifest, read_checkpoint_info, read_manifest
from mirrordepth_edge.support.cache import digest, user_cache
from mirrordepth_edge.support.files import existing_file, sha256_of

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
) -> Path:
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
    path = _onnx(wanted, folder, clip_weights, on_stage)
    return _engine(path, wanted.backend, folder, on_stage) if wanted.backend in ENGINES else path


def _checkpoint_as_it_is(wanted: Wanted) -> Path:
    path = NANO_CHECKPOINT if wanted.model in SHIPPED else Path(wanted.model)
    if path.suffix != CHECKPOINT_SUFFIX:
        raise _cannot(wanted, "PyTorch runs checkpoints.", "Name a .safetensors file, or nano.")
    own_hw = read_checkpoint_info(path).model.size_hw
    if wanted.precision not in (None, "fp32") or wanted.batch != 1 or wanted.size_hw not in (None, own_hw):
        raise _cannot(
            wanted, "PyTorch runs a checkpoint in FP32 at its own size, frame by frame.", "Leave these settings out."
        )
    return path


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
        path = NANO_CHECKPOINT if model in SHIPPED else Path(model)
        info = read_checkpoint_info(path)
        return _Source(stem=path.stem, model=info.model, sha256=sha256_of(path), checkpoint=path)
    name = model.removeprefix(PRESET)
    if name not in PRESETS:
        raise OptionError(
            f"There is no preset named {name!r}.", f"The presets are {', '.join(PRESETS)}.", f"{PRESET}vitb16"
        )
    return _Source(stem=name, model=PRESETS[name], sha256=digest(PRESETS[name]), checkpoint=None)


def _onnx(wanted: Wanted, folder: Path, clip_weights: Path | None, on_stage: Callable[[str], None]) -> Path:
    """An ONNX file, or an engine where that is what was named."""
    named = Path(wanted.model)
    if wanted.model not in SHIPPED and not wanted.model.startswith(PRESET) and named.suffix != CHECKPOINT_SUFFIX:
        _require_is(wanted, read_manifest(existing_file(named, "model"), verify=False))
        return named
    source = _source(wanted.model)
    precision: Precision = wanted.precision or ("fp16" if wanted.model == "nano.fp16" else "fp32")
    size_hw = wanted.size_hw or source.model.size_hw
    as_it_ships = wanted.model in SHIPPED and size_hw == source.model.size_hw and wanted.batch == 1
    if as_it_ships and precision in NANO_ONNX:
        return NANO_ONNX[precision]
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
) -> Path:
    from mirrordepth_edge.export.parity import reference_frames
    from mirrordepth_edge.export.produce import produce_onnx, untrained_network
    from mirrordepth_edge.export.trace import require_export_packages

    assert config.size_hw is not None, "the caller knows the size"
    height, width = config.size_hw
    batch = f".batch{config.batch}" if config.batch > 1 else ""
    key = digest(source.sha256, config, __version__)
    path = folder / key[:16] / f"{source.stem}.{height}x{width}.{config.precision}{batch}.onnx"
    if _is_whole(path):
        return path
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
    return path


def _engine(onnx_path: Path, flavour: str | None, folder: Path, on_stage: Callable[[str], None]) -> Path:
    """The engine of an ONNX file for this machine's GPU; one that was named is taken as it is."""
    from mirrordepth_edge.engines.build import HERE, plan_build
    from mirrordepth_edge.engines.cache import cached_engine

    if read_manifest(onnx_path, verify=False).engine is not None:
        return onnx_path
    plan = plan_build(HERE)
    if plan.flavour != flavour:
        raise MissingError(
            f"Engines of {flavour} are not built here.", f"This machine's are built by {plan.flavour}.", "Use that."
        )
    return cached_engine(onnx_path, folder=folder, plan=plan, on_stage=on_stage).path


def _is_whole(path: Path) -> bool:
    """Whether a kept artefact is there with its manifest, and is what that describes."""
    try:
        read_manifest(path)
    except InputError:
        return False
    return True


def _cannot(wanted: Wanted, why: str, cure: str) -> OptionError:
    size = f"{wanted.size_hw[0]}x{wanted.size_hw[1]}" if wanted.size_hw else None
    batch = f"{wanted.batch} at once" if wanted.batch > 1 else None
    asked = ", ".join(each for each in (wanted.precision, size, batch, wanted.backend) if each)
    return OptionError(f"{wanted.model} does not fit this case{f' ({asked})' if asked else ''}.", why, cure)
