"""Batch renormalisation (arXiv 1702.03275) by PyTorch's native kernel."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch as th
from sb3_contrib.common.torch_layers import BatchRenorm1d
from torch import nn
from torch.nn import functional as F

from sb3_diffusion.common.checks import is_untouched


class NativeBatchRenorm1d(BatchRenorm1d):
    """
    sb3-contrib's ``BatchRenorm1d`` with the same state and, to rounding, the same numbers and gradients. There the variance
    is one operation, the mean another and each step of the normalisation one more; here one native kernel does it all.

    The two differ in one case, of features that are the same in the whole batch, after the warm-up: there the gradient of
    sb3-contrib's is NaN, this one's is finite.
    """

    ra_mean: th.Tensor
    ra_var: th.Tensor
    steps: th.Tensor

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: inputs, (B, num_features)
        :return: normalised inputs, (B, num_features)
        """
        if x.dim() != 2 or not self.affine:
            return super().forward(x)
        if not self.training:
            return F.batch_norm(x, self.ra_mean, self.ra_var, self.scale, self.bias, eps=self.eps)
        renormalize = self.steps.item() > self.warmup_steps
        self.steps.add_(1)
        if renormalize:
            return self._renormalize(x)
        # The native kernel normalises by the biased variance and averages the unbiased one. sb3-contrib's layer uses the
        # unbiased one for both, which this factor makes of it
        shrink = (len(x) - 1) / len(x)
        weight, eps = self.scale * math.sqrt(shrink), self.eps * shrink
        return F.batch_norm(x, self.ra_mean, self.ra_var, weight, self.bias, True, self.momentum, eps)

    def _renormalize(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: inputs after the warm-up, (B, num_features)
        :return: inputs normalised by the batch and corrected towards the running statistics, (B, num_features)
        """
        with th.no_grad():
            running_std = (self.ra_var + self.eps).sqrt()
            # A native kernel, since torch.var_mean takes ten times as long
            _, mean, inverse_std = th.native_batch_norm(x, None, None, None, None, True, 0.0, self.eps)
            var = (inverse_std**-2 - self.eps).clamp_min(1e-12) * (len(x) / (len(x) - 1))
            r = ((var + self.eps).sqrt() / running_std).clamp(1 / self.rmax, self.rmax)
            d = ((mean - self.ra_mean) / running_std).clamp(-self.dmax, self.dmax)
            self.ra_mean.lerp_(mean, self.momentum)
            self.ra_var.lerp_(var, self.momentum)
        return _Renormalization.apply(x, self.scale, self.bias, mean, var, r, d, self.eps)


class _Renormalization(th.autograd.Function):
    """
    ``scale (x - mean + e) f + bias`` with ``e = d sqrt(var) / r`` and ``f = (var / r^2 + eps)^-0.5``, as sb3-contrib has it,
    where mean and variance are the batch's, and have gradients, and the corrections r and d do not. By automatic
    differentiation each of its operations costs as much as the whole.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: th.Tensor,
        scale: th.Tensor,
        bias: th.Tensor,
        mean: th.Tensor,
        var: th.Tensor,
        r: th.Tensor,
        d: th.Tensor,
        eps: float,
    ) -> th.Tensor:
        """
        :param ctx: store of the tensors that the gradient needs
        :param x: inputs, (B, D)
        :param scale: factor of each feature, (D,), and so are the others
        :param bias: summand
        :param mean: the batch's mean
        :param var: the batch's unbiased variance
        :param r: correction of the scale
        :param d: correction of the mean
        :param eps: added to the variance
        :return: renormalised inputs, (B, D)
        """
        factor, shift = th.rsqrt(var / r**2 + eps), d * var.sqrt() / r
        ctx.save_for_backward(x, scale, mean, var, r, d, factor, shift)
        slope = scale * factor
        return th.addcmul(bias + slope * (shift - mean), x, slope)

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> tuple[th.Tensor | None, ...]:
        """
        :param ctx: store of the tensors of :meth:`forward`
        :param gradient: gradient with respect to its result, (B, D)
        :return: gradients with respect to ``x``, ``scale`` and ``bias``
        """
        x, scale, mean, var, r, d, factor, shift = ctx.saved_tensors
        slope, size = scale * factor, len(x)
        ones = gradient.new_ones(1, size)  # sums as matrix products, since those over rows take ten times as long
        total = (ones @ gradient).squeeze(0)
        by_scale = (ones @ (gradient * x)).squeeze(0) + (shift - mean) * total
        by_var = -0.5 * scale * by_scale * factor**3 / r**2 + 0.5 * slope * total * d / (r * var.sqrt())
        per_deviation = 2 * by_var / (size - 1)
        by_x = th.addcmul(-(slope * total / size + per_deviation * mean), x, per_deviation).addcmul_(gradient, slope)
        return by_x, factor * by_scale, total, None, None, None, None, None


