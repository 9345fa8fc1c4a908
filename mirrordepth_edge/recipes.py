"""Recipes: TOML files, loaded by path or by name.

They are in the repository's top-level folders, such as `export/`, and in the wheel's `_recipes/`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from mirrordepth_edge.config import PRESETS, TRAINING, ModelConfig, TargetConfig, TrainConfig, get_preset
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.support.files import existing_file
from mirrordepth_edge.support.schema import read_strict, tomllib

PACKAGE_DIR = Path(__file__).parent
INSTALLED = PACKAGE_DIR / "_recipes"
CHECKOUT = PACKAGE_DIR.parent

T = TypeVar("T")


def recipe_folder(kind: str) -> Path:
    """Folder of a kind of recipes, `export` or `calib`, in the wheel or else in the checkout."""
    installed = INSTALLED / kind
    return installed if installed.is_dir() else CHECKOUT / kind


def recipe_names(kind: str) -> list[str]:
    """Names of the recipes of a kind."""
    return sorted(path.stem for path in recipe_folder(kind).glob("*.toml"))


def load_recipe(kind: str, name_or_path: str, cls: type[T]) -> T:
    """Read a recipe into a dataclass. Unknown keys are errors.

    Raises:
        OptionError: there is no such file and no recipe of that name.
        InputError: the file is not TOML, or a field is invalid.
    """
    path = Path(name_or_path)
    if not (path.suffix == ".toml" and path.is_file()):
        path = recipe_folder(kind) / f"{name_or_path}.toml"
    if not path.is_file():
        raise OptionError(
            f"There is no {kind} recipe named {name_or_path!r}.",
            f"The names are {', '.join(recipe_names(kind))}.",
            "Use one of these, or the path of a .toml file.",
        )
    cure = f"Compare it with {recipe_folder(kind) / 'README.md'}."
    return read_strict(cls, _read_table(path, cure), str(path), cure)


def _read_table(path: Path, cure: str) -> dict[str, Any]:
    """Parse a `.json` file, or any other as TOML.

    Raises:
        InputError: it cannot be read or parsed.
    """
    text, kind = existing_file(path, "recipe").read_text(encoding="utf-8"), "JSON" if path.suffix == ".json" else "TOML"
    try:
        table: dict[str, Any] = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is not valid {kind}.", str(error), cure) from error
    return table


def load_training(
    path: Path | None, preset: str | None, depth_limits_m: tuple[float, float]
) -> tuple[ModelConfig, TrainConfig]:
    """Load model and training settings: those of a preset, overridden by a recipe.

    Args:
        path: `.toml` with `preset` and the tables `[model]` and `[train]`, which hold what differs from
            the preset; or the `config.json` of an earlier run; or the name of a preset.
        preset: overrides the recipe's; `nano` if neither names one.
        depth_limits_m: of the training data; the recipe overrides them.

    Raises:
        OptionError: there is no such preset.
        InputError: the file cannot be read, or a field is unknown or invalid.
    """
    recipe: dict[str, Any] = {}
    cure = "Its tables [model] and [train] take the fields of ModelConfig and TrainConfig."
    if path is not None and str(path) in PRESETS and not path.exists():
        recipe = {"preset": str(path), "train": asdict(TRAINING.get(str(path), TrainConfig()))}
    elif path is not None:
        recipe = _read_table(path, cure)
    name = preset or recipe.get("preset") or recipe.get("model", {}).get("preset") or "nano"
    model = {**asdict(get_preset(name, "--preset nano")), "depth_limits_m": depth_limits_m, **recipe.get("model", {})}
    train = {**asdict(TRAINING.get(name, TrainConfig())), **recipe.get("train", {})}
    return read_strict(ModelConfig, model, str(path), cure), read_strict(TrainConfig, train, str(path), cure)


def load_target(name_or_path: str) -> TargetConfig:
    """Load a target by its name or path."""
    return load_recipe("export", name_or_path, TargetConfig)
