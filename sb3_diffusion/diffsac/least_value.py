"""The least of several critics' values, whose gradient goes back through one critic for each sample."""

from collections.abc import Sequence
from typing import Any

import torch as th
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sb3_diffusion.common.batch_renorm import FoldedLinear, fold_layers
from sb3_diffusion.common.checks import is_untouched

# Weight and bias of each linear layer, between which there are rectified linear units
Layers = list[tuple[th.Tensor, th.Tensor | None]]


def linear_layers(network: nn.Module) -> Layers | None:
    """
    :param network: a critic's network
    :return: its linear layers with rectified linear units between them, batch renormalisation in evaluation mode folded into
        them; None if it does anything else
    """
    if not (isinstance(network, nn.Sequential) and is_untouched(network, nn.Sequential)):
        return None
    functions = fold_layers(network)
    linear, between = functions[::2], functions[1::2]
    plain = all(isinstance(layer, FoldedLinear) or is_untouched(layer, nn.Linear) for layer in linear)
    if len(linear) != len(between) + 1 or not plain or not all(is_untouched(layer, nn.ReLU) for layer in between):
        return None
    return [(layer.weight.detach(), None if layer.bias is None else layer.bias.detach()) for layer in linear]


class _LeastValue(th.autograd.Function):
    """See :func:`least_value`."""

    @staticmethod
    def forward(ctx: Any, actions: th.Tensor, features: th.Tensor, networks: Sequence[Layers]) -> th.Tensor:
        inputs = th.cat((features, actions), dim=1)
        q_values, ctx.activations = [], []
        for layers in networks:
            outputs, activations = inputs, []
            for weight, bias in layers[:-1]:
                outputs = F.linear(outputs, weight, bias).relu_()
                activations.append(outputs)
            q_values.append(F.linear(outputs, *layers[-1]))
            ctx.activations.append(activations)
        value, ctx.index = th.cat(q_values, dim=1).min(dim=1)
        ctx.networks, ctx.action_dim = networks, actions.shape[1]
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_value: th.Tensor) -> tuple[th.Tensor, None, None]:
        grad_actions = grad_value.new_zeros(len(grad_value), ctx.action_dim)
        for index, (layers, activations) in enumerate(zip(ctx.networks, ctx.activations, strict=True)):
            rows = th.nonzero(ctx.index == index).squeeze(1)
            weights = [weight for weight, _ in layers]
            weights[0] = weights[0][:, -ctx.action_dim :]
            gradient = grad_value[rows, None] * weights[-1]
            for weight, outputs in zip(weights[-2::-1], activations[::-1], strict=True):
                gradient = gradient.mul_(outputs.index_select(0, rows).sign_()) @ weight
            grad_actions[rows] = gradient
        return grad_actions, None, None


def least_value(actions: th.Tensor, features: th.Tensor, networks: Sequence[Layers]) -> th.Tensor:
    """
    The least of the critics' values. Automatic differentiation would go back through all critics with zeros for the samples
    of which another one has the least value.

    :param actions: actions, (B, d)
    :param features: features of the observations, (B, F), without a gradient
    :param networks: output of :func:`linear_layers` for each critic, of ``(features, actions)``, without a gradient
    :return: values with gradients, (B,)
    """
    return _LeastValue.apply(actions, features, networks)
