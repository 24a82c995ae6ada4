"""The base of the off-policy algorithms: everything around the update of the actor."""

from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    PyTorchObs,
    ReplayBufferSamples,
    RolloutReturn,
    Schedule,
)
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.sac.sac import SAC
from torch.nn import functional as F

from sb3_diffusion.common.arguments import (
    FRACTION,
    POSITIVE,
    Kind,
    check_arguments,
    choice,
    number,
    optional,
    scheduled,
    whole,
)
from sb3_diffusion.common.batch_renorm import set_batch_renorm_training
from sb3_diffusion.common.categories import DISCRETE_SPACES, check_stored_action_space, is_discrete
from sb3_diffusion.common.chain import Chain, ChainSteps, draw_steps, take_steps
from sb3_diffusion.common.checks import check_no_sde, merge_kwargs, optimize, parse_auto
from sb3_diffusion.common.env_checks import EnvCheckMixin, report_dead_workers
from sb3_diffusion.common.losses import (
    ValueFn,
    latent_value_and_gradient,
    lean_adjoint,
    mixed_adjoint,
    returns_along_chain,
    value_and_gradient,
)
from sb3_diffusion.common.noise_schedule import MAX_DIFFUSION_STEPS, NOISE_SCHEDULES
from sb3_diffusion.diffsac.critics import CRITIC_RULES
from sb3_diffusion.diffsac.policies import DiffusionActor, DiffusionSACPolicy
from sb3_diffusion.diffsac.replay import join_transitions, sample_transitions
from sb3_diffusion.saving.safe_load import SafeLoadMixin

SelfDiffusionOffPolicyAlgorithm = TypeVar("SelfDiffusionOffPolicyAlgorithm", bound="DiffusionOffPolicyAlgorithm")

Info = dict[str, th.Tensor]

# Updates of the actor between two descriptions of its chains in the log, which take longer than a step of the optimizer
_DESCRIBE_INTERVAL = 10
# Chains of each observation that the forward divergence weighs against each other, if not given
_FORWARD_ACTION_SAMPLES = 8


