"""Chains without an environment, to be fitted to a density that is known."""

from collections.abc import Sequence

import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from sb3_diffusion.common.chain import ControlFn
from sb3_diffusion.common.noise_schedule import NoiseSchedule
from sb3_diffusion.common.policies import ChainPolicy
from sb3_diffusion.common.process import GaussianProcess
from sb3_diffusion.common.score_network import ControlNetwork


class FittedChain(ChainPolicy, nn.Module):
    """
    A chain that knows which of a few contexts it is in, in place of an observation.

    :param schedule: noise schedule
    :param dim: dimension d
    :param n_contexts: number of contexts
    :param kernel: ``"reference"`` or ``"posterior"``, see :class:`.ControlNetwork`
    :param encoder_arch: widths of the encoder's hidden layers
    :param denoiser_arch: widths of the head's hidden layers
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        dim: int,
        n_contexts: int = 1,
        kernel: str = "reference",
        encoder_arch: Sequence[int] = (),
        denoiser_arch: Sequence[int] = (64, 64),
    ):
        super().__init__()
        self.compile_chain, self.action_dim, self.n_contexts = False, dim, n_contexts
        self.process = GaussianProcess(spaces.Box(-1, 1, (dim,)), kernel)
        self.schedule = self.inference_schedule = schedule
        self.score_network = ControlNetwork(
            n_contexts, dim, schedule.diffusion_steps, list(encoder_arch), list(denoiser_arch), kernel=kernel
        )

    def encode(self, contexts: th.Tensor) -> th.Tensor:
        """
        :param contexts: which context, (B,)
        :return: encoded observations, (B, W)
        """
        return self.score_network.encode(F.one_hot(contexts, self.n_contexts).float())

    def control_without_context(self) -> ControlFn:
        """
        :return: the control function in no context, with the weights of the time of each call
        """

        def control_fn(x: th.Tensor, step: int | th.Tensor) -> tuple[th.Tensor, th.Tensor]:
            return self.control_fn(self.score_network.encode(x.new_zeros(x.shape[-2], self.n_contexts)))(x, step)

        return control_fn
