"""
Learning curves of this package's algorithms beside SAC, TQC, CrossQ or PPO on one environment, with the settings given.

``python -m benchmarks.report`` turns the results into tables and figures.

Example::

    python -m benchmarks.learning_curves --env HalfCheetah-v5 --steps 50000 --learning-starts 5000 --diffusion-steps 5
    python -m benchmarks.learning_curves --env InvertedPendulum-v5 --steps 60000 --algos ppo diffppo --seeds 0 1 2 3 4
"""

import argparse
import json
from typing import Any

from benchmarks.command_line import carry_out, make_parser
from sb3_diffusion.analysis.command_line import seed_number, whole_number
from sb3_diffusion.analysis.runner import Run

ALGORITHMS: dict[str, tuple[str, dict[str, Any]]] = {
    "sac": ("stable_baselines3:SAC", {}),
    "sac-diffusion-policy": ("stable_baselines3:SAC", {"policy": "sb3_diffusion:DiffusionSACPolicy"}),
    "tqc": ("sb3_contrib:TQC", {}),
    "crossq": ("sb3_contrib:CrossQ", {}),
    "crossq_native": ("benchmarks.algorithms:NativeCrossQ", {}),
    "crossq_recent": (
        "benchmarks.algorithms:NativeCrossQ",
        {"replay_buffer_class": "benchmarks.algorithms:RecentReplayBuffer"},
    ),
    "ppo": ("stable_baselines3:PPO", {}),
    "diffcrossq": ("sb3_diffusion:DiffCrossQ", {}),
    "diffsac": ("sb3_diffusion:DiffSAC", {}),
    "difftqc": ("sb3_diffusion:DiffTQC", {}),
    "diffwpo": ("sb3_diffusion:DiffWPO", {}),
    "diffppo": ("sb3_diffusion:DiffPPO", {}),
}
# What of the log goes into the results of DiffWPO
TRUST_REGION = ("train/kl_mean", "train/kl_std")


def make_run(algo: str, seed: int, args: argparse.Namespace) -> Run:
    """
    :param algo: a key of ``ALGORITHMS``, with ``-<actor_loss>`` after it where the algorithm has one
    :param seed: seed
    :param args: the command line
    :return: the run
    """
    base, _, actor_loss = (algo, "", "") if algo in ALGORITHMS else algo.partition("-")
    if base not in ALGORITHMS:
        raise ValueError(f"{algo}: choose from {', '.join(ALGORITHMS)}, with -<actor_loss> after it where there is one")
    algorithm, own = ALGORITHMS[base]
    settings = dict(own)
    on_policy = base in ("ppo", "diffppo")
    if not on_policy:
        settings["learning_starts"] = args.learning_starts
    if base == "sac-diffusion-policy":
        settings["policy_kwargs"] = {"diffusion_steps": args.diffusion_steps}
    elif base.startswith("diff"):
        settings["diffusion_steps"] = args.diffusion_steps
    if actor_loss:
        settings["actor_loss"] = actor_loss
    return Run(
        (f"{algo}_K{args.diffusion_steps}" if "diff" in algo else algo) + args.suffix,
        algorithm,
        args.env,
        args.steps,
        seed,
        {**settings, **args.settings},
        n_envs=args.n_envs if on_policy else 1,
        eval_every=args.eval_every,
        eval_episodes=args.eval_episodes,
        logged=TRUST_REGION if base == "diffwpo" else (),
    )


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """
    :param arguments: the command line's; those of this process if None
    :return: the command line
    """
    parser = make_parser(__doc__, "learning_curves")
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--steps", type=whole_number(1), default=50_000)
    parser.add_argument("--learning-starts", type=whole_number(1), default=5_000)
    parser.add_argument("--diffusion-steps", type=whole_number(1), default=5)
    parser.add_argument("--n-envs", type=whole_number(1), default=1, help="environments of PPO and DiffPPO")
    parser.add_argument("--settings", type=json.loads, default={}, help="keyword arguments of all the algorithms, as JSON")
    parser.add_argument("--eval-every", type=whole_number(1), default=10_000)
    parser.add_argument("--eval-episodes", type=whole_number(1), default=10)
    parser.add_argument("--seeds", type=seed_number, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--algos", nargs="+", default=["sac", "diffsac-adjoint", "diffsac-pathwise", "diffsac-diffusion_value"]
    )
    parser.add_argument("--suffix", default="", help="added to the names of the results, to tell settings apart")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    args = parse_args()
    carry_out([make_run(algo, seed, args) for seed in args.seeds for algo in args.algos], args)
