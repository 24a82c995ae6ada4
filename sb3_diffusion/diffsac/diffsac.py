import math
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, PyTorchObs, Schedule
from stable_baselines3.common.utils import FloatSchedule, polyak_update, update_learning_rate
from stable_baselines3.sac.sac import SAC
from torch.nn import functional as F

from sb3_diffusion.common.chain import Chain, Visits, action_log_prob
from sb3_diffusion.common.checks import (
    check_choice,
    check_finite_array,
    check_integer,
    check_no_sde,
    check_positive,
    check_transition,
    merge_policy_kwargs,
    optimize,
)
from sb3_diffusion.common.losses import (
    draw_steps,
    latent_value_fn,
    lean_adjoint,
    pathwise_loss,
    returns_along_chain,
    step_loss,
    value_and_gradient,
)
from sb3_diffusion.common.policies import DiffusionActor
from sb3_diffusion.diffsac.policies import CnnPolicy, DiffusionSACPolicy, MlpPolicy, MultiInputPolicy

SelfDiffSAC = TypeVar("SelfDiffSAC", bound="DiffSAC")

ACTOR_LOSSES = ("adjoint", "diffusion_value", "pathwise")


class DiffSAC(SAC):
    """
    Diffusion Soft Actor-Critic (DiffSAC): SAC whose policy is a short denoising chain.
    Paper: DMERL, https://arxiv.org/abs/2512.02019

    The chain's entropy is unknown; a bound on it, the sum of one-step log-ratios along the chain, takes its place in
    SAC's critic target, actor loss and automatic temperature.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: learning rate for adam optimizer, the same for all networks unless ``qf_learning_rate`` is given;
        it can be a function of the current progress remaining (from 1 to 0)
    :param buffer_size: size of the replay buffer
    :param learning_starts: how many steps of the model to collect transitions for before learning starts
    :param batch_size: Minibatch size for each gradient update
    :param tau: the soft update coefficient ("Polyak update", between 0 and 1)
    :param gamma: the discount factor
    :param train_freq: Update the model every ``train_freq`` steps. Alternatively pass a tuple of frequency and unit
        like ``(5, "step")`` or ``(2, "episode")``.
    :param gradient_steps: How many gradient steps to do after each rollout (see ``train_freq``)
        Set to ``-1`` means to do as many gradient steps as steps done in the environment during the rollout.
    :param action_noise: the action noise type (None by default), added to the policy's own noise
    :param replay_buffer_class: Replay buffer class to use (for instance ``HerReplayBuffer``).
        If ``None``, it will be automatically selected.
    :param replay_buffer_kwargs: Keyword arguments to pass to the replay buffer on creation.
    :param optimize_memory_usage: Enable a memory efficient variant of the replay buffer at a cost of more complexity.
    :param n_steps: When n_step > 1, uses n-step return (with the NStepReplayBuffer) when updating the Q-value network.
    :param ent_coef: Entropy regularization coefficient, the temperature alpha. Set it to 'auto' to learn it automatically
        (and 'auto_0.1' for using 0.1 as initial value). A hot start ('auto_10') can help to keep several
        modes.
    :param target_update_interval: update the target network every ``target_update_interval`` gradient steps, counted
        over all of training.
    :param target_entropy: target of the entropy bound when learning ``ent_coef`` (``ent_coef = 'auto'``);
        'auto' is minus the number of action dimensions, 'auto_0.5' half of that
    :param use_sde: gSDE is not supported, must be False
    :param sde_sample_freq: of gSDE, not used
    :param use_sde_at_warmup: of gSDE, not used
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation, see :class:`.DiffusionSACPolicy`
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for debug
        messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param qf_learning_rate: learning rate of the critics and of the value network, if it is to differ
    :param policy_delay: update the actor and the temperature every ``policy_delay`` gradient steps
    :param diffusion_steps: number of denoising steps K; 1, with the cosine schedule, is SAC's Gaussian policy
    :param noise_schedule: ``"cosine"``, ``"linear"`` or ``"constant"``
    :param prior_std: standard deviation of the prior of the latent action
    :param actor_loss: estimator of the actor's gradient:
        ``"adjoint"`` carries the critics' gradient back along the linear reference dynamics (Adjoint Matching, arXiv
        2409.08861); ``"diffusion_value"`` learns the values of the steps of the chain, as the paper does;
        ``"pathwise"`` back-propagates through all steps, as stock SAC with :class:`.DiffusionSACPolicy` does
    :param denoising_steps_per_update: how many denoising steps of each sample an update of the actor uses, drawn at
        random where K is greater; bounds time and memory for any K. Not used by ``actor_loss="pathwise"``
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: for an argument that is out of range, saying what is allowed
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: DiffusionSACPolicy
    actor: DiffusionActor  # type: ignore[assignment]

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
        policy_delay: int = 1,
        diffusion_steps: int = 5,
        noise_schedule: str = "cosine",
        prior_std: float = 1.0,
        actor_loss: str = "adjoint",
        denoising_steps_per_update: int = 4,
        _init_setup_model: bool = True,
    ):
        self.qf_learning_rate = qf_learning_rate
        self.policy_delay = policy_delay
        self.actor_loss = actor_loss
        self.denoising_steps_per_update = denoising_steps_per_update
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
        """
        Here and not in the constructor, because ``load`` may change arguments, too.

        :raises ValueError: for an argument that is out of range
        """
        check_no_sde(self.use_sde)
        check_choice("actor_loss", self.actor_loss, ACTOR_LOSSES)
        for name in ("policy_delay", "denoising_steps_per_update", "target_update_interval"):
            check_integer(name, getattr(self, name))
        if self.qf_learning_rate is not None and not callable(self.qf_learning_rate):
            check_positive("qf_learning_rate", self.qf_learning_rate)
        parse_auto("ent_coef", self.ent_coef, positive=True)
        if not issubclass(self.policy_class, DiffusionSACPolicy):
            raise ValueError(
                f"policy={self.policy_class.__name__}: choose 'MlpPolicy', 'CnnPolicy', 'MultiInputPolicy' or a subclass of "
                "DiffusionSACPolicy"
            )

    def _setup_model(self) -> None:
        self._check_arguments()
        # As with use_sde, the algorithm hands the policy what it needs
        needed: dict[str, Any] = dict(
            diffusion_steps=self.diffusion_steps,
            noise_schedule=self.noise_schedule,
            prior_std=self.prior_std,
            use_diffusion_value=self.actor_loss == "diffusion_value",
        )
        given = {name: value for name, value in self.policy_kwargs.items() if name != "use_sde"}
        automatic, number = parse_auto("target_entropy", self.target_entropy)
        self.target_entropy = "auto" if automatic else number
        self.policy_kwargs = merge_policy_kwargs(type(self).__name__, given, needed)
        super()._setup_model()
        # What the user gave is what load() compares with
        self.policy_kwargs = given
        if automatic:
            self.target_entropy = number * float(self.target_entropy)

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        self.qf_lr_schedule = None if self.qf_learning_rate is None else FloatSchedule(self.qf_learning_rate)

    def _update_learning_rates(self) -> None:
        """
        Set the learning rate of each optimizer to its schedule's value at the current progress.
        """
        optimizers: list[th.optim.Optimizer] = [self.actor.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers.append(self.ent_coef_optimizer)
        self._update_learning_rate(optimizers)
        qf_learning_rate = (self.qf_lr_schedule or self.lr_schedule)(self._current_progress_remaining)
        update_learning_rate(self.critic.optimizer, qf_learning_rate)
        if self.policy.diffusion_value is not None:
            update_learning_rate(self.policy.diffusion_value.optimizer, qf_learning_rate)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        self._update_learning_rates()
        logs: dict[str, list[th.Tensor]] = {}

        for _ in range(gradient_steps):
            self._n_updates += 1
            replay_data = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)  # type: ignore[union-attr]
            obs, next_obs = replay_data.observations, replay_data.next_observations
            # For n-step replay, discount factor is gamma**n_steps (when no early termination)
            discounts = replay_data.discounts if replay_data.discounts is not None else self.gamma
            ent_coef = self.ent_coef_tensor if self.log_ent_coef is None else th.exp(self.log_ent_coef.detach())
            update_actor = self._n_updates % self.policy_delay == 0

            if update_actor:
                context = self.actor.encode(obs)
                chain, visits, next_actions, next_log_prob = self._sample_chains(context, next_obs)
            with th.no_grad():
                if not update_actor:
                    next_actions, next_log_prob = self.actor.action_log_prob(next_obs)
                next_q_values = th.cat(self.critic_target(next_obs, next_actions), dim=1)
                next_values = next_q_values.min(dim=1, keepdim=True).values - ent_coef * next_log_prob.reshape(-1, 1)
                target_q_values = replay_data.rewards + (1 - replay_data.dones) * discounts * next_values

            current_q_values = th.stack(self.critic(obs, replay_data.actions))  # (n_critics, B, 1)
            critic_loss = (
                0.5 * F.mse_loss(current_q_values, target_q_values.expand_as(current_q_values)) * len(current_q_values)
            )
            optimize(
                self.critic.optimizer,
                "critic loss",
                critic_loss,
                rewards=replay_data.rewards,
                q_values=current_q_values,
                next_q_values=next_q_values,
                next_log_prob=next_log_prob,
                ent_coef=ent_coef,
            )
            info = {"train/critic_loss": critic_loss, "train/ent_coef": ent_coef}
            if update_actor:
                info.update(self._update_temperature(chain))
                info.update(self._update_actor(obs, context, chain, visits, ent_coef))
            for key, value in info.items():
                logs.setdefault(key, []).append(value.detach())

            if self._n_updates % self.target_update_interval == 0:
                polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
                # Copy running stats, see SB3's GH issue #996
                polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)

        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        means = th.stack([th.stack(values).mean() for values in logs.values()]) if logs else th.zeros(0)
        for key, mean in zip(logs, means.tolist(), strict=True):
            self.logger.record(key, mean)

    def _sample_chains(self, context: th.Tensor, next_obs: PyTorchObs) -> tuple[Chain, Visits | None, th.Tensor, th.Tensor]:
        """
        Sample actions at these and at the next observations, in one batch unless gradients have to pass through the chain.

        :param context: encoded observations, (B, W)
        :param next_obs: next observations
        :return: the chains at the observations, or their ends and the steps that the actor's update takes once more;
            the actions at the next observations, (B, d), and what stands for their log-probability, (B,)
        """
        if self.actor_loss == "pathwise":
            with th.no_grad():
                next_actions, next_log_prob = self.actor.action_log_prob(next_obs)
            return self.actor.sample(context), None, next_actions, next_log_prob
        schedule, batch_size = self.actor.schedule, len(context)
        steps = draw_steps(schedule.diffusion_steps, self.denoising_steps_per_update, batch_size, context.device)
        with th.no_grad():
            chains = self.actor.sample(th.cat((context, self.actor.encode(next_obs))))
            log_prob = action_log_prob(schedule, chains)
            return chains.end(batch_size), chains.visit(steps), chains.action[batch_size:], log_prob[batch_size:]

    def _update_temperature(self, chain: Chain) -> dict[str, th.Tensor]:
        """
        Automatic temperature (SAC, arXiv 1812.05905, section 5), on the bound of the entropy.

        :param chain: chains of the current policy
        :return: what to log
        """
        log_prob = action_log_prob(self.actor.schedule, chain).detach()
        info = {"diffusion/entropy_bound": -log_prob.mean()}
        if self.ent_coef_optimizer is not None and self.log_ent_coef is not None:
            ent_coef_loss = -(self.log_ent_coef * (log_prob + float(self.target_entropy))).mean()
            optimize(self.ent_coef_optimizer, "temperature loss", ent_coef_loss, log_prob=log_prob)
            info["train/ent_coef_loss"] = ent_coef_loss
        return info

    def _update_actor(
        self, obs: PyTorchObs, context: th.Tensor, chain: Chain, visits: Visits | None, ent_coef: th.Tensor
    ) -> dict[str, th.Tensor]:
        """
        One step down ``alpha sum_k log(q_k / r_k) - V_0(s, x_0)``, by one of three estimators of its gradient.

        :param obs: observations
        :param context: encoded observations, with gradients, (B, W)
        :param chain: chains of the current policy
        :param visits: steps of these chains to take once more; None to back-propagate through the chains
        :param ent_coef: temperature alpha
        :return: what to log
        """
        schedule = self.actor.schedule

        def min_q_value(actions: th.Tensor) -> th.Tensor:
            return th.cat(self.critic(obs, actions), dim=1).min(dim=1).values

        value, gradient = value_and_gradient(latent_value_fn(min_q_value, schedule, ent_coef), chain.x[0])
        info = {"train/actor_loss": (ent_coef * chain.log_ratio.detach().sum(dim=0) - value).mean()}
        if visits is None:
            loss = pathwise_loss(chain, gradient, ent_coef)
        else:
            if self.actor_loss == "adjoint":
                step_gradient = lean_adjoint(schedule, visits.steps, gradient)
            else:
                step_gradient, value_info = self._update_diffusion_value(obs, chain, visits, value, gradient, ent_coef)
                info.update(value_info)
            loss = step_loss(self.actor.control_fn(context), schedule, visits, step_gradient, ent_coef)
        optimize(self.actor.optimizer, "actor loss", loss, q_value_gradient=gradient, x_0=chain.x[0], ent_coef=ent_coef)

        step_kl = chain.log_ratio.detach().mean(dim=1)  # (K,)
        for step in sorted({1, (schedule.diffusion_steps + 1) // 2, schedule.diffusion_steps}):
            info[f"diffusion/kl_step_{step}"] = step_kl[step - 1]
        info["diffusion/log_ratio"] = step_kl.sum()
        info["diffusion/action_saturation"] = (chain.action.detach().abs() > 0.99).float().mean()
        gradients = [param.grad for param in self.actor.score_network.parameters() if param.grad is not None]
        info["diffusion/denoiser_grad_norm"] = th.nn.utils.get_total_norm(gradients)
        return info

    def _update_diffusion_value(
        self,
        obs: PyTorchObs,
        chain: Chain,
        visits: Visits,
        value: th.Tensor,
        gradient: th.Tensor,
        ent_coef: th.Tensor,
    ) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """
        Fit the values ``V_k(s, x_k)`` of the steps of the chain to the returns along it, then take their gradients.

        :param obs: observations
        :param chain: ends of chains of the current policy
        :param visits: steps of these chains, (M, B)
        :param value: ``V_0(s, x_0)``, (B,)
        :param gradient: gradient of ``V_0(s, x_0)``, (B, d)
        :param ent_coef: temperature alpha
        :return: gradient of ``V_{k-1}(s, x_{k-1})`` of the given steps, (M, B, d), and what to log
        """
        value_net = self.policy.diffusion_value
        assert value_net is not None
        returns = returns_along_chain(chain.log_ratio, value, ent_coef).gather(0, visits.steps)
        predicted = value_net(value_net.encode(obs), visits.x, visits.steps)
        value_loss = 0.5 * F.mse_loss(predicted, returns)
        optimize(value_net.optimizer, "diffusion value loss", value_loss, returns=returns, values=predicted)
        with th.no_grad():
            context = value_net.encode(obs)
        _, step_gradient = value_and_gradient(lambda x: value_net(context, x, visits.steps - 1), visits.x_prev)
        step_gradient = th.where((visits.steps == 1).unsqueeze(-1), gradient, step_gradient)
        return step_gradient, {"diffusion/value_loss": value_loss}

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        assert self._last_obs is not None
        check_finite_array("first observation", self._last_obs)
        return result

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        check_transition(reward, new_obs, infos, self._vec_normalize_env)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def learn(
        self: SelfDiffSAC,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "DiffSAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDiffSAC:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, saved_pytorch_variables = super()._get_torch_save_params()
        if self.policy.diffusion_value is not None:
            state_dicts = [*state_dicts, "policy.diffusion_value.optimizer"]
        return state_dicts, saved_pytorch_variables


def parse_auto(name: str, value: str | float, positive: bool = False) -> tuple[bool, float]:
    """
    :param name: name of an argument
    :param value: its value: a number, ``"auto"`` or ``"auto_<positive number>"``
    :param positive: whether a plain number must be positive, too
    :return: whether it is automatic, and its number, 1 for ``"auto"``
    :raises ValueError: if it is none of these or not finite
    """
    text = str(value)
    automatic = text.startswith("auto")
    try:
        number = 1.0 if text == "auto" else float(text.removeprefix("auto_"))
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (number <= 0 and (automatic or positive)):
        kind = "positive" if positive else "finite"
        raise ValueError(f"{name}={value!r}: choose a {kind} number, 'auto' or 'auto_<positive number>'")
    return automatic, number
