"""Settings that give weights their meaning and leave no trace in them: they travel with the weights."""

import json
from typing import Any

import numpy as np
import torch as th
from torch import nn

BUFFER = "trained_settings"

# One length for all: PyTorch would refuse another one with its own message beside this module's
LENGTH = 192


def carry_settings(module: nn.Module, **settings: Any) -> None:
    """
    Let the state dict of a module say with which settings its weights were trained, in a buffer of numbers that stand for a
    text. A buffer survives what state dicts go through on their way: copies, averages, other file formats.
    ``load_state_dict`` refuses a buffer that says something else with a ``RuntimeError``; one that is absent, or that says
    nothing, as after a randomisation of all entries, is taken.

    :param module: module
    :param settings: numbers and short texts
    """
    if not hasattr(module, "carried_settings"):
        module.register_load_state_dict_pre_hook(_check)
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in settings.items()}
    module.carried_settings = plain  # type: ignore[assignment]
    module.register_buffer(BUFFER, _encode(plain))


def _encode(settings: dict[str, Any]) -> th.Tensor:
    """
    :param settings: settings of a module
    :return: their text in ASCII codes, then zeros, (LENGTH,). Floating-point numbers, since averages of weights need them
    """
    codes = th.zeros(LENGTH)
    text = json.dumps(settings).encode()
    codes[: len(text)] = th.tensor(list(text), dtype=codes.dtype)
    return codes


def _decode(codes: Any) -> dict[str, Any]:
    """
    :param codes: entry of a state dict, whoever has written it
    :return: the settings; empty if it says none
    """
    try:
        text = bytes(codes.detach().cpu().round().to(th.uint8).tolist()).rstrip(b"\0")
        settings = json.loads(text)
    except (AttributeError, TypeError, ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


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
    found = _decode(state_dict.setdefault(prefix + BUFFER, getattr(module, BUFFER)))
    settings: dict[str, Any] = module.carried_settings  # type: ignore[assignment]
    errors = [
        f"these weights were trained with {name}={str(found[name])[:100]}, the policy has {name}={value}, with which they "
        "mean something else. Build the model with their setting; fewer denoising steps to act with are "
        "model.policy.inference_steps"
        for name, value in settings.items()
        if name in found and found[name] != value
    ]
    if errors:
        # PyTorch fills the module before it raises
        state_dict[prefix + BUFFER] = getattr(module, BUFFER)
        error_msgs += errors
