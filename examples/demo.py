"""
Train DiffCrossQ on Pendulum-v1 until it balances, and draw what it has learned.

Writes to ``demo/``: the model, the training curve as CSV, and ``demo.png`` with the learning curve and the policy's
actions at four states.

Example::

    python examples/demo.py
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.results_plotter import load_results

from sb3_diffusion import DiffCrossQ

# A pendulum that is swung up and held costs less than this in 200 steps
BALANCES = -250
STATES = {"hanging down": (np.pi, 0.0), "swinging up": (2.0, 3.0), "nearly upright": (0.3, 0.0), "balanced": (0.0, 0.0)}


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


def draw(model: DiffCrossQ, folder: Path) -> Path:
    """
    Draw the learning curve and the distribution of actions at a few states.

    :param model: trained model
    :param folder: where the training's ``monitor.csv`` stands and the picture goes
    :return: path of the picture
    """
    figure, (curve_axis, *state_axes) = plt.subplots(
        1, 1 + len(STATES), figsize=(16, 3.2), width_ratios=[2] + [1] * len(STATES)
    )
    episodes = load_results(str(folder))
    curve_axis.plot(episodes["l"].cumsum(), episodes["r"], ".-")
    curve_axis.set(xlabel="environment steps", ylabel="return of the episode", title="DiffCrossQ on Pendulum-v1")
    curve_axis.grid(alpha=0.3)
    for axis, (name, (angle, velocity)) in zip(state_axes, STATES.items(), strict=True):
        axis.hist(sample_actions(model, angle, velocity), bins=40, range=(-2, 2), density=True)
        axis.set(xlabel="torque [N m]", title=name, yticks=[])
    figure.tight_layout()
    path = folder / "demo.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def main() -> None:
    """Train, evaluate, save and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4_000, help="steps of the environment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where the results go")
    args = parser.parse_args()
    # The networks are too small to gain from a second thread
    th.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)

    env = make_vec_env("Pendulum-v1", seed=args.seed, monitor_dir=str(args.folder))
    eval_env = make_vec_env("Pendulum-v1", seed=args.seed + 1000)
    model = DiffCrossQ("MlpPolicy", env, seed=args.seed)
    before = evaluate_policy(model, eval_env, n_eval_episodes=10)
    print(f"Mean return of 10 episodes before training: {before[0]:.0f} +- {before[1]:.0f}")
    model.learn(args.steps, progress_bar=True)
    eval_env.seed(args.seed + 1000)
    after = evaluate_policy(model, eval_env, n_eval_episodes=10)
    print(f"Mean return of 10 episodes after {args.steps} steps: {after[0]:.0f} +- {after[1]:.0f}")
    balances = np.mean(after[0]) > BALANCES
    print("It balances." if balances else f"It does not balance yet, for which it takes {BALANCES}: give it more --steps.")

    model.save(args.folder / "diffcrossq_pendulum")
    print(f"Model: {args.folder / 'diffcrossq_pendulum.zip'}")
    print(f"Picture: {draw(model, args.folder)}")


if __name__ == "__main__":
    main()
