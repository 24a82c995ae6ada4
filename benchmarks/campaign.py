"""What the benchmarks share: runs that are written when they end and skipped when they are there."""

import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch as th

from sb3_diffusion.analysis.evaluation import stored_result

RESULTS = Path(__file__).parent / "results"


def run_one(task: tuple[Callable[..., dict[str, Any]], Path, dict[str, Any]]) -> None:
    """
    :param task: a function of settings, where its result goes, and the settings
    """
    function, path, settings = task
    th.set_num_threads(1)
    stored_result(path, settings, partial(function, **settings))
    print(f"{path.stem} done", flush=True)


def run_all(function: Callable[..., dict[str, Any]], tasks: dict[Path, dict[str, Any]], jobs: int = 2) -> None:
    """
    Run what has no result yet, each in a process of its own with one thread.

    :param function: function of settings, importable
    :param tasks: settings by the path of their result
    :param jobs: runs at a time
    """
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        pool.map(run_one, [(function, path, settings) for path, settings in tasks.items()], chunksize=1)
