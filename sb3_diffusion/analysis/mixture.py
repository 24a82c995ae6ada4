"""A task whose best policy is known exactly: how near does DiffSAC come to it?"""

from typing import Any

import gymnasium as gym

from sb3_diffusion.analysis.modes import mode_coverage
from sb3_diffusion.diffsac.diffsac import DiffSAC

MIXTURE_STEPS = 10_000


def fit_mixture(diffusion_steps: int, n_steps: int = MIXTURE_STEPS, seed: int = 0, **kwargs: Any) -> dict[str, Any]:
    """
    Train DiffSAC on ``TurningGMM-v0`` at temperature 1 and discount 0, where the best policy is the mixture itself. The
    temperature falls to 1 from 10, as it must for every mode to be kept.

    :param diffusion_steps: number of denoising steps K
    :param n_steps: steps of the environment
    :param seed: seed
    :param kwargs: other arguments of DiffSAC
    :return: the total-variation distance to the mixture, in the mean over the headings and at the worst
    """
    env = gym.make("TurningGMM-v0")
    settings: dict[str, Any] = dict(ent_coef=1.0, gamma=0.0, seed=seed, device="cpu")
    model = DiffSAC("MlpPolicy", env, diffusion_steps=diffusion_steps, **{**settings, **kwargs}).learn(n_steps)
    distance = mode_coverage(model, env)["total_variation"]
    return {
        "diffusion_steps": diffusion_steps,
        "steps": n_steps,
        "total_variation": float(distance.mean()),
        "worst_heading": float(distance.max()),
    }
