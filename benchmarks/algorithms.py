"""Algorithms of the benchmarks that are not this package's, and changes to its own that only a benchmark needs."""

from typing import Any

import torch as th
from sb3_contrib import CrossQ
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.torch_layers import create_mlp
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_diffusion import DiffSAC
from sb3_diffusion.common.batch_renorm import use_native_batch_renorm
from sb3_diffusion.diffsac.critics import CRITIC_RULES, CriticRule, CrossQRule
from sb3_diffusion.diffsac.replay import recent_indices


class NativeCrossQ(CrossQ):
    """
    sb3-contrib's CrossQ, whose batch renormalisation goes through PyTorch's native kernel: the same numbers to rounding in
    two thirds of the time, see ``tests/test_batch_renorm.py``.
    """

    def _setup_model(self) -> None:
        super()._setup_model()
        use_native_batch_renorm(self.policy)


class RecentReplayBuffer(ReplayBuffer):
    """What ``replay_recency=2.0`` is to this package's algorithms, for others."""

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        return self._get_samples(recent_indices(self, batch_size, 2.0), env=env)


class ClippedDiffSAC(DiffSAC):
    """DiffSAC whose actor's gradient is clipped at norm 1."""

    def _setup_model(self) -> None:
        super()._setup_model()
        parameters = list(self.actor.parameters())

        def clip(*_: Any) -> None:
            th.nn.utils.clip_grad_norm_(parameters, 1.0)

        self.actor.optimizer.register_step_pre_hook(clip)


class MeanRule(CrossQRule):
    """The mean of the critics in place of the least, for the target and for the actor, as DIME has it."""

    def value(self, q_values: th.Tensor) -> th.Tensor:
        return q_values.mean(dim=1)

    def next_values(self, next_q_values: th.Tensor) -> th.Tensor:
        return next_q_values.mean(dim=1, keepdim=True)


class ActorMeanRule(CrossQRule):
    """The mean of the critics for the actor alone."""

    def value(self, q_values: th.Tensor) -> th.Tensor:
        return q_values.mean(dim=1)


class LayerNormRule(CriticRule):
    """Layer normalisation after each hidden layer, with target networks, in place of batch renormalisation."""

    betas = CrossQRule.betas

    def make_network(self, **kwargs: Any) -> Any:
        network = super().make_network(**kwargs)
        n_inputs = network.q_networks[0][0].in_features  # type: ignore[union-attr, index]
        for index in range(len(network.q_networks)):  # type: ignore[arg-type]
            layers = create_mlp(n_inputs, 1, kwargs["net_arch"], post_linear_modules=[nn.LayerNorm])
            q_net = nn.Sequential(*layers)
            network.q_networks[index] = q_net  # type: ignore[operator, assignment]
            network.add_module(f"qf{index}", q_net)
        return network


class CategoricalRule(CrossQRule):
    """
    Critics that give a distribution over 101 values, in place of a number, and learn by cross-entropy from the target's normal
    distribution over them (HL-Gauss, arXiv 2403.03950). The range of values is that of HalfCheetah-v5 and Hopper-v5.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.edges = th.linspace(-105.0, 905.0, 102)
        self.centers = (self.edges[1:] + self.edges[:-1]) / 2

    def distribution(self, values: th.Tensor) -> th.Tensor:
        """
        :param values: values, (B, 1)
        :return: share of each bin in a normal distribution around them, three quarters of a bin wide, (B, 101)
        """
        width = self.edges[1] - self.edges[0]
        values = values.clamp(self.centers[0], self.centers[-1])
        cumulative = th.special.ndtr((self.edges - values) / (0.75 * width))
        shares = cumulative.diff(dim=1)
        return shares / shares.sum(dim=1, keepdim=True)

    def make_network(self, **kwargs: Any) -> Any:
        network = super().make_network(**kwargs)
        for q_net in network.q_networks:  # type: ignore[union-attr]
            q_net[-1] = nn.Linear(q_net[-1].in_features, len(self.centers))
            with th.no_grad():
                # A value of 0 to begin with
                q_net[-1].bias.copy_(th.log(self.distribution(th.zeros(1, 1)) + 1e-6).squeeze(0))
        return network

    def join(self, q_values: Any) -> th.Tensor:
        return th.stack(tuple(q_values), dim=1)  # (B, n_critics, 101)

    def value(self, q_values: th.Tensor) -> th.Tensor:
        return (th.softmax(q_values, dim=2) @ self.centers).min(dim=1).values

    def next_values(self, next_q_values: th.Tensor) -> th.Tensor:
        return self.value(next_q_values).unsqueeze(1)

    def error(self, q_values: th.Tensor, target: th.Tensor) -> th.Tensor:
        log_shares = th.log_softmax(q_values, dim=2)
        return -(self.distribution(target).unsqueeze(1) * log_shares).sum(dim=(1, 2)).mean()


CRITIC_RULES.update(
    {"crossq-mean": MeanRule, "crossq-actor-mean": ActorMeanRule, "layer-norm": LayerNormRule, "categorical": CategoricalRule}
)
