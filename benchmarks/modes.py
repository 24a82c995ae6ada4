"""
Whether ``MULTIMODAL_KWARGS`` keeps both of two equally good actions, on wells of several forms: the registered ones, others
that are closer, farther apart, or not symmetric.

Example::

    python -m benchmarks.modes --seeds 0 1 2 3 4 --jobs 2
    python -m benchmarks.modes --table
"""

from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from benchmarks.command_line import carry_out, make_parser
from sb3_diffusion import DiffSAC
from sb3_diffusion.analysis import mode_coverage
from sb3_diffusion.analysis.command_line import seed_number, whole_number
from sb3_diffusion.analysis.runner import Run
from sb3_diffusion.diffsac import MULTIMODAL_KWARGS

__all__ = ["DiffSAC"]

WELLS = {
    "TurningDoubleWell-v0": (-0.5, 0.5),
    "TurningNarrowWell-v0": (-0.3, 0.3),
    "TurningWideWell-v0": (-0.75, 0.75),
    "TurningUnevenWell-v0": (-0.7, 0.4),
}
for env_id, wells in WELLS.items():
    if env_id not in gym.registry:
        entry_point = "sb3_diffusion.common.envs:TurningDoubleWellEnv"
        gym.register(env_id, entry_point, max_episode_steps=100, kwargs=dict(wells=wells))

SMALL = [64, 64]
VARIANTS: dict[str, dict[str, Any]] = {
    "multimodal": {**MULTIMODAL_KWARGS, "policy_kwargs": {**MULTIMODAL_KWARGS["policy_kwargs"], "net_arch": SMALL}},
    "default": dict(policy_kwargs=dict(net_arch=SMALL), learning_rate=2e-3, diffusion_steps=8),
}


def measure_modes(model: BaseAlgorithm) -> dict[str, float]:
    """
    :param model: model trained on two wells
    :return: ``least_share``, of the rarer action at the heading where it is rarest, and ``mean_reward`` of sampled actions
    """
    (spec,) = model.get_env().get_attr("spec")  # type: ignore[union-attr]
    coverage = mode_coverage(model, spec.id)
    shares = coverage["shares"]
    return {"least_share": float(np.minimum(shares, 1 - shares).min()), "mean_reward": coverage["reward"]}


def main() -> None:
    """Train what is missing, or print what there is."""
    parser = make_parser(__doc__, "modes")
    parser.add_argument("--envs", nargs="+", choices=WELLS, default=list(WELLS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["multimodal"])
    parser.add_argument("--seeds", type=seed_number, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=whole_number(1), default=8_000)
    args = parser.parse_args()
    runs = [
        Run(
            name, "benchmarks.modes:DiffSAC", env, args.steps, seed, VARIANTS[name],
            eval_every=2_000, eval_episodes=5, measure="benchmarks.modes:measure_modes",
        )
        for seed in args.seeds for name in args.variants for env in args.envs
    ]  # fmt: skip
    carry_out(runs, args)


if __name__ == "__main__":
    main()
