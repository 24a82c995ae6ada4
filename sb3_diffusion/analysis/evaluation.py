"""Learning curves that lose nothing: each run writes its result when it ends, and is skipped when its file is there."""

import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_diffusion.common.files import write_whole

Measure = Callable[[BaseAlgorithm], dict[str, float]]


class EvaluationPoints(BaseCallback):
    """
    Evaluate at every ``every`` steps of the environment and keep the results in ``points``: ``step``, mean and standard
    deviation of the ``return`` of deterministic and of the ``stochastic_return`` of sampled actions, and ``cpu_seconds`` of
    training without the evaluations.

    :param env_id: environment to evaluate on
    :param every: steps of the environment between two evaluations
    :param n_episodes: episodes of each evaluation
    :param logged: keys of the logger whose means over training are kept in ``logged_means``
    :param measure: what else to measure of the model at each evaluation
    :param name: name of the run, before what is printed of each evaluation; the model's class if None
    """

    def __init__(
        self,
        env_id: str,
        every: int,
        n_episodes: int,
        logged: Iterable[str] = (),
        measure: Measure | None = None,
        name: str | None = None,
    ):
        super().__init__()
        self.measure = measure
        self.name = name
        self.eval_env = make_vec_env(env_id, seed=10_000)
        self.every = every
        self.n_episodes = n_episodes
        self.points: list[dict[str, float]] = []
        self.logged: dict[str, list[float]] = {key: [] for key in logged}
        self.started = time.process_time()
        self.evaluation_time = 0.0

    def _on_step(self) -> bool:
        for key, numbers in self.logged.items():
            if key in self.logger.name_to_value:
                numbers.append(float(self.logger.name_to_value[key]))
        if self.num_timesteps % self.every == 0:
            self._evaluate()
        return True

    def _evaluate(self) -> None:
        started = time.process_time()
        random_state = th.get_rng_state()
        point = {"step": float(self.num_timesteps)}
        for name, deterministic in (("return", True), ("stochastic_return", False)):
            returns, _ = evaluate_policy(
                self.model, self.eval_env, self.n_episodes, deterministic=deterministic, return_episode_rewards=True
            )
            point[name], point[f"{name}_std"] = float(np.mean(returns)), float(np.std(returns))
        if self.measure is not None:
            point.update(self.measure(self.model))
        # An evaluation must not change the training run that it looks at
        th.set_rng_state(random_state)
        self.evaluation_time += time.process_time() - started
        point["cpu_seconds"] = time.process_time() - self.started - self.evaluation_time
        self.points.append(point)
        print(f"{self.name or type(self.model).__name__}: {point}", flush=True)

    @property
    def logged_means(self) -> dict[str, float]:
        """Means over training of what was asked for and logged."""
        return {key: float(np.mean(numbers)) for key, numbers in self.logged.items() if numbers}


def provenance() -> dict[str, Any]:
    """
    :return: what a result was made with: the commit of this package's sources, if they are in a git checkout, the versions of
        what it depends on, and the processor
    """
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    packages = ("sb3-diffusion", "stable-baselines3", "sb3-contrib", "torch", "gymnasium", "mujoco", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"commit": commit, "versions": versions, "processor": platform.processor() or platform.machine()}


def stored_result(path: Path, settings: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """
    Read a result that is there, or make it and write it, complete or not at all.

    :param path: where the result stands, as JSON
    :param settings: what it depends on; goes into the result
    :param make: makes the rest of it
    :return: the result
    :raises ValueError: if a result is there that was made with other settings
    """
    settings = json.loads(json.dumps(settings, default=str))
    if path.exists():
        result = json.loads(path.read_text())
        theirs = result["settings"]
        if different := sorted(key for key in theirs | settings if theirs.get(key) != settings.get(key)):
            raise ValueError(
                f"{path} was made with other settings: "
                + ", ".join(f"{key}={theirs.get(key)!r}, not {settings.get(key)!r}" for key in different)
                + ". Choose another folder, or delete the file to run it again."
            )
        return result
    result = {"settings": settings, "made_with": provenance(), **make()}
    write_result(path, result)
    return result


def write_result(path: Path, result: dict[str, Any]) -> None:
    """
    :param path: where the result goes, complete or not at all
    :param result: what to write, as JSON
    """
    write_whole(path, (json.dumps(result, indent=1) + "\n").encode())


def train_and_evaluate(
    make_model: Callable[[], BaseAlgorithm], n_steps: int, callback: Callable[[], EvaluationPoints]
) -> dict[str, Any]:
    """
    :param make_model: makes the model to train
    :param n_steps: steps of the environment
    :param callback: makes the callback
    :return: ``points`` and ``logged_means`` of the callback
    """
    points = callback()
    make_model().learn(n_steps, callback=points)
    return {"points": points.points, "logged_means": points.logged_means}


def markdown(rows: list[dict[str, Any]]) -> str:
    """
    :param rows: rows with the same keys
    :return: Markdown table
    """
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(map(str, row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def values(runs: list[dict[str, Any]], key: str) -> np.ndarray:
    """
    :param runs: results of one algorithm
    :param key: what to take of each evaluation
    :return: array of shape (runs, evaluations)
    """
    return np.array([[point[key] for point in run["points"]] for run in runs])
