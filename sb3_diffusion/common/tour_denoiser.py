"""A message-passing denoiser for tours, in the place of a multilayer perceptron."""

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_diffusion.common.score_network import TIME_FEATURES, time_features

# Numbers that say how near two cities are: see _closeness_features
_CLOSENESS_FEATURES = 3


def _closeness_features(closeness: th.Tensor) -> th.Tensor:
    """
    :param closeness: ``exp(-c distance)`` of each two cities, with a diagonal of 0, (B, n, n)
    :return: ``c distance``, and its ratio to the distance of the nearest city of the one and of the other, at most 10,
        (B, n, n, 3)
    """
    # The diagonal is farthest, so that no city is the nearest to itself
    distance = -th.log(closeness.clamp_min(1e-30))
    nearest = distance.amin(dim=-1, keepdim=True).clamp_min(1e-6)  # (B, n, 1)
    return th.stack(
        (distance, (distance / nearest).clamp_max(10), (distance / nearest.transpose(-1, -2)).clamp_max(10)), dim=-1
    )


class _TourLayer(nn.Module):
    """
    ``h_i + f(A h_i + sum_g B_g sum_j e_gij h_j + C mean_j h_j)``, with weights ``e_g`` that depend on how far two cities are
    apart, on the plane and on the circle.

    :param width: width W of a city's state
    :param edge_width: numbers E that each two cities have
    :param n_kernels: weights G for each two cities
    :param activation_fn: activation
    """

    def __init__(self, width: int, edge_width: int, n_kernels: int, activation_fn: type[nn.Module]):
        super().__init__()
        self.kernels = nn.Linear(edge_width, n_kernels)
        self.update = nn.Sequential(nn.Linear((2 + n_kernels) * width, width), activation_fn(), nn.Linear(width, width))

    def forward(self, h: th.Tensor, edges: th.Tensor) -> th.Tensor:
        """
        :param h: states of the cities, (..., B, n, W)
        :param edges: numbers of each two cities, (..., B, n, n, E)
        :return: new states, (..., B, n, W)
        """
        weights = self.kernels(edges).transpose(-1, -2).transpose(-2, -3)  # (..., B, G, n, n)
        messages = (weights @ h.unsqueeze(-3)).transpose(-3, -2).flatten(-2)  # (..., B, n, G W)
        mean = h.mean(dim=-2, keepdim=True).expand_as(h)
        return h + self.update(th.cat((h, messages, mean), dim=-1))


