"""Entries of an action that must agree: what a product of independent categories cannot say, and a chain can."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_diffusion import DiffPPO


class OneStep(gym.Env):
    """One step in the only state there is; the reward is 1 where the rule says so, else 0."""

    observation_space = spaces.Box(-1, 1, (1,))

    def __init__(self, action_space, rule):
        self.action_space, self.rule = action_space, rule

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        return np.zeros(1, dtype=np.float32), float(self.rule(action)), True, False, {}


def shares(action_space, rule, diffusion_steps, seed=0, total_timesteps=15_360):
    """
    :return: share of each action that is drawn, the most frequent first
    """
    model = DiffPPO(
        "MlpPolicy",
        make_vec_env(lambda: OneStep(action_space, rule), 64),
        n_steps=8,
        batch_size=256,
        learning_rate=5e-3,
        ent_coef="exp_0.5_0.1",
        diffusion_steps=diffusion_steps,
        n_epochs=4,
        seed=seed,
        policy_kwargs=dict(net_arch=[32]),
    ).learn(total_timesteps)
    actions, _ = model.predict(np.zeros((2000, 1), dtype=np.float32))
    kinds, counts = np.unique(actions, axis=0, return_counts=True)
    order = np.argsort(-counts)
    return {tuple(kinds[i].tolist()): counts[i] / 2000 for i in order}


ALL_OR_NONE = spaces.MultiBinary(4), lambda action: action.sum() in (0, 4)


def test_all_or_none():
    found = shares(*ALL_OR_NONE, diffusion_steps=5)
    none, all_ = found.get((0, 0, 0, 0), 0), found.get((1, 1, 1, 1), 0)
    assert min(none, all_) >= 0.3 and none + all_ >= 0.9


def test_a_product_has_one_of_them():
    """One denoising step is PPO's own policy."""
    found = shares(*ALL_OR_NONE, diffusion_steps=1)
    assert min(found.get((0, 0, 0, 0), 0), found.get((1, 1, 1, 1), 0)) < 0.1


def test_equal_categories():
    """Three entries of three categories that must be the same: three actions of 27."""
    found = shares(spaces.MultiDiscrete([3, 3, 3]), lambda action: len(set(action.tolist())) == 1, 5)
    right = [found.get((i, i, i), 0) for i in range(3)]
    assert min(right) >= 0.15 and sum(right) >= 0.85


def test_exactly_one():
    """Exactly one of three bits."""
    found = shares(spaces.MultiBinary(3), lambda action: action.sum() == 1, 5)
    right = [found.get(tuple(np.eye(3, dtype=int)[i].tolist()), 0) for i in range(3)]
    assert min(right) >= 0.1 and sum(right) >= 0.85
    assert sum(found.values()) == pytest.approx(1)
