"""
Learning curves of this package's algorithms beside SAC, TQC, CrossQ or PPO on one environment, with the settings given.

Each run is written to ``<out>/<env>/`` when it ends and is skipped when its file is there, so that an interrupted
campaign goes on where it stopped. ``benchmarks/report.py`` turns the files into tables and figures.

Example::

    python benchmarks/learning_curves.py --env HalfCheetah-v5 --steps 50000 --learning-starts 5000 --diffusion-steps 5
    python benchmarks/learning_curves.py --env InvertedPendulum-v5 --steps 60000 --algos ppo diffppo --seeds 0 1 2 3 4
"""

import argparse
import json
import multiprocessing
import os
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch as th
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffusionSACPolicy, DiffWPO
from sb3_diffusion.analysis.evaluation import EvaluationPoints, stored_result, train_and_evaluate
from sb3_diffusion.common.batch_renorm import use_native_batch_renorm
from sb3_diffusion.common.replay import recent_indices


def make_native_crossq(*args: Any, **kwargs: Any) -> CrossQ:
    """
    :param args: arguments of ``CrossQ``
    :param kwargs: arguments of ``CrossQ``
    :return: sb3-contrib's CrossQ, whose batch renormalisation goes through PyTorch's native kernel: the same numbers to
        rounding in two thirds of the time, see ``tests/test_batch_renorm.py``
    """
    model = CrossQ(*args, **kwargs)
    use_native_batch_renorm(model.policy)
    return model


class RecentReplayBuffer(ReplayBuffer):
    """What ``replay_recency=2.0`` is to this package's algorithms, for others."""

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        return self._get_samples(recent_indices(self, batch_size, 2.0), env=env)


ALGORITHMS: dict[str, Any] = {
    "sac": SAC,
    "tqc": TQC,
    "crossq": CrossQ,
    "crossq_native": make_native_crossq,
    "crossq_recent": partial(make_native_crossq, replay_buffer_class=RecentReplayBuffer),
    "ppo": PPO,
    "diffcrossq": DiffCrossQ,
    "diffsac": DiffSAC,
    "difftqc": DiffTQC,
    "diffwpo": DiffWPO,
    "diffppo": DiffPPO,
}

# What of the log goes into the results, in the mean over training
LOGGED = ("train/kl_mean", "train/kl_std")


def make_model(algo: str, env_id: str, seed: int, args: argparse.Namespace) -> BaseAlgorithm:
    """
    :param algo: ``sac-diffusion-policy`` (stock SAC with ``DiffusionSACPolicy``), or a key of ``ALGORITHMS``, with
        ``-<actor_loss>`` after it where the algorithm has one
    :param env_id: environment
    :param seed: seed
    :param args: the command line
    :return: the model to train
    """
    keywords: dict[str, Any] = dict(seed=seed, device="cpu", **get_keywords(algo, args))
    env = make_vec_env(env_id, keywords.pop("n_envs", 1))
    if algo == "sac-diffusion-policy":
        policy_kwargs = dict(diffusion_steps=keywords.pop("diffusion_steps"))
        return SAC(DiffusionSACPolicy, env, policy_kwargs=policy_kwargs, **keywords)
    name, _, actor_loss = algo.partition("-")
    if actor_loss:
        keywords["actor_loss"] = actor_loss
    return ALGORITHMS[name]("MlpPolicy", env, **keywords)


def get_keywords(algo: str, args: argparse.Namespace) -> dict[str, Any]:
    """
    :param algo: algorithm
    :param args: the command line
    :return: what of it this algorithm has
    """
    on_policy = algo in ("ppo", "diffppo")
    return {
        **(dict(n_envs=args.n_envs) if on_policy else dict(learning_starts=args.learning_starts)),
        **(dict(diffusion_steps=args.diffusion_steps) if "diff" in algo else {}),
        **args.settings,
    }


def run(task: tuple[str, int, argparse.Namespace]) -> None:
    """
    Train and write one run.

    :param task: algorithm, seed and the command line
    """
    algo, seed, args = task
    th.set_num_threads(1)
    settings: dict[str, Any] = dict(env=args.env, seed=seed, steps=args.steps)
    settings |= dict(eval_every=args.eval_every, eval_episodes=args.eval_episodes)
    path = result_path(algo, seed, args)
    callback = partial(EvaluationPoints, args.env, args.eval_every, args.eval_episodes, LOGGED, name=path.stem)
    stored_result(
        path,
        {**settings, **get_keywords(algo, args)},
        partial(train_and_evaluate, partial(make_model, algo, args.env, seed, args), args.steps, callback),
    )


def result_path(algo: str, seed: int, args: argparse.Namespace) -> Path:
    """
    :param algo: algorithm
    :param seed: seed
    :param args: the command line
    :return: where this run's result stands
    """
    name = f"{algo}_K{args.diffusion_steps}" if "diff" in algo else algo
    return Path(args.out) / args.env / f"{name}{args.suffix}_seed{seed}.json"


def parse_args() -> argparse.Namespace:
    """
    :return: the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--learning-starts", type=int, default=5_000)
    parser.add_argument("--diffusion-steps", type=int, default=5)
    parser.add_argument("--n-envs", type=int, default=1, help="environments of PPO and DiffPPO")
    parser.add_argument("--settings", type=json.loads, default={}, help="keyword arguments of all the algorithms, as JSON")
    parser.add_argument("--eval-every", type=int, default=10_000)
    parser.add_argument("--eval-episodes", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--algos", nargs="+", default=["sac", "diffsac-adjoint", "diffsac-pathwise", "diffsac-diffusion_value"]
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--suffix", default="", help="added to the names of the results, to tell settings apart")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"))
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_args()
    tasks = [(algo, seed, arguments) for seed in arguments.seeds for algo in arguments.algos]
    with multiprocessing.get_context("spawn").Pool(arguments.jobs, maxtasksperchild=1) as pool:
        pool.map(run, tasks, chunksize=1)
