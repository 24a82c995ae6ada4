"""
Training runs as data, carried out by processes of this machine or by Ray on many.

What a run has measured is written at every evaluation and its model at every checkpoint, so that one that was killed goes on
where it stood. A run that is done is in the campaign's files (:mod:`.results`) and is not run again.
"""

import json
import multiprocessing
import multiprocessing.connection
import pkgutil
import re
import shutil
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch as th
from filelock import FileLock, Timeout
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq
from tqdm import tqdm

from sb3_diffusion.analysis.evaluation import EvaluationPoints
from sb3_diffusion.analysis.results import add_results, as_rows, keys, provenance, read_details, read_results, write_json
from sb3_diffusion.saving.checkpoints import CheckpointCallback, resume_latest

RESULT = "result.json"
Outcome = tuple["Run", dict[str, Any] | None, str]


@dataclass(frozen=True)
class Run:
    """
    One training run.

    A name of the form ``"module:name"`` stands for what the module has under that name: as ``algorithm``, as ``measure``, and
    anywhere in ``settings``.

    :param name: name of the variant; with ``env`` and ``seed`` it identifies the run in a campaign
    :param algorithm: class of the algorithm, such as ``"stable_baselines3:SAC"``
    :param env: environment
    :param steps: steps of the environment
    :param seed: seed
    :param settings: keyword arguments of the algorithm, in JSON's types; ``policy`` is ``"MlpPolicy"`` if left out, and
        ``buffer_size`` is ``steps``, so that nothing is overwritten
    :param n_envs: number of environments
    :param eval_every: steps between two evaluations, and between two checkpoints
    :param eval_episodes: episodes of each evaluation
    :param logged: see :class:`.EvaluationPoints`
    :param measure: see :class:`.EvaluationPoints`
    :raises ValueError: if ``steps`` is not a multiple of ``eval_every``, or ``settings`` are not in JSON's types
    """

    name: str
    algorithm: str
    env: str
    steps: int
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    n_envs: int = 1
    eval_every: int = 10_000
    eval_episodes: int = 10
    logged: tuple[str, ...] = ()
    measure: str | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.steps % self.eval_every != 0:
            raise ValueError(
                f"steps={self.steps} must be a multiple of eval_every={self.eval_every}, so that the end is measured"
            )
        try:
            json.dumps(self.settings)
        except TypeError as error:
            raise ValueError(f"settings={self.settings}: {error}. Give a class or function as 'module:name'") from error

    @property
    def task(self) -> str:
        """Id of the environment, without the module that registers it."""
        return self.env.split(":")[-1]

    @property
    def key(self) -> str:
        """Name of the run, unique in a campaign."""
        return f"{self.task} {self.name} {self.seed}"

    def as_json(self) -> dict[str, Any]:
        """
        :return: the fields, as they are read back from JSON
        """
        return json.loads(json.dumps(asdict(self)))

    def make_model(self, **changes: Any) -> BaseAlgorithm:
        """
        :param changes: keyword arguments in place of those in ``settings``
        :return: a new model
        """
        algorithm = pkgutil.resolve_name(self.algorithm)
        keywords = {**_resolve(self.settings), **changes}
        if issubclass(algorithm, OffPolicyAlgorithm):
            keywords.setdefault("buffer_size", self.steps)
        env = make_vec_env(self.env, self.n_envs)
        return algorithm(keywords.pop("policy", "MlpPolicy"), env, seed=self.seed, device="cpu", **keywords)


