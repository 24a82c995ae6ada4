"""
Demonstrations first, then reinforcement learning: around an obstacle, by the left or by the right.

Clones two-sided demonstrations by a Gaussian (one denoising step) and by a chain of 20, fine-tunes the chain with DiffPPO, and
writes ``imitation.png`` with 40 trajectories of each.

Example::

    python examples/imitation.py
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_diffusion import DiffPPO
from sb3_diffusion.common.envs.obstacle import ObstacleEnv, demonstrate
from sb3_diffusion.imitation import pretrain


def make_model(diffusion_steps: int, seed: int) -> DiffPPO:
    """
    :param diffusion_steps: number of denoising steps K; 1 is a Gaussian
    :param seed: seed
    :return: a new model
    """
    policy_kwargs: dict[str, Any] = dict(
        net_arch=dict(pi=[128, 128], vf=[128, 128], denoiser=[128, 128]), activation_fn=th.nn.ReLU
    )
    return DiffPPO(
        "MlpPolicy",
        make_vec_env("Obstacle-v0", 4, seed=seed),
        learning_rate=3e-4,
        n_steps=256,
        batch_size=256,
        n_epochs=5,
        gamma=0.95,
        clip_range=0.1,
        critic_warmup_steps=1024,
        policy_kwargs=policy_kwargs,
        diffusion_steps=diffusion_steps,
        prior_std=0.5,
        seed=seed,
        device="cpu",
    )


def run_episodes(model: DiffPPO, n_episodes: int) -> tuple[list[np.ndarray], np.ndarray]:
    """
    :param model: trained model, whose actions are sampled
    :param n_episodes: number of episodes
    :return: trajectories, and for each episode -1 or 1 if it arrives by the left or by the right, else 0
    """
    trajectories, sides = [], np.zeros(n_episodes)
    for episode in range(n_episodes):
        env = ObstacleEnv()
        obs, _ = env.reset(seed=10_000 + episode)
        for _ in range(100):
            obs, reward, terminated, _, _ = env.step(model.predict(obs)[0])
            if terminated:
                break
        trajectories.append(np.array(env.trail))
        sides[episode] = reward * np.sign(trajectories[-1][:, 0].mean())
    return trajectories, sides


def draw(axis: plt.Axes, trajectories: list[np.ndarray], title: str) -> None:
    """
    :param axis: where to draw
    :param trajectories: trajectories, each (T, 2)
    :param title: title
    """
    axis.add_patch(plt.Circle((0, 0), ObstacleEnv.OBSTACLE_RADIUS, color="grey"))
    axis.add_patch(plt.Circle(tuple(ObstacleEnv.GOAL), ObstacleEnv.GOAL_RADIUS, color="green", alpha=0.5))
    for trajectory in trajectories[:40]:
        axis.plot(*trajectory.T, "-o", markersize=2, linewidth=0.6)
    width, height = ObstacleEnv.LIMITS
    axis.set(title=title, xlim=(-width, width), ylim=(-height, height), aspect="equal")


def main() -> None:
    """Clone, fine-tune, measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demonstrations", type=int, default=500, help="episodes of the scripted planner")
    parser.add_argument("--epochs", type=int, default=1000, help="passes over the demonstrations")
    parser.add_argument("--steps", type=int, default=8192, help="steps of the environment to fine-tune for")
    parser.add_argument("--episodes", type=int, default=100, help="episodes of each evaluation")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    parser.add_argument("--folder", type=Path, default=Path("."), help="where the picture goes")
    args = parser.parse_args()
    data = demonstrate(gym.make("Obstacle-v0"), args.demonstrations, seed=args.seed)
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.5))

    def report(name: str, model: DiffPPO, axis: plt.Axes) -> None:
        trajectories, sides = run_episodes(model, args.episodes)
        title = f"{name}: {np.mean(sides != 0):.0%} arrive"
        print(f"{title}, by the left {np.sum(sides < 0)}, by the right {np.sum(sides > 0)} of {args.episodes}", flush=True)
        draw(axis, trajectories, title)

    for axis, (name, diffusion_steps) in zip(axes, {"Gaussian": 1, "Chain": 20}.items(), strict=False):
        model = make_model(diffusion_steps, args.seed)
        pretrain(model, data, epochs=args.epochs, learning_rate=2e-3, patience=None, denoising_steps_per_update=4)
        report(f"{name}, cloned", model, axis)
    report("Chain, fine-tuned", model.learn(args.steps), axes[2])
    figure.tight_layout()
    figure.savefig(args.folder / "imitation.png", dpi=110)
    print(f"Picture: {args.folder / 'imitation.png'}")


if __name__ == "__main__":
    main()