class _ChainActions(OffPolicyAlgorithm):
    """Stands behind ``SAC`` in the order of base classes, and lets it have the action spaces in which a chain can end."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "supported_action_spaces": (spaces.Box, *DISCRETE_SPACES)})


class DiffusionOffPolicyAlgorithm(SafeLoadMixin, EnvCheckMixin, SAC, _ChainActions, abstract=True):
    """
    SAC's machinery for a diffusion policy: soft critics on the bound of the entropy, the automatic temperature, and the
    gradients of the values along the chain. A subclass says what the actor descends, in its ``_actor_loss``. The arguments are
    :class:`.DiffSAC`'s.
    """

    arguments: ClassVar[dict[str, Kind]] = {
        "batch_size": whole(1),
        "gamma": FRACTION,
        "tau": FRACTION,
        "target_update_interval": whole(1),
        "qf_learning_rate": optional(scheduled(POSITIVE)),
        "actor_lr_scale": POSITIVE,
        "policy_delay": whole(1),
        "critic_type": choice(CRITIC_RULES),
        "replay_recency": number(1),
        "diffusion_steps": whole(1, MAX_DIFFUSION_STEPS),
        "noise_schedule": choice(NOISE_SCHEDULES),
        "prior_std": POSITIVE,
        "denoising_steps_per_update": whole(1),
        "n_action_samples": whole(1),
        "divergence": choice(("reverse", "forward")),
        "demonstration_share": FRACTION,
        "demonstration_coef": scheduled(number(0)),
        "critic_warmup_steps": whole(),
    }
    policy: DiffusionSACPolicy
    actor: DiffusionActor  # type: ignore[assignment]
    critic: BaseModel  # type: ignore[assignment]
    critic_target: BaseModel  # type: ignore[assignment]

    def __init__(
        self,
        policy: str | type[DiffusionSACPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,  # 1e6
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        ent_coef: str | float = "auto",
        target_update_interval: int = 1,
        target_entropy: str | float = "auto",
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        use_sde_at_warmup: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        qf_learning_rate: float | Schedule | None = None,
        actor_lr_scale: float = 1.0,
        policy_delay: int = 1,
        critic_type: str = "sac",
        replay_recency: float = 1.0,
        diffusion_steps: int = 5,
        noise_schedule: str = "cosine",
        prior_std: float = 1.0,
        actor_loss: str = "adjoint",
        denoising_steps_per_update: int = 4,
        n_action_samples: int | None = None,
        divergence: str = "reverse",
        demonstration_share: float = 0.0,
        demonstration_coef: float | Schedule = 0.0,
        critic_warmup_steps: int = 0,
        _init_setup_model: bool = True,
    ):
        self.demonstration_share = demonstration_share
        self.demonstration_coef = demonstration_coef
        self.critic_warmup_steps = critic_warmup_steps
        self.demonstration_buffer: ReplayBuffer | None = None
        self.qf_learning_rate = qf_learning_rate
        self.actor_lr_scale = actor_lr_scale
        self.policy_delay = policy_delay
        self.critic_type = critic_type
        self.replay_recency = replay_recency
        self.actor_loss = actor_loss
        self.denoising_steps_per_update = denoising_steps_per_update
        self.divergence = divergence
        if n_action_samples is None:
            n_action_samples = _FORWARD_ACTION_SAMPLES if divergence == "forward" else 1
        self.n_action_samples = n_action_samples
        self.diffusion_steps = diffusion_steps
        self.noise_schedule = noise_schedule
        self.prior_std = prior_std
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise,
            replay_buffer_class,
            replay_buffer_kwargs,
            optimize_memory_usage,
            n_steps,
            ent_coef,
            target_update_interval,
            target_entropy,
            use_sde,
            sde_sample_freq,
            use_sde_at_warmup,
            stats_window_size,
            tensorboard_log,
            None if policy_kwargs is None else policy_kwargs.copy(),
            verbose,
            seed,
            device,
            _init_setup_model,
        )

    def _check_arguments(self) -> None:
        """Check the arguments, here and not in the constructor, because ``load`` may change them, too."""
        check_no_sde(self.use_sde)
        check_arguments(self, self.arguments)
        if is_discrete(self.action_space):
            self._check_discrete()
        if self.divergence == "forward" and self.actor_loss != "adjoint":
            raise ValueError(
                f"actor_loss={self.actor_loss!r} estimates the gradient of the reverse divergence: leave it at its default "
                "'adjoint' with divergence='forward', which does not use it"
            )
        if self.divergence == "forward" and self.n_action_samples == 1:
            raise ValueError("n_action_samples=1: divergence='forward' weighs chains against each other, choose 2 or more")
        if self.demonstration_coef != 0 and self.demonstration_share == 0:
            raise ValueError(f"demonstration_coef={self.demonstration_coef}: it needs a demonstration_share above 0")
        _, ent_coef = parse_auto("ent_coef", self.ent_coef, least=0)
        if self.divergence == "forward" and ent_coef == 0:
            raise ValueError("ent_coef=0: divergence='forward' divides by it, choose a positive number or 'auto'")
        if not issubclass(self.policy_class, DiffusionSACPolicy):
            raise ValueError(
                f"policy={self.policy_class.__name__}: choose 'MlpPolicy', 'CnnPolicy', 'MultiInputPolicy' or a subclass of "
                "DiffusionSACPolicy"
            )

    def _check_discrete(self) -> None:
        """
        Raise ``AssertionError`` for the reverse divergence, as Stable-Baselines3 does where it does not support a space, and
        ``ValueError`` for actions of several axes or noise to add to them.
        """
        check_stored_action_space(self.action_space)
        assert self.divergence == "forward", (
            f"action_space={self.action_space}: {type(self).__name__} needs gradients of the value with respect to the "
            "action, which categories do not have. Use DiffSAC(divergence='forward') or DiffPPO"
        )
        if self.action_noise is not None:
            raise ValueError(f"action_noise={self.action_noise!r}: it cannot be added to categories, leave it out")

    def _get_needed_policy_kwargs(self) -> dict[str, Any]:
        """Keyword arguments that the algorithm hands the policy, as SB3 does with ``use_sde``."""
        return dict(
            diffusion_steps=self.diffusion_steps,
            noise_schedule=self.noise_schedule,
            prior_std=self.prior_std,
            critic_type=self.critic_type,
            use_diffusion_value=self.actor_loss == "diffusion_value",
        )

    def _setup_model(self) -> None:
        self._check_arguments()
        given = {name: value for name, value in self.policy_kwargs.items() if name != "use_sde"}
        automatic, number = parse_auto("target_entropy", self.target_entropy)
        self.target_entropy = "auto" if automatic else number
        self.policy_kwargs = merge_kwargs(type(self).__name__, "policy_kwargs", given, self._get_needed_policy_kwargs())
        super()._setup_model()
        if self.actor_loss == "mixed_adjoint" and self.actor.score_network.kernel != "posterior":
            raise ValueError(
                "actor_loss='mixed_adjoint' mixes by what the kernel believes of x_0: "
                "give policy_kwargs=dict(kernel='posterior'), or choose 'adjoint'"
            )
        # What the user gave is what load() compares with
        self.policy_kwargs = given
        if self.log_ent_coef is not None:
            self.ent_coef_optimizer = th.optim.Adam([self.log_ent_coef], lr=self.lr_schedule(1), fused=True)
        if automatic:
            self.target_entropy = number * self.actor.process.target_entropy
        highest = self.actor.process.max_entropy
        if self.log_ent_coef is not None and not float(self.target_entropy) < highest:
            raise ValueError(
                f"target_entropy={self.target_entropy}: the actions have less than {highest:.3f} nats, so that the "
                "automatic temperature would only rise. Choose a lower target, or a fixed ent_coef"
            )

    def _create_aliases(self) -> None:
        self.actor, self.critic = self.policy.actor, self.policy.critic
        # Stock code asks for a target network
        self.critic_target = self.policy.critic_target or self.policy.critic

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        self.qf_lr_schedule = None if self.qf_learning_rate is None else FloatSchedule(self.qf_learning_rate)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        self._start_training()
        infos = []
        for _ in range(gradient_steps):
            replay_data, ent_coef, update_actor = self._sample_batch(batch_size)
            obs, next_obs = replay_data.observations, replay_data.next_observations
            if update_actor:
                context = self._encode_for_update(obs)  # (n B, W)
                chain, chain_steps, log_prob, next_actions, next_log_prob = self._sample_chains(obs, context, next_obs)
            else:
                with th.no_grad():
                    next_actions, next_log_prob = self.actor.action_log_prob(next_obs)
            info = self._update_critics(replay_data, next_actions, next_log_prob, ent_coef)
            if update_actor:
                info.update(self._update_temperature(log_prob))
                info.update(self._update_actor(obs, context, chain, chain_steps, ent_coef))
            self._update_targets()
            infos.append(info)
        self._record(infos)

    def _start_training(self) -> None:
        """
        Before the gradient steps of one call of ``train``: training mode of batch norm and dropout, and the learning rate
        of each optimizer at the current progress.
        """
        self.policy.set_training_mode(True)
        set_batch_renorm_training(self.actor.score_network, False)
        self._update_learning_rate([] if self.ent_coef_optimizer is None else [self.ent_coef_optimizer])
        learning_rate = self.lr_schedule(self._current_progress_remaining)
        update_learning_rate(self.actor.optimizer, self.actor_lr_scale * learning_rate)
        qf_learning_rate = (self.qf_lr_schedule or self.lr_schedule)(self._current_progress_remaining)
        update_learning_rate(self.critic.optimizer, qf_learning_rate)
        if self.policy.diffusion_value is not None:
            update_learning_rate(self.policy.diffusion_value.optimizer, qf_learning_rate)

    def _sample_batch(self, batch_size: int) -> tuple[ReplayBufferSamples, th.Tensor, bool]:
        """Begin a gradient step: transitions, the temperature alpha, and whether the actor is updated, too."""
        self._n_updates += 1
        assert self.replay_buffer is not None
        n_demonstrations = self._n_demonstrations(batch_size)
        replay_data = sample_transitions(
            self.replay_buffer, batch_size - n_demonstrations, self.replay_recency, self._vec_normalize_env
        )
        if n_demonstrations > 0:
            replay_data = join_transitions(replay_data, self._sample_demonstrations(n_demonstrations))
        # A user who freezes the temperature sets the optimizer to None, as in SAC
        if self.log_ent_coef is not None and (self.ent_coef_optimizer is not None or not hasattr(self, "ent_coef_tensor")):
            ent_coef = th.exp(self.log_ent_coef.detach()).squeeze()
        else:
            ent_coef = self.ent_coef_tensor
        warm = self.critic_warmup_steps == 0 or self.num_timesteps > self.critic_warmup_steps
        update_actor = warm and self._n_updates % self.policy_delay == 0
        return replay_data, ent_coef, update_actor

    def _n_demonstrations(self, batch_size: int) -> int:
        """Number of demonstrations in a batch."""
        return max(round(self.demonstration_share * batch_size), 1) if self.demonstration_share > 0 else 0

    def _sample_demonstrations(self, n_transitions: int) -> ReplayBufferSamples:
        """Draw demonstrations; without any, raise ``ValueError``."""
        if self.demonstration_buffer is None:
            raise ValueError(
                f"demonstration_share={self.demonstration_share}: there are no demonstrations. They are not saved with the "
                "model: call sb3_diffusion.imitation.fill_replay_buffer(model, data) before learn(), also after load()"
            )
        return sample_transitions(self.demonstration_buffer, n_transitions, env=self._vec_normalize_env)

    def _demonstration_loss(self, batch_size: int) -> th.Tensor | float:
        """
        ``demonstration_coef`` times minus a bound on the demonstrations' log-likelihood (after arXiv 1709.10089). If its
        schedule gives less than 0, raise ``ValueError``.
        """
        coef = FloatSchedule(self.demonstration_coef)(self._current_progress_remaining)
        if coef < 0:
            raise ValueError(f"demonstration_coef: its schedule gave {coef}, it must be at least 0")
        if coef == 0:
            return 0.0
        data = self._sample_demonstrations(self._n_demonstrations(batch_size))
        log_likelihood = self.actor.log_likelihood(data.observations, data.actions, self.denoising_steps_per_update)
        return -coef * log_likelihood.mean()

    def _encode_for_update(self, obs: PyTorchObs, actor: DiffusionActor | None = None) -> th.Tensor:
        """
        :param obs: observations of an update of the actor, B of them
        :param actor: the algorithm's actor if None, or its target
        :return: encoded observations, n times, with gradients, (n B, W); batch normalisation sees them once
        """
        actor = actor or self.actor
        set_batch_renorm_training(actor.score_network, True)
        context = actor.encode(obs)
        set_batch_renorm_training(actor.score_network, False)
        return context if self.n_action_samples == 1 else context.repeat(self.n_action_samples, 1)

    def _sample_chains(
        self, obs: PyTorchObs, context: th.Tensor, next_obs: PyTorchObs
    ) -> tuple[Chain, ChainSteps, th.Tensor, th.Tensor, th.Tensor]:
        """
        Sample actions at these and at the next observations, in one batch unless gradients have to pass through the chain or
        the actor has an ``action_log_prob`` of the user's own.

        :param obs: observations, B of them
        :param context: encoded observations, n times, (n B, W)
        :param next_obs: next observations
        :return: the chains at the observations, or their ends alone where no gradient passes through them; the steps of them
            that the actor's update takes once more; bound on the log-probability of actions there, (n B,) or (B,); the actions
            at the next observations, (B, d), and the bound on theirs, (B,)
        """
        schedule, process, n_chains = self.actor.schedule, self.actor.process, len(context)
        steps = draw_steps(schedule.diffusion_steps, self.denoising_steps_per_update, n_chains, context.device)
        pathwise = self.actor_loss == "pathwise"
        own = getattr(self.actor.action_log_prob, "__func__", None) is not DiffusionActor.action_log_prob
        if pathwise or own:
            with th.no_grad():
                next_actions, next_log_prob = self.actor.action_log_prob(next_obs)
            with th.set_grad_enabled(pathwise):
                chain = self.actor.sample(context)
            with th.no_grad():
                log_prob = self.actor.action_log_prob(obs)[1] if own else process.action_log_prob(schedule, chain)
            return chain, chain.take(steps), log_prob, next_actions, next_log_prob
        with th.no_grad():
            chains = self.actor.sample(th.cat((context, self.actor.encode(next_obs))))
            log_prob, next_log_prob = process.action_log_prob(schedule, chains).tensor_split([n_chains])
            chain, next_actions = chains.first(n_chains), process.to_action(chains.x[0][n_chains:])
            return chain.end(), chain.take(steps), log_prob, next_actions, next_log_prob

    def _update_actor(
        self, obs: PyTorchObs, context: th.Tensor, chain: Chain, chain_steps: ChainSteps, ent_coef: th.Tensor
    ) -> Info:
        """
        One step down :meth:`_actor_loss`, and the demonstrations' loss if there is one.

        :param obs: observations, B of them
        :param context: encoded observations, n times, with gradients, (n B, W)
        :param chain: chains of the current policy
        :param chain_steps: steps of these chains to take once more, (M, n B)
        :param ent_coef: temperature alpha
        :return: entries of the log
        """
        loss, value, info = self._actor_loss(obs, context, chain, chain_steps, ent_coef)
        loss = loss + self._demonstration_loss(len(chain.x[0]) // self.n_action_samples)
        optimize(self.actor.optimizer, "actor loss", loss, value=value, x_0=chain.x[0], ent_coef=ent_coef)
        info["train/actor_loss"] = (ent_coef * chain.log_ratio.detach().sum(dim=0) - value).mean()
        return {**info, **self._describe_chain(chain)}

    def _actor_loss(
        self, obs: PyTorchObs, context: th.Tensor, chain: Chain, chain_steps: ChainSteps, ent_coef: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, Info]:
        """
        The arguments are those of :meth:`_update_actor`.

        :return: loss, a scalar, of which the gradient alone has a meaning; the latent values ``V_0(s, x_0)``, (n B,);
            entries of the log
        """
        raise NotImplementedError

    def _update_critics(
        self, replay_data: ReplayBufferSamples, next_actions: th.Tensor, next_log_prob: th.Tensor, ent_coef: th.Tensor
    ) -> Info:
        """
        One step down the soft Bellman error (SAC, arXiv 1812.05905, equation 5).

        :param replay_data: transitions
        :param next_actions: the current policy's actions at the next observations, (B, ...)
        :param next_log_prob: bound on their log-probability, (B,)
        :param ent_coef: temperature alpha
        :return: entries of the log
        """
        critic_input = self.actor.process.critic_input
        replay_data = replay_data._replace(actions=critic_input(replay_data.actions))
        # For n-step replay, discount factor is gamma**n_steps (when no early termination)
        discounts = replay_data.discounts if replay_data.discounts is not None else self.gamma
        loss, parts = self.policy.critic_rule.loss(
            self.critic, self.critic_target, replay_data, discounts, critic_input(next_actions), next_log_prob, ent_coef
        )
        parts |= dict(next_log_prob=next_log_prob, ent_coef=ent_coef)
        optimize(self.critic.optimizer, "critic loss", loss, **parts)
        return {"train/critic_loss": loss, "train/ent_coef": ent_coef}

    def _update_targets(self) -> None:
        """End a gradient step. After the actor's update, which is in the running statistics of batch norm, too."""
        if self._n_updates % self.target_update_interval == 0:
            self.policy.critic_rule.update_target(self.critic, self.critic_target, self.tau)

    def _update_temperature(self, log_prob: th.Tensor) -> Info:
        """
        Automatic temperature (SAC, arXiv 1812.05905, section 5), on the bound of the entropy.

        :param log_prob: bound on the log-probability of the current policy's actions, (B,)
        :return: entries of the log
        """
        info = {"diffusion/entropy_bound": -log_prob.mean()}
        if self.ent_coef_optimizer is not None and self.log_ent_coef is not None:
            ent_coef_loss = -self.log_ent_coef.squeeze() * (log_prob.mean() + float(self.target_entropy))
            optimize(self.ent_coef_optimizer, "temperature loss", ent_coef_loss, log_prob=log_prob)
            info["train/ent_coef_loss"] = ent_coef_loss
        return info

    def _make_value_fn(self, obs: PyTorchObs) -> ValueFn:
        """
        :param obs: observations, B of them
        :return: the critics' value, (n B,), of n actions at each observation, one after the other, (n B, ...)
        """
        value_fn = self.policy.critic_rule.value_fn(self.critic, obs, self.n_action_samples)
        return lambda actions: value_fn(self.actor.process.critic_input(actions))

    def _step_value_gradient(
        self, obs: PyTorchObs, chain: Chain, chain_steps: ChainSteps, log_std_ratio: th.Tensor, ent_coef: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, Info]:
        """
        Gradients of the values of the steps of the chain, by the lean adjoint, by the mixed one, or by the diffusion value
        network, which is first fitted to the returns along the chain.

        :param obs: observations, B of them
        :param chain: ends of n chains of each observation, one after the other
        :param chain_steps: steps of these chains, (M, n B)
        :param log_std_ratio: log-ratio of the standard deviations there, (M, n B, d)
        :param ent_coef: temperature alpha
        :return: ``V_0(s, x_0)``, (n B,); gradient of ``V_{k-1}(s, x_{k-1})`` of the given steps, (M, n B, d); log entries
        """
        schedule = self.actor.schedule
        value, gradient = latent_value_and_gradient(self._make_value_fn(obs), schedule, chain.x[0], ent_coef)
        if self.actor_loss == "adjoint":
            return value, lean_adjoint(schedule, chain_steps.steps, gradient), {}
        if self.actor_loss == "mixed_adjoint":
            return value, mixed_adjoint(schedule, chain_steps, chain.x[0], log_std_ratio, gradient, ent_coef), {}
        value_net = self.policy.diffusion_value
        assert value_net is not None
        context = value_net.encode(obs)
        returns = take_steps(returns_along_chain(chain.log_ratio, value, ent_coef), chain_steps.steps)
        predicted = value_net(
            context.repeat(self.n_action_samples, 1),
            self.actor.network_input(chain_steps.x, chain_steps.steps),
            chain_steps.steps,
        )
        loss = 0.5 * F.mse_loss(predicted, returns)
        optimize(value_net.optimizer, "diffusion value loss", loss, returns=returns, values=predicted)
        with th.no_grad():
            context = value_net.encode(obs)
            context = context.repeat(self.n_action_samples, 1)
        _, step_gradient = value_and_gradient(lambda x: value_net(context, x, chain_steps.steps - 1), chain_steps.x_prev)
        step_gradient = th.where((chain_steps.steps == 1).unsqueeze(-1), gradient, step_gradient)
        return value, step_gradient, {"diffusion/value_loss": loss}

    def _describe_chain(self, chain: Chain) -> Info:
        """Entries for the log on chains and on the score network's gradient, every so many updates of the actor."""
        if self._n_updates // self.policy_delay % _DESCRIBE_INTERVAL != 1:
            return {}
        info = self.actor.process.describe(chain.log_ratio.detach(), chain.x[0].detach())
        trained = [param for param in self.actor.score_network.parameters() if param.requires_grad]
        if gradients := [param.grad for param in trained if param.grad is not None]:
            info["diffusion/denoiser_grad_norm"] = th.nn.utils.get_total_norm(gradients)
        return info

    def _record(self, infos: list[Info]) -> None:
        """
        :param infos: entries of the log of each gradient step; the means are recorded
        """
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        values: dict[str, list[float]] = {}
        names = [key for info in infos for key in info]
        tensors = [value.detach() for info in infos for value in info.values()]
        # One transfer for all
        for key, value in zip(names, th.stack(tensors).tolist() if tensors else [], strict=True):
            values.setdefault(key, []).append(value)
        for key, numbers in values.items():
            self.logger.record(key, sum(numbers) / len(numbers))

    def learn(
        self: SelfDiffusionOffPolicyAlgorithm,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDiffusionOffPolicyAlgorithm:
        """
        Return a trained model.

        :param total_timesteps: The total number of samples (env steps) to train on
        :param callback: callback(s) called at every step with state of the algorithm.
        :param log_interval: number of episodes between two outputs of the log
        :param tb_log_name: the name of the run for TensorBoard logging; if None, the class's name
        :param reset_num_timesteps: whether or not to reset the current timestep number (used in logging)
        :param progress_bar: Display a progress bar using tqdm and rich.
        :return: the trained model
        """
        name = tb_log_name or type(self).__name__
        return super().learn(total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar)

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, *args: Any, **kwargs: Any) -> RolloutReturn:
        with report_dead_workers(env, callback):
            return super().collect_rollouts(env, callback, *args, **kwargs)

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        self._check_transition(reward, new_obs, dones, infos)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "demonstration_buffer"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, saved_pytorch_variables = super()._get_torch_save_params()
        if self.policy.diffusion_value is not None:
            state_dicts = [*state_dicts, "policy.diffusion_value.optimizer"]
        return state_dicts, saved_pytorch_variables
