"""Combinatorial tasks of one step: maximum cut and the travelling salesman."""

import itertools
import os
from typing import Any

import gymnasium as gym
import networkx as nx
import numpy as np
from gymnasium import spaces

from sb3_diffusion.common.checks import check_choice, check_integer
from sb3_diffusion.common.envs.graphs import Segments, circle, cut_value, draw_graph, random_graph, to_adjacency
from sb3_diffusion.common.envs.rendering import BLUE, GREEN, GREY, RED, Discs

Observation = dict[str, np.ndarray]


class MaxCutEnv(gym.Env[Observation, np.ndarray]):
    """
    Divide the nodes of a graph in two, so that the edges between the sides have the greatest total weight.

    One step. The observation is the ``adjacency``, (n, n), and a ``mask`` with 1 for each node that the graph has, (n,); the
    action, ``MultiBinary(n)``, the side of each node. The reward is the cut over the total weight of the positive edges, which
    no cut exceeds; ``info["cut"]`` has the cut itself. Graphs are drawn at each ``reset``, unless one is given here or in
    ``reset(options=dict(graph=...))``.

    :param n_nodes: number of nodes n, the greatest there is
    :param min_nodes: least number of nodes, from where it is drawn; n if None
    :param kind: ``"ba"``, Barabasi-Albert graphs with four edges of each new node, or ``"er"``, Erdos-Renyi graphs
    :param edge_share: probability of an edge in Erdos-Renyi graphs
    :param graph: the one graph to divide: a file in Gset's format, a graph of networkx, or an adjacency; gives n
    :param render_mode: ``"rgb_array"`` or None
    :raises ValueError: for a graph that cannot be cut or another argument that is out of range
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012

    def __init__(
        self,
        n_nodes: int = 50,
        min_nodes: int | None = None,
        kind: str = "ba",
        edge_share: float = 0.15,
        graph: "str | os.PathLike[str] | nx.Graph | np.ndarray | None" = None,
        render_mode: str | None = None,
    ):
        self.graph = None if graph is None else to_adjacency(graph)
        if self.graph is not None:
            n_nodes = len(self.graph)
            check_has_edges(self.graph)
        check_integer("n_nodes", n_nodes, least=2)
        check_integer("min_nodes", n_nodes if min_nodes is None else min_nodes, least=2)
        check_choice("kind", kind, ("ba", "er"))
        if not 0 < edge_share <= 1:
            raise ValueError(f"edge_share={edge_share!r}: it must be above 0 and at most 1")
        self.n_nodes, self.min_nodes = n_nodes, n_nodes if min_nodes is None else min(min_nodes, n_nodes)
        self.kind, self.edge_share, self.render_mode = kind, edge_share, render_mode
        self.bound = bound = 1.0 if self.graph is None else float(np.abs(self.graph).max())
        self.observation_space: Any = spaces.Dict(
            adjacency=spaces.Box(-bound, bound, (n_nodes, n_nodes)), mask=spaces.Box(0.0, 1.0, (n_nodes,))
        )
        self.action_space = spaces.MultiBinary(n_nodes)
        self.sides: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        graph = (options or {}).get("graph", self.graph)
        if graph is None:
            graph = self._draw()
        graph = to_adjacency(graph)
        if len(graph) > self.n_nodes:
            raise ValueError(f"options['graph'] has {len(graph)} nodes: the spaces have room for {self.n_nodes}")
        check_has_edges(graph)
        if np.abs(graph).max() > self.bound:
            raise ValueError(f"options['graph'] has weights beyond {self.bound:g}, the bound of the observation space")
        self.size = len(graph)
        self.adjacency = np.zeros((self.n_nodes, self.n_nodes), dtype=np.float32)
        self.adjacency[: self.size, : self.size] = graph
        self.sides = None
        return self._observation(), {}

    def _draw(self) -> np.ndarray:
        while True:
            size = int(self.np_random.integers(self.min_nodes, self.n_nodes + 1))
            graph = random_graph(self.kind, size, self.np_random, edge_share=self.edge_share)
            if graph.any():
                return graph

    def _observation(self) -> Observation:
        return dict(adjacency=self.adjacency.copy(), mask=(np.arange(self.n_nodes) < self.size).astype(np.float32))

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self.sides = np.asarray(action)
        cut = float(cut_value(self.adjacency, self.sides))
        # Each edge stands in the matrix twice
        reward = cut / (0.5 * float(self.adjacency.clip(min=0).sum()))
        return self._observation(), reward, True, False, {"cut": cut}

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            return None
        points, sides = circle(self.size), self.sides
        edges = np.argwhere(np.triu(self.adjacency) != 0)
        is_cut = np.zeros(len(edges), dtype=bool) if sides is None else sides[edges[:, 0]] != sides[edges[:, 1]]
        segments: Segments = [(points[i], points[j], GREY) for i, j in edges[~is_cut]]
        segments += [(points[i], points[j], GREEN) for i, j in edges[is_cut]]
        colors = [GREY if sides is None else (BLUE, RED)[int(sides[i])] for i in range(self.size)]
        discs: Discs = [(point, 0.04, color) for point, color in zip(points, colors, strict=True)]
        return draw_graph(segments, discs, np.zeros(2), 1.1)


def check_has_edges(graph: np.ndarray) -> None:
    """
    :param graph: adjacency, (n, n)
    :raises ValueError: if no edge has a positive weight, so that there is nothing to cut
    """
    if not (graph > 0).any():
        raise ValueError("the graph has no edge of positive weight: there is nothing to cut")


def tour_length(points: np.ndarray, tour: np.ndarray) -> float:
    """
    :param points: the cities, (n, 2)
    :param tour: their order, (n,)
    :return: length of the closed tour
    """
    ordered = points[tour]
    return float(np.linalg.norm(ordered - np.roll(ordered, -1, axis=0), axis=1).sum())


class TSPEnv(gym.Env[Observation, np.ndarray]):
    """
    The shortest closed tour through cities that are drawn uniformly in the unit square.

    One step. The observation has the cities' coordinates, ``nodes``, (n, 2), their closeness ``exp(-sqrt(n) distance)``,
    ``adjacency``, (n, n), with a diagonal of 0, and a ``mask`` of ones, (n,). The action, ``MultiDiscrete([n] * n)``, gives
    each city a priority: the tour goes from the lowest to the highest, of equal ones by their number, so that every action is
    a tour. The reward is minus the length over ``0.7124 sqrt(n)``, to which the shortest tends for many cities (Beardwood,
    Halton and Hammersley, 1959); ``info`` has ``length`` and ``tour``.

    :param n_cities: number of cities n
    :param render_mode: ``"rgb_array"`` or None
    :raises ValueError: for fewer than three cities
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012

    def __init__(self, n_cities: int = 20, render_mode: str | None = None):
        check_integer("n_cities", n_cities, least=3)
        self.n_cities, self.render_mode = n_cities, render_mode
        self.observation_space: Any = spaces.Dict(
            adjacency=spaces.Box(0.0, 1.0, (n_cities, n_cities)),
            mask=spaces.Box(0.0, 1.0, (n_cities,)),
            nodes=spaces.Box(0.0, 1.0, (n_cities, 2)),
        )
        self.action_space = spaces.MultiDiscrete([n_cities] * n_cities)
        self.tour: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        points = np.asarray((options or {}).get("nodes", self.np_random.random((self.n_cities, 2))), dtype=np.float32)
        if points.shape != (self.n_cities, 2) or not ((points >= 0) & (points <= 1)).all():
            raise ValueError(f"options['nodes']: give {self.n_cities} points in the unit square, not {points!r}")
        self.points, self.tour = points, None
        return self._observation(), {}

    def _observation(self) -> Observation:
        distance = np.linalg.norm(self.points[:, None] - self.points[None], axis=-1)
        closeness = np.exp(-np.sqrt(self.n_cities) * distance) * (1 - np.eye(self.n_cities))
        mask = np.ones(self.n_cities, dtype=np.float32)
        return dict(adjacency=closeness.astype(np.float32), mask=mask, nodes=self.points.copy())

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self.tour = np.argsort(np.asarray(action), kind="stable")
        length = tour_length(self.points, self.tour)
        reward = -length / (0.7124 * self.n_cities**0.5)
        return self._observation(), reward, True, False, {"length": length, "tour": self.tour}

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            return None
        tour = [] if self.tour is None else [*self.tour, self.tour[0]]
        segments: Segments = [(self.points[i], self.points[j], BLUE) for i, j in itertools.pairwise(tour)]
        discs: Discs = [(point, 0.015, RED) for point in self.points]
        return draw_graph(segments, discs, np.full(2, 0.5), 0.55)
