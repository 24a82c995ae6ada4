"""
Tables and figures of a campaign's results.

Example::

    python -m benchmarks.report benchmarks/results/learning_curves.csv --envs HalfCheetah-v5 --figure halfcheetah.png
    python -m benchmarks.report benchmarks/results/campaign.csv --aggregate --figure campaign.png
"""

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from sb3_diffusion.analysis.results import curves, markdown, read_results, select
from sb3_diffusion.analysis.sweep import add_cost, at_cost

# Return that counts as a score of 1: CrossQ's after 100,000 steps, Gymnasium's v4 tasks, ten seeds, from the CSV files of the
# SimbaV2 repository. A return of 0 is a score of 0
REFERENCE = {"HalfCheetah-v5": 8112, "Hopper-v5": 2764, "Walker2d-v5": 3914, "Ant-v5": 2299, "Humanoid-v5": 2603}
REPETITIONS = 2000
# rliable passes a keyword that arch is going to drop
warnings.filterwarnings("ignore", category=FutureWarning, module="arch")


def cell(values: pd.Series, n_seeds: int, form: str = ".0f") -> str:
    """
    :param values: a number of each seed, NaN where it is not there
    :param n_seeds: number of seeds that the row has
    :param form: format of a number
    :return: mean ± standard deviation, with the number of seeds where some are not there
    """
    values = values.dropna()
    if values.empty:
        return ""
    spread = f" ± {values.std():{form}}" if len(values) > 1 else ""
    return f"{values.mean():{form}}{spread}" + (f" ({len(values)})" if len(values) < n_seeds else "")


def tables(results: pd.DataFrame) -> str:
    """
    :param results: a row for each evaluation
    :return: for each environment a Markdown table of the mean return over the seeds and its sample standard deviation, with
        each seed's own at the end. A number in brackets says how many seeds have come so far. The last columns are the mean
        return at the end of actions that are sampled, not deterministic, and where they were measured the entropies there
    """
    pages = []
    for env, of_env in results.groupby("env", sort=False):
        extra = {"entropy": "entropy", "entropy_bound": "its bound"}
        rows = []
        for name, of_name in of_env.groupby("name", sort=False):
            returns = curves(of_name).reindex(columns=np.sort(of_env["step"].unique()))
            row = {"": name, "seeds": len(returns)}
            row |= {f"{step:,}": cell(returns[step], len(returns)) for step in returns}
            ends = of_name[of_name["step"] == of_name["step"].max()].set_index("seed").reindex(of_name["seed"].unique())
            row["each seed at the end"] = ", ".join(f"{value:.0f}" for value in ends["return"]).replace("nan", "-")
            row["sampled actions"] = f"{ends['stochastic_return'].mean():.0f}" if "stochastic_return" in ends else ""
            row |= {title: cell(ends[key], 0, ".1f") for key, title in extra.items() if key in of_env and of_env[key].any()}
            rows.append(row)
        pages.append(f"{env}\n\n{markdown(rows)}")
    return "\n\n".join(pages) or "Nothing has been measured yet"


def figure(results: pd.DataFrame, path: Path) -> None:
    """
    :param results: a row for each evaluation
    :param path: where the picture goes
    """
    envs = list(results["env"].unique())
    fig, axes = plt.subplots(1, len(envs), figsize=(7 if len(envs) == 1 else 4 * len(envs), 4), squeeze=False)
    for env, axis in zip(envs, axes[0], strict=True):
        for name, of_name in select(results, env=[env]).groupby("name", sort=False):
            returns = curves(of_name)
            (line,) = axis.plot(returns.columns, returns.mean(), "o-", label=f"{name} ({len(returns)} seeds)")
            axis.fill_between(returns.columns, returns.min(), returns.max(), color=line.get_color(), alpha=0.15)
        axis.set(xlabel="environment steps", ylabel="return (mean and range over seeds)", title=env)
        axis.grid(alpha=0.3)
        axis.legend()
    save(fig, path)


def save(fig: Any, path: Path) -> None:
    """
    :param fig: figure
    :param path: where it goes
    """
    fig.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120)
    plt.close(fig)


