"""
What an argument may be. An algorithm declares its arguments once, in a table of kinds; its constructor, safe loading and the
documentation read the same table.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

# Integers of files and arguments have 64 bits
MAX_INTEGER = 2**63


class Kind(NamedTuple):
    """
    Kind of a value.

    :param text: description for an error, which follows "it must be"
    :param holds: whether a value is of the kind
    """

    text: str
    holds: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """
    :param value: anything
    :return: whether it is a finite real number
    """
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return bool(real and math.isfinite(value))


def is_integer(value: Any, low: int = 0, high: int = MAX_INTEGER) -> bool:
    """
    :param value: anything
    :param low: least value
    :param high: greatest value
    :return: whether it is an integer in this range
    """
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(low <= value <= high)


def whole(low: int = 0, high: int = MAX_INTEGER) -> Kind:
    """
    :param low: least value
    :param high: greatest value
    :return: integers in this range
    """
    text = f"an integer of at least {low}" if high == MAX_INTEGER else f"an integer from {low} to {high}"
    return Kind(text, lambda value: is_integer(value, low, high))


def number(low: float = -math.inf, high: float = math.inf) -> Kind:
    """
    :param low: least value
    :param high: greatest value
    :return: finite numbers in this range
    """
    text = f"between {low:g} and {high:g}" if high < math.inf else f"a number of at least {low:g}"
    return Kind(
        "a finite number" if low == -math.inf else text, lambda value: is_number(value) and low <= float(value) <= high
    )


POSITIVE = Kind("a positive and finite number", lambda value: is_number(value) and value > 0)
POSITIVE_OR_INFINITE = Kind("a positive number", lambda value: (is_number(value) and value > 0) or value == math.inf)
FRACTION = number(0, 1)
FLAG = Kind("True or False", lambda value: isinstance(value, (bool, np.bool_)))
TEXT = Kind("a text of at most 100 characters", lambda value: isinstance(value, str) and len(value) <= 100)


def optional(kind: Kind) -> Kind:
    """
    :param kind: a kind
    :return: the kind, or None
    """
    return Kind(f"{kind.text}, or None", lambda value: value is None or kind.holds(value))


def either(*kinds: Kind) -> Kind:
    """
    :param kinds: kinds
    :return: any of them
    """
    return Kind(" or ".join(kind.text for kind in kinds), lambda value: any(kind.holds(value) for kind in kinds))


def choice(names: Collection[str]) -> Kind:
    """
    :param names: names; of a table also those that are added to it later
    :return: one of them
    """
    return Kind(f"one of {', '.join(map(repr, names))}", lambda value: isinstance(value, str) and value in names)


def subclass_of(base: type) -> Kind:
    """
    :param base: class
    :return: the class and its subclasses
    """
    return Kind(f"a {base.__name__}", lambda value: isinstance(value, type) and issubclass(value, base))


def scheduled(kind: Kind) -> Kind:
    """
    :param kind: kind of a number
    :return: the kind, or a function of the remaining progress
    """
    is_function = lambda value: callable(value) and not isinstance(value, type)  # noqa: E731
    return Kind(f"{kind.text}, or a function of the progress", lambda value: is_function(value) or kind.holds(value))


def table(**kinds: Kind) -> Kind:
    """
    :param kinds: kind of each value
    :return: dicts that have none but these keys
    """
    return Kind(
        f"a dict with the keys {', '.join(kinds)} and values of their kinds",
        lambda value: type(value) is dict and all(key in kinds and kinds[key].holds(item) for key, item in value.items()),
    )


def check_arguments(values: Any, kinds: Mapping[str, Kind]) -> None:
    """
    :param values: object that has the arguments as attributes
    :param kinds: table of arguments
    :raises ValueError: for the first argument that is not of its kind, with its value and the allowed ones
    """
    for name, kind in kinds.items():
        value = getattr(values, name)
        if not kind.holds(value):
            what = f"choose {kind.text}" if kind.text.startswith("one of ") else f"it must be {kind.text}"
            raise ValueError(f"{name}={value!r}: {what}")
