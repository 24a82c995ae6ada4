"""Checks that stop training with a clear error before bad numbers spread."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch as th


def check_finite_array(name: str, value: npt.ArrayLike | Mapping[str, npt.ArrayLike]) -> None:
    """
    :param name: what the array is, for the error
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


def optimize(optimizer: th.optim.Optimizer, name: str, loss: th.Tensor, **parts: th.Tensor) -> None:
    """
    One step of an optimizer, unless the loss is not finite: then the weights stay as they are.

    :param optimizer: optimizer of the networks behind the loss
    :param name: what the loss is, for the error
    :param loss: loss, a scalar
    :param parts: what the loss is made of; the error names those that are not finite
    :raises ValueError: if the loss is NaN or infinite
    """
    if not th.isfinite(loss):
        blame = [part for part, value in parts.items() if not th.isfinite(value).all()]
        raise ValueError(
            f"{name} is {loss.item()}"
            + (f" (not finite: {', '.join(blame)})" if blame else "")
            + ". Training stops before this "
            "update; the last checkpoint is still good. A smaller learning_rate or ent_coef, or scaled rewards, may help."
        )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
