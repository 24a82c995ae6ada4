"""Batch renormalisation (arXiv 1702.03275) by PyTorch's native kernel."""

import math

import torch as th
from sb3_contrib.common.torch_layers import BatchRenorm1d
from torch import nn
from torch.nn import functional as F


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
        self.steps += 1
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
        shrink = (len(x) - 1) / len(x)
        with th.no_grad():
            running_std = (self.ra_var + self.eps).sqrt()
            # Another native kernel, since torch.var_mean takes ten times as long
            _, batch_mean, batch_inverse_std = th.native_batch_norm(x, None, None, None, None, True, 0.0, self.eps)
            batch_var = (batch_inverse_std**-2 - self.eps).clamp_min(0) / shrink
            r = ((batch_var + self.eps).sqrt() / running_std).clamp(1 / self.rmax, self.rmax)
            d = ((batch_mean - self.ra_mean) / running_std).clamp(-self.dmax, self.dmax)
            self.ra_mean.lerp_(batch_mean, self.momentum)
            self.ra_var.lerp_(batch_var, self.momentum)
        # sqrt(var / (var + eps)) of x / r, by its own deviations, with gradients; as a matrix product, since sums over rows
        # take ten times as long
        deviations = ((x - batch_mean) / r).square()
        var = th.full((1, len(x)), 1 / (len(x) - 1), device=x.device) @ deviations  # (1, num_features)
        std = (var / (var + self.eps)).clamp_min(1e-12).sqrt().squeeze(0)
        weight, bias = self.scale * r * math.sqrt(shrink), self.bias + self.scale * d * std
        return F.batch_norm(x / r, None, None, weight, bias, training=True, eps=self.eps * shrink)


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


def set_batch_renorm_training(network: nn.Module, mode: bool) -> None:
    """
    :param network: network
    :param mode: whether its batch renormalisation layers use the batch's statistics and update their running ones; other
        layers, such as batch norm in a features extractor, keep Stable-Baselines3's modes
    """
    for module in network.modules():
        if isinstance(module, BatchRenorm1d):
            module.training = mode
