"""
Critics: the networks, and the rules by which they are fitted and read.

An actor asks its critics for a value of actions and the value's gradient, an algorithm for a loss and for an update of the
target networks. What lies behind is the rule's matter.
"""

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from sb3_contrib.common.utils import quantile_huber_loss
from sb3_contrib.crossq.policies import CrossQCritic
from sb3_contrib.tqc.policies import Critic as TQCCritic
from stable_baselines3.common.policies import BaseModel, ContinuousCritic
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sb3_diffusion.common.batch_renorm import fold_batch_renorm, set_batch_renorm_training, use_native_batch_renorm
from sb3_diffusion.common.checks import check_choice, check_fraction, check_integer, check_positive, is_untouched
from sb3_diffusion.common.losses import ValueFn, soft_bellman_target, squared_bellman_error
from sb3_diffusion.diffsac.least_value import least_value, linear_layers

Parts = dict[str, Any]

# Names of the buffers of batch renormalisation
_RENORM_STATISTICS = ("ra_mean", "ra_var", "steps")


def _statistics(network: nn.Module) -> list[th.Tensor]:
    """Running statistics of normalising layers."""
    return [
        buffer
        for name, buffer in network.named_buffers()
        if "running_" in name or name.rpartition(".")[2] in _RENORM_STATISTICS
    ]


def _join_observations(first: PyTorchObs, second: PyTorchObs) -> PyTorchObs:
    """Join two batches of observations."""
    if isinstance(first, dict):
        assert isinstance(second, dict)
        return {key: th.cat((value, second[key])) for key, value in first.items()}
    assert isinstance(second, th.Tensor)
    return th.cat((first, second))


def repeat_observations(obs: PyTorchObs, times: int) -> PyTorchObs:
    """
    :param obs: observations
    :param times: how often
    :return: all of them, so many times over
    """
    repeat = lambda value: value.repeat(times, *[1] * (value.ndim - 1))  # noqa: E731
    return {key: repeat(value) for key, value in obs.items()} if isinstance(obs, dict) else repeat(obs)