def use_native_batch_renorm(network: nn.Module) -> nn.Module:
    """
    Also for a model of sb3-contrib's CrossQ, before or after training: ``use_native_batch_renorm(model.policy)``.

    :param network: network whose batch renormalisation layers of sb3-contrib go through the native kernel from now on, with
        their state
    :return: the same
    """
    for layer in network.modules():
        if type(layer) is BatchRenorm1d:
            layer.__class__ = NativeBatchRenorm1d  # the parameters stay, which an optimizer may hold
    return network


def fold_batch_renorm(network: nn.Module) -> Callable[[th.Tensor], th.Tensor]:
    """
    Let linear layers take over the batch renormalisation before them, which in evaluation mode scales and shifts each
    feature: for gradients with respect to inputs alone, as an actor's loss needs them, one pass over the activations less.

    :param network: a ``nn.Sequential`` in evaluation mode; a layer that is not as PyTorch or this package made it is called as
        it is
    :return: the same function of the inputs, with today's weights; no gradient passes to those of folded layers
    """
    if not (isinstance(network, nn.Sequential) and is_untouched(network, nn.Sequential)):
        return network
    functions = fold_layers(network)
    if len(functions) == len(network):
        return network

    def folded(x: th.Tensor) -> th.Tensor:
        for function in functions:
            x = function(x)
        return x

    return folded


def fold_layers(network: nn.Sequential) -> list[Any]:
    """
    :param network: layers one after the other
    :return: its layers, of which :class:`FoldedLinear` stand for two, see :func:`fold_batch_renorm`
    """
    layers: list[Any] = []
    for layer in network:
        before = layers[-1] if layers else None
        if isinstance(before, NativeBatchRenorm1d) and isinstance(layer, nn.Linear) and _can_fold(before, layer):
            layers[-1] = _fold(before, layer)
        else:
            layers.append(layer)
    return layers


class FoldedLinear(NamedTuple):
    """
    A linear layer that has taken over the batch renormalisation before it.

    :param weight: weight, (m, n)
    :param bias: bias, (m,)
    """

    weight: th.Tensor
    bias: th.Tensor

    def __call__(self, x: th.Tensor) -> th.Tensor:
        return F.linear(x, self.weight, self.bias)


def _can_fold(renorm: NativeBatchRenorm1d, linear: nn.Linear) -> bool:
    untouched = is_untouched(renorm, NativeBatchRenorm1d) and is_untouched(linear, nn.Linear)
    return untouched and renorm.affine and not renorm.training


@th.no_grad()
def _fold(renorm: NativeBatchRenorm1d, linear: nn.Linear) -> FoldedLinear:
    scale = renorm.scale * th.rsqrt(renorm.ra_var + renorm.eps)
    shift = linear.weight @ (renorm.bias - renorm.ra_mean * scale)
    return FoldedLinear(linear.weight * scale, shift if linear.bias is None else shift + linear.bias)


def _renorm_layers(network: nn.Module) -> Iterator[BatchRenorm1d]:
    """As ``network.modules()``, which takes four times as long, and every update walks several times."""
    modules: list[nn.Module | None] = [network]
    for module in modules:
        if isinstance(module, BatchRenorm1d):
            yield module
        elif module is not None:
            modules.extend(module._modules.values())


def set_batch_renorm_training(network: nn.Module, mode: bool) -> None:
    """
    :param network: network
    :param mode: whether its batch renormalisation layers use the batch's statistics and update their running ones; other
        layers, such as batch norm in a features extractor, keep Stable-Baselines3's modes
    """
    for layer in _renorm_layers(network):
        layer.training = mode
