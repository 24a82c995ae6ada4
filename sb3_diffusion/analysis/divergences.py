"""What does the divergence that the actor descends change: which modes it keeps, and what it earns?"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_diffusion.analysis.evaluation import markdown, values
from sb3_diffusion.analysis.modes import mode_coverage
from sb3_diffusion.analysis.sweep import Runs, compare

# Equal numbers of chains for both divergences, so that nothing but the divergence differs
SMALL: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[64, 64]), diffusion_steps=8, prior_std=0.5, n_action_samples=8)
DIVERGENCE_TASKS: dict[str, dict[str, Any]] = {
    "TurningDoubleWell-v0": dict(n_steps=8000, eval_every=2000, learning_rate=2e-3, target_entropy=-0.6, **SMALL),
    "MultiGoal-v0": dict(n_steps=6000, eval_every=2000, learning_rate=1e-3, ent_coef="auto_30", target_entropy=0.5, **SMALL),
    "HalfCheetah-v5": dict(
        n_steps=30_000, actor_losses=("adjoint",), diffusion_steps=5, learning_starts=5000, n_action_samples=4
    ),
}


def least_share(env_id: str, model: BaseAlgorithm) -> dict[str, float]:
    """
    :param env_id: ``MultiGoal-v0`` or ``TurningDoubleWell-v0``
    :param model: trained model
    :return: ``least_share``, that of the rarest mode in the state where it is rarest; 0.25 and 0.5 are even
    """
    shares = mode_coverage(model, env_id)["shares"]
    return {"least_share": float(np.minimum(shares, 1 - shares).min())}


def divergence(
    env_id: str,
    folder: str | Path,
    actor_losses: Iterable[str] | None = None,
    **kwargs: Any,
) -> Runs:
    """
    Train DiffSAC with the reverse KL, by each of the given estimators, and with the forward KL.

    :param env_id: environment; for those of ``DIVERGENCE_TASKS`` the other arguments have defaults
    :param folder: where the results stand, see :func:`.compare`
    :param actor_losses: estimators of the gradient of the reverse KL; if None the task's, or ``adjoint`` and ``pathwise``
    :param kwargs: other arguments of :func:`.compare`
    :return: results by name of the runs: ``reverse-adjoint`` and so on, and ``forward``
    :raises ValueError: see :func:`.compare`; without ``n_steps`` for an environment that has no default
    """
    task = env_id.split(":")[-1]
    kwargs = {**DIVERGENCE_TASKS.get(task, {}), **kwargs}
    if "n_steps" not in kwargs:
        raise ValueError(f"{env_id} has no default settings, those that have are {list(DIVERGENCE_TASKS)}: give n_steps")
    of_task = kwargs.pop("actor_losses", ("adjoint", "pathwise"))
    variants: dict[str, Any] = {f"reverse-{name}": dict(actor_loss=name) for name in actor_losses or of_task}
    measure = partial(least_share, env_id) if task in ("MultiGoal-v0", "TurningDoubleWell-v0") else None
    return compare({**variants, "forward": dict(divergence="forward")}, env_id, folder=folder, measure=measure, **kwargs)


def divergence_table(runs: Runs) -> str:
    """
    :param runs: output of :func:`divergence`
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
    for name, of_name in runs.items():
        last = of_name[0]["points"][-1]
        row = {"divergence": name, "steps": f"{int(last['step']):,}"}
        for title, (key, form) in columns.items():
            if key in last:
                row[title] = ", ".join(f"{end:{form}}" for end in values(of_name, key)[:, -1])
        rows.append(row)
    return markdown(rows)
