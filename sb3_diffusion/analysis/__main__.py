"""
Analyses from the command line::

    python -m sb3_diffusion.analysis bound_gap --figure bound_gap.png
    python -m sb3_diffusion.analysis representation
    python -m sb3_diffusion.analysis mixture
    python -m sb3_diffusion.analysis divergence --jobs 2
    python -m sb3_diffusion.analysis k_sweep --env HalfCheetah-v5 --steps 50000 --diffusion-steps 5 10 20 --jobs 2
    python -m sb3_diffusion.analysis maxcut GRAPH.txt --steps 20000
"""

import argparse
import os
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import torch as th

from sb3_diffusion.analysis.bound import bound_gap, plot_bound_gap
from sb3_diffusion.analysis.command_line import (
    environment,
    json_object,
    new_file,
    one_line_errors,
    picture,
    positive_number,
    seed_number,
    whole_number,
)
from sb3_diffusion.analysis.divergences import DIVERGENCE_TASKS, divergence, divergence_table
from sb3_diffusion.analysis.maxcut import solve_max_cut
from sb3_diffusion.analysis.mixture import MIXTURE_STEPS, fit_mixture
from sb3_diffusion.analysis.representation import ESTIMATORS, TARGETS, representation
from sb3_diffusion.analysis.results import markdown
from sb3_diffusion.analysis.sweep import k_sweep, k_sweep_table, plot_k_sweep
from sb3_diffusion.common.envs.combinatorial import check_has_edges
from sb3_diffusion.common.envs.graphs import read_graph
from sb3_diffusion.common.noise_schedule import NOISE_SCHEDULES
from sb3_diffusion.common.score_network import KERNELS
from sb3_diffusion.saving.files import write_whole

# What the descended divergence and the temperature of a fit are called
_FITS: dict[str, dict[str, Any]] = {
    "forward": dict(divergence="forward", anneal=True),
    "reverse": dict(divergence="reverse", anneal=True),
    "cold": dict(divergence="reverse", anneal=False),
}


