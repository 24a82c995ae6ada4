"""
Two things to see in a few minutes: DiffCrossQ learns to balance a pendulum, and where two actions are equally good DiffSAC
learns both of them and SAC one.

Writes to ``demo/``: the models, the training curve as CSV, and ``demo.png`` with the learning curve and the policy's actions
at four states of the pendulum, the actions of SAC and DiffSAC side by side, and walks that they take.

Example::

    python examples/demo.py
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch as th
from matplotlib.axes import Axes
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.results_plotter import load_results

from sb3_diffusion import DiffCrossQ, DiffSAC
from sb3_diffusion.analysis import mode_coverage
from sb3_diffusion.diffsac import MULTIMODAL_KWARGS

# A pendulum that is swung up and held costs less than this in 200 steps
BALANCES = -250
STATES = {"hanging down": (np.pi, 0.0), "swinging up": (2.0, 3.0), "nearly upright": (0.3, 0.0), "balanced": (0.0, 0.0)}
WELL = "TurningDoubleWell-v0"
# The same networks, learning rate, entropy and critics for both
SHARED: dict[str, Any] = dict(learning_rate=2e-3, target_entropy=-0.6, policy_kwargs=dict(net_arch=[64, 64], n_critics=1))


def sample_actions(model: DiffCrossQ, angle: float, velocity: float, n_samples: int = 2000) -> np.ndarray:
    """
    :param model: trained model
    :param angle: angle of the pendulum from upright, in radians
    :param velocity: angular velocity, in radians per second
    :param n_samples: number of actions
    :return: torques that the policy samples at this state, in newton metres, (n_samples,)
    """
    obs = np.tile(np.array([np.cos(angle), np.sin(angle), velocity], dtype=np.float32), (n_samples, 1))
    return model.predict(obs, deterministic=False)[0][:, 0]


def train_pendulum(steps: int, seed: int, folder: Path) -> DiffCrossQ:
    """
    :param steps: steps of the environment
    :param seed: seed
    :param folder: where ``monitor.csv`` and the model go
    :return: the trained model
    """
    env = make_vec_env("Pendulum-v1", seed=seed, monitor_dir=str(folder))
    eval_env = make_vec_env("Pendulum-v1", seed=seed + 1000)
    model = DiffCrossQ("MlpPolicy", env, seed=seed)
    before = evaluate_policy(model, eval_env, n_eval_episodes=10)
    print(f"Pendulum-v1, mean return of 10 episodes before training: {before[0]:.0f} +- {before[1]:.0f}")
    model.learn(steps, progress_bar=True)
    eval_env.seed(seed + 1000)
    after = evaluate_policy(model, eval_env, n_eval_episodes=10)
    print(f"Mean return of 10 episodes after {steps} steps: {after[0]:.0f} +- {after[1]:.0f}")
    balances = np.mean(after[0]) > BALANCES
    print("It balances." if balances else f"It does not balance yet, for which it takes {BALANCES}: give it more --steps.")
    model.save(folder / "diffcrossq_pendulum")
    print(f"Model: {folder / 'diffcrossq_pendulum.zip'}")
    return model


def train_two_wells(steps: int, seed: int, folder: Path) -> dict[str, SAC | DiffSAC]:
    """
    :param steps: steps of the environment, for each of two
    :param seed: seed
    :param folder: where the models go
    :return: SAC and DiffSAC, trained where the actions -0.5 and 0.5 are equally good
    """
    models: dict[str, SAC | DiffSAC] = {
        "SAC": SAC("MlpPolicy", WELL, seed=seed, **SHARED),
        "DiffSAC": DiffSAC("MlpPolicy", WELL, seed=seed, **{**MULTIMODAL_KWARGS, **SHARED}),
    }
    for name, model in models.items():
        print(f"{WELL}, where -0.5 and 0.5 are equally good, {name}:")
        model.learn(steps, progress_bar=True)
        coverage = mode_coverage(model, WELL)
        low, high = coverage["shares"].min(), coverage["shares"].max()
        print(f"From {low:.0%} to {high:.0%} of its actions are right turns, by heading; mean reward {coverage['reward']:.3f}")
        model.save(folder / f"{name.lower()}_two_wells")
    return models


def draw_actions(model: SAC | DiffSAC, name: str, axis: Axes) -> None:
    """
    :param model: trained model
    :param name: its name
    :param axis: where the distribution of its actions goes, beside the reward
    """
    env: Any = gym.make(WELL).unwrapped
    obs = np.tile(env.reset(options=dict(heading=0))[0], (2000, 1))
    axis.hist(model.predict(obs, deterministic=False)[0][:, 0], bins=60, range=(-1, 1), density=True, label="actions")
    actions = np.linspace(-1, 1, 200)
    axis.plot(actions, env.reward(actions, 0), "k", linewidth=1, label="reward")
    axis.set(xlabel="action", title=name, yticks=[])
    axis.legend(fontsize=7, loc="lower center")


def draw_walks(model: SAC | DiffSAC, name: str, axis: Axes, n_walks: int = 3) -> None:
    """
    :param model: trained model
    :param name: its name
    :param axis: where pictures of walks from the same start go, side by side
    :param n_walks: number of walks
    """
    frames: list[np.ndarray] = []
    for _ in range(n_walks):
        env: Any = gym.make(WELL, render_mode="rgb_array").unwrapped
        obs, _ = env.reset(options=dict(heading=0))
        for _ in range(10):
            obs, *_ = env.step(model.predict(obs, deterministic=False)[0])
        frames.append(env.render())
    axis.imshow(np.concatenate(frames, axis=1))
    axis.set(title=f"{name}: {n_walks} walks of 10 turns", xticks=[], yticks=[])


def draw(pendulum: DiffCrossQ, two_wells: dict[str, SAC | DiffSAC], folder: Path) -> Path:
    """
    :param pendulum: output of :func:`train_pendulum`
    :param two_wells: output of :func:`train_two_wells`
    :param folder: where the training's ``monitor.csv`` stands and the picture goes
    :return: path of the picture
    """
    figure = plt.figure(figsize=(16, 6.6))
    parts: Any = figure.subfigures(2, 1)
    upper, lower = parts
    curve_axis, *state_axes = upper.subplots(1, 1 + len(STATES), width_ratios=[2] + [1] * len(STATES))
    upper.subplots_adjust(bottom=0.18)
    episodes = load_results(str(folder))
    curve_axis.plot(episodes["l"].cumsum(), episodes["r"], ".-")
    curve_axis.set(xlabel="environment steps", ylabel="return of the episode", title="DiffCrossQ on Pendulum-v1")
    curve_axis.grid(alpha=0.3)
    for axis, (name, (angle, velocity)) in zip(state_axes, STATES.items(), strict=True):
        axis.hist(sample_actions(pendulum, angle, velocity), bins=40, range=(-2, 2), density=True)
        axis.set(xlabel="torque [N m]", title=name, yticks=[])
    axes = lower.subplots(1, 4, width_ratios=[1, 1, 1.6, 1.6])
    lower.subplots_adjust(bottom=0.18, top=0.8)
    lower.suptitle(f"{WELL}: the actions -0.5 and 0.5 are equally good")
    for index, (name, model) in enumerate(two_wells.items()):
        draw_actions(model, name, axes[index])
        draw_walks(model, name, axes[2 + index])
    path = folder / "demo.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def main() -> None:
    """Train, evaluate, save and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4_000, help="steps on the pendulum")
    parser.add_argument("--two-wells-steps", type=int, default=8_000, help="steps of SAC and of DiffSAC on the two wells")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where the results go")
    args = parser.parse_args()
    # The networks are too small to gain from a second thread
    th.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    pendulum = train_pendulum(args.steps, args.seed, args.folder)
    two_wells = train_two_wells(args.two_wells_steps, args.seed, args.folder)
    print(f"Picture: {draw(pendulum, two_wells, args.folder)}")


if __name__ == "__main__":
    main()
