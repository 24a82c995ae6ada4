"""
Temperature annealing of DiffPPO, fast, medium and slow: bound of the policy's entropy and return over time (the third
"next check" of DMERL, arXiv 2512.02019).

Example::

    python -m benchmarks.annealing --figure docs/_static/annealing.png
"""

from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd

from benchmarks.command_line import carry_out, make_parser
from sb3_diffusion.analysis.results import curves, markdown, select
from sb3_diffusion.analysis.runner import Run

ENV, STEPS, START, END, SEEDS = "InvertedPendulum-v5", 32_768, 0.3, 0.003, (0, 1)
N_STEPS = 2048  # of a rollout, DiffPPO's default


def temperature(progress_remaining: float, share: float) -> float:
    """
    :param progress_remaining: from 1 to 0
    :param share: share of training after which the temperature has fallen to ``END``, exponentially
    :return: temperature
    """
    return float(START * (END / START) ** min(1.0, (1 - progress_remaining) / share))


fast, medium, slow = (partial(temperature, share=share) for share in (0.1, 0.4, 1.0))
SPEEDS = {"none": 0.0, **{name: f"benchmarks.annealing:{name}" for name in ("fast", "medium", "slow")}}


def make_run(speed: str, seed: int) -> Run:
    """
    :param speed: key of ``SPEEDS``
    :param seed: seed
    :return: a run that is evaluated after each update
    """
    logged = ("diffusion/entropy_bound", "train/ent_coef")
    settings = {"ent_coef": SPEEDS[speed]}
    return Run(speed, "sb3_diffusion:DiffPPO", ENV, STEPS, seed, settings, 1, N_STEPS, eval_episodes=3, logged=logged)


def report(results: pd.DataFrame, figure: Path | None) -> None:
    """
    Print the table and draw the figure.

    :param results: a row for each evaluation
    :param figure: where the picture goes, none if None
    """
    panels = {"train/ent_coef": "temperature", "diffusion/entropy_bound": "entropy bound, nats", "return": "return"}
    fig, axes = plt.subplots(1, len(panels), figsize=(13, 3.6))
    rows = []
    for speed in SPEEDS:
        means = {key: curves(select(results, name=[speed]), key).mean() for key in panels}
        row = {"annealing": speed}
        for title, key, form in (("entropy", "diffusion/entropy_bound", ".2f"), ("return", "return", ".0f")):
            row |= {f"{title} at {step:,}": f"{means[key][step]:{form}}" for step in (8192, 16_384, 22_528, 30_720)}
        rows.append(row)
        for axis, (key, label) in zip(axes, panels.items(), strict=True):
            axis.plot(means[key].index, means[key], "o-", markersize=3, label=speed)
            axis.set(xlabel="environment steps", ylabel=label)
            axis.grid(alpha=0.3)
    print(markdown(rows))
    axes[0].set_yscale("symlog", linthresh=END)
    axes[0].legend()
    fig.suptitle(f"DiffPPO on {ENV}, mean of {len(SEEDS)} seeds")
    fig.tight_layout()
    if figure:
        figure.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(figure, dpi=110)


def main() -> None:
    """Train what is missing, print the table and draw the figure."""
    parser = make_parser(__doc__, "annealing")
    parser.add_argument("--figure", type=Path, help="where the picture goes; none if left out")
    args = parser.parse_args()
    runs = [make_run(speed, seed) for seed in SEEDS for speed in SPEEDS]
    carry_out(runs, args, partial(report, figure=args.figure))


if __name__ == "__main__":
    main()
