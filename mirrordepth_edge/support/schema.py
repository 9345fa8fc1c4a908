"""Read JSON and TOML into dataclasses, strictly."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from mirrordepth_edge.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib as tomllib
else:
    pass

T = TypeVar("T")


def upgraded(data: Any, renamed: Mapping[str, str], versions: range, version: int) -> Any:
    """Rename the keys of an older schema version to those of the current one.

    Args:
        data: parsed JSON. If it is not an object, or has another version, it is returned as it is.
        renamed: from old keys to new ones, at any depth.
        versions: older versions that differ only in these names.
        version: the current one, which the result has.
    """
    if not isinstance(data, dict) or data.get("schema_version") not in versions:
        return data

    def rename(value: Any) -> Any:
        if isinstance(value, dict):
            return {renamed.get(key, key): rename(item) for key, item in value.items()}
        return [rename(item) for item in value] if isinstance(value, list) else value

    return rename(data) | {"schema_version": version}


def read_strict(cls: type[T], data: Any, source: str, cure: str) -> T:
    """Build `cls` from parsed JSON or TOML. Unknown keys and wrong types are errors.

    Args:
        source: the file's name, for the message.
        cure: what to do about an invalid file.

    Raises:
        InputError: a field is invalid; the message names the first one.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        # As JSON, in which strict mode allows a list for a tuple, but no text for a number.
        return TypeAdapter(cls).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{source} is not valid.", f"{field}: {first['msg']}.", cure) from error
