"""Which of several good actions does a policy take? For any policy of Stable-Baselines3."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from scipy.integrate import trapezoid
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_diffusion.analysis.bound import exact_marginal, make_grid
from sb3_diffusion.common.envs.multi_goal import MultiGoalEnv
from sb3_diffusion.common.envs.turning import HEADINGS, TurningDoubleWellEnv, TurningGMMEnv
from sb3_diffusion.common.policies import ChainPolicy


def get_chain_policy(model: Any) -> ChainPolicy:
    """
    :param model: DiffSAC, DiffWPO or DiffPPO, or stock SAC with ``DiffusionSACPolicy``
    :return: what samples its chains
    :raises ValueError: for a model without a chain
    """
    for candidate in (getattr(model, "actor", None), model.policy):
        if isinstance(candidate, ChainPolicy):
            return candidate
    raise ValueError(f"{type(model).__name__} with {type(model.policy).__name__} has no denoising chain")


def encode(model: Any, obs: np.ndarray | dict[str, np.ndarray], n_rows: int) -> th.Tensor:
    """
    :param model: see :func:`get_chain_policy`
    :param obs: one observation
    :param n_rows: number of rows N
    :return: what the score network needs to know of it, (N, W)
    """
    context = get_chain_policy(model).encode(model.policy.obs_to_tensor(obs)[0])  # type: ignore[attr-defined]
    context = context[0] if isinstance(context, tuple) else context
    return context.expand(n_rows, -1)


def action_distribution(
    model: BaseAlgorithm, obs: np.ndarray | dict[str, np.ndarray], n_samples: int = 1000, deterministic: bool = False
) -> np.ndarray:
    """
    :param model: trained model
    :param obs: one observation
    :param n_samples: number of actions
    :param deterministic: see ``predict``
    :return: actions that the policy samples there, (n_samples, d)
    """
    repeat = lambda array: np.repeat(np.asarray(array)[None], n_samples, axis=0)  # noqa: E731
    many = {key: repeat(value) for key, value in obs.items()} if isinstance(obs, dict) else repeat(obs)
    actions, _ = model.predict(many, deterministic=deterministic)
    return actions.reshape(n_samples, -1)


def mode_coverage(model: BaseAlgorithm, env: str | gym.Env, n_samples: int = 1000) -> dict[str, Any]:
    """
    Shares of the modes of one of this package's environments among the policy's sampled actions.

    :param model: trained model
    :param env: ``MultiGoal-v0``, ``TurningDoubleWell-v0`` or ``TurningGMM-v0``, or its id
    :param n_samples: actions at each state
    :return: for ``MultiGoal`` ``shares`` of the goals that first actions from the exact origin point to, (4,). For
        ``TurningDoubleWell`` ``shares`` of positive actions at each heading, (8,), their mean ``reward``, and mean and
        standard deviation of ``|a|``. For ``TurningGMM`` the ``total_variation`` distance to the exact mixture at each
        heading, (8,)
    :raises ValueError: for another environment
    """
    env = (gym.make(env) if isinstance(env, str) else env).unwrapped
    if isinstance(env, MultiGoalEnv):
        actions = action_distribution(model, np.zeros(2, dtype=np.float32), n_samples)
        aimed = (actions @ env.GOALS.T).argmax(axis=1)
        return {"shares": np.bincount(aimed, minlength=len(env.GOALS)) / n_samples}
    if isinstance(env, TurningGMMEnv):
        return {"total_variation": np.array([total_variation(model, env, heading) for heading in range(len(HEADINGS))])}
    if isinstance(env, TurningDoubleWellEnv):
        actions = np.stack([action_distribution(model, obs, n_samples)[:, 0] for obs in HEADINGS.astype(np.float32)])
        return {
            "shares": (actions > 0).mean(axis=1),
            "reward": float(env.reward(actions, 0).mean()),
            "magnitude": float(np.abs(actions).mean()),
            "magnitude_std": float(np.abs(actions).std()),
        }
    raise ValueError(f"env={env}: mode_coverage knows the modes of MultiGoal-v0, TurningDoubleWell-v0 and TurningGMM-v0")


def action_density(model: Any, obs: np.ndarray, n_points: int = 2401) -> tuple[np.ndarray, np.ndarray]:
    """
    The exact density of a diffusion policy's action, by quadrature over the chain's latents.

    :param model: trained DiffSAC, DiffWPO or DiffPPO with actions of one dimension in [-1, 1]
    :param obs: one observation
    :param n_points: points of the quadrature
    :return: actions, (G,), and the density there, (G,)
    :raises ValueError: for actions of more dimensions or another range
    """
    space = model.action_space
    if space.shape != (1,) or space.low.item() != -1 or space.high.item() != 1:
        raise ValueError(f"action_space={space}: the density is known for one dimension in [-1, 1] only")
    chain_policy = get_chain_policy(model)
    grid = make_grid(1, n_points, limit=4.0)
    with th.no_grad():
        latent_density = exact_marginal(chain_policy.control_fn(encode(model, obs, 1)), chain_policy.schedule, grid)
    actions = th.tanh(grid[:, 0])
    return actions.numpy(), (latent_density / (1 - actions**2)).numpy()


def total_variation(model: Any, env: TurningGMMEnv, heading: int) -> float:
    """
    :param model: trained DiffSAC, DiffWPO or DiffPPO
    :param env: ``TurningGMM-v0``
    :param heading: heading, from 0 to 7
    :return: total-variation distance between the policy's exact density and the mixture, from 0 to 1
    """
    actions, density = action_density(model, HEADINGS[heading].astype(np.float32))
    return 0.5 * float(trapezoid(np.abs(density - env.density(actions, heading)), actions))
