"""
Several good actions at once: SAC and DiffSAC on a double well and on four goals.

Writes to ``multimodal/``: the models, ``multimodal.json`` with the share of every mode, and ``multimodal.png`` with the action
distributions at one state, trajectories, and the shares.

Example::

    python examples/multimodal.py
"""

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch as th
from stable_baselines3 import SAC

from sb3_diffusion import DiffSAC
from sb3_diffusion.analysis import mode_coverage, plot_action_distribution, plot_trajectories
from sb3_diffusion.common.envs.turning import HEADINGS

WELL, GOALS = "TurningDoubleWell-v0", "MultiGoal-v0"
# One critic: the minimum of two is lower on the side where the policy rarely goes, and so keeps it away
SMALL: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[64, 64], n_critics=1), learning_rate=2e-3)
# The prior is about as wide as the modes are apart. The forward KL weighs the modes against each other, where the reverse
# one lets go of the weaker
CHAIN: dict[str, Any] = dict(diffusion_steps=8, prior_std=0.5, divergence="forward", n_action_samples=4)
# Entropy that one narrow mode cannot have, so that the automatic temperature asks for both; the cold runs have a fixed one
WARM: dict[str, Any] = dict(SMALL, target_entropy=-0.6)
COLD: dict[str, Any] = dict(SMALL, ent_coef=0.02)
# Rewards of some tens a step want temperatures of that order
HOT: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[64, 64]), learning_rate=1e-3, ent_coef="auto_30", target_entropy=0.5)
RUNS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "well, SAC": (WELL, "sac", 8000, WARM),
    "well, DiffSAC": (WELL, "diffsac", 8000, {**WARM, **CHAIN}),
    "well, SAC, cold": (WELL, "sac", 5000, COLD),
    "well, DiffSAC, cold": (WELL, "diffsac", 5000, {**COLD, **CHAIN}),
    "goals, SAC": (GOALS, "sac", 6000, HOT),
    "goals, DiffSAC": (GOALS, "diffsac", 6000, {**HOT, **CHAIN}),
}


def train(task: tuple[str, float, int, Path]) -> str:
    """
    :param task: name of the run, share of its steps, seed, folder
    :return: name of the run
    """
    name, share, seed, folder = task
    env_id, algo, steps, kwargs = RUNS[name]
    steps = int(steps * share)
    th.set_num_threads(1)
    started = time.perf_counter()
    algorithm = DiffSAC if algo == "diffsac" else SAC
    model = algorithm("MlpPolicy", gym.make(env_id), seed=seed, device="cpu", **kwargs).learn(steps)
    model.save(folder / name.replace(", ", "_"))
    print(f"{name}: trained for {steps} steps in {time.perf_counter() - started:.0f} s", flush=True)
    return name


def load(name: str, folder: Path) -> SAC | DiffSAC:
    """
    :param name: name of the run
    :param folder: where the models stand
    :return: the trained model
    """
    algorithm = DiffSAC if RUNS[name][1] == "diffsac" else SAC
    return algorithm.load(folder / name.replace(", ", "_"), device="cpu")


def draw(models: dict[str, SAC | DiffSAC], coverage: dict[str, dict[str, Any]], path: Path) -> None:
    """
    :param models: trained models by name
    :param coverage: output of ``mode_coverage`` by name
    :param path: where the picture goes
    """
    figure, axes = plt.subplots(3, len(models), figsize=(3.2 * len(models), 9))
    for (top, middle, bottom), (name, model) in zip(axes.T, models.items(), strict=True):
        env = gym.make(RUNS[name][0])
        is_well = RUNS[name][0] == WELL
        obs = HEADINGS[0].astype(np.float32) if is_well else np.zeros(2, dtype=np.float32)
        plot_action_distribution(model, obs, top)
        top.set_title(name)
        options = dict(heading=0) if is_well else dict(position=[0.0, 0.0])
        plot_trajectories(model, env, middle, options=options, max_steps=8 if is_well else 100)
        shares = coverage[name]["shares"]
        bottom.bar(np.arange(len(shares)), shares)
        bottom.axhline(0.5 if is_well else 0.25, color="black", linewidth=0.8)
        labels = [f"{45 * heading}°" for heading in range(8)] if is_well else ["right", "left", "up", "down"]
        bottom.set_xticks(np.arange(len(shares)), labels, fontsize=7)
        bottom.set(
            ylim=(0, 1), xlabel="heading" if is_well else "goal aimed at", ylabel="share of a > 0" if is_well else "share"
        )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Train, measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="share of the steps to train for; less is for a quick look")
    parser.add_argument("--seed", type=int, default=0, help="seed of all the runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--folder", type=Path, default=Path("multimodal"), help="where the results go")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    tasks = [(name, args.share, args.seed, args.folder) for name in RUNS]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        pool.map(train, tasks, chunksize=1)
    models = {name: load(name, args.folder) for name in RUNS}
    coverage = {name: mode_coverage(model, RUNS[name][0]) for name, model in models.items()}
    for name, measured in coverage.items():
        print(f"{name}: " + "; ".join(f"{key} {np.round(value, 3)}" for key, value in measured.items()))
    as_lists = {name: {key: np.asarray(value).tolist() for key, value in c.items()} for name, c in coverage.items()}
    (args.folder / "multimodal.json").write_text(json.dumps(as_lists, indent=1) + "\n")
    draw(models, coverage, args.folder / "multimodal.png")
    print(f"Picture: {args.folder / 'multimodal.png'}")


if __name__ == "__main__":
    main()
