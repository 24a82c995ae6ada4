"""How many denoising steps are worth their time?"""

import copy
import multiprocessing
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger

from sb3_diffusion.analysis.evaluation import (
    EvaluationPoints,
    Measure,
    markdown,
    stored_result,
    train_and_evaluate,
    values,
)
from sb3_diffusion.diffsac.diffsac import DiffSAC

Runs = dict[str, list[dict[str, Any]]]


def _make_model(env_id: str, variant: dict[str, Any] | None, seed: int, kwargs: dict[str, Any]) -> BaseAlgorithm:
    kwargs = copy.deepcopy(kwargs)  # SAC adds to the policy_kwargs it is given
    if variant is None:
        return SAC("MlpPolicy", env_id, seed=seed, device="cpu", **kwargs)
    return DiffSAC("MlpPolicy", env_id, seed=seed, device="cpu", **variant, **kwargs)


def _run(
    path: Path,
    env_id: str,
    variant: dict[str, Any] | None,
    seed: int,
    n_steps: int,
    eval_every: int,
    eval_episodes: int,
    measure: Measure | None,
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    settings: dict[str, Any] = dict(env=env_id, seed=seed, steps=n_steps, eval_every=eval_every, eval_episodes=eval_episodes)
    settings |= {**kwargs, **(variant or {})}
    make_model = partial(_make_model, env_id, variant, seed, kwargs)
    callback = partial(EvaluationPoints, env_id, eval_every, eval_episodes, measure=measure, name=path.stem)
    return stored_result(path, settings, partial(train_and_evaluate, make_model, n_steps, callback))


def compare(
    variants: dict[str, dict[str, Any] | None],
    env_id: str,
    n_steps: int,
    folder: str | Path,
    seeds: Iterable[int] = (0, 1),
    eval_every: int = 10_000,
    eval_episodes: int = 10,
    n_jobs: int = 1,
    measure: Measure | None = None,
    **kwargs: Any,
) -> Runs:
    """
    Train variants of DiffSAC. Each run is written when it ends, and is read when its file is there.

    :param variants: by their names what each has of keyword arguments of its own of DiffSAC, or None for SAC
    :param env_id: environment
    :param n_steps: steps of the environment of each run
    :param folder: where the results stand, one file a run in a folder of the environment's name
    :param seeds: seeds
    :param eval_every: steps between two evaluations, the last of which is at the end
    :param eval_episodes: episodes of each evaluation
    :param n_jobs: runs at a time, in processes of their own with one thread each; with 1 they run in this process
    :param measure: what else to measure at each evaluation
    :param kwargs: keyword arguments of all the variants
    :return: results by name of the variants
    :raises ValueError: if ``n_steps`` is not a multiple of ``eval_every``, or a result is there that was made with other
        settings
    """
    if n_steps < 1 or n_steps % eval_every != 0:
        raise ValueError(f"n_steps={n_steps} must be a multiple of eval_every={eval_every}, so that the end is measured")
    place = Path(folder) / env_id.split(":")[-1]
    tasks = [
        (place / f"{name}_seed{seed}.json", env_id, variant, seed, n_steps, eval_every, eval_episodes, measure, kwargs)
        for seed in seeds
        for name, variant in variants.items()
    ]
    if n_jobs == 1:
        results = [_run(*task) for task in tasks]
    else:
        # Spawned processes import what they need, and PyTorch's threads are set before the first run
        context = multiprocessing.get_context("spawn")
        with context.Pool(n_jobs, th.set_num_threads, (1,), maxtasksperchild=1) as pool:
            results = pool.starmap(_run, tasks, chunksize=1)
    runs: Runs = {name: [] for name in variants}
    for (path, *_), result in zip(tasks, results, strict=True):
        runs[path.stem.rsplit("_seed", 1)[0]].append(result)
    return runs


def seconds_per_step(
    variants: dict[str, dict[str, Any] | None], env_id: str, n_rounds: int = 10, n_steps: int = 50, **kwargs: Any
) -> dict[str, float]:
    """
    CPU seconds of a training step, all variants in turn, round by round. Those of whole runs, made at different times, would
    tell what else the machine did meanwhile.

    :param variants: see :func:`compare`
    :param env_id: environment
    :param n_rounds: number of rounds, after one to warm up
    :param n_steps: steps of the environment of each variant in a round
    :param kwargs: keyword arguments of all the variants
    :return: seconds by name of the variants: the first's median, times the median over the rounds of the ratio to it
    """
    kwargs = {**kwargs, "learning_starts": n_steps, "buffer_size": n_steps * (n_rounds + 2)}
    models = {name: _make_model(env_id, variant, 0, kwargs) for name, variant in variants.items()}
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


def k_sweep(
    env_id: str,
    n_steps: int,
    folder: str | Path,
    diffusion_steps: Iterable[int] = (1, 2, 5, 10, 20),
    eval_every: int = 10_000,
    eval_episodes: int = 10,
    seeds: Iterable[int] = (0, 1),
    n_jobs: int = 1,
    chain_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Runs:
    """
    Train DiffSAC with several numbers of denoising steps, and SAC.

    :param env_id: environment
    :param n_steps: steps of the environment of each run
    :param folder: where the results stand, see :func:`compare`; the seconds in ``seconds_K<K>_<K>....json`` there
    :param diffusion_steps: numbers of denoising steps K
    :param eval_every: steps between two evaluations
    :param eval_episodes: episodes of each evaluation
    :param seeds: seeds
    :param n_jobs: runs at a time, see :func:`compare`
    :param chain_kwargs: keyword arguments of DiffSAC alone
    :param kwargs: keyword arguments of both algorithms
    :return: results by name of the runs, ``sac`` or ``diffsac-adjoint_K5`` and so on, with ``seconds`` of CPU time until
        each evaluation, by :func:`seconds_per_step`
    :raises ValueError: see :func:`compare`
    """
    chain_kwargs, diffusion_steps = chain_kwargs or {}, list(diffusion_steps)
    estimator = chain_kwargs.get("actor_loss", "adjoint")
    variants: dict[str, Any] = {
        f"diffsac-{estimator}_K{steps}": dict(chain_kwargs, diffusion_steps=steps) for steps in diffusion_steps
    }
    variants = {"sac": None, **variants}
    runs = compare(variants, env_id, n_steps, folder, seeds, eval_every, eval_episodes, n_jobs, **kwargs)
    path = Path(folder) / env_id.split(":")[-1] / f"seconds_K{'_'.join(map(str, diffusion_steps))}.json"
    settings = dict(variants=variants, **kwargs)
    measured = stored_result(path, settings, lambda: {"seconds": seconds_per_step(variants, env_id, **kwargs)})
    learning_starts = kwargs.get("learning_starts", 100)
    for name, seconds in measured["seconds"].items():
        for point in (point for run in runs[name] for point in run["points"]):
            point["seconds"] = seconds * max(0, point["step"] - learning_starts)
    return runs


def k_sweep_table(runs: Runs) -> str:
    """
    :param runs: output of :func:`k_sweep`
    :return: Markdown table of the mean return at the end over the seeds, each seed's, CPU seconds of training, and the return
        after as many seconds as SAC took
    """
    budget = values(runs["sac"], "seconds")[0, -1]
    rows = []
    for name, of_name in runs.items():
        returns, seconds = values(of_name, "return"), values(of_name, "seconds")
        at_budget = np.mean([np.interp(budget, s, r) for s, r in zip(seconds, returns, strict=True)])
        rows.append(
            {
                "run": name,
                "steps": f"{int(of_name[0]['points'][-1]['step']):,}",
                "return": f"{returns[:, -1].mean():.0f}",
                "each seed": ", ".join(f"{value:.0f}" for value in returns[:, -1]),
                "CPU seconds": f"{seconds[0, -1]:.0f}",
                "return after SAC's CPU seconds": f"{at_budget:.0f}",
            }
        )
    return markdown(rows)


def plot_k_sweep(runs: Runs, path: str | Path, title: str = "") -> None:
    """
    Return against steps of the environment and against CPU seconds, the mean over the seeds and their range.

    :param runs: output of :func:`k_sweep`
    :param path: where the picture goes
    :param title: title
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for name, of_name in runs.items():
        returns = values(of_name, "return")
        for ax, key in zip(axes, ("step", "seconds"), strict=True):
            x = values(of_name, key).mean(axis=0)
            (line,) = ax.plot(x, returns.mean(axis=0), "o-", label=name)
            ax.fill_between(x, returns.min(axis=0), returns.max(axis=0), color=line.get_color(), alpha=0.15)
    for ax, label in zip(axes, ("environment steps", "CPU seconds of training"), strict=True):
        ax.set(xlabel=label, ylabel="return", title=title)
        ax.grid(alpha=0.3)
        ax.legend()
    figure.tight_layout()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
