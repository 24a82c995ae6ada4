"""What the commands that train have in common."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd

from benchmarks.report import tables
from sb3_diffusion.analysis.command_line import one_line_errors, whole_number
from sb3_diffusion.analysis.runner import Run, missing, run_all, so_far, unfinished
from sb3_diffusion.analysis.sweep import measure_cost

RESULTS = Path(__file__).parent / "results"


def make_parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """
    :param description: the module's docstring
    :param out: name of the campaign's files
    :return: parser with what :func:`carry_out` reads
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print the runs")
    what.add_argument("--status", action="store_true", help="print how far each run is")
    what.add_argument("--table", action="store_true", help="print what has been measured so far")
    what.add_argument("--cost", action="store_true", help="measure CPU seconds per step, all variants in turn in this process")
    parser.add_argument("--jobs", type=whole_number(1), default=2, help="runs at a time on this machine, one thread each")
    parser.add_argument(
        "--ray", nargs="?", const="local", metavar="ADDRESS", help="by Ray, on this machine, or with 'auto' on a cluster"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / f"{out}.csv", help="results; runs that are there are skipped")
    return parser


def print_status(runs: list[Run], path: Path) -> None:
    """
    :param runs: runs
    :param path: CSV file of the campaign
    """
    waiting, begun = {run.key for run in missing(runs, path)}, unfinished(runs, path)
    for run in runs:
        points = begun[run.key]["points"] if run.key in begun else []
        step = points[-1]["step"] if points else 0
        print(f"{run.key}: " + (f"{step:,} of {run.steps:,} steps" if run.key in waiting else "done"))
    print(f"{len(runs) - len(waiting)} of {len(runs)} runs are done, {len(waiting & begun.keys())} have begun")


def print_tables(results: pd.DataFrame) -> None:
    """
    :param results: a row for each evaluation
    """
    print(tables(results))


def carry_out(runs: list[Run], args: argparse.Namespace, report: Callable[[pd.DataFrame], None] = print_tables) -> None:
    """
    Do what the command line asks for; without a wish, run what is missing and report.

    :param runs: runs
    :param args: the command line
    :param report: prints the table of what there is
    """
    with one_line_errors("benchmarks"):
        _carry_out(runs, args, report)


def _carry_out(runs: list[Run], args: argparse.Namespace, report: Callable[[pd.DataFrame], None]) -> None:
    if args.list:
        print("\n".join(f"{run.key}: {run.algorithm}, {run.steps:,} steps, {run.settings}" for run in runs))
    elif args.status:
        print_status(runs, args.out)
    elif args.cost:
        measure_cost(runs, args.out)
    else:
        if not args.table:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
            run_all(runs, args.out, args.jobs, args.ray)
        report(so_far(runs, args.out))
