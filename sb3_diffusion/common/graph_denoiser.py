"""A message-passing denoiser over graphs, in the place of a multilayer perceptron."""

import torch as th
from torch import nn

from sb3_diffusion.common.score_network import TIME_FEATURES, time_features


class _MessageLayer(nn.Module):
    """
    ``h_i + f(norm(A h_i + B sum_j a_ij h_j + C mean_j h_j))``, with the mean over the graph's nodes.

    :param width: width W of a node's state
    :param activation_fn: activation
    """

    def __init__(self, width: int, activation_fn: type[nn.Module]):
        super().__init__()
        self.combine = nn.Linear(3 * width, width)
        self.update = nn.Sequential(nn.LayerNorm(width), activation_fn(), nn.Linear(width, width))

    def forward(self, h: th.Tensor, adjacency: th.Tensor, share: th.Tensor) -> th.Tensor:
        """
        :param h: states of the nodes, (..., B, n, W)
        :param adjacency: weights of the edges, (B, n, n)
        :param share: one over the number of nodes for those that the graph has, else 0, (B, n, 1)
        :return: new states, (..., B, n, W)
        """
        mean = (share * h).sum(dim=-2, keepdim=True).expand_as(h)
        return h + self.update(self.combine(th.cat((h, adjacency @ h, mean), dim=-1)))


class GraphDenoiser(nn.Module):
    """
    A denoiser for actions with one entry for each node of a graph: ``policy_kwargs=dict(denoiser_class=GraphDenoiser)``.
    Permuting the nodes permutes its output, and nodes that the mask leaves out change nothing elsewhere, so that one policy
    serves graphs of any size up to the space's. With ``"MultiInputPolicy"`` the observation is a ``Dict`` of ``adjacency``,
    (n, n), ``mask``, (n,), and, if any, features of the nodes, ``nodes``, (n, f): their keys in this order, which is that of
    :class:`.MaxCutEnv` and :class:`.TSPEnv`.

    :param features_dim: ``n^2 + n + f n``, the entries of the observation in a row
    :param action_dim: number of nodes n
    :param input_dim: ``m_in n``: numbers that it sees of ``x_k``
    :param output_dim: ``m_out n``, or 1 for a value of the whole graph
    :param diffusion_steps: number of denoising steps K
    :param width: width W of a node's state
    :param n_layers: number of layers of messages
    :param activation_fn: activation
    :raises ValueError: if the observation is not that of a graph with a node for each entry of the action
    """

    time_features: th.Tensor

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        input_dim: int,
        output_dim: int,
        diffusion_steps: int,
        width: int = 64,
        n_layers: int = 3,
        activation_fn: type[nn.Module] = nn.SiLU,
    ):
        super().__init__()
        n_extra = features_dim - action_dim**2 - action_dim
        if n_extra < 0 or n_extra % action_dim:
            raise ValueError(
                f"{features_dim} features are not the adjacency, mask and features of {action_dim} nodes: GraphDenoiser needs "
                "'MultiInputPolicy', net_arch=[] and a Dict of adjacency (n, n), mask (n,) and perhaps nodes (n, f)"
            )
        self.n_nodes, self.n_features, self.width = action_dim, n_extra // action_dim, width
        self.value = output_dim == 1
        self.n_inputs, self.n_outputs = input_dim // action_dim, 1 if self.value else output_dim // action_dim
        # A node without features has its degree
        self.node_layer = nn.Linear(1 + self.n_features, width)
        self.latent_layer = nn.Linear(self.n_inputs, width, bias=False)
        self.time_layer = nn.Linear(TIME_FEATURES, width, bias=False)
        self.layers = nn.ModuleList(_MessageLayer(width, activation_fn) for _ in range(n_layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.n_outputs))
        with th.no_grad():
            # Near zero the policy starts as the prior
            self.head[1].weight.mul_(1.0 if self.value else 0.1)  # type: ignore[operator]
            self.head[1].bias.zero_()  # type: ignore[operator]
        self.register_buffer("time_features", time_features(diffusion_steps), persistent=False)

    def encode(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: the observation in a row, (B, F)
        :return: scaled adjacency, mask and first states of the nodes in a row, (B, n^2 + n + W n)
        """
        n = self.n_nodes
        adjacency, mask, extra = features.split((n * n, n, n * self.n_features), dim=1)
        degree = adjacency.abs().unflatten(1, (n, n)).sum(dim=-1)  # (B, n)
        scale = ((degree * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp_min(1)).clamp_min(1e-6)
        nodes = (degree / scale).unsqueeze(-1)
        if self.n_features > 0:
            nodes = th.cat((nodes, extra.unflatten(1, (n, self.n_features))), dim=-1)
        return th.cat((adjacency / scale, mask, self.node_layer(nodes).flatten(1)), dim=1)

    def forward(self, context: th.Tensor, x: th.Tensor, step: int | th.Tensor) -> th.Tensor:
        """
        :param context: output of :meth:`encode`, (B, ...)
        :param x: the network's view of ``x_k``, (..., B, m_in n)
        :param step: ``k``, one for all or one for each row, (..., B)
        :return: (..., B, m_out n), or a value (..., B, 1)
        """
        n = self.n_nodes
        adjacency, mask, nodes = context.split((n * n, n, n * self.width), dim=-1)
        adjacency, mask = adjacency.unflatten(-1, (n, n)), mask.unsqueeze(-1)
        share = mask / mask.sum(dim=-2, keepdim=True).clamp_min(1)
        latent = x.unflatten(-1, (self.n_inputs, n)).transpose(-1, -2)  # (..., B, n, m_in)
        times = self.time_layer(self.time_features[step]).unsqueeze(-2)  # (..., B or 1, 1, W)
        h = nodes.unflatten(-1, (n, self.width)) + self.latent_layer(latent) + times
        for layer in self.layers:
            h = layer(h, adjacency, share)
        if self.value:
            return self.head((share * h).sum(dim=-2))
        # Outputs of zero: absent nodes follow the reference kernel, and have no part in ratios and entropies
        return (self.head(h) * mask).transpose(-1, -2).flatten(-2)
