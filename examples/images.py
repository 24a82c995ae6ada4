"""
Act from pixels: the policy sees MultiGoal-v0's picture, not its coordinates.

Example::

    python examples/images.py
"""

import argparse

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import AddRenderObservation, TransformObservation
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_diffusion import DiffSAC


def make_env() -> gym.Env:
    """
    :return: MultiGoal-v0 whose observation is its picture, 43 x 43 pixels: every sixth of the 256 in a row
    """
    env = AddRenderObservation(gym.make("sb3_diffusion:MultiGoal-v0", render_mode="rgb_array"), render_only=True)
    return TransformObservation(env, lambda image: image[::6, ::6], spaces.Box(0, 255, (43, 43, 3), np.uint8))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5_000, help="steps of the environment")
    args = parser.parse_args()

    model = DiffSAC(
        "CnnPolicy",
        make_vec_env(make_env, seed=0),
        buffer_size=10_000,  # 43 x 43 x 3 bytes an observation, and as many for the next
        learning_starts=min(500, args.steps // 2),
        batch_size=64,
        ent_coef="auto_10",
        policy_kwargs=dict(features_extractor_kwargs=dict(features_dim=64), share_features_extractor=True),
        verbose=1,
        seed=0,
    )
    model.learn(args.steps, progress_bar=True)
    mean_return, std_return = evaluate_policy(model, make_vec_env(make_env, seed=1), n_eval_episodes=5)
    print(f"Return: {mean_return:.0f} +- {std_return:.0f}")
