"""Validation of specifications: the type of each field, and further conditions."""

import math
from dataclasses import dataclass, fields
from types import NoneType
from typing import Literal, get_args, get_origin

from benchmarks.references import EXAMPLE, ConfigError, did_you_mean, refer


@dataclass(frozen=True)
class Spec:
    """Base class of specifications: a frozen dataclass whose fields are validated when it is created."""

    def __post_init__(self) -> None:
        """Validate each field against its type, and convert an int in a float field: 1 and 1.0 have the same key."""
        for field in fields(self):
            kinds, value = (field.type, *get_args(field.type)), getattr(self, field.name)
            if value is None and NoneType in kinds:
                continue
            label = type(self).__name__.removesuffix("Spec").lower() if field.name == "name" else field.name
            known = [name for kind in kinds if get_origin(kind) is Literal for name in get_args(kind)]
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
            if known and str in kinds and isinstance(value, str) and ":" in value:
                object.__setattr__(self, field.name, refer(value))
            elif known and value not in known:
                advice = did_you_mean(value, known) or f"; to use your own function, write {EXAMPLE}" * (str in kinds)
                raise ConfigError(f"expected {label} to be one of {known}, but got {value!r}{advice}")
            elif float in kinds:
                check((is_number, f"{label} to be a finite number of at least 0", repr(value)))
                object.__setattr__(self, field.name, float(value))
            elif int in kinds:
                check((is_number and type(value) is int, f"{label} to be an integer of at least 0", repr(value)))


def check(*checks: tuple[bool, str, object]) -> None:
    """
    Raise a ConfigError for the first condition that does not hold.

    :param checks: Triples (condition, what was expected, the value), as the message states them.
    """
    for holds, expected, value in checks:
        if not holds:
            raise ConfigError(f"expected {expected}, but got {value}")
