"""From actions in [-1, 1] to those of a ``Box`` and back, within its bounds however they lie."""

from typing import TypeVar

import numpy as np
import torch as th
from gymnasium import spaces

Array = TypeVar("Array", np.ndarray, th.Tensor)


def unscale_action(low: Array, high: Array, scaled_action: Array) -> Array:
    """
    SB3's ``low + 0.5 (a + 1) (high - low)``, to the same bit, without its two faults: rounding may take it past a bound, and
    the width may overflow, where half of it does not.

    :param low: lower bounds, (...)
    :param high: upper bounds, (...)
    :param scaled_action: actions in [-1, 1], (B, ...)
    :return: actions in [low, high], (B, ...)
    """
    if isinstance(low, np.ndarray) and low.dtype.kind != "f":
        low, high = low.astype(np.float32), high.astype(np.float32)  # as SB3's PPO acts where actions are integers
    half_low = 0.5 * low
    half_action = half_low + 0.5 * (scaled_action + 1.0) * (0.5 * high - half_low)
    return (2.0 * half_action).clip(low, high)


def scale_action(low: np.ndarray, high: np.ndarray, action: np.ndarray) -> np.ndarray:
    """
    The inverse of :func:`unscale_action`.

    :param low: lower bounds, (...)
    :param high: upper bounds, (...)
    :param action: actions in [low, high], (B, ...)
    :return: actions in [-1, 1], (B, ...)
    """
    with np.errstate(over="ignore"):
        width = high - low
    if not np.isfinite(width).all():
        low, high, action = 0.5 * low, 0.5 * high, 0.5 * action
        width = high - low
    return 2.0 * ((action - low) / width) - 1.0


class ActionScaling:
    """Base class, put before a policy of SB3's to replace its ``scale_action`` and ``unscale_action``."""

    action_space: spaces.Space

    def scale_action(self, action: np.ndarray) -> np.ndarray:
        """
        :param action: actions in the environment's bounds, (B, ...)
        :return: actions in [-1, 1], (B, ...)
        """
        assert isinstance(self.action_space, spaces.Box)
        return scale_action(self.action_space.low, self.action_space.high, action)

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        """
        :param scaled_action: actions in [-1, 1], (B, ...)
        :return: actions in the environment's bounds, (B, ...)
        """
        assert isinstance(self.action_space, spaces.Box)
        return unscale_action(self.action_space.low, self.action_space.high, scaled_action)
