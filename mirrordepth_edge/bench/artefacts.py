"""Artefacts of the cases of a suite: shipped or given files, else exported once into a cache."""

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
"""Prefix of a preset with random weights, which is sufficient to measure speed."""
TORCH = "torch"
ENGINES = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, kw_only=True)
class ArtefactRequest:
    """What a case runs; None keeps the model's own setting."""

    model: str
    """A checkpoint, an ONNX file or an engine; `nano`, `nano.fp16`, or `preset:NAME`."""
    precision: Precision | None = None
    size_hw: SizeHW | None = None
    batch: int = 1
    backend: str | None = None


def cache_folder() -> Path:
    """Return the cache folder for artefacts of suites, which may be deleted at any time."""
    return user_cache("suites")


def find_or_make(
    request: ArtefactRequest,
    folder: Path,
    *,
    clip_weights: Path | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Artefact:
    """Find or create the artefact of a request.

    PyTorch runs a checkpoint, TensorRT an engine built on this machine, all other backends an ONNX file. Created files
    are cached in `folder` under a key of the checkpoint's hash, the export settings and the package version.

    Args:
        folder: the cache, such as `cache_folder()`.
        clip_weights: for a checkpoint without embedded towers.
        on_stage: called with the name of each step.

    Raises:
        InputError: the model cannot be read.
        OptionError: the model cannot be converted as requested.
        MissingError: the packages to create it are not installed.
        GateError: the depth of the created artefact differs from the model's.
    """
    if request.backend == TORCH:
        return _checkpoint(request)
    artefact = _onnx(request, folder, clip_weights, on_stage)
    return _engine(artefact, request.backend, folder, on_stage) if request.backend in ENGINES else artefact


def _checkpoint(request: ArtefactRequest) -> Artefact:
    path = NANO_CHECKPOINT if request.model in SHIPPED else Path(request.model)
    if path.suffix != CHECKPOINT_SUFFIX:
        raise _mismatch(request, "PyTorch runs only checkpoints.", "Pass a .safetensors file, or nano.")
    artefact = Artefact.open(path)
    own_hw = artefact.checkpoint_info.model.size_hw
    if request.precision not in (None, "fp32") or request.batch != 1 or request.size_hw not in (None, own_hw):
        raise _mismatch(
            request, "PyTorch runs a checkpoint in FP32, at its own size and with batch 1.", "Omit these settings."
        )
    return artefact


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The source of an export."""

    stem: str
    """Start of the file name."""
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


def _onnx(
    request: ArtefactRequest, folder: Path, clip_weights: Path | None, on_stage: Callable[[str], None]
) -> Artefact:
    """Find or export an ONNX file; return an engine if the model is one."""
    file = Path(request.model)
    if request.model not in SHIPPED and not request.model.startswith(PRESET) and file.suffix != CHECKPOINT_SUFFIX:
        artefact = Artefact.open(file)
        _require_match(request, artefact.manifest)
        return artefact
    source = _source(request.model)
    precision: Precision = request.precision or ("fp16" if request.model == "nano.fp16" else "fp32")
    size_hw = request.size_hw or source.model.size_hw
    shipped = request.model in SHIPPED and size_hw == source.model.size_hw and request.batch == 1
    if shipped and precision in NANO_ONNX:
        return Artefact.open(NANO_ONNX[precision])
    config = ExportConfig(precision=precision, size_hw=size_hw, batch=request.batch)
    return _export(source, config, folder, clip_weights, on_stage)


def _require_match(request: ArtefactRequest, manifest: Manifest) -> None:
    """Refuse a file that does not match the request."""
    size_hw, batch = manifest.preprocess.size_hw, manifest.inputs[0].shape[0]
    requested = (request.precision or manifest.precision, request.size_hw or size_hw, request.batch)
    if requested != (manifest.precision, size_hw, batch):
        why = f"It is fixed to {manifest.precision.upper()}, {size_hw[0]}x{size_hw[1]} pixels and batch {batch}."
        raise _mismatch(request, why, "Pass its checkpoint; other settings are exported from it.")


def _export(
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
    if (artefact := _open_cached(path)) is not None:
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
    """Find or build the engine of an ONNX file for this machine's GPU; return an engine as it is."""
    from mirrordepth_edge.engines.build import HERE, plan_build
    from mirrordepth_edge.engines.cache import cached_engine

    if artefact.kind == "plan":
        return artefact
    plan = plan_build(HERE)
    if plan.flavour != flavour:
        raise MissingError(
            f"{flavour} cannot build engines on this machine.",
            f"The builder found here is {plan.flavour}.",
            f'Use backend = "{plan.flavour}".',
        )
    return cached_engine(artefact, folder=folder, plan=plan, on_stage=on_stage).artefact


def _open_cached(path: Path) -> Artefact | None:
    """Open a cached artefact; return None if it is missing, damaged or without its manifest."""
    try:
        return Artefact.open(path)
    except InputError:
        return None


def _mismatch(request: ArtefactRequest, why: str, cure: str) -> OptionError:
    size = f"{request.size_hw[0]}x{request.size_hw[1]}" if request.size_hw else None
    batch = f"batch {request.batch}" if request.batch > 1 else None
    settings = ", ".join(text for text in (request.precision, size, batch, request.backend) if text)
    return OptionError(f"{request.model} does not fit this case{f' ({settings})' if settings else ''}.", why, cure)
