"""Which transitions of the replay buffer an update sees."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

# How buffers sample that draw every transition equally often
_UNIFORM = (ReplayBuffer.sample, DictReplayBuffer.sample)


def recent_indices(buffer: ReplayBuffer, batch_size: int, recency: float) -> np.ndarray:
    """
    Draw transitions of the age ``u^recency``, as a share of the oldest one's, with ``u`` uniform from 0 to 1. At 1 all are
    equally likely; at 2 the newest tenth is drawn with probability 0.32, and the oldest with 0.05. That recent transitions
    should be drawn more often is what Wang and Ross found with SAC (arXiv 1906.04009), by another rule.

    :param buffer: replay buffer, not empty
    :param batch_size: number of indices B
    :param recency: exponent, at least 1
    :return: indices of transitions, (B,)
    """
    # The buffer that holds each observation once has no transition at the place that is written next
    n_transitions = buffer.size() - int(buffer.full and buffer.optimize_memory_usage)
    age = (np.random.uniform(size=batch_size) ** recency * n_transitions).astype(int)
    return (buffer.pos - 1 - age) % buffer.buffer_size


def sample_transitions(
    buffer: ReplayBuffer, batch_size: int, recency: float = 1.0, env: VecNormalize | None = None
) -> ReplayBufferSamples:
    """
    :param buffer: replay buffer; one with a ``sample`` of its own, such as ``HerReplayBuffer``, draws as it does
    :param batch_size: number of transitions B
    :param recency: see :func:`recent_indices`
    :param env: normalises the transitions
    :return: transitions
    """
    if recency == 1 or getattr(buffer.sample, "__func__", None) not in _UNIFORM:
        samples = buffer.sample(batch_size, env=env)
        if not isinstance(samples, tuple):
            # A buffer of the user's own may give any object with these attributes
            fields = [name for name in ReplayBufferSamples._fields if name != "discounts" or hasattr(samples, name)]
            samples = ReplayBufferSamples(**{name: getattr(samples, name) for name in fields})
        return samples
    return buffer._get_samples(recent_indices(buffer, batch_size, recency), env=env)


def join_transitions(first: ReplayBufferSamples, second: ReplayBufferSamples) -> ReplayBufferSamples:
    """
    :param first: transitions
    :param second: transitions of another buffer of the same class
    :return: both, the first ones first
    """

    def join(one: Any, other: Any) -> Any:
        if isinstance(one, dict):
            return {key: th.cat((value, other[key])) for key, value in one.items()}
        return None if one is None else th.cat((one, other))

    return type(first)(*map(join, first, second))