def complete(results: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """
    What the statistics can be made of: runs that have ended, on the tasks of ``REFERENCE`` where each variant has one, with
    the seeds that a variant has on all of these tasks.

    :param results: a row for each evaluation
    :return: rows of each variant, by its name, with a ``score``
    :raises ValueError: if no task is common to all the variants
    """
    results = select(results, env=REFERENCE)
    runs = results.groupby(["name", "env", "seed"])["step"].max()
    ended = runs[runs == runs.max()].reset_index()
    tasks = set.intersection(*(set(of_name["env"]) for _, of_name in ended.groupby("name")), set(results["env"]))
    if not tasks or set(ended["name"]) != set(results["name"]):
        raise ValueError("The variants have no task in common on which each has ended a run: choose fewer with --algos")
    results = select(results, env=tasks).assign(score=lambda rows: rows["return"] / rows["env"].map(REFERENCE))
    variants = {}
    for name, of_name in results.groupby("name", sort=False):
        seeds = ended[(ended["name"] == name) & ended["env"].isin(tasks)].groupby("seed")["env"].nunique()
        variants[str(name)] = select(of_name, seed=seeds.index[seeds == len(tasks)])
        if variants[str(name)].empty:
            raise ValueError(f"{name} has no seed on all of {', '.join(sorted(tasks))}: leave it out of --algos")
    return variants


def score_matrix(rows: pd.DataFrame, measure: Callable[[pd.DataFrame], np.ndarray]) -> np.ndarray:
    """
    :param rows: rows of one variant, with the same seeds on all tasks
    :param measure: what to take of a run's rows, (n,)
    :return: array of shape (seeds, tasks, n)
    """
    by_seed = (of_seed for _, of_seed in rows.groupby("seed"))
    return np.array([[measure(run.sort_values("step")) for _, run in of_seed.groupby("env")] for of_seed in by_seed])


def interquartile_means(scores: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """
    :param scores: (seeds, tasks, n) of each variant
    :return: interquartile mean over seeds and tasks, (n,), and its 95 percent interval by the stratified bootstrap, (2, n),
        of each variant (rliable, arXiv 2108.13264)
    """
    from rliable import library, metrics

    def means(array: np.ndarray) -> np.ndarray:
        # What is not there must not be among the quarters that are cut off
        columns = np.moveaxis(array, -1, 0)
        return np.array([metrics.aggregate_iqm(column) if np.isfinite(column).all() else np.nan for column in columns])

    np.random.seed(0)  # rliable draws from this one, whatever it is given
    return library.get_interval_estimates(scores, means, reps=REPETITIONS)


def improvement(scores: dict[str, np.ndarray]) -> dict[str, tuple[float, ...]]:
    """
    :param scores: (seeds, tasks) of each variant
    :return: probability that a run of the first variant is better than one of another on the same task, and its 95 percent
        interval, by the name of the other (rliable)
    """
    from rliable import library, metrics

    first, *others = scores
    np.random.seed(0)
    pairs = {other: (scores[first], scores[other]) for other in others}
    points, intervals = library.get_interval_estimates(pairs, metrics.probability_of_improvement, reps=REPETITIONS)
    return {other: (float(points[other]), *map(float, intervals[other][:, 0])) for other in others}


def aggregate(results: pd.DataFrame, path: Path, picture: Path | None) -> str:
    """
    :param results: a row for each evaluation
    :param path: CSV file of the campaign
    :param picture: where the picture goes; none if None
    :return: Markdown table over all tasks: interquartile mean of the score at half and at all of the steps and, where the
        cost has been measured, after the first variant's CPU seconds; and the probability of improvement
    """
    variants = complete(results)
    steps = np.sort(next(iter(variants.values()))["step"].unique())
    scores = {name: score_matrix(rows, lambda run: run["score"].to_numpy()) for name, rows in variants.items()}
    points, intervals = interquartile_means(scores)
    better = improvement({name: array[..., -1] for name, array in scores.items()})
    columns = [(f"IQM at {steps[index]:,}", points, intervals, index) for index in (len(steps) // 2 - 1, len(steps) - 1)]
    panels = [("environment steps", steps, points, intervals)]
    costed = {name: add_cost(rows, path) for name, rows in variants.items()}
    if all(len(costed[name]) == len(rows) for name, rows in variants.items()):
        grid = np.linspace(0.1, 1, 10)
        at_seconds = interquartile_means(equal_cost(costed, grid))
        columns.append((f"IQM at the CPU seconds of {next(iter(variants))}", *at_seconds, len(grid) - 1))
        panels.append((f"CPU seconds, 1 is a whole run of {next(iter(variants))}", grid, *at_seconds))
    rows = []
    for name, array in scores.items():
        row = {"": name, "tasks": array.shape[1], "seeds": array.shape[0]}
        for title, means, limits, index in columns:
            low, high = limits[name][:, index]
            row[title] = "" if np.isnan(means[name][index]) else f"{means[name][index]:.2f} [{low:.2f}, {high:.2f}]"
        p = better.get(name)
        row[f"P({next(iter(scores))} is better)"] = "" if p is None else f"{p[0]:.2f} [{p[1]:.2f}, {p[2]:.2f}]"
        rows.append(row)
    if picture:
        fig, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4), squeeze=False)
        for axis, (label, x, means, limits) in zip(axes[0], panels, strict=True):
            for name in means:
                (line,) = axis.plot(x, means[name], "o-", label=f"{name} ({len(scores[name])} seeds)")
                axis.fill_between(x, *limits[name], color=line.get_color(), alpha=0.15)
            axis.set(xlabel=label, ylabel="interquartile mean of the score, 95 percent interval")
            axis.grid(alpha=0.3)
            axis.legend()
        save(fig, picture)
    return markdown(rows)


def equal_cost(variants: dict[str, pd.DataFrame], grid: np.ndarray) -> dict[str, np.ndarray]:
    """
    :param variants: rows of each variant with ``seconds``, the first of which sets the budget of each task
    :param grid: shares of the budget, (n,)
    :return: (seeds, tasks, n) of scores after so many CPU seconds, NaN where the runs of a variant have not had so many
    """
    budgets = next(iter(variants.values())).groupby("env")["seconds"].max()

    def measure(run: pd.DataFrame) -> np.ndarray:
        budget = budgets[run["env"].iloc[0]]
        return np.array([at_cost(run, share * budget, "score") for share in grid])

    return {name: score_matrix(rows, measure) for name, rows in variants.items()}


def main() -> None:
    """Print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path(__file__).parent / "results" / "learning_curves.csv")
    parser.add_argument("--envs", nargs="+", help="environments; all if left out")
    parser.add_argument("--algos", nargs="+", help="names of the runs, in the order of the rows; all if left out")
    parser.add_argument("--aggregate", action="store_true", help="statistics over tasks, of the runs that have ended")
    parser.add_argument("--figure", type=Path, help="where the picture goes; none if left out")
    args = parser.parse_args()
    results = select(read_results(args.results), env=args.envs, name=args.algos)
    if args.algos:
        results = results.sort_values("name", key=lambda names: names.map(args.algos.index), kind="stable")
    if args.aggregate:
        print(aggregate(results, args.results, args.figure))
        return
    print(tables(results))
    if args.figure:
        figure(results, args.figure)


if __name__ == "__main__":
    main()
