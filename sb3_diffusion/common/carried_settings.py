"""Settings that give weights their meaning and leave no trace in them: they travel with the weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch as th
from torch import nn

BUFFER = "trained_settings"

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
    Let the state dict of a module say with which settings its weights were trained, in a buffer whose shape says which of
    the possible values each setting has: noise, averages, copies and other file formats keep a shape. A number stands in it
    beside a unit, without which it counts for nothing. ``load_state_dict`` refuses a buffer that says something else with a
    ``RuntimeError``; one that is absent is taken.

    :param module: module
    :param choices: the value of each setting, and all possible ones
    :param number: name and value of one more setting, which may be any number
    """
    if not hasattr(module, "carried_settings"):
        module.register_load_state_dict_pre_hook(_check)
    module.carried_settings = (choices, number)  # type: ignore[assignment]
    sizes = [possible.index(value) + 1 for value, possible in choices.values()]
    module.register_buffer(BUFFER, th.tensor([UNIT, UNIT * number[1]]).expand(*sizes, 2).clone())


def copy_settings(module: nn.Module, source: nn.Module) -> None:
    """
    :param module: module
    :param source: another, whose settings it is to carry
    """
    choices, number = source.carried_settings  # type: ignore[misc]
    carry_settings(module, choices, number)


def find_other_settings(module: nn.Module, state_dict: Mapping[str, Any]) -> list[str]:
    """
    :param module: module, some of whose parts carry settings
    :param state_dict: a state dict for it, whoever has written it
    :return: an error for each setting that it says to be another
    """
    parts = [(name, part) for name, part in module.named_modules() if hasattr(part, "carried_settings")]
    return [error for name, part in parts for error in _compare(part, state_dict.get(f"{name}.{BUFFER}".lstrip(".")))]


def _compare(module: nn.Module, buffer: Any) -> list[str]:
    """
    :param module: module with settings
    :param buffer: entry of a state dict
    :return: an error for each setting that it says to be another
    """
    choices, (name, number) = module.carried_settings  # type: ignore[misc]
    if not isinstance(buffer, th.Tensor) or buffer.dim() != len(choices) + 1 or buffer.shape[-1] != 2:
        return []
    others = {}
    for size, (key, (value, possible)) in zip(buffer.shape, choices.items(), strict=False):
        if 0 < size <= len(possible) and possible[size - 1] != value:
            others[key] = (possible[size - 1], value)
    units, numbers = (buffer.detach().double().cpu() / UNIT).unbind(-1)
    is_said = all(th.allclose(part, part.mean(), rtol=1e-5, atol=0) for part in (units, numbers))
    found = float(f"{numbers.mean().item():.4g}")
    if is_said and abs(units.mean().item() - 1) < 1e-5 and abs(found / number - 1) > TOLERANCE:
        others[name] = (found, number)
    return [
        f"these weights were trained with {name}={found}, the policy has {name}={value}, with which they mean something else. "
        "Build the model with their setting; fewer denoising steps to act with are model.policy.inference_steps"
        for name, (found, value) in others.items()
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
    own = getattr(module, BUFFER)
    errors = _compare(module, state_dict.setdefault(prefix + BUFFER, own))
    if errors:
        # PyTorch fills the module before it raises
        state_dict[prefix + BUFFER] = own
        error_msgs += errors
