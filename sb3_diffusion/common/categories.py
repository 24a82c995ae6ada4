"""Action spaces of categories: how many each dimension has, and how a chain's integers become the environment's action."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_diffusion.common.checks import check_action_space, check_real_actions

DISCRETE_SPACES = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class Categories(NamedTuple):
    """
    The dimensions of a discrete action, in one row.

    :param counts: number of categories of each dimension, (d,)
    :param start: the environment's name of the first category of each dimension, (d,)
    :param shape: shape of the environment's action
    :param dtype: its type
    """

    counts: np.ndarray
    start: np.ndarray
    shape: tuple[int, ...]
    dtype: Any

    @staticmethod
    def of(space: spaces.Space) -> "Categories":
        """
        :param space: ``Discrete``, ``MultiDiscrete`` or ``MultiBinary``, of any number of axes
        :return: its dimensions
        :raises ValueError: for another space
        """
        if isinstance(space, spaces.Discrete):
            counts, start = np.array(space.n), np.array(space.start)
        elif isinstance(space, spaces.MultiDiscrete):
            counts, start = space.nvec, space.start
        elif isinstance(space, spaces.MultiBinary):
            counts, start = np.full(space.shape, 2), np.zeros(space.shape)
        else:
            raise ValueError(f"action_space={space}: it has no categories")
        shape = space.shape or ()
        return Categories(counts.reshape(-1).astype(np.int64), start.reshape(-1).astype(np.int64), shape, space.dtype)

    def flat_space(self) -> spaces.Space:
        """
        :return: the space of ``x_k``, whose categories are counted from 0: what Stable-Baselines3 knows how to store
        """
        return spaces.MultiDiscrete(self.counts)

    def to_action(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: categories, (..., d)
        :return: the environment's action, int64, (..., d), for a single number (...)
        """
        action = x.long() + th.as_tensor(self.start, device=x.device)
        return action.squeeze(-1) if self.shape == () else action

    def from_action(self, action: th.Tensor) -> th.Tensor:
        """
        The inverse of :meth:`to_action`.

        :param action: the environment's action, (B, ...)
        :return: categories as float32, (B, d)
        """
        return (action.reshape(-1, len(self.counts)) - th.as_tensor(self.start, device=action.device)).float()

    def env_action(self, x: np.ndarray) -> np.ndarray:
        """
        :param x: categories, (..., d)
        :return: actions for the environment's ``step``, ``(..., *shape)``
        """
        return (x.astype(np.int64) + self.start).astype(self.dtype).reshape((*x.shape[:-1], *self.shape))[()]


def is_discrete(space: spaces.Space) -> bool:
    """
    :param space: action space
    :return: whether its actions are categories
    """
    return isinstance(space, DISCRETE_SPACES)


def check_chain_action_space(space: Any) -> None:
    """
    :param space: action space
    :raises ValueError: if no chain can end in its actions
    """
    if not is_discrete(space):
        check_action_space(space)


def check_stored_action_space(space: Any) -> None:
    """
    :param space: action space
    :raises ValueError: if no chain can end in its actions, or a replay buffer cannot hold them
    """
    check_chain_action_space(space)
    if not is_discrete(space):
        check_real_actions(space)
    elif flat_action_space(space) is not space:
        raise ValueError(
            f"action_space={space}: Stable-Baselines3's replay buffers hold categories of one axis. Let the environment take "
            "them in one row, or use DiffPPO"
        )


def flat_action_space(space: spaces.Space) -> spaces.Space:
    """
    :param space: action space
    :return: the same, or where Stable-Baselines3 knows only one axis, one with the axes in a row
    """
    if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)) and len(space.shape) != 1:
        return Categories.of(space).flat_space()
    return space


def latent_dim(space: spaces.Space) -> int:
    """
    :param space: action space
    :return: dimension d of the latent action
    """
    return len(Categories.of(space).counts) if is_discrete(space) else int(np.prod(space.shape or ()))
