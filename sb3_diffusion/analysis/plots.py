"""Pictures of a policy. Each function draws on matplotlib's axes and returns them."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch as th
from matplotlib.axes import Axes
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffusion.analysis.modes import Observation, action_distribution, as_seen, encode, get_chain_policy
from sb3_diffusion.common.chain import draw_noise, implied_score, sample_chain


def plot_action_distribution(model: BaseAlgorithm, obs: Observation, ax: Axes | None = None, n_samples: int = 2000) -> Axes:
    """
    The actions that a policy samples at one state: a histogram in one dimension, points of the first two in more.

    :param model: trained model, of any algorithm
    :param obs: one observation
    :param ax: where to draw; new axes if None
    :param n_samples: number of actions
    :return: the axes
    :raises ValueError: for actions that are not a ``Box``
    """
    space = model.action_space
    if not isinstance(space, gym.spaces.Box):
        raise ValueError(f"action_space={space}: only real-valued actions, a Box, have a distribution to draw")
    ax = plt.subplots()[1] if ax is None else ax
    actions = action_distribution(model, obs, n_samples)
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    if actions.shape[1] == 1:
        ax.hist(actions[:, 0], bins=60, range=(low[0], high[0]), density=True)
        ax.set(xlabel="action", ylabel="density", xlim=(low[0], high[0]))
    else:
        ax.plot(actions[:, 0], actions[:, 1], ".", markersize=2, alpha=0.5)
        ax.set(xlabel="action 0", ylabel="action 1", xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    return ax


def plot_denoising(
    model: Any,
    obs: Observation,
    axes: Sequence[Axes] | None = None,
    n_samples: int = 2000,
    limit: float = 3.0,
) -> Sequence[Axes]:
    """
    The density of the latent action on its way through the steps of the chain that ``predict`` runs, from noise, ``k = K``, to
    ``k = 0``.

    :param model: trained DiffSAC, DiffWPO or DiffPPO
    :param obs: one observation
    :param axes: K+1 axes, where K is the policy's ``inference_steps``; new ones if None
    :param n_samples: number of chains
    :param limit: the pictures reach from minus to plus this, in each of the first two dimensions
    :return: the axes
    """
    policy = get_chain_policy(model)
    schedule = policy.inference_schedule
    n_steps = schedule.diffusion_steps
    if axes is None:
        axes = list(plt.subplots(1, n_steps + 1, figsize=(2 * (n_steps + 1), 2.2), squeeze=False)[1][0])
    with th.no_grad():
        control_fn = policy.control_fn(encode(model, obs, n_samples), schedule)
        latents = sample_chain(control_fn, schedule, draw_noise(schedule, n_samples, policy.action_dim)).x.cpu().numpy()
    for ax, step in zip(axes, range(n_steps, -1, -1), strict=True):
        x = latents[step]
        if x.shape[1] == 1:
            ax.hist(x[:, 0], bins=60, range=(-limit, limit), density=True)
        else:
            ax.hist2d(x[:, 0], x[:, 1], bins=40, range=((-limit, limit), (-limit, limit)))
            ax.set_aspect("equal")
        ax.set(title=f"k = {step}", yticks=[])
    return axes


def plot_score_field(
    model: Any, obs: np.ndarray, step: int = 1, ax: Axes | None = None, n_points: int = 15, limit: float = 2.5
) -> Axes:
    """
    The score ``grad_x log q(x_k | s)`` that the network stands for, as arrows over the plane of latent actions.

    :param model: trained DiffSAC, DiffWPO or DiffPPO with actions of two dimensions
    :param obs: one observation
    :param step: denoising step ``k``
    :param ax: where to draw; new axes if None
    :param n_points: arrows along each axis
    :param limit: the picture reaches from minus to plus this
    :return: the axes
    :raises ValueError: for actions of another dimension, or a step that the chain has not
    """
    policy = get_chain_policy(model)
    if policy.action_dim != 2:
        raise ValueError(f"the actions have {policy.action_dim} dimensions: a field of scores is drawn for two")
    if step not in range(1, policy.schedule.diffusion_steps + 1):
        raise ValueError(f"step={step!r}: choose from 1 to {policy.schedule.diffusion_steps}")
    ax = plt.subplots()[1] if ax is None else ax
    axis = th.linspace(-limit, limit, n_points)
    x = th.cartesian_prod(axis, axis)
    with th.no_grad():
        context = encode(model, obs, len(x))
        x = x.to(context.device)
        u, _ = policy.control_fn(context)(x, step)
        score = implied_score(policy.schedule, u, x, step).cpu().numpy()
    ax.quiver(x[:, 0].cpu(), x[:, 1].cpu(), score[:, 0], score[:, 1], np.linalg.norm(score, axis=1), cmap="viridis")
    ax.set(xlabel="latent action 0", ylabel="latent action 1", title=f"score at k = {step}", aspect="equal")
    return ax


def plot_trajectories(
    model: BaseAlgorithm,
    env: gym.Env,
    ax: Axes | None = None,
    n_episodes: int = 20,
    options: dict[str, Any] | None = None,
    max_steps: int = 100,
) -> Axes:
    """
    Where sampled actions lead, in the plane.

    :param model: trained model, of any algorithm
    :param env: environment with a ``position`` of two coordinates, such as ``MultiGoal-v0`` or ``TurningDoubleWell-v0``
    :param ax: where to draw; new axes if None
    :param n_episodes: number of trajectories
    :param options: options of ``reset``
    :param max_steps: steps of each trajectory at most
    :return: the axes
    :raises ValueError: for another environment, or a ``VecEnv``
    """
    if isinstance(env, VecEnv):
        raise ValueError(f"env={env}: give a gymnasium.Env, not a VecEnv")
    ax = plt.subplots()[1] if ax is None else ax
    for episode in range(n_episodes):
        obs, _ = env.reset(seed=episode, options=options)
        if not hasattr(env.unwrapped, "position"):
            raise ValueError(f"env={env}: to draw where it goes, it needs an attribute position of two coordinates")
        path = [np.array(env.unwrapped.position)]
        for _ in range(max_steps):
            obs, _, terminated, truncated, _ = env.step(model.predict(as_seen(model, obs), deterministic=False)[0])
            path.append(np.array(env.unwrapped.position))
            if terminated or truncated:
                break
        ax.plot(*np.stack(path).T, "-", linewidth=0.8, alpha=0.7)
    goals = getattr(env.unwrapped, "GOALS", None)
    if goals is not None:
        ax.plot(*goals.T, "o", color="black", markersize=10, fillstyle="none")
    ax.set(xlabel="x", ylabel="y", aspect="equal")
    return ax
