"""Networks of ``(s, x_k, k)``: the score network of the policy and the value network over the steps of a chain."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn
from torch.nn import functional as F

from sb3_diffusion.common.batch_renorm import NativeBatchRenorm1d, set_batch_renorm_training
from sb3_diffusion.common.carried_settings import STEPS, carry_settings
from sb3_diffusion.common.checks import check_choice, is_untouched

# Bounds of the log-ratio of a kernel's standard deviation to the reference kernel's, or of a belief's to the prior's
LOG_STD_RATIO_MIN, LOG_STD_RATIO_MAX = -5.0, 1.0

# Bound of the control: far beyond where the squash saturates, it keeps a spoilt network from growing without end along
# the chain
CONTROL_MAX = 20.0

TIME_FEATURES = 16

# New ones at the end: saved weights know a kernel by its place
KERNELS = ("reference", "posterior")


def time_features(diffusion_steps: int, n_features: int = TIME_FEATURES) -> th.Tensor:
    """
    Sines and cosines of ``k / K`` at octave frequencies.

    :param diffusion_steps: number of denoising steps K
    :param n_features: number of features, even
    :return: features of ``k = 0 .. K``, shape (K+1, n_features)
    """
    time = th.arange(diffusion_steps + 1, dtype=th.float64)[:, None] / diffusion_steps
    angles = time * (math.pi / 2) * 2.0 ** th.arange(n_features // 2, dtype=th.float64)
    return th.cat((th.sin(angles), th.cos(angles)), dim=1).float()


def _is_plain_linear(layer: nn.Module) -> bool:
    """
    :param layer: layer
    :return: whether its weight is all that it does
    """
    return is_untouched(layer, nn.Linear) and layer.bias is None


def hidden_latent(context: th.Tensor, input_dim: int) -> th.Tensor:
    """
    :param context: encoded observations, (B, ...)
    :param input_dim: numbers that a network sees of ``x_k``
    :return: zeros in their place, where nothing depends on them, (B, input_dim)
    """
    # Computed, since zeros of a known number of rows would be a constant in an exported file
    return (0 * context.flatten(1)[:, :1]).expand(-1, input_dim)


class DenoisingNetwork(nn.Module):
    """
    A network of ``(s, x_k, k)`` in two parts. The encoder and the features' share of the head's first layer depend on the
    observation alone: :meth:`encode` runs them once per chain. :meth:`forward` runs the small rest once per denoising step.

    With an empty ``encoder_arch`` the whole network runs at every step.

    :param features_dim: number of features of the observation, F
    :param action_dim: dimension of ``x_k``, d
    :param output_dim: number of outputs
    :param diffusion_steps: number of denoising steps K
    :param encoder_arch: widths of the encoder's hidden layers
    :param denoiser_arch: widths of the head's hidden layers, at least one
    :param activation_fn: activation of the encoder
    :param denoiser_activation_fn: activation of the head
    :param output_scale: factor on the initial weights of the last layer
    :param encoder_batch_norm: keyword arguments of the batch renormalisation before each layer of the encoder; none if None
    :raises ValueError: if ``denoiser_arch`` is empty
    """

    time_features: th.Tensor

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        output_dim: int,
        diffusion_steps: int,
        encoder_arch: list[int],
        denoiser_arch: list[int],
        activation_fn: type[nn.Module] = nn.ReLU,
        denoiser_activation_fn: type[nn.Module] = nn.SiLU,
        output_scale: float = 1.0,
        encoder_batch_norm: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if len(denoiser_arch) == 0:
            raise ValueError("net_arch['denoiser']=[]: the denoising head needs at least one hidden layer")
        normalize = None if encoder_batch_norm is None else partial(NativeBatchRenorm1d, **encoder_batch_norm)
        pre_linear_modules: list[Any] = [] if normalize is None else [normalize]
        layers = create_mlp(features_dim, -1, encoder_arch, activation_fn, pre_linear_modules=pre_linear_modules)
        self.encoder = nn.Sequential(*layers)
        set_batch_renorm_training(self.encoder, False)
        self.action_dim = action_dim
        width = denoiser_arch[0]
        self.context_layer = nn.Linear(encoder_arch[-1] if encoder_arch else features_dim, width)
        self.time_layer = nn.Linear(TIME_FEATURES, width, bias=False)
        self.latent_layer = nn.Linear(action_dim, width, bias=False)
        self.head = nn.Sequential(
            denoiser_activation_fn(), *create_mlp(width, output_dim, denoiser_arch[1:], denoiser_activation_fn)
        )
        with th.no_grad():
            for param in self.head[-1].parameters():
                param.mul_(output_scale)
        self.register_buffer("time_features", time_features(diffusion_steps), persistent=False)

    def encode(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: features of the observation, (B, F)
        :return: encoded observations, (B, W)
        """
        return self.context_layer(self.encoder(features))

    def forward(self, context: th.Tensor, x: th.Tensor, step: int | th.Tensor) -> th.Tensor:
        """
        :param context: output of :meth:`encode`, (..., B, W)
        :param x: ``x_k``, (..., B, d)
        :param step: ``k``, one for all or one for each row, (..., B)
        :return: output of the network, (..., B, output_dim)
        """
        times = self.time_features[step].expand(*x.shape[:-1], -1)  # (..., B, TIME_FEATURES)
        if not (_is_plain_linear(self.latent_layer) and _is_plain_linear(self.time_layer)):
            return self.head(context + self.time_layer(times) + self.latent_layer(x))
        # Both layers in one product, whose result nothing else needs: each further tensor of this size costs as much
        weight = th.cat((self.latent_layer.weight, self.time_layer.weight), dim=1)
        hidden = F.linear(th.cat((x, times), dim=-1), weight)
        return self.head(hidden.add_(context))

    def unroll(self, context: th.Tensor) -> Callable[[th.Tensor | None, int], th.Tensor]:
        """
        :meth:`forward` for a batch that goes through the steps one after the other, with as few operations as it takes: on
        small batches their number is the cost.

        :param context: output of :meth:`encode`, (B, W)
        :return: a function of ``x_k``, (B, d), or None for zeros, and of ``k``, whose result is the network's output,
            (B, output_dim)
        """
        parts = is_untouched(self.head, nn.Sequential), _is_plain_linear(self.latent_layer), _is_plain_linear(self.time_layer)
        if not (is_untouched(self, type(self)) and type(self).forward is DenoisingNetwork.forward and all(parts)):
            zeros = hidden_latent(context, self.action_dim)
            return lambda x, step: self(context, zeros if x is None else x, step)
        times = self.time_layer(self.time_features).unbind(0)
        weight = self.latent_layer.weight.t()
        layers = list(self.head)

        def forward_step(x: th.Tensor | None, step: int) -> th.Tensor:
            hidden = context + times[step]
            if x is not None:
                hidden = th.addmm(hidden, x, weight)
            for layer in layers:
                hidden = layer(hidden)
            return hidden

        return forward_step


