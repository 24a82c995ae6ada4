"""DiffPPO as a solver: the maximum cut of one given graph."""

import os
from typing import Any

import networkx as nx
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_diffusion.common.envs.combinatorial import MaxCutEnv
from sb3_diffusion.common.envs.graphs import cut_value, one_exchange, to_adjacency
from sb3_diffusion.common.graph_denoiser import GraphDenoiser
from sb3_diffusion.diffppo.diffppo import DiffPPO


class BestCut(BaseCallback):
    """
    Keeps the best cut that training comes across.

    :param adjacency: adjacency, (n, n)
    """

    def __init__(self, adjacency: np.ndarray):
        super().__init__()
        self.adjacency = adjacency
        self.value, self.sides = -np.inf, np.zeros(len(adjacency), dtype=np.int8)

    def add(self, sides: np.ndarray) -> None:
        """
        :param sides: 0 or 1 for each node, (B, n)
        """
        values = cut_value(self.adjacency, sides)
        if values.max() > self.value:
            self.value, self.sides = float(values.max()), sides[values.argmax()].copy()

    def _on_step(self) -> bool:
        self.add(self.locals["actions"])
        return True


def solve_max_cut(
    graph: "str | os.PathLike[str] | nx.Graph | np.ndarray",
    total_timesteps: int = 20_000,
    diffusion_steps: int = 6,
    n_samples: int = 256,
    seed: int = 0,
    progress_bar: bool = False,
    **settings: Any,
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """
    Train on one graph alone, then draw from the policy. The temperature falls, so that the early policy is wide.

    :param graph: a file in Gset's format, a graph of networkx, or an adjacency
    :param total_timesteps: cuts to try in training
    :param diffusion_steps: number of denoising steps K
    :param n_samples: cuts to draw after it
    :param seed: seed
    :param progress_bar: whether to show the progress of the training
    :param settings: other keyword arguments of :class:`.DiffPPO`
    :return: rows with the cuts found by each way, and the sides of the best, (n,)
    :raises ValueError: for a graph that cannot be read or has no edge of positive weight
    """
    adjacency = to_adjacency(graph)
    env = make_vec_env(lambda: MaxCutEnv(graph=adjacency), 32)
    defaults: dict[str, Any] = dict(
        n_steps=8,
        batch_size=64,
        n_epochs=2,
        learning_rate=1e-3,
        ent_coef="exp_0.003_0.0001",
        denoising_steps_per_update=min(3, diffusion_steps),
        policy_kwargs=dict(denoiser_class=GraphDenoiser, denoiser_kwargs=dict(width=32)),
    )
    model = DiffPPO("MultiInputPolicy", env, diffusion_steps=diffusion_steps, seed=seed, **{**defaults, **settings})
    best = BestCut(adjacency)
    model.learn(total_timesteps, callback=best, progress_bar=progress_bar)
    obs = {key: np.stack([value] * n_samples) for key, value in MaxCutEnv(graph=adjacency).reset()[0].items()}
    samples, _ = model.predict(obs)
    best.add(samples)
    values = cut_value(adjacency, samples)
    polished = one_exchange(adjacency, best.sides)
    local, _ = nx.algorithms.approximation.one_exchange(nx.from_numpy_array(adjacency), weight="weight", seed=seed)
    rows = [
        {"cut": "mean of the policy's", "value": float(values.mean())},
        {"cut": f"best of the policy's {n_samples}", "value": float(values.max())},
        {"cut": "best found", "value": best.value},
        {"cut": "best found, after one-exchange", "value": float(cut_value(adjacency, polished))},
        {"cut": "networkx's one_exchange", "value": float(local)},
    ]
    return rows, polished
