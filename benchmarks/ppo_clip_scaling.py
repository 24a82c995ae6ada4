"""
How the number of updates, the number of denoising steps and the clip range of DiffPPO interact, on InvertedPendulum-v5
(the second open question of DMERL, arXiv 2512.02019).

Example::

    python benchmarks/ppo_clip_scaling.py --figure docs/_static/ppo_clip_scaling.png
"""

import argparse
import itertools
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

ENV, STEPS = "InvertedPendulum-v5", 16_384
DIFFUSION_STEPS, CLIP_RANGES, EPOCHS, SEEDS = (2, 10), (0.02, 0.1, 0.5), (3, 10), (0, 1)
FOLDER = RESULTS / "ppo_clip_scaling"


class UpdateStatistics(BaseCallback):
    """What each update logs of its size."""

    def __init__(self) -> None:
        super().__init__()
        self.logs: dict[str, list[float]] = {"train/approx_kl": [], "train/clip_fraction": []}

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        for key, values in self.logs.items():
            if key in self.model.logger.name_to_value:
                values.append(float(self.model.logger.name_to_value[key]))


def train(diffusion_steps: int, clip_range: float, n_epochs: int, seed: int) -> dict[str, Any]:
    """
    :param diffusion_steps: number of denoising steps K
    :param clip_range: clip range
    :param n_epochs: passes over each rollout
    :param seed: seed
    :return: mean return at the end, mean KL of one denoising step and clip fraction over training
    """
    from sb3_diffusion import DiffPPO

    statistics = UpdateStatistics()
    kwargs: dict[str, Any] = dict(diffusion_steps=diffusion_steps, clip_range=clip_range, n_epochs=n_epochs)
    model = DiffPPO("MlpPolicy", ENV, seed=seed, device="cpu", **kwargs)
    # The logger is emptied at every dump
    model.learn(STEPS, callback=statistics, log_interval=None)  # type: ignore[arg-type]
    returns, _ = evaluate_policy(model, make_vec_env(ENV, seed=10_000), 10, return_episode_rewards=True)
    return {"return": float(np.mean(returns)), **{key: float(np.mean(values)) for key, values in statistics.logs.items()}}


def path_of(diffusion_steps: int, clip_range: float, n_epochs: int, seed: int) -> Path:
    """
    :param diffusion_steps: number of denoising steps K
    :param clip_range: clip range
    :param n_epochs: passes over each rollout
    :param seed: seed
    :return: where the result stands
    """
    return FOLDER / f"K{diffusion_steps}_clip{clip_range}_epochs{n_epochs}_seed{seed}.json"


def report(figure: Path | None) -> None:
    """
    Print the table and draw the figure.

    :param figure: where the picture goes, none if None
    """
    panels = (("return", "mean return"), ("train/approx_kl", "KL of one step, nats"), ("train/clip_fraction", "clip fraction"))
    fig, axes = plt.subplots(1, len(panels), figsize=(13, 3.6))
    print(
        "| K | epochs | "
        + " | ".join(f"clip {clip}" for clip in CLIP_RANGES)
        + " |\n"
        + "| --- " * (2 + len(CLIP_RANGES))
        + "|"
    )
    for diffusion_steps, n_epochs in itertools.product(DIFFUSION_STEPS, EPOCHS):
        runs = [
            [json.loads(path_of(diffusion_steps, clip, n_epochs, seed).read_text()) for seed in SEEDS] for clip in CLIP_RANGES
        ]
        means = {key: [float(np.mean([run[key] for run in of_clip])) for of_clip in runs] for key, _ in panels}
        cells = [f"{mean:.0f} ({kl:.3f})" for mean, kl in zip(means["return"], means["train/approx_kl"], strict=True)]
        print(f"| {diffusion_steps} | {n_epochs} | " + " | ".join(cells) + " |")
        for axis, (key, label) in zip(axes, panels, strict=True):
            axis.plot(
                CLIP_RANGES,
                means[key],
                "o-" if n_epochs == max(EPOCHS) else "o--",
                label=f"K = {diffusion_steps}, {n_epochs} epochs",
            )
            axis.set(xscale="log", xlabel="clip range", ylabel=label)
            axis.set_xticks(CLIP_RANGES, [str(clip) for clip in CLIP_RANGES])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    axes[1].set_yscale("log")
    axes[0].legend(fontsize=7)
    fig.suptitle(f"DiffPPO on {ENV}, {STEPS:,} steps")
    fig.tight_layout()
    if figure:
        figure.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(figure, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--figure", type=Path, help="where the picture goes; none if left out")
    args = parser.parse_args()
    names = ("diffusion_steps", "clip_range", "n_epochs", "seed")
    grid = [dict(zip(names, values, strict=True)) for values in itertools.product(DIFFUSION_STEPS, CLIP_RANGES, EPOCHS, SEEDS)]
    run_all(train, {path_of(**settings): settings for settings in grid}, args.jobs)  # type: ignore[arg-type]
    report(args.figure)
