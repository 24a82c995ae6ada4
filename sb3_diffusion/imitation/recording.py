"""Minari data sets from models."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_diffusion.common.checks import check_integer
from sb3_diffusion.imitation.data import import_minari

# What minari takes for the name of a data set
DATASET_NAME = re.compile(r"[-_\w]+-v\d+")
DATASETS_PATH = "MINARI_DATASETS_PATH"


def record(
    model: BaseAlgorithm,
    env: gym.Env | str,
    n_episodes: int,
    path: str | Path,
    deterministic: bool = False,
    seed: int | None = None,
) -> Any:
    """
    Let a model act and write its episodes as a Minari data set, by ``minari.DataCollector``.

    :param model: any model of Stable-Baselines3 whose action space is the environment's; if it has a ``VecNormalize``, it sees
        the observations through it, and the data set holds them as the environment gives them
    :param env: environment, not vectorised, or its id
    :param n_episodes: number of episodes
    :param path: folder to make, whose name is the data set's and ends in ``-v<number>``: ``demonstrations/cheetah-v0``
    :param deterministic: whether the model's actions are deterministic
    :param seed: the first episode is reset with this seed, the next ones with those that follow
    :return: the ``minari.MinariDataset``
    :raises ValueError: for a name that Minari does not take, a folder that is there already, or other spaces than the model's
    :raises ImportError: if minari is not installed
    """
    check_integer("n_episodes", n_episodes)
    minari, path = import_minari(), Path(path).absolute()
    if not DATASET_NAME.fullmatch(path.name):
        raise ValueError(f"path={str(path)!r}: the folder's name must be letters, digits, - and _, and end in -v<number>")
    if path.exists():
        raise ValueError(f"path={str(path)!r}: there is such a folder already, choose another name or version")
    env = gym.make(env) if isinstance(env, str) else env
    if env.action_space != model.action_space:
        raise ValueError(f"the environment's action space is {env.action_space}, the model's {model.action_space}")
    vec_normalize = model.get_vec_normalize_env()
    path.parent.mkdir(parents=True, exist_ok=True)
    with datasets_in(path.parent), warnings.catch_warnings():
        # It asks for an author, a licence and the like
        warnings.filterwarnings("ignore", category=UserWarning, module="minari")
        collector = minari.DataCollector(env)
        for episode in range(n_episodes):
            obs, _ = collector.reset(seed=None if seed is None else seed + episode)
            ended = False
            while not ended:
                seen = obs if vec_normalize is None else vec_normalize.normalize_obs(obs)
                action, _ = model.predict(seen, deterministic=deterministic)
                # One category is a number to an environment, and an array to the model
                obs, _, terminated, truncated, _ = collector.step(int(action) if np.ndim(action) == 0 else action)
                ended = terminated or truncated
        return collector.create_dataset(path.name, algorithm_name=type(model).__name__)


@contextmanager
def datasets_in(folder: Path) -> Iterator[None]:
    """
    :param folder: where minari keeps its data sets in the meantime
    """
    before = os.environ.get(DATASETS_PATH)
    os.environ[DATASETS_PATH] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[DATASETS_PATH]
        else:
            os.environ[DATASETS_PATH] = before