class ControlOutput(nn.Module):
    """The end of a network of ``(s, x_k, k)`` for real actions: bounds, see :class:`ControlNetwork`."""

    output_factor: th.Tensor
    output_min: th.Tensor
    output_max: th.Tensor

    def _bound_output(
        self, action_dim: int, diffusion_steps: int, learn_std: bool, kernel: str, control_scale: float | None
    ) -> None:
        self.learn_std = learn_std
        check_choice("kernel", kernel, KERNELS)
        self.kernel = kernel
        carry_settings(self, dict(kernel=(kernel, KERNELS), diffusion_steps=(int(diffusion_steps), STEPS)))
        if control_scale is None:
            control_scale = 1.0 if kernel == "posterior" else diffusion_steps**-0.5
        self.is_scaled = control_scale != 1
        # Of the control and of log_std_ratio side by side, since at small batches the number of operations is the cost
        for name, of_control, of_log_std_ratio in (
            ("output_factor", control_scale, 1.0),
            ("output_min", -CONTROL_MAX, LOG_STD_RATIO_MIN),
            ("output_max", CONTROL_MAX, LOG_STD_RATIO_MAX),
        ):
            values = th.tensor([of_control] * action_dim + [of_log_std_ratio] * action_dim * learn_std)
            self.register_buffer(name, values, persistent=False)

    def control(self, context: th.Tensor, x: th.Tensor, step: int | th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param context: output of ``encode``, (..., B, W)
        :param x: ``x_k``, (..., B, d)
        :param step: ``k``, one for all or one for each row, (..., B)
        :return: output of :meth:`to_control`
        """
        return self.to_control(self(context, x, step))

    def to_control(self, output: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param output: output of ``forward``, (..., B, d or 2 d)
        :return: control ``u``, the shift of the kernel's mean in standard deviations of the reference kernel, and
            ``log_std_ratio``, the log-ratio of the two standard deviations, or the mean and the logarithm of the standard
            deviation of a belief, within their bounds, each (..., B, d)
        """
        if self.is_scaled:
            output = output * self.output_factor
        output = th.clamp(output, self.output_min, self.output_max)
        return output.chunk(2, dim=-1) if self.learn_std else (output, th.zeros_like(output))  # type: ignore[return-value]


class ControlNetwork(ControlOutput, DenoisingNetwork):
    """
    The network that defines the denoising kernels.

    Its output is a control, or with ``kernel="posterior"`` the mean and the logarithm of the standard deviation of a belief of
    ``x_0``, in units of the prior's standard deviation.

    :param features_dim: number of features of the observation, F
    :param action_dim: dimension of ``x_k``, d
    :param diffusion_steps: number of denoising steps K
    :param encoder_arch: widths of the encoder's hidden layers
    :param denoiser_arch: widths of the head's hidden layers, at least one
    :param activation_fn: activation of the encoder
    :param denoiser_activation_fn: activation of the head
    :param learn_std: whether the standard deviation of each kernel is learned or the reference kernel's
    :param kernel: meaning of the output: ``"reference"``, by how much the kernel differs from the reference
        kernel, or ``"posterior"``, its belief of ``x_0``, see :func:`.chain.posterior_control`
    :param control_scale: factor on the control; if None ``K^-0.5``, since what one step has to add shrinks with their
        number, and so does what one step of the optimizer may add, and 1 for a belief
    :param encoder_batch_norm: keyword arguments of the batch renormalisation before each layer of the encoder, as in CrossQ's
        actor (arXiv 1902.05605); none if None
    """

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        diffusion_steps: int,
        encoder_arch: list[int],
        denoiser_arch: list[int],
        activation_fn: type[nn.Module] = nn.ReLU,
        denoiser_activation_fn: type[nn.Module] = nn.SiLU,
        learn_std: bool = True,
        kernel: str = "reference",
        control_scale: float | None = None,
        encoder_batch_norm: Mapping[str, Any] | None = None,
    ):
        super().__init__(
            features_dim,
            action_dim,
            2 * action_dim if learn_std else action_dim,
            diffusion_steps,
            encoder_arch,
            denoiser_arch,
            activation_fn,
            denoiser_activation_fn,
            # Near zero the policy starts as the prior
            output_scale=0.1,
            encoder_batch_norm=encoder_batch_norm,
        )
        self._bound_output(action_dim, diffusion_steps, learn_std, kernel, control_scale)
