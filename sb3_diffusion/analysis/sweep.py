"""How many denoising steps are worth their time?"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from stable_baselines3.common.logger import Logger

from sb3_diffusion.analysis.results import curves, markdown, provenance, read_details, write_details
from sb3_diffusion.analysis.runner import Run, run_all


def variants_of(
    variants: dict[str, dict[str, Any] | None],
    env_id: str,
    steps: int,
    seeds: Iterable[int] = (0, 1),
    eval_every: int = 10_000,
    eval_episodes: int = 10,
    measure: str | None = None,
    **kwargs: Any,
) -> list[Run]:
    """
    :param variants: by their names what each has of keyword arguments of its own of DiffSAC, or None for SAC
    :param env_id: environment
    :param steps: steps of the environment of each run
    :param seeds: seeds
    :param eval_every: steps between two evaluations, the last of which is at the end
    :param eval_episodes: episodes of each evaluation
    :param measure: further measurement of the model at each evaluation, see :class:`.Run`
    :param kwargs: keyword arguments of all the variants
    :return: a run of each variant with each seed, seed by seed
    :raises ValueError: see :class:`.Run`
    """
    return [
        Run(
            name,
            "stable_baselines3:SAC" if variant is None else "sb3_diffusion:DiffSAC",
            env_id,
            steps,
            seed,
            {**kwargs, **(variant or {})},
            eval_every=eval_every,
            eval_episodes=eval_episodes,
            measure=measure,
        )
        for seed in seeds
        for name, variant in variants.items()
    ]


def seconds_per_step(runs: list[Run], n_rounds: int = 10, n_steps: int = 50) -> dict[str, float]:
    """
    CPU seconds of a training step, all variants in turn, round by round. Those of whole runs, made at different times, would
    tell what else the machine did meanwhile.

    :param runs: a run of each variant, of off-policy algorithms
    :param n_rounds: number of rounds, after one to warm up
    :param n_steps: steps of the environment of each variant in a round
    :return: seconds by name of the variants: the first's median, times the median over the rounds of the ratio to it
    """
    lengths = dict(learning_starts=n_steps, buffer_size=n_steps * (n_rounds + 2))
    models = {run.name: run.make_model(**lengths) for run in runs}
    measured: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(n_rounds + 2):  # one to fill the buffer, one to warm up
        for name, model in models.items():
            model.set_logger(Logger(None, []))
            started = time.process_time()
            model.learn(n_steps, reset_num_timesteps=False, log_interval=n_steps)
            measured[name].append((time.process_time() - started) / n_steps)
    rounds = {name: np.array(seconds[2:]) for name, seconds in measured.items()}
    first = next(iter(rounds.values()))
    return {name: float(np.median(first) * np.median(seconds / first)) for name, seconds in rounds.items()}


def measure_cost(runs: list[Run], path: str | Path) -> None:
    """
    Measure :func:`seconds_per_step` of all variants on each environment, and keep it in the campaign's JSON file. What is
    there of the same variants is not measured again.

    :param runs: runs of off-policy algorithms
    :param path: CSV file of the campaign
    """
    for task in dict.fromkeys(run.task for run in runs):
        variants = {run.name: run for run in runs if run.task == task}
        details, key = read_details(path), f"{task} seconds per step"
        if not variants.keys() <= details.get(key, {}).get("seconds", {}).keys():
            seconds = seconds_per_step(list(variants.values()))
            write_details(path, {**details, key: {"seconds": seconds, "made_with": provenance()}})


def add_cost(results: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    """
    :param results: a row for each evaluation
    :param path: CSV file of the campaign they are from
    :return: the rows of variants whose cost has been measured, with ``seconds`` of CPU time until each evaluation, which are
        those of a step, times the steps after learning has started
    """
    details = read_details(path)
    rows = []
    for row in results.to_dict("records"):
        per_step = details.get(f"{row['env']} seconds per step", {}).get("seconds", {}).get(row["name"])
        if per_step is not None:
            run = details[f"{row['env']} {row['name']} {row['seed']}"]["run"]
            rows.append({**row, "seconds": per_step * max(0, row["step"] - run["settings"].get("learning_starts", 100))})
    return pd.DataFrame(rows)


def k_sweep(
    env_id: str,
    steps: int,
    path: str | Path,
    diffusion_steps: Iterable[int] = (1, 2, 5, 10, 20),
    n_jobs: int = 1,
    chain_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> pd.DataFrame:
    """
    Train DiffSAC with several numbers of denoising steps, and SAC.

    :param env_id: environment
    :param steps: steps of the environment of each run
    :param path: CSV file of the results; runs that are there are skipped
    :param diffusion_steps: numbers of denoising steps K
    :param n_jobs: runs at a time, in processes of their own; with 1 they run in this process
    :param chain_kwargs: keyword arguments of DiffSAC alone
    :param kwargs: other arguments of :func:`variants_of`
    :return: a row for each evaluation of the runs, which are called ``sac`` or ``diffsac-adjoint_K5`` and so on, with
        ``seconds`` of CPU time until then, by :func:`seconds_per_step`
    :raises ValueError: see :class:`.Run` and :func:`.run_all`
    """
    chain_kwargs = chain_kwargs or {}
    estimator = chain_kwargs.get("actor_loss", "adjoint")
    variants = {f"diffsac-{estimator}_K{k}": dict(chain_kwargs, diffusion_steps=k) for k in diffusion_steps}
    runs = variants_of({"sac": None, **variants}, env_id, steps, **kwargs)
    results = run_all(runs, path, n_jobs if n_jobs > 1 else None)
    measure_cost(runs, path)
    return add_cost(results, path)


def at_cost(curve: pd.DataFrame, budget: float, key: str = "return") -> float:
    """
    :param curve: rows of one run, see :func:`add_cost`
    :param budget: CPU seconds
    :param key: column
    :return: its value after so many, between two evaluations by interpolation; NaN before the first and after the last
    """
    return float(np.interp(budget, curve["seconds"], curve[key], left=np.nan, right=np.nan))


def k_sweep_table(results: pd.DataFrame) -> str:
    """
    :param results: output of :func:`k_sweep`
    :return: Markdown table of the mean return at the end over the seeds, each seed's, CPU seconds of training, and the return
        after as many seconds as SAC took
    """
    budget = results.loc[results["name"] == "sac", "seconds"].max()
    rows = []
    for name, of_name in results.groupby("name", sort=False):
        returns = curves(of_name).iloc[:, -1]
        at_budget = [at_cost(of_run, budget) for _, of_run in of_name.groupby("seed")]
        rows.append(
            {
                "run": name,
                "steps": f"{of_name['step'].max():,}",
                "return": f"{returns.mean():.0f}",
                "each seed": ", ".join(f"{value:.0f}" for value in returns),
                "CPU seconds": f"{of_name['seconds'].max():.0f}",
                "return after SAC's CPU seconds": f"{np.mean(at_budget):.0f}",
            }
        )
    return markdown(rows)


def plot_k_sweep(results: pd.DataFrame, path: str | Path, title: str = "") -> None:
    """
    Return against steps of the environment and against CPU seconds, the mean over the seeds and their range.

    :param results: output of :func:`k_sweep`
    :param path: where the picture goes
    :param title: title
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for name, of_name in results.groupby("name", sort=False):
        returns, seconds = curves(of_name), curves(of_name, "seconds").iloc[0]
        for ax, x in zip(axes, (returns.columns, seconds), strict=True):
            (line,) = ax.plot(x, returns.mean(), "o-", label=name)
            ax.fill_between(x, returns.min(), returns.max(), color=line.get_color(), alpha=0.15)
    for ax, label in zip(axes, ("environment steps", "CPU seconds of training"), strict=True):
        ax.set(xlabel=label, ylabel="return", title=title)
        ax.grid(alpha=0.3)
        ax.legend()
    figure.tight_layout()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
