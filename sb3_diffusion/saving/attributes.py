"""Kinds of the attributes of a saved model."""

import math
import pathlib
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy

from sb3_diffusion.common.arguments import (
    FLAG,
    MAX_INTEGER,
    POSITIVE_OR_INFINITE,
    TEXT,
    Kind,
    either,
    is_number,
    number,
    optional,
    subclass_of,
    table,
    whole,
)
from sb3_diffusion.saving.json_codec import (
    ACTIVATIONS,
    DENOISERS,
    EXTRACTORS,
    FLAT_SPACES,
    NOISES,
    OPTIMIZERS,
    NotPlain,
    encode,
    is_schedule,
)

# Far beyond use, and small enough that a model is built and acts at once
_MAX_N_STEPS = 10_000
_MAX_LAYERS = 64
_MAX_TRANSITIONS = 10**8
_MAX_CATEGORIES = 2**20
_MAX_ENVS = 10**7
# Characters of what an environment adds to an episode's statistics, in its plain form
_MAX_INFO_SIZE = 10_000


def one_of(classes: Mapping[str, type]) -> Kind:
    """
    :param classes: classes by name
    :return: any of them
    """
    return Kind(f"one of {', '.join(classes)}", lambda value: isinstance(value, type) and value in classes.values())


def instance(*types: type) -> Kind:
    """
    :param types: types
    :return: objects of exactly one of them
    """
    return Kind(" or ".join(cls.__name__ for cls in types), lambda value: type(value) in types)


def several(kind: Kind, most: int) -> Kind:
    """
    :param kind: kind of each item
    :param most: greatest number of items
    :return: lists and tuples of such items
    """
    return Kind(
        f"a list of at most {most} items, each {kind.text}",
        lambda value: type(value) in (list, tuple) and len(value) <= most and all(map(kind.holds, value)),
    )


def _is_episode(value: Any) -> bool:
    """Whether a value is ``Monitor``'s dict of an episode; an environment may add to it."""
    return type(value) is dict and is_number(value.get("r")) and is_number(value.get("l"))


def _is_plain(value: Any) -> bool:
    """Whether a value has a plain form that is not too long for the statistics of an episode."""
    try:
        return len(str(encode(value))) <= _MAX_INFO_SIZE
    except NotPlain:
        return False


def keep_plain(name: str, value: Any) -> Any:
    """
    Drop values without a plain form from the statistics of episodes: environments may add any, and training needs none.

    :param name: name of an attribute
    :param value: its value
    :return: the same; of statistics of episodes those with a plain form
    """
    if name == "tensorboard_log" and isinstance(value, pathlib.PurePath):
        return str(value)
    if name == "_total_timesteps" and isinstance(value, int) and value > MAX_INTEGER:
        return float(value) if value < 1e300 else math.inf
    if name == "ep_info_buffer" and isinstance(value, deque):
        known = (episode for episode in value if _is_episode(episode))
        episodes = ({key: item for key, item in episode.items() if _is_plain({key: item})} for episode in known)
        return deque(episodes, maxlen=value.maxlen)
    if name == "ep_success_buffer" and isinstance(value, deque):
        return deque(filter(_is_plain, value), maxlen=value.maxlen)
    return value


