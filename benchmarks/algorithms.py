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


CRITIC_RULES.update({"crossq-mean": MeanRule, "crossq-actor-mean": ActorMeanRule, "layer-norm": LayerNormRule})
