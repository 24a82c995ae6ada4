"""Modes and returns of policies that descend the reverse and the forward divergence."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_diffusion.analysis.modes import mode_coverage
from sb3_diffusion.analysis.results import markdown
from sb3_diffusion.analysis.runner import run_all
from sb3_diffusion.analysis.sweep import variants_of

# Equal numbers of chains for both divergences, so that nothing but the divergence differs
SMALL: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[64, 64]), diffusion_steps=8, prior_std=0.5, n_action_samples=8)
DIVERGENCE_TASKS: dict[str, dict[str, Any]] = {
    "TurningDoubleWell-v0": dict(steps=8000, eval_every=2000, learning_rate=2e-3, target_entropy=-0.6, **SMALL),
    "MultiGoal-v0": dict(steps=6000, eval_every=2000, learning_rate=1e-3, ent_coef="auto_30", target_entropy=0.5, **SMALL),
    "HalfCheetah-v5": dict(
        steps=30_000, actor_losses=("adjoint",), diffusion_steps=5, learning_starts=5000, n_action_samples=4
    ),
}


def least_share(model: BaseAlgorithm) -> dict[str, float]:
    """
    :param model: model trained in ``MultiGoal-v0`` or ``TurningDoubleWell-v0``
    :return: ``least_share``, that of the rarest mode in the state where it is rarest; 0.25 and 0.5 are even
    """
    (spec,) = model.get_env().get_attr("spec")  # type: ignore[union-attr]
    shares = mode_coverage(model, spec.id)["shares"]
    return {"least_share": float(np.minimum(shares, 1 - shares).min())}


def divergence(
    env_id: str, path: str | Path, actor_losses: Iterable[str] | None = None, n_jobs: int = 1, **kwargs: Any
) -> pd.DataFrame:
    """
    Train DiffSAC with the reverse KL, by each of the given estimators, and with the forward KL.

    :param env_id: environment; for those of ``DIVERGENCE_TASKS`` the other arguments have defaults
    :param path: CSV file of the results; runs that are there are skipped
    :param actor_losses: estimators of the gradient of the reverse KL; if None the task's, or ``adjoint`` and ``pathwise``
    :param n_jobs: runs at a time, in processes of their own; with 1 they run in this process
    :param kwargs: other arguments of :func:`.variants_of`
    :return: a row for each evaluation of the runs: ``reverse-adjoint`` and so on, and ``forward``
    :raises ValueError: see :class:`.Run` and :func:`.run_all`; without ``steps`` for an environment that has no default
    """
    task = env_id.split(":")[-1]
    kwargs = {**DIVERGENCE_TASKS.get(task, {}), **kwargs}
    if "steps" not in kwargs:
        raise ValueError(f"{env_id} has no default settings, those that have are {list(DIVERGENCE_TASKS)}: give steps")
    of_task = kwargs.pop("actor_losses", ("adjoint", "pathwise"))
    variants: dict[str, Any] = {f"reverse-{name}": dict(actor_loss=name) for name in actor_losses or of_task}
    measure = f"{__name__}:least_share" if task in ("MultiGoal-v0", "TurningDoubleWell-v0") else None
    runs = variants_of({**variants, "forward": dict(divergence="forward")}, env_id, measure=measure, **kwargs)
    return run_all(runs, path, n_jobs if n_jobs > 1 else None)


def divergence_table(results: pd.DataFrame) -> str:
    """
    :param results: output of :func:`divergence`
    :return: Markdown table of what each seed ended with: returns of deterministic and of sampled actions, CPU seconds, and
        the share of the rarest mode where it is known
    """
    columns = {
        "return": ("return", ".0f"),
        "return of sampled actions": ("stochastic_return", ".0f"),
        "CPU seconds": ("cpu_seconds", ".0f"),
        "share of the rarest mode": ("least_share", ".2f"),
    }
    rows = []
    for name, of_name in results.groupby("name", sort=False):
        last = of_name[of_name["step"] == of_name["step"].max()]
        row = {"divergence": name, "steps": f"{of_name['step'].max():,}"}
        for title, (key, form) in columns.items():
            if key in last and last[key].notna().all():
                row[title] = ", ".join(f"{end:{form}}" for end in last[key])
        rows.append(row)
    return markdown(rows)