def _is_text_or_number(value: Any) -> bool:
    """Whether a value is text, a number, None, an array of numbers, or a list, tuple, deque or dict of such."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufU"
    if isinstance(value, (list, tuple, deque)):
        return all(map(_is_text_or_number, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_text_or_number(item) for key, item in value.items())
    return value is None or isinstance(value, (str, bool, int, float, np.number, np.bool_))


ADDED = Kind("text, numbers, arrays, or lists and dicts of them", _is_text_or_number)


def _is_observation(value: Any) -> bool:
    """Whether a value may be the observations of some environments."""
    arrays = list(value.values()) if isinstance(value, dict) else [value]
    return all(isinstance(array, np.ndarray) and array.ndim > 0 for array in arrays)


def _is_small_discrete(value: Any) -> bool:
    """Whether a space has few enough categories to build a chain over its ones and zeros."""
    if type(value) is spaces.MultiBinary:
        return math.prod(value.shape) <= _MAX_CATEGORIES // 2
    if type(value) is spaces.MultiDiscrete:
        return 0 < value.nvec.size <= _MAX_CATEGORIES and value.nvec.size * int(value.nvec.max()) <= _MAX_CATEGORIES
    return type(value) is spaces.Discrete and int(value.n) <= _MAX_CATEGORIES


_SCHEDULE = Kind("a number or a schedule", is_schedule)
_WIDTHS = several(whole(1, 2**24), _MAX_LAYERS)
_WIDTHS_BY_NETWORK = table(pi=_WIDTHS, qf=_WIDTHS, vf=_WIDTHS, denoiser=_WIDTHS)
OBSERVATION = optional(Kind("an array, or a dict of arrays", _is_observation))
_EPISODES = Kind("a deque of episodes", lambda value: type(value) is deque and all(map(_is_episode, value)))
_SUCCESSES = Kind("a deque", lambda value: type(value) is deque)
_DONES = Kind(
    "an array of booleans or finite numbers",
    lambda value: isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and bool(np.isfinite(value).all()),
)
# Stable-Baselines3 takes a number for a flag, and a flag for a number
_SWITCH = either(FLAG, number())
_STRATEGY = either(TEXT, instance(GoalSelectionStrategy))
_HYPERPARAMETER = either(number(0), optional(FLAG), several(number(0), 4))

# Keyword arguments of policies: Stable-Baselines3's, and networks and activations of the chain
_POLICY_KWARGS: dict[str, Kind] = dict(
    # A list around the dict is Stable-Baselines3's old form
    net_arch=optional(either(_WIDTHS, _WIDTHS_BY_NETWORK, several(_WIDTHS_BY_NETWORK, 1))),
    activation_fn=one_of(ACTIVATIONS),
    denoiser_activation_fn=one_of(ACTIVATIONS),
    denoiser_class=optional(one_of(DENOISERS)),
    denoiser_kwargs=optional(table(width=whole(1, 2**24), n_layers=whole(0, _MAX_LAYERS), activation_fn=one_of(ACTIVATIONS))),
    features_extractor_class=optional(one_of(EXTRACTORS)),
    features_extractor_kwargs=optional(
        table(features_dim=whole(1, 2**24), cnn_output_dim=whole(1, 2**24), normalized_image=FLAG)
    ),
    optimizer_class=one_of(OPTIMIZERS),
    optimizer_kwargs=optional(
        Kind(
            "a dict of finite numbers, tuples of them, booleans and None",
            lambda value: type(value) is dict and all(map(_HYPERPARAMETER.holds, value.values())),
        )
    ),
    n_critics=whole(1, _MAX_LAYERS),
    **dict.fromkeys(("log_std_init", "clip_mean"), number()),
    **dict.fromkeys(("use_sde", "use_expln", "full_std", "squash_output", "ortho_init", "normalize_images"), FLAG),
    share_features_extractor=FLAG,
)


def policy_kwargs_kind(policy: Any) -> Kind:
    """
    :param policy: class of policies, which declares its own keyword arguments as ``arguments``
    :return: the kind of its ``policy_kwargs``
    """
    return table(**_POLICY_KWARGS, **policy.arguments)


# Every attribute of Stable-Baselines3's own that a file may set
ATTRIBUTES: dict[str, Kind] = dict(
    observation_space=instance(*FLAT_SPACES, spaces.Dict),
    action_space=either(
        Kind("a Box of numbers", lambda value: type(value) is spaces.Box and value.dtype.kind in "iuf"),
        Kind(f"a discrete space of at most {_MAX_CATEGORIES} categories", _is_small_discrete),
    ),
    seed=optional(either(FLAG, whole(0, 2**32 - 1))),
    action_noise=optional(instance(*NOISES)),
    learning_rate=_SCHEDULE,
    tensorboard_log=optional(instance(str)),
    ep_info_buffer=optional(_EPISODES),
    ep_success_buffer=optional(_SUCCESSES),
    _last_episode_starts=optional(_DONES),
    _current_progress_remaining=number(),
    n_envs=whole(1, _MAX_ENVS),
    start_time=number(0),
    sde_sample_freq=whole(-1),
    **dict.fromkeys(("_last_obs", "_last_original_obs"), OBSERVATION),
    **dict.fromkeys(("num_timesteps", "_num_timesteps_at_start", "_episode_num", "_n_updates"), whole()),
    **dict.fromkeys(("verbose", "learning_starts"), _SWITCH),
    _total_timesteps=either(number(0), POSITIVE_OR_INFINITE),
    gradient_steps=either(FLAG, whole(-MAX_INTEGER)),
    _stats_window_size=whole(1),
    # Off-policy
    buffer_size=whole(1, _MAX_TRANSITIONS),
    replay_buffer_class=optional(subclass_of(ReplayBuffer)),
    replay_buffer_kwargs=table(
        n_steps=whole(1, _MAX_N_STEPS),
        gamma=number(0, 1),
        handle_timeout_termination=FLAG,
        n_sampled_goal=whole(1),
        goal_selection_strategy=_STRATEGY,
        copy_info_dict=FLAG,
    ),
    train_freq=either(whole(1), instance(TrainFreq)),
    target_entropy=number(),
    target_update_interval=whole(1),
    **dict.fromkeys(("use_sde", "use_sde_at_warmup"), FLAG),
    **dict.fromkeys(("optimize_memory_usage", "normalize_advantage"), _SWITCH),
    # On-policy
    rollout_buffer_class=optional(subclass_of(RolloutBuffer)),
    rollout_buffer_kwargs=table(),
    clip_range=_SCHEDULE,
    clip_range_vf=optional(_SCHEDULE),
    vf_coef=number(0),
    target_kl=optional(number(0)),
    n_epochs=whole(1),
    # Both
    ent_coef=either(TEXT, _SCHEDULE),
    **dict.fromkeys(("batch_size", "n_steps"), whole(1, _MAX_TRANSITIONS)),
    **dict.fromkeys(("tau", "gamma", "gae_lambda"), number(0, 1)),
)
