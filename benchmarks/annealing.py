"""
Temperature annealing of DiffPPO, fast, medium and slow: bound of the policy's entropy and return over time (the third
"next check" of DMERL, arXiv 2512.02019).

Example::

    python benchmarks/annealing.py --figure docs/_static/annealing.png
"""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

from campaign import RESULTS, run_all

import matplotlib  # isort: skip

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

ENV, STEPS, START, END, SEEDS = "InvertedPendulum-v5", 32_768, 0.3, 0.003, (0, 1)
# Share of training after which the temperature has fallen to END, exponentially; None is temperature 0 throughout
SPEEDS = {"none": None, "fast": 0.1, "medium": 0.4, "slow": 1.0}
FOLDER = RESULTS / "annealing"


def temperature(progress_remaining: float, share: float | None) -> float:
    """
    :param progress_remaining: from 1 to 0
    :param share: share of training after which the temperature has fallen to ``END``
    :return: temperature
    """
    if share is None:
        return 0.0
    return float(START * (END / START) ** min(1.0, (1 - progress_remaining) / share))


class Curves(BaseCallback):
    """After each update: entropy bound, temperature, and the return of deterministic actions."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[dict[str, float]] = []
        self.eval_env = make_vec_env(ENV, seed=10_000)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        values = self.model.logger.name_to_value
        if "diffusion/entropy_bound" not in values:
            return
        point = {"step": float(self.num_timesteps), "entropy_bound": float(values["diffusion/entropy_bound"])}
        point["ent_coef"] = float(values["train/ent_coef"])
        returns, _ = evaluate_policy(self.model, self.eval_env, 3, return_episode_rewards=True)
        point["return"] = float(np.mean(returns))
        self.points.append(point)


def train(speed: str, seed: int) -> dict[str, Any]:
    """
    :param speed: key of ``SPEEDS``
    :param seed: seed
    :return: the curves
    """
    from sb3_diffusion import DiffPPO

    curves = Curves()
    ent_coef = functools.partial(temperature, share=SPEEDS[speed])
    model = DiffPPO("MlpPolicy", ENV, seed=seed, device="cpu", ent_coef=ent_coef)
    # The logger is emptied at every dump
    model.learn(STEPS, callback=curves, log_interval=None)  # type: ignore[arg-type]
    return {"points": curves.points}


def path_of(speed: str, seed: int) -> Path:
    """
    :param speed: key of ``SPEEDS``
    :param seed: seed
    :return: where the result stands
    """
    return FOLDER / f"{speed}_seed{seed}.json"


def report(figure: Path | None) -> None:
    """
    Print the table and draw the figure.

    :param figure: where the picture goes, none if None
    """
    panels = (("ent_coef", "temperature"), ("entropy_bound", "entropy bound, nats"), ("return", "return"))
    fig, axes = plt.subplots(1, len(panels), figsize=(13, 3.6))
    lines = []
    for speed in SPEEDS:
        runs = [json.loads(path_of(speed, seed).read_text())["points"] for seed in SEEDS]
        curves = {key: np.mean([[point[key] for point in run] for run in runs], axis=0) for key in runs[0][0]}
        rows = [round(share * len(curves["step"])) - 1 for share in (0.25, 0.5, 0.75, 1.0)]
        header = [f"{name} at {curves['step'][row]:,.0f}" for name in ("entropy", "return") for row in rows]
        cells = [f"{curves['entropy_bound'][row]:.2f}" for row in rows] + [f"{curves['return'][row]:.0f}" for row in rows]
        lines.append(" | ".join([speed, *cells]))
        for axis, (key, label) in zip(axes, panels, strict=True):
            axis.plot(curves["step"], curves[key], "o-", markersize=3, label=speed)
            axis.set(xlabel="environment steps", ylabel=label)
            axis.grid(alpha=0.3)
    for line in (" | ".join(["annealing", *header]), " | ".join(["---"] * (1 + len(header))), *lines):
        print(f"| {line} |")
    axes[0].set_yscale("symlog", linthresh=END)
    axes[0].legend()
    fig.suptitle(f"DiffPPO on {ENV}, mean of {len(SEEDS)} seeds")
    fig.tight_layout()
    if figure:
        figure.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(figure, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--figure", type=Path, help="where the picture goes; none if left out")
    args = parser.parse_args()
    tasks = {path_of(speed, seed): dict(speed=speed, seed=seed) for seed in SEEDS for speed in SPEEDS}
    run_all(train, tasks, args.jobs)
    report(args.figure)
