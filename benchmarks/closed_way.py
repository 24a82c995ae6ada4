"""
What several good actions are good for: algorithms learn the way around an obstacle, which is equally long on both sides; then
the side that the policy takes more often is closed. How often it arrives without another update, and after how many steps of
further training more than 90 percent of its episodes arrive again.

Example::

    python -m benchmarks.closed_way --seeds 0 1 2
    python -m benchmarks.closed_way --table
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from benchmarks.algorithms import NativeCrossQ
from benchmarks.cloning import Curve, run_episodes
from sb3_diffusion import DiffCrossQ, DiffSAC
from sb3_diffusion.analysis.command_line import seed_number, whole_number
from sb3_diffusion.analysis.results import provenance, read_details, write_details
from sb3_diffusion.common.envs.obstacle import ObstacleEnv
from sb3_diffusion.diffsac import MULTIMODAL_KWARGS

RESULT = Path(__file__).parent / "results" / "closed_way.json"
N_EPISODES = 200
# All have the widths, learning rate, number of critics and target of the entropy that MULTIMODAL_KWARGS has
SHARED: dict[str, Any] = dict(
    learning_rate=MULTIMODAL_KWARGS["learning_rate"], target_entropy=-0.8, learning_starts=1000, device="cpu"
)
SMALL: dict[str, Any] = dict(net_arch=[64, 64], n_critics=1)
ALGORITHMS: dict[str, Callable[..., OffPolicyAlgorithm]] = {
    "DiffSAC": partial(DiffSAC, **{**MULTIMODAL_KWARGS, **SHARED, "policy_kwargs": SMALL}),
    "DiffSAC, reverse": partial(DiffSAC, **SHARED, diffusion_steps=8, prior_std=0.5, policy_kwargs=SMALL),
    "SAC": partial(SAC, **SHARED, policy_kwargs=SMALL),
    "DiffCrossQ": partial(DiffCrossQ, **SHARED, policy_kwargs=SMALL),
    "CrossQ": partial(NativeCrossQ, **SHARED, policy_kwargs=SMALL),
}


def measure(name: str, seed: int, steps: int, further_steps: int) -> dict[str, Any]:
    """
    :param name: key of ``ALGORITHMS``
    :param seed: seed
    :param steps: steps of the environment with both ways open
    :param further_steps: steps with one way closed
    :return: ``open``, the episodes by side before; ``closed``, the side; ``without_update``, the share of the episodes that
        arrive then; ``curves`` of this share, with both ways open and with one
    """
    model = ALGORITHMS[name]("MlpPolicy", make_vec_env("Obstacle-v0", env_kwargs=dict(shaped=True)), seed=seed)
    entry: dict[str, Any] = {"curves": []}

    def learn(closed: str | None, n_steps: int) -> None:
        success = lambda model: run_episodes(model, partial(ObstacleEnv, closed=closed), N_EPISODES)["success"]  # noqa: E731
        curve = Curve(success, n_steps // 20)
        model.learn(n_steps, callback=curve)
        entry["curves"].append(curve.values)

    learn(None, steps)
    entry["open"] = run_episodes(model, ObstacleEnv, N_EPISODES)
    closed = "left" if entry["open"]["left"] > entry["open"]["right"] else "right"
    entry["closed"] = closed
    entry["without_update"] = run_episodes(model, partial(ObstacleEnv, closed=closed), N_EPISODES)["success"]
    model.set_env(make_vec_env("Obstacle-v0", env_kwargs=dict(closed=closed, shaped=True)))
    model.learning_starts = 0
    learn(closed, further_steps)
    return entry


def main() -> None:
    """Train what is missing, or print what there is."""
    th.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algos", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--seeds", type=seed_number, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=whole_number(20), default=10_000, help="steps with both ways open")
    parser.add_argument("--further-steps", type=whole_number(20), default=10_000, help="steps with one way closed")
    parser.add_argument("--table", action="store_true", help="print what there is")
    args = parser.parse_args()
    for seed in args.seeds:
        for name in args.algos:
            key = f"{name}, seed {seed}"
            if not args.table and key not in read_details(RESULT):
                entry = measure(name, seed, args.steps, args.further_steps)
                write_details(RESULT, {**read_details(RESULT), key: {**entry, "commit": provenance()["commit"]}})
            if key in (done := read_details(RESULT)):
                back = next((step for step, share in done[key]["curves"][1].items() if share > 0.9), "never")
                result = {part: done[key][part] for part in ("open", "closed", "without_update")}
                print(f"{key}: {result}, back after {back} steps", flush=True)


if __name__ == "__main__":
    main()