def _resolve(value: Any) -> Any:
    """Copy settings, with the objects that texts of the form ``"module:name"`` stand for."""
    if isinstance(value, dict):
        return {key: _resolve(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_resolve(each) for each in value]
    return pkgutil.resolve_name(value) if isinstance(value, str) and re.fullmatch(r"[\w.]+:[\w.]+", value) else value


def execute(run: Run, work: str | Path) -> dict[str, Any]:
    """
    Train with one thread, from the beginning or from the last checkpoint, and measure the learning curve.

    :param run: the run
    :param work: folder where runs keep what they need to go on; another process that has this run is waited for
    :return: ``run``, ``made_with``, ``resumed_at`` (the steps where it went on after an interruption) and ``points``
    :raises ValueError: if the folder has evaluations of the run with other settings
    """
    pkgutil.resolve_name(run.algorithm)  # its module may have what a checkpoint of another module's class needs
    folder = Path(work) / run.key
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        result = json.loads((folder / RESULT).read_text()) if (folder / RESULT).exists() else None
        if result is not None and not result["points"] and result["run"] != run.as_json():
            # Its settings may be what ended it before the first evaluation
            warnings.warn(f"{run.key} had begun with other settings, and begins anew: it had no evaluation")
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            result = None
        if result is not None:
            _check_same(run, result["run"], folder)
        else:
            result = {"run": run.as_json(), "made_with": provenance(), "resumed_at": [], "points": []}
            write_json(folder / RESULT, result)
        if not is_done(result):
            threads = th.get_num_threads()
            th.set_num_threads(1)
            try:
                train(run, folder, result)
            finally:
                th.set_num_threads(threads)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def train(run: Run, folder: Path, result: dict[str, Any]) -> None:
    """
    :param run: the run
    :param folder: its folder
    :param result: its result so far, which is completed
    :raises RuntimeError: if training has ended before its time
    """
    try:
        model = resume_latest(folder / "checkpoints", make_vec_env(run.env, run.n_envs), device="cpu")
        result["resumed_at"].append(model.num_timesteps)
    except FileNotFoundError:
        model = run.make_model()
    # What was measured after the checkpoint is of a training that is lost
    result["points"] = [point for point in result["points"] if point["step"] <= model.num_timesteps]
    evaluation = EvaluationPoints(
        run.env,
        run.eval_every,
        run.eval_episodes,
        run.logged,
        _resolve(run.measure),
        run.key,
        result["points"],
        lambda points: write_json(folder / RESULT, {**result, "points": points}),
    )
    # In this order: a checkpoint stands after the evaluation of its step
    callbacks = [evaluation, CheckpointCallback(max(1, run.eval_every // run.n_envs), folder / "checkpoints", keep=1)]
    model.learn(run.steps - model.num_timesteps, callbacks, reset_num_timesteps=False)
    result["points"] = evaluation.points
    if not is_done(result):
        raise RuntimeError(f"{run.key} has ended at step {model.num_timesteps} of {run.steps}")


def is_done(result: dict[str, Any]) -> bool:
    """
    :param result: a result so far
    :return: whether it is complete
    """
    return bool(result["points"]) and result["points"][-1]["step"] >= result["run"]["steps"]


def _check_same(run: Run, other: dict[str, Any], place: Path) -> None:
    """Raise ``ValueError`` if the run of an earlier result had other settings."""
    mine = run.as_json()
    if different := sorted(name for name in mine if mine[name] != other.get(name)):
        raise ValueError(
            f"{run.key} in {place} has other settings: "
            + ", ".join(f"{name}={other.get(name)!r}, not {mine[name]!r}" for name in different)
            + ". Choose another file, another name, or remove that run to make it again"
        )


def work_folder(path: str | Path) -> Path:
    """
    :param path: CSV file of a campaign
    :return: folder where its unfinished runs keep what they need to go on
    """
    return Path(path).with_suffix(".work")


def missing(runs: list[Run], path: str | Path) -> list[Run]:
    """
    :param runs: runs
    :param path: CSV file of a campaign
    :return: those that it does not have yet
    :raises ValueError: if it has one with other settings
    """
    done, details = set(keys(read_results(path))), read_details(path)
    for run in runs:
        if run.key in done:
            _check_same(run, details.get(run.key, {"run": {}})["run"], Path(path))
    return [run for run in runs if run.key not in done]


def unfinished(runs: list[Run], path: str | Path) -> dict[str, dict[str, Any]]:
    """
    :param runs: runs
    :param path: CSV file of a campaign
    :return: results so far of those that have begun, by their keys
    """
    files = {run.key: work_folder(path) / run.key / RESULT for run in runs}
    return {key: json.loads(file.read_text()) for key, file in files.items() if file.exists()}


def so_far(runs: list[Run], path: str | Path) -> pd.DataFrame:
    """
    :param runs: runs
    :param path: CSV file of a campaign
    :return: all their evaluations that there are, run by run, also of those that have not ended, see :func:`.read_results`
    """
    results = read_results(path)
    begun = [as_rows(result) for result in unfinished(missing(runs, path), path).values() if result["points"]]
    results = pd.concat([results, *begun], ignore_index=True) if begun else results
    order = {run.key: index for index, run in enumerate(runs)}
    results = results[keys(results).isin(order.keys())]
    return results.sort_values("seed", key=lambda _: keys(results).map(order), kind="stable", ignore_index=True)


def run_all(runs: list[Run], path: str | Path, jobs: int | None = None, ray_address: str | None = None) -> pd.DataFrame:
    """
    Carry out the missing runs, in the order given, and add them to the campaign's files.

    :param runs: runs
    :param path: CSV file of the campaign
    :param jobs: runs at a time, each in a process of its own with one thread; None runs them here, one after the other
    :param ray_address: ``"local"`` for Ray on this machine with as many processors as ``jobs``, ``"auto"`` or an address for
        a cluster, whose machines must see the campaign's folder under the same path
    :return: the evaluations of all the runs, see :func:`.read_results`
    :raises ValueError: if a run is there with other settings, or cannot begin with those that it has
    :raises RuntimeError: if runs have not ended, when all others have (with ``jobs=None`` the first error ends all); or if
        another process is at this campaign
    """
    work = work_folder(path).absolute()
    work.mkdir(parents=True, exist_ok=True)
    failures = []
    try:
        with FileLock(work / "lock", timeout=0):
            waiting = missing(runs, path)
            begun = unfinished(waiting, path)
            _check_settings([run for run in waiting if not begun.get(run.key, {}).get("points")])
            outcomes = _in_processes(waiting, work, jobs) if ray_address is None else _on_ray(waiting, work, jobs, ray_address)
            for run, result, error in tqdm(outcomes, initial=len(runs) - len(waiting), total=len(runs), unit="run"):
                if result is None:
                    failures.append(f"{run.key} ({error})")
                    continue
                add_results(path, {run.key: result})
                shutil.rmtree(work / run.key)
            if not failures:
                # While it is held, so that no other process can take a lock that is gone
                (work / "lock").unlink(missing_ok=True)
                with suppress(OSError):
                    work.rmdir()
    except Timeout as error:
        raise RuntimeError(f"Another process is at {path}: wait for it, or choose another file") from error
    if failures:
        raise RuntimeError(f"Not ended: {', '.join(failures)}. The same command goes on with the rest")
    return so_far(runs, path)


def _check_settings(runs: list[Run]) -> None:
    """Make a model of each variant on each task, so that bad settings are refused before any training."""
    for run in {(run.name, run.env): run for run in runs}.values():
        try:
            off_policy = issubclass(pkgutil.resolve_name(run.algorithm), OffPolicyAlgorithm)
            model = run.make_model(**({"buffer_size": 10} if off_policy else {}))
            if isinstance(model, OffPolicyAlgorithm):
                check_training(model, run.steps)
        except Exception as error:
            # Whatever environments and algorithms say
            raise ValueError(f"{run.key} cannot begin: {type(error).__name__}: {error}") from error


def check_training(model: OffPolicyAlgorithm, steps: int) -> None:
    """
    :param model: model, before its training
    :param steps: steps of the environment
    :raises ValueError: if learning starts after the last step, or no step has an update
    """
    assert isinstance(model.train_freq, TrainFreq)
    if not model.learning_starts < steps:
        raise ValueError(f"learning_starts={model.learning_starts}: the run has {steps} steps, and would never learn")
    if model.gradient_steps == 0 or model.train_freq.frequency < 1:
        raise ValueError(
            f"gradient_steps={model.gradient_steps}, train_freq={model.train_freq.frequency}: the run would never learn"
        )


def _in_processes(runs: list[Run], work: Path, jobs: int | None) -> Iterator[Outcome]:
    """Carry runs out in processes; yield each as it ends, with its result, or with None and an error."""
    if jobs is None:
        yield from ((run, execute(run, work), "") for run in runs)
        return
    context, waiting = multiprocessing.get_context("spawn"), deque(runs)
    active: dict[Any, tuple[Run, Any]] = {}
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                run = waiting.popleft()
                process = context.Process(target=execute, args=(run, work), daemon=True)
                process.start()
                active[process.sentinel] = run, process
            for sentinel in multiprocessing.connection.wait(list(active)):
                run, process = active.pop(sentinel)
                process.join()
                result = json.loads((work / run.key / RESULT).read_text()) if process.exitcode == 0 else None
                yield run, result, f"exit code {process.exitcode}"
    finally:
        for _, process in active.values():
            process.terminate()  # on SIGTERM a training writes a checkpoint
        for _, process in active.values():
            process.join()


def _on_ray(runs: list[Run], work: Path, jobs: int | None, address: str) -> Iterator[Outcome]:
    """Carry runs out on a Ray cluster, see :func:`_in_processes`."""
    try:
        import ray
    except ImportError as error:
        raise ImportError("Ray is not there: pip install 'sb3-diffusion[ray]'") from error
    ray.init(address, num_cpus=jobs if address == "local" else None)
    try:
        # A process for each run, so that none sees what another has left
        task = ray.remote(num_cpus=1, max_calls=1, max_retries=10)(execute)
        waiting = {task.remote(run, work): run for run in runs}
        while waiting:
            (reference,), _ = ray.wait(list(waiting))
            run = waiting.pop(reference)
            try:
                yield run, ray.get(reference), ""
            except ray.exceptions.RayError as error:
                yield run, None, str(error).strip().splitlines()[-1]
    finally:
        ray.shutdown()
