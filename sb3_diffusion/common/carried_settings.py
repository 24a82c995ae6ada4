"""Settings that give weights their meaning and leave no trace in them: they travel with the weights."""

from typing import Any

import numpy as np
from torch import nn

SETTINGS = "settings"


def carry_settings(module: nn.Module, **settings: Any) -> None:
    """
    Let the state dict of a module say with which settings its weights were trained, beside its tensors, in the metadata that
    PyTorch keeps there. ``load_state_dict`` refuses one that says something else with a ``RuntimeError``; one that says
    nothing is taken. A plain dict of a state dict's items says nothing: it has lost the metadata.

    :param module: module
    :param settings: numbers and texts
    """
    # Stable-Baselines3 reads state dicts with weights_only, which knows no numbers of NumPy's
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in settings.items()}
    module.carried_settings = plain  # type: ignore[assignment]
    module.register_state_dict_post_hook(_write)
    module.register_load_state_dict_pre_hook(_check)


def find_other_settings(module: nn.Module, metadata: Any) -> list[str]:
    """
    :param module: module, some of whose parts carry settings
    :param metadata: metadata of a state dict, whoever has written it
    :return: the errors of ``load_state_dict``
    """
    errors: list[str] = []
    for name, part in module.named_modules():
        if hasattr(part, "carried_settings") and isinstance(metadata, dict) and isinstance(metadata.get(name), dict):
            errors += compare(part.carried_settings, metadata[name].get(SETTINGS))
    return errors


def compare(settings: dict[str, Any], found: Any) -> list[str]:
    """
    :param settings: settings of a module
    :param found: settings in a state dict
    :return: an error for each difference
    """
    if not isinstance(found, dict):
        return []
    return [
        f"these weights were trained with {name}={str(found[name])[:100]}, the policy has {name}={value}, with which they "
        "mean something else. Build the model with their setting; fewer denoising steps to act with are "
        "model.policy.inference_steps"
        for name, value in settings.items()
        if name in found and found[name] != value
    ]


def _write(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    local_metadata[SETTINGS] = dict(module.carried_settings)  # type: ignore[arg-type]


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
    error_msgs += compare(module.carried_settings, local_metadata.get(SETTINGS))  # type: ignore[arg-type]
