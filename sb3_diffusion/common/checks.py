"""Checks that stop training with a clear error before bad numbers spread."""

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces


def check_integer(name: str, value: Any, what: str = "", least: int = 1) -> None:
    """
    :param name: name of an argument
    :param value: its value
    :param what: description of the value, for the error
    :param least: least value that is allowed
    :raises ValueError: if it is not an integer of at least that
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name}={value!r}: {what or 'it'} must be an integer of at least {least}")


def check_positive(name: str, value: Any, what: str = "") -> None:
    """
    :param name: name of an argument
    :param value: its value
    :param what: description of the value, for the error
    :raises ValueError: if it is not a positive and finite number
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"{name}={value!r}: {what or 'it'} must be a positive and finite number")


def check_fraction(name: str, value: Any) -> None:
    """
    :param name: name of an argument
    :param value: its value
    :raises ValueError: if it is not a number from 0 to 1
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name}={value!r}: it must be between 0 and 1")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """
    :param name: name of an argument
    :param value: its value
    :param choices: allowed values
    :raises ValueError: if it is none of these
    """
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}")


def parse_auto(name: str, value: str | float, least: float = -math.inf) -> tuple[bool, float]:
    """
    :param name: name of an argument
    :param value: its value: a number, ``"auto"`` or ``"auto_<positive number>"``
    :param least: least plain number
    :return: whether it is automatic, and its number, 1 for ``"auto"``
    :raises ValueError: if it is none of these or not finite
    """
    text = str(value)
    automatic = text.startswith("auto")
    try:
        number = 1.0 if text == "auto" else float(text.removeprefix("auto_"))
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < least or (automatic and number <= 0):
        kind = "a finite number" if least == -math.inf else f"a number of at least {least:g}"
        raise ValueError(f"{name}={value!r}: choose {kind}, 'auto' or 'auto_<positive number>'")
    return automatic, number


def check_no_sde(use_sde: bool) -> None:
    """
    :param use_sde: argument of that name
    :raises ValueError: if it is True
    """
    if use_sde:
        raise ValueError(
            "use_sde=True: gSDE needs a Gaussian policy. A diffusion policy explores by its own noise, use use_sde=False"
        )


def check_action_space(action_space: Any) -> None:
    """
    :param action_space: action space
    :raises ValueError: if it is not a ``Box`` with finite bounds
    """
    box = isinstance(action_space, spaces.Box) and action_space.is_bounded("both")
    if not box or not (action_space.low <= action_space.high).all():
        raise ValueError(f"action_space={action_space}: a diffusion policy needs a Box with finite bounds, low < high")


def check_real_actions(action_space: spaces.Box) -> None:
    """
    :param action_space: action space
    :raises ValueError: if its actions are integers, into which a replay buffer would cut the policy's, from -1 to 1
    """
    if not (action_space.low < action_space.high).all():
        raise ValueError(f"action_space={action_space}: a replay buffer needs a Box with finite bounds, low < high")
    if action_space.dtype.kind != "f":
        raise ValueError(
            f"action_space={action_space}: a replay buffer cannot hold real actions in {action_space.dtype}. Let the "
            "environment have a Box of float32 and round in its step(), or use DiffPPO"
        )


def merge_kwargs(algorithm: str, what: str, given: Mapping[str, Any], needed: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param algorithm: name of the algorithm, for the error
    :param what: ``policy_kwargs`` or ``rollout_buffer_kwargs``, for the error
    :param given: the user's
    :param needed: keyword arguments that the algorithm adds from its own
    :return: both
    :raises ValueError: if both say something of the same argument
    """
    for name in needed.keys() & given.keys():
        raise ValueError(f"{what}[{name!r}]={given[name]!r}: leave it out, {algorithm}'s own arguments say it")
    return {**given, **needed}


def is_untouched(module: th.nn.Module, cls: type) -> bool:
    """
    :param module: module
    :param cls: class
    :return: whether its class is all that says what it does: it is no subclass, such as an adapter's or a quantised one, and
        has no hooks and no ``forward`` of its own
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    hooked = any(hooks) or th.nn.modules.module._has_any_global_hook()
    return type(module) is cls and not hooked and "forward" not in vars(module)


def is_recorded() -> bool:
    """
    :return: whether an exporter is writing down what is computed here, so that nothing may depend on the numbers
    """
    return th.jit.is_tracing() or th.compiler.is_exporting()


def check_finite_tensor(name: str, value: th.Tensor) -> None:
    """
    :param name: name of the value, for the error
    :param value: tensor
    :raises ValueError: if an entry is NaN or infinite
    """
    if is_recorded():
        return  # an exported file cannot raise
    # The sum first, which is one operation and is finite only if the entries are
    if not math.isfinite(value.sum().item()) and not th.isfinite(value).all():
        raise ValueError(
            f"{name} has NaN or infinite entries. Either an observation has (stable_baselines3.common.vec_env.VecCheckNan "
            "finds the step) or the policy's weights have: go back to the last checkpoint, with a smaller learning_rate."
        )


def check_finite_array(name: str, value: npt.ArrayLike | Mapping[str, npt.ArrayLike]) -> None:
    """
    :param name: name of the value, for the error
    :param value: array, or arrays by key
    :raises ValueError: if an entry is NaN or infinite
    """
    for key, entry in value.items() if isinstance(value, Mapping) else [("", value)]:
        array = np.asarray(entry)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            where = f"{name}[{key!r}]" if key else name
            raise ValueError(
                f"{where} has NaN or infinite entries: {array}. Training stops here; the last checkpoint is still good. "
                "Look at the environment (stable_baselines3.common.vec_env.VecCheckNan finds the step)."
            )


def optimize(
    optimizer: th.optim.Optimizer, name: str, loss: th.Tensor, max_grad_norm: float | None = None, **parts: th.Tensor
) -> None:
    """
    One step of an optimizer, unless the loss is not finite: then the weights stay as they are. They also do where all of them
    are frozen.

    :param optimizer: optimizer of the networks behind the loss
    :param name: name of the value, for the error
    :param loss: loss, a scalar
    :param max_grad_norm: norm to which the gradient is clipped, if any
    :param parts: parts of the loss; the error names those that are not finite
    :raises ValueError: if the loss is NaN or infinite
    """
    if not math.isfinite(loss.item()):
        blame = [part for part, value in parts.items() if not th.isfinite(value).all()]
        raise ValueError(
            f"{name} is {loss.item()}"
            + (f" (not finite: {', '.join(blame)})" if blame else "")
            + ". Training stops before this "
            "update; the last checkpoint is still good. A smaller learning_rate or ent_coef, or scaled rewards, may help."
        )
    if not any(param.requires_grad for group in optimizer.param_groups for param in group["params"]):
        return
    optimizer.zero_grad()
    loss.backward()
    if max_grad_norm is not None:
        th.nn.utils.clip_grad_norm_([param for group in optimizer.param_groups for param in group["params"]], max_grad_norm)
    optimizer.step()
