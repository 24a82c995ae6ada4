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
# Automatic temperatures that start at 0.1 of the reward's unit; the cold ones stay at 0.02
RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "well, SAC": (WELL, "sac", dict(ent_coef="auto_0.1")),
    "well, DiffSAC": (WELL, "diffsac", dict(ent_coef="auto_0.1", diffusion_steps=8)),
    "well, SAC, cold": (WELL, "sac", dict(ent_coef=0.02)),
    "well, DiffSAC, cold": (WELL, "diffsac", dict(ent_coef=0.02, diffusion_steps=8)),
    "goals, SAC": (GOALS, "sac", dict(ent_coef="auto_10")),
    "goals, DiffSAC": (GOALS, "diffsac", dict(ent_coef="auto_10", diffusion_steps=8)),
}


def train(task: tuple[str, int, Path]) -> str:
    """
    :param task: name of the run, steps of the environment, folder
    :return: name of the run
    """
    name, steps, folder = task
    env_id, algo, kwargs = RUNS[name]
    th.set_num_threads(1)
    started = time.perf_counter()
    algorithm = DiffSAC if algo == "diffsac" else SAC
    model = algorithm("MlpPolicy", gym.make(env_id), seed=0, device="cpu", **kwargs).learn(steps)
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
    parser.add_argument("--steps", type=int, default=5_000, help="steps of the environment, for each run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--folder", type=Path, default=Path("multimodal"), help="where the results go")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    tasks = [(name, args.steps, args.folder) for name in RUNS]
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