def _print_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print rows as they come, and return them all."""
    known: list[dict[str, Any]] = []
    for row in rows:
        lines = markdown([{key: f"{cell:.4f}" if isinstance(cell, float) else cell for key, cell in row.items()}]).splitlines()
        print("\n".join(lines[2 if known else 0 :]), flush=True)
        known.append(row)
    return known


def _run_bound_gap(args: argparse.Namespace) -> None:
    """
    :param args: the command line
    """
    settings: dict[str, Any] = dict(dim=args.dim, prior_std=args.prior_std, n_updates=args.updates, seed=args.seed)
    rows = _print_rows(
        {"fit": fit, **row}
        for fit, noise_schedule, steps in product(args.fits, args.noise_schedules, args.diffusion_steps)
        for row in bound_gap([steps], [noise_schedule], **_FITS[fit], **settings)
    )
    if args.figure:
        plot_bound_gap(rows, args.figure)


def _run_representation(args: argparse.Namespace) -> None:
    """
    :param args: the command line
    """
    _print_rows(
        representation(
            args.targets,
            args.kernels,
            args.estimators,
            args.diffusion_steps,
            args.jobs,
            n_updates=args.updates,
            n_steps=args.steps_per_update,
            seed=args.seed,
        )
    )


def _run_mixture(args: argparse.Namespace) -> None:
    """
    :param args: the command line
    """
    _print_rows(fit_mixture(steps, args.steps, args.seed, **args.settings) for steps in args.diffusion_steps)


def _run_divergence(args: argparse.Namespace) -> None:
    """
    :param args: the command line
    """
    lengths = {key: value for key, value in (("steps", args.steps), ("eval_every", args.eval_every)) if value is not None}
    for env_id in args.envs:
        runs = divergence(env_id, args.out, seeds=args.seeds, n_jobs=args.jobs, **lengths, **args.settings)
        print(f"{env_id}:\n\n{divergence_table(runs)}\n", flush=True)


def _run_k_sweep(args: argparse.Namespace) -> None:
    """
    :param args: the command line
    """
    runs = k_sweep(
        args.env,
        args.steps,
        args.out,
        args.diffusion_steps,
        seeds=args.seeds,
        eval_every=args.eval_every,
        n_jobs=args.jobs,
        chain_kwargs=args.chain_settings,
        **args.settings,
    )
    print(k_sweep_table(runs))
    if args.figure:
        plot_k_sweep(runs, args.figure, args.env)


def _run_maxcut(args: argparse.Namespace) -> None:
    """
    :param args: the command line
    """
    if args.out and Path(args.out).resolve() == Path(args.graph).resolve():
        raise ValueError(f"--out {args.out} is the graph's own file, which would be lost: choose another")
    if "seed" in args.settings:
        raise ValueError("--settings has a 'seed': give --seed")
    graph = read_graph(args.graph)
    check_has_edges(graph)
    rows, sides = solve_max_cut(
        graph, args.steps, args.diffusion_steps, args.samples, args.seed, progress_bar=True, **args.settings
    )
    _print_rows(rows)
    if args.out:
        write_whole(args.out, ("\n".join(map(str, sides.tolist())) + "\n").encode())


def _add_run_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """
    :param parser: parser of an analysis that trains and keeps results
    :param out: where they go if nothing is said
    """
    parser.add_argument("--seeds", type=seed_number, nargs="+", default=[0, 1], help="seeds, a run of each variant with each")
    parser.add_argument("--jobs", type=whole_number(1), default=1, help="runs at a time, one thread each")
    parser.add_argument(
        "--out", type=new_file, default=Path(out), help="CSV file of the results; runs that are there are skipped"
    )


def parse_args() -> argparse.Namespace:
    """
    :return: the command line
    """
    with_defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m sb3_diffusion.analysis", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)

    name, what = "bound_gap", "path KL, exact marginal KL and their gap on a target with two peaks"
    gap = commands.add_parser(name, help=what, description=what, formatter_class=with_defaults)
    gap.set_defaults(run=_run_bound_gap)
    gap.add_argument("--diffusion-steps", type=whole_number(1), nargs="+", default=[1, 2, 5, 10, 20], help="denoising steps K")
    gap.add_argument("--noise-schedules", nargs="+", choices=NOISE_SCHEDULES, default=["cosine"], help="noise schedules")
    gap.add_argument(
        "--fits", nargs="+", choices=_FITS, default=list(_FITS), help="KL, annealed, or reverse from a cold start"
    )
    gap.add_argument("--dim", type=int, choices=(1, 2), default=1, help="dimension d; the target has 2^d peaks")
    gap.add_argument("--prior-std", type=positive_number, default=1.0, help="standard deviation of the prior")
    gap.add_argument("--updates", type=whole_number(1), default=3000, help="gradient steps of a fit")
    gap.add_argument("--seed", type=seed_number, default=0, help="seed")
    gap.add_argument("--figure", type=picture, help="where the picture goes")

    name, what = "representation", "path KL to known targets, by kernel, estimator and number of denoising steps"
    fits = commands.add_parser(name, help=what, description=what, formatter_class=with_defaults)
    fits.set_defaults(run=_run_representation)
    fits.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="targets")
    fits.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS), help="kernels")
    fits.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS), help="of the gradient")
    fits.add_argument(
        "--diffusion-steps", type=whole_number(1), nargs="+", default=[1, 2, 5, 10, 20, 40], help="denoising steps K"
    )
    fits.add_argument("--updates", type=whole_number(1), default=800, help="gradient steps of a fit")
    fits.add_argument(
        "--steps-per-update", type=whole_number(1), default=8, help="denoising steps of each chain in a gradient step"
    )
    fits.add_argument("--seed", type=seed_number, default=0, help="seed")
    jobs = "fits at a time, one thread each; the default is the number of cores"
    fits.add_argument("--jobs", type=whole_number(1), default=os.cpu_count() or 1, help=jobs)

    name, what = "mixture", "distance of DiffSAC's policy from the exact one, TurningGMM-v0"
    mixture = commands.add_parser(name, help=what, description=what, formatter_class=with_defaults)
    mixture.set_defaults(run=_run_mixture)
    mixture.add_argument("--diffusion-steps", type=whole_number(1), nargs="+", default=[1, 10], help="denoising steps K")
    mixture.add_argument("--steps", type=whole_number(1), default=MIXTURE_STEPS, help="steps of the environment")
    mixture.add_argument("--seed", type=seed_number, default=0, help="seed")
    mixture.add_argument("--settings", type=json_object, default={}, help="keyword arguments of DiffSAC, as JSON")

    name, what = "divergence", "DiffSAC with the reverse and with the forward KL"
    kl = commands.add_parser(name, help=what, description=what, formatter_class=with_defaults)
    kl.set_defaults(run=_run_divergence)
    kl.add_argument(
        "--envs",
        nargs="+",
        type=environment,
        default=list(DIVERGENCE_TASKS),
        help="environments; others than these need --steps",
    )
    kl.add_argument("--steps", type=whole_number(1), help="steps of the environment of each run; None is the task's own")
    kl.add_argument("--eval-every", type=whole_number(1), help="steps between two evaluations; None is the task's own")
    kl.add_argument("--settings", type=json_object, default={}, help="keyword arguments of all the variants, as JSON")
    _add_run_arguments(kl, "divergence.csv")

    name, what = "k_sweep", "DiffSAC with several numbers of denoising steps, and SAC"
    sweep = commands.add_parser(name, help=what, description=what, formatter_class=with_defaults)
    sweep.set_defaults(run=_run_k_sweep)
    sweep.add_argument("--env", type=environment, default="HalfCheetah-v5", help="environment")
    sweep.add_argument("--steps", type=whole_number(1), default=50_000, help="steps of the environment of each run")
    sweep.add_argument("--eval-every", type=whole_number(1), default=10_000, help="steps between two evaluations")
    sweep.add_argument(
        "--diffusion-steps", type=whole_number(1), nargs="+", default=[1, 2, 5, 10, 20], help="denoising steps K"
    )
    sweep.add_argument("--settings", type=json_object, default={}, help="keyword arguments of both algorithms, as JSON")
    sweep.add_argument("--chain-settings", type=json_object, default={}, help="those of DiffSAC alone")
    sweep.add_argument("--figure", type=picture, help="where the picture goes")
    _add_run_arguments(sweep, "k_sweep.csv")

    name, what = "maxcut", "DiffPPO as a solver of the maximum cut of one graph"
    cut = commands.add_parser(name, help=what, description=what, formatter_class=with_defaults)
    cut.set_defaults(run=_run_maxcut)
    cut.add_argument("graph", type=Path, help="file in Gset's format: 'nodes edges', then 'i j weight' for each edge")
    cut.add_argument("--steps", type=whole_number(1), default=20_000, help="cuts to try in training")
    cut.add_argument("--diffusion-steps", type=whole_number(1), default=6, help="denoising steps K")
    cut.add_argument("--samples", type=whole_number(1), default=256, help="cuts to draw from the trained policy")
    cut.add_argument("--seed", type=seed_number, default=0, help="seed")
    cut.add_argument("--settings", type=json_object, default={}, help="keyword arguments of DiffPPO, as JSON")
    cut.add_argument("--out", type=new_file, help="where the side of each node of the best cut goes, a line each")
    args = parser.parse_args()
    _check_lengths(parser, args)
    return args


def _check_lengths(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with an error before any training where a run does not end with an evaluation."""
    steps, eval_every = getattr(args, "steps", None), getattr(args, "eval_every", None)
    if args.run is _run_divergence:
        for env_id in args.envs:
            task = DIVERGENCE_TASKS.get(env_id.split(":")[-1], {})
            length = steps or task.get("steps")
            if length is None:
                known = ", ".join(DIVERGENCE_TASKS)
                parser.error(f"{env_id} has no steps of its own, those that have are {known}: give --steps")
            _check_multiple(parser, length, eval_every or task.get("eval_every", 10_000))
    elif args.run is _run_k_sweep:
        _check_multiple(parser, args.steps, args.eval_every)


def _check_multiple(parser: argparse.ArgumentParser, steps: int, eval_every: int) -> None:
    """
    :param parser: parser of the command line, which ends with an error
    :param steps: steps of a run
    :param eval_every: steps between two evaluations
    """
    if steps % eval_every != 0:
        parser.error(f"--steps {steps} is no multiple of --eval-every {eval_every}, so that the end would not be measured")


def main() -> None:
    """Run one analysis."""
    args = parse_args()
    th.set_num_threads(1)
    with one_line_errors("python -m sb3_diffusion.analysis"):
        args.run(args)


if __name__ == "__main__":
    main()
