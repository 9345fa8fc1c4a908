"""What the sampler reads at every interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Key = tuple[str, str]
"""A field of `Telemetry`, and the name within it if the field is a group, else ""."""


@dataclass(frozen=True)
class Sensor:
    """A read function for one or several values, which fail together."""

    units: Mapping[Key, str]
    read: Callable[[], Mapping[Key, float]]
    """Raises any exception if the sensor fails."""


def single_sensor(field: str, unit: str, read: Callable[[], float], *, name: str = "") -> Sensor:
    """A sensor with one value.

    Args:
        field: field of `Telemetry`.
        name: name within the field, if it is a group.
    """
    return Sensor({(field, name): unit}, lambda: {(field, name): float(read())})
