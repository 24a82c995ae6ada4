"""
Analyses from the command line::

    python -m sb3_diffusion.analysis bound_gap --figure bound_gap.png
    python -m sb3_diffusion.analysis mixture
    python -m sb3_diffusion.analysis divergence --jobs 2
    python -m sb3_diffusion.analysis k_sweep --env HalfCheetah-v5 --steps 50000 --diffusion-steps 5 10 20 --jobs 2
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import torch as th

from sb3_diffusion.analysis.bound import bound_gap, plot_bound_gap
from sb3_diffusion.analysis.divergence import DIVERGENCE_TASKS, divergence, divergence_table
from sb3_diffusion.analysis.mixture import MIXTURE_STEPS, fit_mixture
from sb3_diffusion.analysis.sweep import k_sweep, k_sweep_table, plot_k_sweep


def markdown(rows: list[dict[str, Any]]) -> str:
    """
    :param rows: rows with the same keys
    :return: Markdown table
    """
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def run_bound_gap(args: argparse.Namespace) -> None:
    """
    :param args: the command line
    """
    settings = dict(n_updates=args.updates, seed=args.seed)
    rows = [
        {"fit": f"{divergence} KL, {'annealed' if anneal else 'cold'}", **row}
        for divergence, anneal in (("forward", True), ("reverse", True), ("reverse", False))
        for row in bound_gap(
            args.diffusion_steps,
            args.noise_schedules,
            args.dim,
            args.prior_std,
            divergence=divergence,
            anneal=anneal,
            **settings,
        )
    ]
    print(markdown(rows))
    if args.figure:
        plot_bound_gap(rows, args.figure)


def run_mixture(args: argparse.Namespace) -> None:
    """
    :param args: the command line
    """
    rows = [fit_mixture(steps, args.steps, args.seed, **args.settings) for steps in args.diffusion_steps]
    print(markdown(rows))


def run_divergence(args: argparse.Namespace) -> None:
    """
    :param args: the command line
    """
    for env_id in args.envs:
        runs = divergence(env_id, args.folder, seeds=tuple(args.seeds), n_jobs=args.jobs, **args.settings)
        print(f"{env_id}:\n\n{divergence_table(runs)}\n", flush=True)


def run_k_sweep(args: argparse.Namespace) -> None:
    """
    :param args: the command line
    """
    runs = k_sweep(
        args.env,
        args.steps,
        args.folder,
        tuple(args.diffusion_steps),
        seeds=tuple(args.seeds),
        eval_every=args.eval_every,
        n_jobs=args.jobs,
        **args.settings,
    )
    print(k_sweep_table(runs))
    if args.figure:
        plot_k_sweep(runs, args.figure, args.env)


def main() -> None:
    """Run one analysis."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    gap = commands.add_parser("bound_gap", help="path KL, exact marginal KL and their gap on a target with two peaks")
    gap.set_defaults(run=run_bound_gap)
    gap.add_argument("--diffusion-steps", type=int, nargs="+", default=[1, 2, 5, 10, 20])
    gap.add_argument("--noise-schedules", nargs="+", default=["cosine"])
    gap.add_argument("--dim", type=int, default=1)
    gap.add_argument("--prior-std", type=float, default=1.0)
    gap.add_argument("--updates", type=int, default=3000)
    gap.add_argument("--seed", type=int, default=0)
    gap.add_argument("--figure", type=Path)

    mixture = commands.add_parser("mixture", help="distance of DiffSAC's policy from the exact one, TurningGMM-v0")
    mixture.set_defaults(run=run_mixture)
    mixture.add_argument("--diffusion-steps", type=int, nargs="+", default=[1, 10])
    mixture.add_argument("--steps", type=int, default=MIXTURE_STEPS)
    mixture.add_argument("--seed", type=int, default=0)
    mixture.add_argument("--settings", type=json.loads, default={}, help="keyword arguments of DiffSAC, as JSON")

    kl = commands.add_parser("divergence", help="DiffSAC with the reverse and with the forward KL")
    kl.set_defaults(run=run_divergence)
    kl.add_argument("--envs", nargs="+", default=list(DIVERGENCE_TASKS))
    kl.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    kl.add_argument("--settings", type=json.loads, default={}, help="keyword arguments of both, as JSON")
    kl.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    kl.add_argument("--folder", type=Path, default=Path("divergence"), help="results; what is there is not run again")

    sweep = commands.add_parser("k_sweep", help="DiffSAC with several K, and SAC")
    sweep.set_defaults(run=run_k_sweep)
    sweep.add_argument("--env", default="HalfCheetah-v5")
    sweep.add_argument("--steps", type=int, default=50_000)
    sweep.add_argument("--diffusion-steps", type=int, nargs="+", default=[1, 2, 5, 10, 20])
    sweep.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    sweep.add_argument("--eval-every", type=int, default=10_000)
    sweep.add_argument("--settings", type=json.loads, default={}, help="keyword arguments of both algorithms, as JSON")
    sweep.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    sweep.add_argument("--folder", type=Path, default=Path("k_sweep"), help="results; what is there is not run again")
    sweep.add_argument("--figure", type=Path)

    args = parser.parse_args()
    th.set_num_threads(1)
    args.run(args)


if __name__ == "__main__":
    main()