class TourDenoiser(nn.Module):
    """
    A denoiser for actions that give each of n cities one of n places on a circle, as those of :class:`.TSPEnv` do:
    ``policy_kwargs=dict(denoiser_class=TourDenoiser)``.

    It sees how near each two cities are and how far apart they are on the circle at ``x_k``, and says for each city how far it
    should move. So permuting the cities permutes its output, and turning the circle turns it. Where the others' places are
    uniform, as before training, no place is better than another: what a city can learn is to go where the cities near it are,
    which is what this network says in its own terms.

    With ``"MultiInputPolicy"`` the observation is a ``Dict`` whose first key is ``adjacency``, the closeness
    ``exp(-c distance)`` of each two cities, (n, n); the rest of it is not used, and all cities are there.

    :param features_dim: the entries of the observation in a row, n^2 or more
    :param action_dim: number of cities n
    :param input_dim: ``n^2``: ``x_k`` as ones and zeros
    :param output_dim: ``n^2``, or 1 for a value of the whole tour
    :param diffusion_steps: number of denoising steps K
    :param width: width W of a city's state
    :param n_layers: number of layers of messages
    :param n_kernels: weights G of the messages between each two cities
    :param activation_fn: activation
    :raises ValueError: if the action does not have as many categories as cities, or the observation has no closeness
    """

    time_features: th.Tensor
    turned: th.Tensor

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        input_dim: int,
        output_dim: int,
        diffusion_steps: int,
        width: int = 32,
        n_layers: int = 2,
        n_kernels: int = 3,
        activation_fn: type[nn.Module] = nn.SiLU,
    ):
        super().__init__()
        n, value = action_dim, output_dim == 1
        if features_dim < n * n or input_dim != n * n:
            raise ValueError(
                f"{features_dim} features and an action of {n} entries with {input_dim / n:g} categories: TourDenoiser needs "
                "'MultiInputPolicy', net_arch=[], a Dict whose first key is the closeness (n, n), and MultiDiscrete([n] * n)"
            )
        self.n_cities, self.value, self.n_profiles, self.edge_width = n, value, 4, 16
        self.distance_layers = nn.Sequential(
            nn.Linear(_CLOSENESS_FEATURES, width), activation_fn(), nn.Linear(width, self.n_profiles + self.edge_width)
        )
        self.offset_layer = nn.Linear(n, self.edge_width, bias=False)
        self.time_layer = nn.Linear(TIME_FEATURES, width, bias=False)
        self.first_layer = nn.Linear((self.n_profiles + 1) * n, width)
        self.activation = activation_fn()
        self.layers = nn.ModuleList(_TourLayer(width, self.edge_width, n_kernels, activation_fn) for _ in range(n_layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1 if value else n)
        with th.no_grad():
            # Near zero the policy starts as the prior
            self.head.weight.mul_(1.0 if value else 0.1)
            self.head.bias.zero_()
        if not value:
            # What stands around a place makes it likelier by the same table at all places
            self.around = nn.Parameter(th.zeros(self.n_profiles + 1, n))
        place = th.arange(n)
        self.register_buffer("turned", (place - place.unsqueeze(1)) % n, persistent=False)  # [o, c] = c - o
        self.register_buffer("time_features", time_features(diffusion_steps), persistent=False)

    def encode(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: the observation in a row, (B, F)
        :return: numbers of each two cities in a row, (B, n^2 (profiles + E))
        """
        n = self.n_cities
        closeness = _closeness_features(features[:, : n * n].unflatten(1, (n, n)))
        itself = th.eye(n, dtype=th.bool, device=features.device).unsqueeze(-1)
        return self.distance_layers(closeness).masked_fill(itself, 0.0).flatten(1)

    def forward(self, context: th.Tensor, x: th.Tensor, step: int | th.Tensor) -> th.Tensor:
        """
        :param context: output of :meth:`encode`, (B, ...)
        :param x: ``x_k`` as ones and zeros, (..., B, n^2)
        :param step: ``k``, one for all or one for each row, (..., B)
        :return: (..., B, n^2), or a value (..., B, 1)
        """
        n = self.n_cities
        near = context.unflatten(-1, (n, n, self.n_profiles + self.edge_width))
        profiles, edges = near.split((self.n_profiles, self.edge_width), dim=-1)
        place = x.unflatten(-1, (n, n)).argmax(dim=-2)  # (..., B, n)
        offset = F.one_hot((place.unsqueeze(-2) - place.unsqueeze(-1)) % n, n).to(x.dtype)  # (..., B, n, n, n), of j from i
        # The last profile counts the cities at each place
        profiles = F.pad(profiles, (0, 1), value=1.0).transpose(-1, -2)  # (B, n, P, n)
        seen = (profiles @ offset).flatten(-2)  # (..., B, n, P n): by distance on the circle
        times = self.time_layer(self.time_features[step]).unsqueeze(-2)
        h = self.activation(self.first_layer(seen) + times)
        edges = self.activation(edges + self.offset_layer(offset))
        for layer in self.layers:
            h = layer(h, edges)
        h = self.norm(h)
        if self.value:
            return self.head(h.mean(dim=-2))
        moves = self.head(h) + seen @ self.around[:, self.turned].flatten(0, 1)  # (..., B, n, n)
        # From distances to places
        distance = (th.arange(n, device=x.device) - place.unsqueeze(-1)) % n
        return moves.gather(-1, distance).transpose(-1, -2).flatten(-2)
