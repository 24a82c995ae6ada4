"""Networks for every chain: beliefs of categories, and denoisers of the user's own class."""

from collections.abc import Callable, Mapping
from typing import Any

import torch as th
from torch import nn

from sb3_diffusion.common.checks import merge_kwargs
from sb3_diffusion.common.process import CategoricalProcess, ChainProcess, GaussianProcess
from sb3_diffusion.common.score_network import ControlNetwork, ControlOutput, DenoisingNetwork, hidden_latent


class _LogitsOutput(nn.Module):
    """The end of a network of ``(s, x_k, k)`` for categories: logits, which need no bounds."""

    kernel = "posterior"

    def control(self, context: th.Tensor, x: th.Tensor, step: int | th.Tensor) -> tuple[th.Tensor]:
        """
        :param context: output of ``encode``, (..., B, W)
        :param x: ``x_k`` as ones and zeros, (..., B, n d)
        :param step: ``k``, one for all or one for each row, (..., B)
        :return: logits of a belief of ``x_0``, (..., B, n d)
        """
        return self.to_control(self(context, x, step))

    def to_control(self, output: th.Tensor) -> tuple[th.Tensor]:
        """
        :param output: output of ``forward``, (..., B, n d)
        :return: the same, logits of a belief of ``x_0``
        """
        return (output,)


class _BeliefNetwork(_LogitsOutput, DenoisingNetwork):
    """
    The network that defines the denoising kernels of categories.

    :param args: arguments of :class:`.DenoisingNetwork`
    :param kwargs: keyword arguments of :class:`.DenoisingNetwork`
    """


class OwnDenoiser(nn.Module):
    """
    A network of the user's own class in the place of a :class:`.DenoisingNetwork`.

    :param denoiser: has ``encode``, from features (B, F) to a context (B, ...), run once per chain, and ``forward(context, x,
        step)`` from that, ``x`` (..., B, input_dim) and ``step``, an integer or (..., B), to (..., B, output_dim)
    :param input_dim: numbers that it sees of ``x_k``
    """

    def __init__(self, denoiser: nn.Module, input_dim: int):
        super().__init__()
        self.denoiser = denoiser
        self.input_dim = input_dim

    def encode(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: features of the observation, (B, F)
        :return: encoded observations, (B, ...)
        """
        return self.denoiser.encode(features)  # type: ignore[operator]

    def forward(self, context: th.Tensor, x: th.Tensor, step: int | th.Tensor) -> th.Tensor:
        """
        :param context: output of :meth:`encode`
        :param x: the network's view of ``x_k``, (..., B, input_dim)
        :param step: ``k``, one for all or one for each row, (..., B)
        :return: output of the network, (..., B, output_dim)
        """
        return self.denoiser(context, x, step)

    def unroll(self, context: th.Tensor) -> Callable[[th.Tensor | None, int], th.Tensor]:
        """
        :param context: output of :meth:`encode`
        :return: a function of the network's input for ``x_k``, None for zeros, and of ``k``, whose result is its output
        """
        zeros = hidden_latent(context, self.input_dim)
        return lambda x, step: self(context, zeros if x is None else x, step)


class _OwnControlNetwork(ControlOutput, OwnDenoiser):
    """
    A user's network that defines the kernels of real actions.

    :param denoiser: the network, see :class:`OwnDenoiser`
    :param process: the chain
    :param diffusion_steps: number of denoising steps K
    """

    def __init__(self, denoiser: nn.Module, process: GaussianProcess, diffusion_steps: int):
        super().__init__(denoiser, process.input_dim)
        self._bound_output(process.action_dim, diffusion_steps, process.output_size == 2, process.kernel, 1.0)


class _OwnBeliefNetwork(_LogitsOutput, OwnDenoiser):
    """
    A user's network that defines the kernels of categories.

    :param denoiser: the network, see :class:`OwnDenoiser`
    :param input_dim: numbers that it sees of ``x_k``
    """


def make_denoiser(
    denoiser_class: type[nn.Module],
    denoiser_kwargs: Mapping[str, Any] | None,
    process: ChainProcess,
    features_dim: int,
    output_dim: int,
    diffusion_steps: int,
) -> nn.Module:
    """
    :param denoiser_class: the user's class
    :param denoiser_kwargs: the user's keyword arguments
    :param process: the chain
    :param features_dim: number of features of the observation, F
    :param output_dim: number of outputs
    :param diffusion_steps: number of denoising steps K
    :return: the network
    :raises ValueError: if the keyword arguments say something that the policy says
    """
    sizes = dict(
        features_dim=features_dim,
        action_dim=process.action_dim,
        input_dim=process.input_dim,
        output_dim=output_dim,
        diffusion_steps=diffusion_steps,
    )
    return denoiser_class(**merge_kwargs("the policy", "denoiser_kwargs", denoiser_kwargs or {}, sizes))


def make_score_network(
    process: ChainProcess,
    features_dim: int,
    diffusion_steps: int,
    denoiser_class: type[nn.Module] | None = None,
    denoiser_kwargs: Mapping[str, Any] | None = None,
    control_scale: float | None = 1.0,
    **heads: Any,
) -> Any:
    """
    :param process: the chain
    :param features_dim: number of features of the observation, F
    :param diffusion_steps: number of denoising steps K
    :param denoiser_class: a class of the user's own
    :param denoiser_kwargs: its keyword arguments
    :param control_scale: of real actions, see :class:`.ControlNetwork`. PPO bounds each update by its clip range, and takes
        few of them: there a smaller control would only learn more slowly
    :param heads: keyword arguments of :class:`.DenoisingNetwork`
    :return: the network that defines the chain's kernels
    """
    if denoiser_class is not None:
        denoiser = make_denoiser(denoiser_class, denoiser_kwargs, process, features_dim, process.output_dim, diffusion_steps)
        if isinstance(process, GaussianProcess):
            return _OwnControlNetwork(denoiser, process, diffusion_steps)
        return _OwnBeliefNetwork(denoiser, process.input_dim)
    if isinstance(process, GaussianProcess):
        return ControlNetwork(
            features_dim,
            process.action_dim,
            diffusion_steps,
            learn_std=process.output_size == 2,
            kernel=process.kernel,
            control_scale=control_scale,
            **heads,
        )
    assert isinstance(process, CategoricalProcess)
    # Near zero the policy starts as the prior
    return _BeliefNetwork(features_dim, process.input_dim, process.output_dim, diffusion_steps, output_scale=0.1, **heads)


def make_value_network(
    process: ChainProcess,
    features_dim: int,
    diffusion_steps: int,
    denoiser_class: type[nn.Module] | None = None,
    denoiser_kwargs: Mapping[str, Any] | None = None,
    **heads: Any,
) -> Any:
    """
    :param process: the chain
    :param features_dim: number of features of the observation, F
    :param diffusion_steps: number of denoising steps K
    :param denoiser_class: a class of the user's own
    :param denoiser_kwargs: its keyword arguments
    :param heads: keyword arguments of :class:`.DenoisingNetwork`
    :return: the value network over ``(s, x_k, k)``
    """
    if denoiser_class is not None:
        denoiser = make_denoiser(denoiser_class, denoiser_kwargs, process, features_dim, 1, diffusion_steps)
        return OwnDenoiser(denoiser, process.input_dim)
    return DenoisingNetwork(features_dim, process.input_dim, 1, diffusion_steps, **heads)