class CriticRule:
    """
    SAC's critics (arXiv 1812.05905): the least of their values, and targets from networks that follow by a Polyak average.

    The critic's network may be any module that gives the values of ``(obs, actions)`` as a tuple of tensors, each (B, 1).
    """

    network_class: ClassVar[type[BaseModel]] = ContinuousCritic
    # Whether there is a target network, as the policy's ``critic_target``
    has_target: ClassVar[bool] = True
    # Of Adam, unless the user gives others
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    # Of the actor, unless the user says: what was best with these critics, see docs/diffcrossq.md
    kernel: ClassVar[str] = "reference"
    actor_batch_norm: ClassVar[bool] = False

    @property
    def renorm_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the actor's layers of batch renormalisation, if it has any."""
        return {}

    def make_network(self, **kwargs: Any) -> BaseModel:
        """
        :param kwargs: arguments of ``network_class``
        :return: a critic's network
        """
        return self.network_class(**kwargs)

    def join(self, q_values: Sequence[th.Tensor] | th.Tensor) -> th.Tensor:
        """
        :param q_values: output of the network
        :return: the same as one tensor, (B, n_critics)
        """
        return th.cat(tuple(q_values), dim=1)

    def value(self, q_values: th.Tensor) -> th.Tensor:
        """
        :param q_values: output of :meth:`join`
        :return: the value that the actor ascends, (B,)
        """
        return q_values.min(dim=1).values

    def value_fn(self, critic: BaseModel, obs: PyTorchObs, n_action_samples: int = 1) -> ValueFn:
        """
        :param critic: the critic's network
        :param obs: observations, B of them
        :param n_action_samples: number n of actions at each observation
        :return: a function of actions, n at each observation, one after the other, (n B, d), that gives their values, (n B,)
        """
        if not is_untouched(critic, self.network_class):
            repeated = repeat_observations(obs, n_action_samples)
            return lambda actions: self.value(self.join(critic(repeated, actions)))
        # The features do not depend on the actions
        with th.no_grad():
            features = critic.extract_features(obs, critic.features_extractor)  # type: ignore[arg-type]
            features = features.repeat(n_action_samples, 1)
        layers = [linear_layers(q_net) for q_net in critic.q_networks]  # type: ignore[union-attr]
        # On a GPU it would wait for the number of samples of each critic
        least = type(self).value is CriticRule.value and type(self).join is CriticRule.join
        if least and None not in layers and features.device.type == "cpu":
            return lambda actions: least_value(actions, features, layers)  # type: ignore[arg-type]
        q_nets = [fold_batch_renorm(q_net) for q_net in critic.q_networks]  # type: ignore[union-attr]

        def value_of(actions: th.Tensor) -> th.Tensor:
            inputs = th.cat((features, actions), dim=1)
            return self.value(self.join([q_net(inputs) for q_net in q_nets]))

        return value_of

    def loss(
        self,
        critic: nn.Module,
        critic_target: nn.Module,
        replay_data: ReplayBufferSamples,
        discounts: th.Tensor | float,
        next_actions: th.Tensor,
        next_log_prob: th.Tensor,
        ent_coef: th.Tensor,
    ) -> tuple[th.Tensor, Parts]:
        """
        The soft Bellman error (SAC, arXiv 1812.05905, equation 5).

        :param critic: the critic's network
        :param critic_target: the target network, or the critic's where there is none
        :param replay_data: transitions, B of them
        :param discounts: discount of what follows the transition, one for all or (B, 1)
        :param next_actions: the current policy's actions at the next observations, (B, d)
        :param next_log_prob: bound on their log-probability, (B,)
        :param ent_coef: temperature alpha
        :return: loss, a scalar, and its terms, for the error if it is not finite
        """
        q_values, next_q_values = self.evaluate(critic, critic_target, replay_data, next_actions)
        next_values, (rewards, dones) = self.next_values(next_q_values), (replay_data.rewards, replay_data.dones)
        target = soft_bellman_target(rewards, dones, discounts, next_values, next_log_prob, ent_coef)
        return self.error(q_values, target), {"rewards": rewards, "q_values": q_values, "next_q_values": next_q_values}

    def evaluate(
        self, critic: nn.Module, critic_target: nn.Module, replay_data: ReplayBufferSamples, next_actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param critic: the critic's network
        :param critic_target: the target network, or the critic's where there is none
        :param replay_data: transitions, B of them
        :param next_actions: the current policy's actions at the next observations, (B, d)
        :return: the values of the transitions' actions, with gradients, and of the next ones, without, outputs of :meth:`join`
        """
        with th.no_grad():
            next_q_values = self.join(critic_target(replay_data.next_observations, next_actions))
        return self.join(critic(replay_data.observations, replay_data.actions)), next_q_values

    def next_values(self, next_q_values: th.Tensor) -> th.Tensor:
        """
        :param next_q_values: output of :meth:`join` at the next observations and actions
        :return: values for the target, (B, 1)
        """
        return next_q_values.min(dim=1, keepdim=True).values

    def error(self, q_values: th.Tensor, target: th.Tensor) -> th.Tensor:
        """
        :param q_values: output of :meth:`join`
        :param target: target values, with one column for each column of :meth:`next_values`
        :return: loss, a scalar
        """
        return squared_bellman_error(q_values, target)

    def update_target(self, critic: nn.Module, critic_target: nn.Module, tau: float) -> None:
        """
        :param critic: the critic's network
        :param critic_target: the target network
        :param tau: the soft update coefficient
        """
        average = get_ema_multi_avg_fn(1 - tau)  # as SB3's polyak_update, in one operation
        average(list(critic_target.parameters()), list(critic.parameters()), None)
        # Copy running stats, see SB3's GH issue #996
        for buffer, buffer_target in zip(_statistics(critic), _statistics(critic_target), strict=True):
            buffer_target.copy_(buffer)


class _BatchRenormCritic(CrossQCritic):
    """sb3-contrib's ``CrossQCritic``, whose batch renormalisation goes through PyTorch's native kernel."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        use_native_batch_renorm(self)


class CrossQRule(CriticRule):
    """
    CrossQ's critics (arXiv 1902.05605): batch renormalisation in place of target networks. One pass in training mode goes
    over the transitions and over what follows them, so that the statistics are those of both; all else is in evaluation mode.

    :param batch_norm_momentum: weight of a batch in the running statistics
    :param batch_norm_eps: added to the variance
    :param renorm_warmup_steps: updates with the batch's statistics alone, before the running ones correct them
    :raises ValueError: for one that is out of range
    """

    network_class = _BatchRenormCritic
    has_target = False
    betas = (0.5, 0.999)
    kernel = "posterior"
    actor_batch_norm = True

    def __init__(self, batch_norm_momentum: float = 0.01, batch_norm_eps: float = 0.001, renorm_warmup_steps: int = 100_000):
        check_fraction("batch_norm_momentum", batch_norm_momentum)
        check_positive("batch_norm_eps", batch_norm_eps)
        check_integer("renorm_warmup_steps", renorm_warmup_steps, least=0)
        self.batch_norm_kwargs: dict[str, Any] = dict(
            batch_norm_momentum=batch_norm_momentum, batch_norm_eps=batch_norm_eps, renorm_warmup_steps=renorm_warmup_steps
        )

    @property
    def renorm_kwargs(self) -> dict[str, Any]:
        kwargs = self.batch_norm_kwargs
        return dict(
            momentum=kwargs["batch_norm_momentum"], eps=kwargs["batch_norm_eps"], warmup_steps=kwargs["renorm_warmup_steps"]
        )

    def make_network(self, **kwargs: Any) -> BaseModel:
        network = super().make_network(**kwargs, **self.batch_norm_kwargs)
        set_batch_renorm_training(network, False)
        return network

    def value_fn(self, critic: BaseModel, obs: PyTorchObs, n_action_samples: int = 1) -> ValueFn:
        set_batch_renorm_training(critic, False)
        return super().value_fn(critic, obs, n_action_samples)

    def evaluate(
        self, critic: nn.Module, critic_target: nn.Module, replay_data: ReplayBufferSamples, next_actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        obs = _join_observations(replay_data.observations, replay_data.next_observations)
        set_batch_renorm_training(critic, True)
        q_values, next_q_values = self.join(critic(obs, th.cat((replay_data.actions, next_actions)))).chunk(2)
        set_batch_renorm_training(critic, False)
        return q_values, next_q_values.detach()

    def update_target(self, critic: nn.Module, critic_target: nn.Module, tau: float) -> None:
        """There is none."""


class TQCRule(CriticRule):
    """
    TQC's critics (arXiv 2005.04269): quantiles of the return, those of all critics pooled in the target and the top ones
    dropped, which holds the overestimation down; the actor ascends the mean of all.

    The critic's network may be any module that gives quantiles of ``(obs, actions)``, (B, n_critics, n_quantiles).

    :param n_quantiles: number of quantiles of each critic
    :param top_quantiles_to_drop_per_net: how many of them are dropped in the target, for each critic
    :raises ValueError: if nothing is left
    """

    network_class = TQCCritic

    def __init__(self, n_quantiles: int = 25, top_quantiles_to_drop_per_net: int = 2):
        check_integer("n_quantiles", n_quantiles)
        check_integer("top_quantiles_to_drop_per_net", top_quantiles_to_drop_per_net, least=0)
        if top_quantiles_to_drop_per_net >= n_quantiles:
            raise ValueError(
                f"top_quantiles_to_drop_per_net={top_quantiles_to_drop_per_net} of n_quantiles={n_quantiles}: nothing is left"
            )
        self.n_quantiles = n_quantiles
        self.top_quantiles_to_drop_per_net = top_quantiles_to_drop_per_net

    def make_network(self, **kwargs: Any) -> BaseModel:
        return super().make_network(**kwargs, n_quantiles=self.n_quantiles)

    def join(self, q_values: Sequence[th.Tensor] | th.Tensor) -> th.Tensor:
        """
        :param q_values: output of the network
        :return: the same as one tensor, (B, n_critics, n_quantiles)
        """
        return q_values if isinstance(q_values, th.Tensor) else th.stack(tuple(q_values), dim=1)

    def value(self, q_values: th.Tensor) -> th.Tensor:
        return q_values.mean(dim=(1, 2))

    def next_values(self, next_q_values: th.Tensor) -> th.Tensor:
        """
        :param next_q_values: output of :meth:`join` at the next observations and actions
        :return: the pooled quantiles without the top ones, (B, n_critics (n_quantiles - top_quantiles_to_drop_per_net))
        """
        n_critics, n_quantiles = next_q_values.shape[1:]
        n_kept = n_critics * (n_quantiles - self.top_quantiles_to_drop_per_net)
        if n_kept < 1:
            raise ValueError(
                f"top_quantiles_to_drop_per_net={self.top_quantiles_to_drop_per_net} of the {n_quantiles} quantiles that the "
                "critics give: nothing is left"
            )
        return next_q_values.flatten(1).sort(dim=1).values[:, :n_kept]

    def error(self, q_values: th.Tensor, target: th.Tensor) -> th.Tensor:
        # Not summed over the quantiles, as in sb3-contrib
        return quantile_huber_loss(q_values, target.unsqueeze(1), sum_over_quantiles=False)


CRITIC_RULES: dict[str, type[CriticRule]] = {"sac": CriticRule, "crossq": CrossQRule, "tqc": TQCRule}


def make_critic_rule(name: str, **options: Any) -> CriticRule:
    """
    :param name: key of ``CRITIC_RULES``
    :param options: arguments of the rule; those that are None are left out
    :return: the rule
    :raises ValueError: for another name, or an option that these critics do not have
    """
    check_choice("critic_type", name, CRITIC_RULES)
    given = {key: value for key, value in options.items() if value is not None}
    known = inspect.signature(CRITIC_RULES[name]).parameters
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"policy_kwargs has {', '.join(unknown)}, which critic_type={name!r} does not have: leave it out")
    return CRITIC_RULES[name](**given)
