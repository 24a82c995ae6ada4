"""
Tables and figures of the runs that ``benchmarks/learning_curves.py`` has written.

Example::

    python benchmarks/report.py --env HalfCheetah-v5 --figure docs/_static/halfcheetah.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from sb3_diffusion.analysis.evaluation import values

Runs = dict[str, list[dict[str, Any]]]


def load(folder: Path) -> Runs:
    """
    :param folder: where the runs of one environment stand
    :return: runs by name of the algorithm
    """
    runs: Runs = {}
    for path in sorted(folder.glob("*_seed*.json")):
        runs.setdefault(path.stem.rsplit("_seed", 1)[0], []).append(json.loads(path.read_text()))
    return runs


def table(runs: Runs) -> str:
    """
    :param runs: runs by name of the algorithm
    :return: Markdown table of the mean return over the runs and its standard deviation, with each run's own at the end.
        The last column is the mean return at the end of actions that are sampled, not deterministic
    """
    steps = [int(point["step"]) for point in next(iter(runs.values()))[0]["points"]]
    header = ["", *(f"{step:,}" for step in steps), "each seed at the end", "sampled actions"]
    lines = [" | ".join(header), " | ".join("---" for _ in header)]
    for name, of_algo in runs.items():
        returns, sampled = values(of_algo, "return"), values(of_algo, "stochastic_return")
        spread = returns.std(0, ddof=1) if len(returns) > 1 else [None] * len(steps)
        pairs = zip(returns.mean(0), spread, strict=True)
        cells = [f"{mean:.0f}" + ("" if std is None else f" ± {std:.0f}") for mean, std in pairs]
        each = ", ".join(f"{value:.0f}" for value in returns[:, -1])
        lines.append(" | ".join([name, *cells, each, f"{sampled[:, -1].mean():.0f}"]))
    return "\n".join(f"| {line} |" for line in lines)


def figure(runs: Runs, env: str, path: Path) -> None:
    """
    :param runs: runs by name of the algorithm
    :param env: environment, for the title
    :param path: where the picture goes
    """
    fig, axis = plt.subplots(figsize=(7, 4))
    for name, of_algo in runs.items():
        steps, returns = values(of_algo, "step")[0], values(of_algo, "return")
        (line,) = axis.plot(steps, returns.mean(0), "o-", label=f"{name} ({len(of_algo)} seeds)")
        axis.fill_between(steps, returns.min(0), returns.max(0), color=line.get_color(), alpha=0.15)
    axis.set(xlabel="environment steps", ylabel="return (mean and range over seeds)", title=env)
    axis.grid(alpha=0.3)
    axis.legend()
    fig.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120)


def main() -> None:
    """Print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--algos", nargs="+", help="names of the runs; all if left out")
    parser.add_argument("--figure", type=Path, help="where the picture goes; none if left out")
    args = parser.parse_args()
    runs = load(args.results / args.env)
    if args.algos:
        runs = {name: runs[name] for name in args.algos}
    print(table(runs))
    if args.figure:
        figure(runs, args.env, args.figure)


if __name__ == "__main__":
    main()
