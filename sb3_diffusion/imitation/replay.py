"""Demonstrations in the replay buffer of an off-policy algorithm."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_diffusion.imitation.data import load_demonstrations, map_obs


def fill_replay_buffer(model: OffPolicyAlgorithm, data: Any) -> int:
    """
    Put demonstrations where an off-policy algorithm learns from them. With ``demonstration_share`` they go into a buffer of
    their own, ``model.demonstration_buffer``, in place of what was there, and make up that share of every batch (RLPD, arXiv
    2302.02948). Without, they are added to the replay buffer, and leave it as they grow old.

    A step whose next observation is not known, the last one of an episode that was cut off, is left out, unless the data say
    what follows.

    :param model: off-policy algorithm
    :param data: see :func:`.load_demonstrations`; rewards must be known
    :return: number of transitions that were added
    :raises ValueError: for data that do not fit the model, without rewards, or more than the replay buffer holds
    """
    if not isinstance(model, OffPolicyAlgorithm) or model.replay_buffer is None:
        raise ValueError(f"{type(model).__name__} has no replay buffer: use DiffSAC, DiffCrossQ, DiffTQC or DiffWPO")
    demonstrations = load_demonstrations(data, model.observation_space, model.action_space)
    if demonstrations.rewards is None:
        raise ValueError("the data have no rewards for every episode, which a replay buffer needs")
    known = np.flatnonzero(demonstrations.has_next)
    apart = getattr(model, "demonstration_share", 0) > 0
    buffer = make_demonstration_buffer(model, len(known)) if apart else model.replay_buffer
    n_rows = len(known) // buffer.n_envs  # a row of the buffer has a transition of each environment
    if not 0 < n_rows <= buffer.buffer_size:
        raise ValueError(
            f"the data have {len(known)} transitions, the replay buffer holds {buffer.n_envs} to "
            f"{buffer.buffer_size * buffer.n_envs}: choose another buffer_size"
        )
    actions = demonstrations.actions
    if isinstance(model.action_space, spaces.Box):
        actions = model.policy.scale_action(actions).astype(np.float32)
    # Where the next row is not what follows: the end of an episode, or before a step that is left out
    ends = (demonstrations.terminations | demonstrations.truncations)[known] | np.append(np.diff(known) != 1, True)
    ends[n_rows - 1 :: n_rows] = True  # the last row of each column
    cuts = ends & ~demonstrations.terminations[known]
    if cuts.any() and not buffer.handle_timeout_termination:
        raise ValueError(
            "the data have episodes that were cut off, which a replay buffer with handle_timeout_termination=False, as it is "
            "with optimize_memory_usage=True, would take for terminated: use one that handles them"
        )
    for row in range(n_rows):
        rows = row + n_rows * np.arange(buffer.n_envs)
        index, cut = known[rows], cuts[rows]
        take = lambda values, index=index: values[index]  # noqa: E731
        buffer.add(
            map_obs(take, demonstrations.observations),
            map_obs(take, demonstrations.next_observations),
            actions[index],
            demonstrations.rewards[index],
            demonstrations.terminations[index] | cut,
            [{"TimeLimit.truncated": bool(is_cut)} for is_cut in cut],
        )
    if apart:
        model.demonstration_buffer = buffer  # type: ignore[attr-defined]
    return n_rows * buffer.n_envs


def make_demonstration_buffer(model: OffPolicyAlgorithm, n_transitions: int) -> ReplayBuffer:
    """
    :param model: off-policy algorithm
    :param n_transitions: number of transitions that it is to hold
    :return: buffer of the class of the model's own, for one environment; of a ``HerReplayBuffer`` one that keeps the goals as
        they are
    """
    buffer_class, kwargs = model.replay_buffer_class, model.replay_buffer_kwargs
    assert buffer_class is not None
    if issubclass(buffer_class, HerReplayBuffer):
        buffer_class, kwargs = DictReplayBuffer, {}
    size = max(n_transitions, 1)
    return buffer_class(size, model.observation_space, model.action_space, device=model.device, **kwargs)
