"""Demonstrations for a policy whose action is a chunk of the environment's."""

from typing import Any

import numpy as np

from sb3_diffusion.common.action_chunks import ActionChunkWrapper, VecActionChunkWrapper
from sb3_diffusion.imitation.data import Demonstrations, load_demonstrations, map_obs


def chunk_demonstrations(data: Any, env: ActionChunkWrapper | VecActionChunkWrapper) -> Demonstrations:
    """
    Cut demonstrations, one row a step of the environment, into chunks. A chunk starts at each step, so that they overlap; at
    the end of an episode the last action is repeated, as Chi et al. (2023, arXiv 2303.04137) do. Rewards are those that
    ``env`` gives: discounted within the chunk, and nothing after the end.

    :param data: demonstrations of single actions, see :func:`.load_demonstrations`. If the model's observations are not those
        of ``env``, as SB3 transposes images, give what that function returns for the model's
    :param env: environment with chunks of actions, which says how long they are
    :return: as many chunks as there were steps
    :raises ValueError: for what cannot be used, naming the episode
    :raises ImportError: if a package is missing that the file needs
    """
    chunks = env.chunks
    steps = load_demonstrations(data, env.observation_space, chunks.env_action_space)
    last = np.searchsorted(steps.episodes, steps.episodes, side="right") - 1  # of the episode of each step, (N,)
    index = np.arange(len(steps))[:, None] + np.arange(chunks.n)  # (N, n)
    inside, index = index <= last[:, None], np.minimum(index, last[:, None])
    end = index[:, -1]
    rewards = None
    if steps.rewards is not None:
        rewards = (steps.rewards[index] * inside) @ np.power(chunks.gamma, np.arange(chunks.n))
    return Demonstrations(
        observations=steps.observations,
        actions=chunks.join(steps.actions[index]),
        next_observations=map_obs(lambda array: array[end], steps.next_observations),
        has_next=steps.has_next[end],
        rewards=rewards,
        terminations=steps.terminations[end],
        # The next row overlaps with this one, and n-step returns must not join them
        truncations=~steps.terminations[end],
        episodes=steps.episodes,
    )
