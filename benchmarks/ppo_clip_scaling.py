"""
How the number of updates, the number of denoising steps and the clip range of DiffPPO interact, on InvertedPendulum-v5
(the second open question of DMERL, arXiv 2512.02019).

Example::

    python -m benchmarks.ppo_clip_scaling --figure docs/_static/ppo_clip_scaling.png
"""

from functools import partial
from itertools import product
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd

from benchmarks.command_line import carry_out, make_parser
from sb3_diffusion.analysis.results import markdown
from sb3_diffusion.analysis.runner import Run

ENV, STEPS = "InvertedPendulum-v5", 16_384
DIFFUSION_STEPS, CLIP_RANGES, EPOCHS, SEEDS = (2, 10), (0.02, 0.1, 0.5), (3, 10), (0, 1)


def name_of(diffusion_steps: int, clip_range: float, n_epochs: int) -> str:
    """
    :param diffusion_steps: number of denoising steps K
    :param clip_range: clip range
    :param n_epochs: passes over each rollout
    :return: name of the variant
    """
    return f"K{diffusion_steps}_clip{clip_range}_epochs{n_epochs}"


def make_run(diffusion_steps: int, clip_range: float, n_epochs: int, seed: int) -> Run:
    """
    :param diffusion_steps: number of denoising steps K
    :param clip_range: clip range
    :param n_epochs: passes over each rollout
    :param seed: seed
    :return: a run that is evaluated at the end, with the means over training of the size of an update
    """
    settings = {"diffusion_steps": diffusion_steps, "clip_range": clip_range, "n_epochs": n_epochs}
    # DiffPPO's default when the results were made
    settings["gae_lambda_diffusion"] = round(0.65 ** (1 / max(diffusion_steps - 1, 1)), 4)
    logged, name = ("train/approx_kl", "train/clip_fraction"), name_of(diffusion_steps, clip_range, n_epochs)
    return Run(name, "sb3_diffusion:DiffPPO", ENV, STEPS, seed, settings, eval_every=STEPS, logged=logged)


def report(results: pd.DataFrame, figure: Path | None) -> None:
    """
    Print the table and draw the figure.

    :param results: a row for each evaluation
    :param figure: where the picture goes, none if None
    """
    panels = {"return": "mean return", "train/approx_kl": "KL of one step, nats", "train/clip_fraction": "clip fraction"}
    fig, axes = plt.subplots(1, len(panels), figsize=(13, 3.6))
    means = results.groupby("name")[list(panels)].mean()
    rows = []
    for diffusion_steps, n_epochs in product(DIFFUSION_STEPS, EPOCHS):
        of_clip = means.loc[[name_of(diffusion_steps, clip, n_epochs) for clip in CLIP_RANGES]]
        pairs = zip(CLIP_RANGES, of_clip["return"], of_clip["train/approx_kl"], strict=True)
        cells = {f"clip {clip}": f"{value:.0f} ({kl:.3f})" for clip, value, kl in pairs}
        rows.append({"K": diffusion_steps, "epochs": n_epochs, **cells})
        for axis, (key, label) in zip(axes, panels.items(), strict=True):
            style, title = "o-" if n_epochs == max(EPOCHS) else "o--", f"K = {diffusion_steps}, {n_epochs} epochs"
            axis.plot(CLIP_RANGES, of_clip[key], style, label=title)
            axis.set(xscale="log", xlabel="clip range", ylabel=label)
            axis.set_xticks(CLIP_RANGES, [str(clip) for clip in CLIP_RANGES])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    print(markdown(rows))
    axes[1].set_yscale("log")
    axes[0].legend(fontsize=7)
    fig.suptitle(f"DiffPPO on {ENV}, {STEPS:,} steps")
    fig.tight_layout()
    if figure:
        figure.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(figure, dpi=110)


def main() -> None:
    """Train what is missing, print the table and draw the figure."""
    parser = make_parser(__doc__, "ppo_clip_scaling")
    parser.add_argument("--figure", type=Path, help="where the picture goes; none if left out")
    args = parser.parse_args()
    runs = [make_run(*settings) for settings in product(DIFFUSION_STEPS, CLIP_RANGES, EPOCHS, SEEDS)]
    carry_out(runs, args, partial(report, figure=args.figure))


if __name__ == "__main__":
    main()
