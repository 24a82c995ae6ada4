"""
Hindsight experience replay with a ``Dict`` observation: move a point to a goal, for a reward that says no more than whether
it is there.

Example::

    python examples/her.py
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_diffusion import DiffSAC

EPISODE = 20


class PointReachEnv(gym.Env):
    """A point in the square [-1, 1]^2, moved by at most 0.2 in each direction. Reward 0 near a goal, -1 elsewhere."""

    def __init__(self) -> None:
        square = spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = spaces.Dict(observation=square, achieved_goal=square, desired_goal=square)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def _observe(self) -> dict[str, np.ndarray]:
        return dict(observation=self.point.copy(), achieved_goal=self.point.copy(), desired_goal=self.goal.copy())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, np.ndarray], dict]:
        super().reset(seed=seed)
        self.point, self.goal = self.np_random.uniform(-1, 1, (2, 2)).astype(np.float32)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.point = np.clip(self.point + 0.2 * action, -1, 1).astype(np.float32)
        return self._observe(), float(self.compute_reward(self.point, self.goal, {})), False, False, {}

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> np.ndarray:
        """
        :param achieved_goal: where the point is, (..., 2)
        :param desired_goal: where it shall be, (..., 2)
        :param info: not used
        :return: 0 closer than 0.1, -1 elsewhere, (...)
        """
        return -(np.linalg.norm(achieved_goal - desired_goal, axis=-1) > 0.1).astype(np.float32)


def make_env() -> gym.Env:
    """
    :return: the task, 20 steps an episode
    """
    return gym.wrappers.TimeLimit(PointReachEnv(), EPISODE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6_000, help="steps of the environment")
    args = parser.parse_args()

    model = DiffSAC(
        "MultiInputPolicy",
        make_vec_env(make_env, seed=0),
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs=dict(n_sampled_goal=4, goal_selection_strategy="future"),
        learning_starts=500,
        learning_rate=1e-3,
        gamma=0.95,
        verbose=1,
        seed=0,
    )
    model.learn(args.steps, progress_bar=True)
    mean_return, _ = evaluate_policy(model, make_vec_env(make_env, seed=1), n_eval_episodes=50)
    print(f"Return: {mean_return:.1f}; -{EPISODE} never gets there")
