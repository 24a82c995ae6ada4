"""Settings that give weights their meaning and leave no trace in them: they travel with the weights."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch as th
from torch import nn

SHAPE, VALUES = "trained_settings", "trained_values"

# Possible numbers of denoising steps
STEPS = range(1, 2**31)

# Small, so that it does not count where all of a state dict is measured, and a power of two, which all types of numbers have
UNIT = 2.0**-10

# What a number may be off by, since weights may have been stored in half precision
TOLERANCE = 0.01


def carry_settings(
    module: nn.Module, choices: dict[str, tuple[Any, Sequence[Any]]], number: tuple[str, float] = ("number", 1.0)
) -> None:
    """
    Let the state dict of a module say with which settings its weights were trained, in two buffers. The shape of one says
    which of the possible values each setting has: noise, averages, copies and other file formats keep a shape. The other,
    whose shape is always the same, has the same in numbers, beside a unit without which they count for nothing: code that
    loads what fits by its shape drops the first. ``load_state_dict`` refuses a buffer that says something else with a
    ``RuntimeError``; one that is absent is taken.

    :param module: module
    :param choices: the value of each setting, and all possible ones
    :param number: name and value of one more setting, which may be any number
    """
    if not hasattr(module, "carried_settings"):
        module.register_load_state_dict_pre_hook(_check)
    module.carried_settings = (choices, number)  # type: ignore[assignment]
    sizes = [possible.index(value) + 1 for value, possible in choices.values()]
    module.register_buffer(SHAPE, th.zeros(sizes))
    # In two parts, since half precision has no small numbers
    module.register_buffer(VALUES, UNIT * th.tensor([1.0, *math.frexp(number[1]), *sizes]))


def copy_settings(module: nn.Module, source: nn.Module) -> None:
    """
    :param module: module
    :param source: another, whose settings it is to carry
    """
    choices, number = source.carried_settings  # type: ignore[misc]
    carry_settings(module, choices, number)
    for buffer in (SHAPE, VALUES):
        setattr(module, buffer, getattr(module, buffer).to(getattr(source, buffer).device))


def find_other_settings(module: nn.Module, state_dict: Mapping[str, Any]) -> list[str]:
    """
    :param module: module, some of whose parts carry settings
    :param state_dict: a state dict for it, whoever has written it
    :return: an error for each setting that it says to be another
    """
    parts = [(f"{name}.".lstrip("."), part) for name, part in module.named_modules() if hasattr(part, "carried_settings")]
    return [error for prefix, part in parts for error in _compare(part, state_dict, prefix)]


def _compare(module: nn.Module, state_dict: Mapping[str, Any], prefix: str) -> list[str]:
    """
    :param module: module with settings
    :param state_dict: a state dict
    :param prefix: prefix of the module's entries there
    :return: an error for each setting that it says to be another
    """
    choices, (name, number) = module.carried_settings  # type: ignore[misc]
    shape, values = (state_dict.get(prefix + buffer) for buffer in (SHAPE, VALUES))
    said = [list(shape.shape)] if isinstance(shape, th.Tensor) and shape.dim() == len(choices) else []
    others: dict[str, tuple[Any, Any]] = {}
    if isinstance(values, th.Tensor) and values.shape == (len(choices) + 3,) and bool(th.isfinite(values).all()):
        unit, mantissa, exponent, *sizes = (values.detach().double() / UNIT).tolist()
        if abs(unit - 1) < 1e-5:
            found = mantissa * 2.0 ** max(-1000, min(1000, round(exponent)))
            if abs(found / number - 1) > TOLERANCE:
                others[name] = (float(f"{found:.4g}"), number)
            # One that is in doubt between two values is the module's own
            own = [possible.index(value) + 1 for value, possible in choices.values()]
            near = [abs(size - mine) <= TOLERANCE * mine for size, mine in zip(sizes, own, strict=True)]
            said.append([mine if same else round(size) for size, mine, same in zip(sizes, own, near, strict=True)])
    for sizes in said:
        for size, (key, (value, possible)) in zip(sizes, choices.items(), strict=True):
            if 0 < size <= len(possible) and possible[size - 1] != value:
                others[key] = (possible[size - 1], value)
    return [
        f"these weights were trained with {key}={found}, the policy has {key}={value}, with which they mean something else. "
        "Build the model with their setting; fewer denoising steps to act with are model.policy.inference_steps"
        for key, (found, value) in others.items()
    ]


def _check(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """The hook of ``load_state_dict``: its parameters are PyTorch's."""
    errors = _compare(module, state_dict, prefix)
    for buffer in (SHAPE, VALUES):
        own = getattr(module, buffer)
        state_dict.setdefault(prefix + buffer, own)
        if errors:
            # PyTorch fills the module before it raises
            state_dict[prefix + buffer] = own
    error_msgs += errors
