"""Weighted graphs as matrices: random ones, files, cuts and pictures."""

import os
from pathlib import Path

import networkx as nx
import numpy as np

from sb3_diffusion.common.envs.rendering import WHITE, Discs, draw_discs

Segments = list[tuple[np.ndarray, np.ndarray, tuple[int, int, int]]]


def random_graph(kind: str, n_nodes: int, rng: np.random.Generator, degree: int = 4, edge_share: float = 0.15) -> np.ndarray:
    """
    :param kind: ``"ba"``, Barabasi-Albert, or ``"er"``, Erdos-Renyi
    :param n_nodes: number of nodes n
    :param rng: random number generator
    :param degree: of Barabasi-Albert graphs: edges of each new node, fewer in graphs of fewer nodes
    :param edge_share: of Erdos-Renyi graphs: probability of an edge
    :return: adjacency with the nodes in random order, (n, n), float32
    """
    seed = int(rng.integers(2**31))
    if kind == "ba":
        graph = nx.barabasi_albert_graph(n_nodes, min(degree, n_nodes - 1), seed=seed)
    else:
        graph = nx.gnp_random_graph(n_nodes, edge_share, seed=seed)
    order = rng.permutation(n_nodes)
    return nx.to_numpy_array(graph, dtype=np.float32)[np.ix_(order, order)]


def read_graph(path: str | os.PathLike[str]) -> np.ndarray:
    """
    Read a graph in Gset's format: a line with the numbers of nodes and edges, then one line ``i j weight`` for each edge,
    nodes counted from 1. The weight is 1 where it is left out.

    :param path: path of the file
    :return: adjacency, (n, n), float32
    :raises ValueError: for a file in another format, with the line that is wrong
    """
    lines = [line.split() for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    try:
        n_nodes, n_edges = map(int, lines[0])
        adjacency = np.zeros((n_nodes, n_nodes), dtype=np.float32)
    except (ValueError, IndexError, MemoryError) as error:
        raise ValueError(f"{path}: the first line must be the numbers of nodes and edges") from error
    if len(lines) != n_edges + 1:
        raise ValueError(f"{path}: it says {n_edges} edges and has {len(lines) - 1}")
    for fields in lines[1:]:
        try:
            i, j, weight = int(fields[0]) - 1, int(fields[1]) - 1, float(fields[2]) if len(fields) > 2 else 1.0
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path}: {' '.join(fields)!r} is not an edge 'i j weight'") from error
        if not (0 <= i < n_nodes and 0 <= j < n_nodes and i != j and abs(weight) <= np.finfo(np.float32).max):
            raise ValueError(f"{path}: {' '.join(fields)!r}: nodes are two of 1 to {n_nodes}, and the weight is finite")
        if adjacency[i, j] not in (0, np.float32(weight)):
            raise ValueError(f"{path}: {' '.join(fields)!r}: this edge is there twice, with another weight")
        adjacency[i, j] = adjacency[j, i] = weight
    return adjacency


def to_adjacency(graph: "str | os.PathLike[str] | nx.Graph | np.ndarray") -> np.ndarray:
    """
    :param graph: a file in Gset's format, a graph of networkx, or an adjacency
    :return: adjacency, (n, n), float32
    :raises ValueError: if it is not symmetric, has loops or weights that are not finite
    """
    if isinstance(graph, (str, os.PathLike)):
        return read_graph(graph)
    adjacency = nx.to_numpy_array(graph, dtype=np.float32) if isinstance(graph, nx.Graph) else np.array(graph, np.float32)
    square = adjacency.ndim == 2 and adjacency.shape[0] == adjacency.shape[1]
    if not square or not np.isfinite(adjacency).all() or (adjacency != adjacency.T).any() or adjacency.diagonal().any():
        raise ValueError(f"graph={graph!r}: give an undirected graph without loops, with finite weights")
    return adjacency


def cut_value(adjacency: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """
    :param adjacency: adjacency, (n, n)
    :param sides: 0 or 1 for each node, (..., n)
    :return: total weight of the edges between the two sides, (...)
    """
    sides = sides.astype(np.float64)
    return ((sides @ adjacency) * (1 - sides)).sum(axis=-1)


def one_exchange(adjacency: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """
    Local search: the node whose change of sides gains most changes, until none gains.

    :param adjacency: adjacency, (n, n)
    :param sides: 0 or 1 for each node, (n,)
    :return: sides of a cut that no change of one node makes larger, (n,)
    """
    signs = 2.0 * sides - 1
    while True:
        gain = signs * (adjacency @ signs)
        best = int(gain.argmax())
        if gain[best] <= 1e-9:
            return (signs > 0).astype(np.int8)
        signs[best] = -signs[best]


def circle(n_nodes: int) -> np.ndarray:
    """
    :param n_nodes: number of nodes n
    :return: points on the unit circle, (n, 2)
    """
    angles = 2 * np.pi * np.arange(n_nodes) / n_nodes
    return np.stack((np.cos(angles), np.sin(angles)), axis=1)


def draw_graph(segments: Segments, discs: Discs, center: np.ndarray, half_width: float, size: int = 256) -> np.ndarray:
    """
    :param segments: both ends and the colour of each edge; the last are on top
    :param discs: position, radius and colour of each node, on top of the edges
    :param center: point in the middle of the picture, (2,)
    :param half_width: distance of the picture's edge from its middle
    :param size: pixels along an edge
    :return: picture, (size, size, 3), uint8, with the second coordinate upwards
    """
    image = np.full((size, size, 3), WHITE, dtype=np.uint8)
    share = np.linspace(0, 1, 2 * size)[:, None]
    for start, end, color in segments:
        points = (start + share * (end - start) - center) / half_width  # from -1 to 1
        columns, rows = np.clip(((points * [1, -1] + 1) / 2 * size).astype(int), 0, size - 1).T
        image[rows, columns] = color
    nodes = draw_discs(discs, center, half_width, size)
    covered = (nodes != WHITE).any(axis=-1)
    image[covered] = nodes[covered]
    return image
