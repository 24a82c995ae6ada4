"""Which of several good actions does a policy take?"""

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

Observation = np.ndarray | dict[str, np.ndarray]


def get_chain_policy(model: Any) -> ChainPolicy:
    """
    :param model: DiffSAC, DiffWPO or DiffPPO, or stock SAC with ``DiffusionSACPolicy``
    :return: the part of it that samples chains
    :raises ValueError: for a model without a chain, or one that takes a single denoising step of the augmented MDP at a time
    """
    policy = model.policy
    candidate = getattr(policy, "actor", policy)
    if not isinstance(candidate, ChainPolicy) or getattr(policy, "augmented", None) is not None:
        raise ValueError(f"{type(model).__name__} with {type(policy).__name__} has no denoising chain of its own")
    return candidate


def encode(model: Any, obs: Observation, n_rows: int) -> th.Tensor:
    """
    :param model: see :func:`get_chain_policy`
    :param obs: one observation
    :param n_rows: number of rows N
    :return: encoded observation, (N, W)
    """
    context = get_chain_policy(model).encode(model.policy.obs_to_tensor(obs)[0])  # type: ignore[attr-defined]
    context = context[0] if isinstance(context, tuple) else context
    return context.expand(n_rows, -1)


def action_distribution(
    model: BaseAlgorithm, obs: Observation, n_samples: int = 1000, deterministic: bool = False
) -> np.ndarray:
    """
    :param model: trained model, of any algorithm of Stable-Baselines3 with a ``Box`` of actions
    :param obs: one observation, as the model gets it
    :param n_samples: number of actions
    :param deterministic: see ``predict``
    :return: actions that the policy samples there, (n_samples, d)
    """

    def repeat(array: np.ndarray) -> np.ndarray:
        return np.repeat(np.asarray(array)[None], n_samples, axis=0)

    many = {key: repeat(value) for key, value in obs.items()} if isinstance(obs, dict) else repeat(obs)
    actions, _ = model.predict(many, deterministic=deterministic)
    return actions.reshape(n_samples, -1)


def mode_coverage(model: BaseAlgorithm, env: str | gym.Env, n_samples: int = 1000) -> dict[str, Any]:
    """
    Shares of the modes of one of this package's environments among the policy's sampled actions.

    :param model: trained model, of any algorithm of Stable-Baselines3; for ``TurningGMM`` one with a denoising chain. If it
        was trained in a ``VecNormalize``, load it with that, so that observations are normalised as in training
    :param env: ``MultiGoal-v0``, ``TurningDoubleWell-v0`` or ``TurningGMM-v0``, or its id
    :param n_samples: actions at each state
    :return: for ``MultiGoal`` ``shares`` of the goals that first actions from the exact origin point to, (4,). For
        ``TurningDoubleWell`` ``shares`` of the upper of two actions at each heading, (8,), their mean ``reward``, and mean and
        standard deviation of ``|a|``. For ``TurningGMM`` the ``total_variation`` distance to the exact mixture at each
        heading, (8,)
    :raises ValueError: for another environment, a model of other spaces, or for ``TurningGMM`` see :func:`action_density`
    """
    env = (gym.make(env) if isinstance(env, str) else env).unwrapped
    if not isinstance(env, (MultiGoalEnv, TurningDoubleWellEnv, TurningGMMEnv)):
        raise ValueError(
            f"env={env}: mode_coverage knows the modes of MultiGoal-v0, TurningDoubleWell-v0 and TurningGMM-v0. Give one of "
            "these ids, or such an environment, not a VecEnv. For one of your own, count what action_distribution samples"
        )
    if (model.observation_space, model.action_space) != (env.observation_space, env.action_space):
        raise ValueError(
            f"The model is for {model.observation_space} and {model.action_space}, but {env} has {env.observation_space} and "
            f"{env.action_space}: the modes are known without wrappers that change them"
        )
    if isinstance(env, MultiGoalEnv):
        actions = action_distribution(model, as_seen(model, np.zeros(2, dtype=np.float32)), n_samples)
        aimed = (actions @ env.GOALS.T).argmax(axis=1)
        return {"shares": np.bincount(aimed, minlength=len(env.GOALS)) / n_samples}
    if isinstance(env, TurningGMMEnv):
        return {"total_variation": np.array([total_variation(model, env, heading) for heading in range(len(HEADINGS))])}
    observations = HEADINGS.astype(np.float32)
    actions = np.stack([action_distribution(model, as_seen(model, obs), n_samples)[:, 0] for obs in observations])
    return {
        "shares": (actions > env.middle).mean(axis=1),
        "reward": float(env.reward(actions, 0).mean()),
        "magnitude": float(np.abs(actions).mean()),
        "magnitude_std": float(np.abs(actions).std()),
    }


def as_seen(model: BaseAlgorithm, obs: Observation) -> Observation:
    """
    :param model: model
    :param obs: observation of the environment
    :return: the model's input, normalised through its ``VecNormalize`` if it has one
    """
    vec_normalize = model.get_vec_normalize_env()
    return obs if vec_normalize is None else vec_normalize.normalize_obs(obs)


def action_density(model: Any, obs: Observation, n_points: int = 4801) -> tuple[np.ndarray, np.ndarray]:
    """
    The exact density of a diffusion policy's sampled action, by quadrature over the latents of the chain that ``predict``
    runs.

    :param model: trained DiffSAC, DiffWPO or DiffPPO with actions of one dimension in [-1, 1]
    :param obs: one observation, as the model gets it
    :param n_points: points of the quadrature
    :return: actions, (G,), and the density there, (G,)
    :raises ValueError: for actions of more dimensions or another range, a model without a chain, an action that is the best
        of several candidates, or steps that are too fine for the quadrature
    """
    space = model.action_space
    if space.shape != (1,) or space.low.item() != -1 or space.high.item() != 1:
        raise ValueError(f"action_space={space}: the density is known for one dimension in [-1, 1] only")
    chain_policy = get_chain_policy(model)
    if getattr(model.policy, "n_action_candidates", 1) > 1:
        raise ValueError("n_action_candidates is above 1: the density is that of one chain, not of the best of several")
    schedule = chain_policy.inference_schedule
    # Beyond 8 all actions are at the bounds, to seven digits
    grid = make_grid(1, n_points, max(8.0, 5 * schedule.prior_std))
    with th.no_grad():
        latent_density = exact_marginal(chain_policy.control_fn(encode(model, obs, 1), schedule), schedule, grid)
    actions = th.tanh(grid[:, 0])
    return actions.numpy(), (latent_density / (1 - actions**2)).numpy()


def total_variation(model: Any, env: TurningGMMEnv, heading: int) -> float:
    """
    :param model: trained DiffSAC, DiffWPO or DiffPPO
    :param env: ``TurningGMM-v0``
    :param heading: heading, from 0 to 7
    :return: total-variation distance between the policy's exact density and the mixture, from 0 to 1
    """
    actions, density = action_density(model, as_seen(model, HEADINGS[heading].astype(np.float32)))
    return 0.5 * float(trapezoid(np.abs(density - env.density(actions, heading)), actions))
