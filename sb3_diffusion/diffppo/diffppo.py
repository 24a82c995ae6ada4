import math
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, PyTorchObs, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance, obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.ppo.ppo import PPO

from sb3_diffusion.common.arguments import (
    FRACTION,
    POSITIVE,
    POSITIVE_OR_INFINITE,
    Kind,
    check_arguments,
    choice,
    number,
    optional,
    scheduled,
    whole,
)
from sb3_diffusion.common.categories import DISCRETE_SPACES, is_discrete, latent_dim
from sb3_diffusion.common.chain import draw_steps, take_steps
from sb3_diffusion.common.checks import check_no_sde, is_untouched, merge_kwargs, optimize
from sb3_diffusion.common.env_checks import EnvCheckMixin, report_dead_workers
from sb3_diffusion.common.losses import clip_range_by_step, clipped_surrogate_loss, clipped_value_loss
from sb3_diffusion.common.noise_schedule import MAX_DIFFUSION_STEPS, NOISE_SCHEDULES
from sb3_diffusion.common.wrappers import AugmentedSpace
from sb3_diffusion.diffppo.buffers import ChainRolloutBuffer, ChainRolloutBufferSamples, DictChainRolloutBuffer
from sb3_diffusion.diffppo.clone import CloneMixin
from sb3_diffusion.diffppo.policies import (
    ChainActorCriticPolicy,
    CnnPolicy,
    DiffusionActorCriticCnnPolicy,
    DiffusionActorCriticMultiInputPolicy,
    DiffusionActorCriticPolicy,
    MlpPolicy,
    MultiInputPolicy,
)
from sb3_diffusion.diffppo.temperature import TemperatureSchedule
from sb3_diffusion.saving.safe_load import SafeLoadMixin

# Lambda over the denoising steps of one chain. With 1 all of them are credited with all that follows, and learn from more
# noise; see docs/theory.md
CHAIN_GAE_LAMBDA = 0.885

SelfDiffPPO = TypeVar("SelfDiffPPO", bound="DiffPPO")


class DiffPPO(SafeLoadMixin, EnvCheckMixin, CloneMixin, PPO):
    """
    Diffusion Proximal Policy Optimization (DiffPPO): PPO whose policy is a short denoising chain.
    Paper: DMERL, https://arxiv.org/abs/2512.02019

    Each denoising step is an action of its own in an augmented MDP with states ``(s, x_k, k)``. All steps of a chain run
    inside the policy, one batched call for each step of the environments. Each step costs the temperature ``ent_coef`` times
    its KL to the reference kernel, so that the sum of rewards is a lower bound on the maximum-entropy objective.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function
        of the current progress remaining (from 1 to 0)
    :param n_steps: The number of steps to run for each environment per update
        (i.e. rollout buffer size is n_steps * n_envs where n_envs is number of environment copies running in parallel)
    :param batch_size: Minibatch size, in steps of the environment: each brings its whole chain
    :param n_epochs: Number of epoch when optimizing the surrogate loss
    :param gamma: Discount factor of a step of the environment; there is none along the chain
    :param gae_lambda: lambda of generalized advantage estimation for a step of the environment
    :param clip_range: Clipping parameter, it can be a function of the current progress remaining (from 1 to 0).
    :param clip_range_vf: Clipping parameter for the value function,
        it can be a function of the current progress remaining (from 1 to 0).
        If ``None`` is passed (default), no clipping will be done on the value function.
    :param normalize_advantage: Whether to normalize the advantage. The direct gradient of the KL is divided by the same
        standard deviation, so that the temperature keeps its meaning.
    :param ent_coef: Temperature alpha in units of the reward: a number; a function of the current progress remaining; or an
        annealing schedule ``"lin_0.05"``, ``"cos_0.05_0.001"``, ``"exp_0.05_0.001"``, see :class:`.TemperatureSchedule`
    :param vf_coef: Value function coefficient for the loss calculation
    :param max_grad_norm: The maximum value for the gradient clipping
    :param use_sde: gSDE is not supported, must be False
    :param sde_sample_freq: of gSDE, not used
    :param rollout_buffer_class: Rollout buffer class to use, a subclass of :class:`.ChainRolloutBuffer`. If ``None``, it
        will be automatically selected.
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param target_kl: Limit the KL divergence between updates, in the mean over denoising steps. By default, there is no
        limit on the kl div.
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation, see
        :class:`.ChainActorCriticPolicy`
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param diffusion_steps: number of denoising steps K; 1, with the cosine schedule, is a squashed Gaussian policy
    :param noise_schedule: ``"cosine"``, ``"linear"`` or ``"constant"``
    :param prior_std: standard deviation of the prior of the latent action
    :param gae_lambda_diffusion: lambda of generalized advantage estimation for a denoising step; if None
        ``0.885 ** (1 / (K - 1))``, so that the horizon is the same for every K from 2 on, and 1 for categories
    :param denoising_steps_per_update: how many denoising steps of each sample an update uses, drawn at random and each
        equally likely, so that the mean over them estimates that over all; all if None
    :param clip_range_first_step: clip range of the first, noisiest step (k = K), from where it grows exponentially to
        ``clip_range`` at the last; it can be a function of the current progress remaining. If None, all are ``clip_range``.
    :param gamma_diffusion: the advantage of step k is weighted by ``gamma_diffusion ** (k - 1)``, the denoising discount
        of DPPO (arXiv 2409.00588); not a discount of values
    :param finetuned_steps: train only the last so many denoising steps, as DPPO does from a cloned policy; all if None. The
        steps share a network, so that the others change a little, too
    :param critic_warmup_steps: steps of the environment in which only the value function learns
    :param clone_coef: weight of the KL to the cloned policy in the loss, beside the surrogate of the normalised advantages
        (as in VPT, arXiv 2206.11795): the closed-form KL of each denoising kernel to the clone's at the same ``x_k``, in the
        mean over denoising steps. Its sum over the chain bounds the KL of the actions. ``pretrain`` keeps the clone, or
        :meth:`keep_clone` does; it is saved with the model
    :param min_denoising_std: least standard deviation of each denoising kernel in rollouts and updates, in units of the latent
        action, as in DPPO; ``predict`` has no such floor
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises AssertionError: for actions that are not a ``Box``, ``Discrete``, ``MultiDiscrete`` or ``MultiBinary``
    :raises ValueError: for an argument that is out of range, with the allowed ones
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    arguments: ClassVar[dict[str, Kind]] = {
        "n_steps": whole(1),
        "batch_size": whole(1),
        "n_epochs": whole(1),
        "gamma": FRACTION,
        "gae_lambda": FRACTION,
        "clip_range": scheduled(number(0)),
        "vf_coef": Kind("at least 0", number(0).holds),
        "max_grad_norm": optional(POSITIVE_OR_INFINITE),
        "target_kl": optional(number(0)),
        "diffusion_steps": whole(1, MAX_DIFFUSION_STEPS),
        "noise_schedule": choice(NOISE_SCHEDULES),
        "prior_std": POSITIVE,
        "gae_lambda_diffusion": optional(FRACTION),
        "denoising_steps_per_update": optional(whole(1)),
        "clip_range_first_step": optional(scheduled(POSITIVE)),
        "gamma_diffusion": FRACTION,
        "finetuned_steps": optional(whole(1)),
        "critic_warmup_steps": whole(),
        "clone_coef": number(0),
        "min_denoising_std": number(0),
    }
    attributes: ClassVar[dict[str, Kind]] = {"temperature": number(0), **CloneMixin.attributes}
    plain_classes = (
        *(ChainRolloutBuffer, DictChainRolloutBuffer),
        *(DiffusionActorCriticPolicy, DiffusionActorCriticCnnPolicy, DiffusionActorCriticMultiInputPolicy),
    )
    policy: ChainActorCriticPolicy
    rollout_buffer: ChainRolloutBuffer

    def __init__(
        self,
        policy: str | type[ChainActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float | str | Schedule = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        diffusion_steps: int = 5,
        noise_schedule: str = "cosine",
        prior_std: float = 1.0,
        gae_lambda_diffusion: float | None = None,
        denoising_steps_per_update: int | None = None,
        clip_range_first_step: float | Schedule | None = None,
        gamma_diffusion: float = 1.0,
        finetuned_steps: int | None = None,
        critic_warmup_steps: int = 0,
        clone_coef: float = 0.0,
        min_denoising_std: float = 0.0,
        _init_setup_model: bool = True,
    ):
        self.diffusion_steps = diffusion_steps
        self.noise_schedule = noise_schedule
        self.prior_std = prior_std
        self.gae_lambda_diffusion = gae_lambda_diffusion
        self.denoising_steps_per_update = denoising_steps_per_update
        self.clip_range_first_step = clip_range_first_step
        self.gamma_diffusion = gamma_diffusion
        self.finetuned_steps = finetuned_steps
        self.critic_warmup_steps = critic_warmup_steps
        self.clone_coef = clone_coef
        self.min_denoising_std = min_denoising_std
        super().__init__(
            policy,
            env,
            learning_rate,
            n_steps,
            batch_size,
            n_epochs,
            gamma,
            gae_lambda,
            clip_range,
            clip_range_vf,
            normalize_advantage,
            ent_coef,  # type: ignore[arg-type]
            vf_coef,
            max_grad_norm,
            use_sde,
            sde_sample_freq,
            rollout_buffer_class,
            rollout_buffer_kwargs,
            target_kl,
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

        :raises AssertionError: for actions of a space that no chain ends in
        :raises ValueError: for an argument that is out of range
        """
        supported = (spaces.Box, *DISCRETE_SPACES)
        assert isinstance(self.action_space, supported), (
            f"The algorithm only supports {supported} as action spaces but {self.action_space} was provided"
        )
        check_no_sde(self.use_sde)
        TemperatureSchedule(self.ent_coef)
        check_arguments(self, self.arguments)
        if self.finetuned_steps is not None and self.finetuned_steps > self.diffusion_steps:
            raise ValueError(f"finetuned_steps={self.finetuned_steps}: the chain has diffusion_steps={self.diffusion_steps}")
        if self.min_denoising_std > 0 and is_discrete(self.action_space):
            raise ValueError(
                f"min_denoising_std={self.min_denoising_std!r}: kernels of categories, as of {self.action_space}, have no "
                "standard deviation, leave it out"
            )
        if not issubclass(self.policy_class, ChainActorCriticPolicy):
            raise ValueError(
                f"policy={self.policy_class.__name__}: choose 'MlpPolicy', 'CnnPolicy', 'MultiInputPolicy' or a subclass of "
                "ChainActorCriticPolicy"
            )
        if self.policy_class.evaluate_actions not in (
            ChainActorCriticPolicy.evaluate_actions,
            DiffusionActorCriticPolicy.evaluate_actions,
        ):
            raise ValueError(
                f"policy={self.policy_class.__name__} has an evaluate_actions() of its own, which DiffPPO never calls: the "
                "density of a whole chain is unknown. Override evaluate_steps(), which it calls with denoising steps"
            )
        if AugmentedSpace.parse(self.observation_space, latent_dim(self.action_space), is_discrete(self.action_space)):
            raise ValueError("DiffPPO runs the denoising steps itself: give it the environment without a DiffusionMDPWrapper")
        if self.rollout_buffer_class is not None and not issubclass(self.rollout_buffer_class, ChainRolloutBuffer):
            raise ValueError(
                f"rollout_buffer_class={self.rollout_buffer_class.__name__}: use a subclass of ChainRolloutBuffer"
            )

    def _setup_model(self) -> None:
        self._check_arguments()
        if self.rollout_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = DictChainRolloutBuffer if is_dict else ChainRolloutBuffer
        # As with use_sde, the algorithm hands its settings to the policy and the buffer
        needed: dict[str, Any] = dict(
            diffusion_steps=self.diffusion_steps,
            noise_schedule=self.noise_schedule,
            prior_std=self.prior_std,
            min_denoising_std=self.min_denoising_std,
        )
        given = {name: value for name, value in self.policy_kwargs.items() if name != "use_sde"}
        self.policy_kwargs = merge_kwargs(type(self).__name__, "policy_kwargs", given, needed)
        buffer_kwargs = self.rollout_buffer_kwargs
        needed = dict(diffusion_steps=self.diffusion_steps, gae_lambda_diffusion=self._gae_lambda_diffusion())
        self.rollout_buffer_kwargs = merge_kwargs(type(self).__name__, "rollout_buffer_kwargs", buffer_kwargs, needed)
        super()._setup_model()
        # What the user gave is what load() compares with
        self.policy_kwargs, self.rollout_buffer_kwargs = given, buffer_kwargs
        if self.clip_range_first_step is not None:
            self.clip_range_first_step = FloatSchedule(self.clip_range_first_step)

    def _gae_lambda_diffusion(self) -> float:
        if self.gae_lambda_diffusion is not None:
            return self.gae_lambda_diffusion
        if is_discrete(self.action_space):
            return 1.0
        return CHAIN_GAE_LAMBDA ** (1 / max(self.diffusion_steps - 1, 1))

    def _maybe_recommend_cpu(self, mlp_class_name: str = MlpPolicy.__name__) -> None:
        super()._maybe_recommend_cpu(mlp_class_name)

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """
        Collect chains using the current policy and fill a ``ChainRolloutBuffer``. The arguments are Stable-Baselines3's.

        :return: True if function returned with at least `n_rollout_steps`
            collected, False if callback terminated rollout prematurely.
        :raises ValueError: if an observation or a reward is NaN or infinite, or does not fit its space
        :raises RuntimeError: if a worker of a ``SubprocVecEnv`` has died
        """
        assert self._last_obs is not None, "No previous observation was provided"
        assert isinstance(rollout_buffer, ChainRolloutBuffer)
        # Switch to eval mode (this affects batch norm / dropout)
        self.policy.set_training_mode(False)
        self._empty_buffer(rollout_buffer)
        callback.on_rollout_start()
        n_steps, own_values, unknown = 0, list[th.Tensor](), th.full((env.num_envs,), math.nan)

        while n_steps < n_rollout_steps:
            with th.no_grad():
                x, *of_own_forward = self._sample_path(obs_as_tensor(self._last_obs, self.device))  # type: ignore[arg-type]
                own_values += of_own_forward
            # Callbacks know them by these names
            actions = clipped_actions = self.policy.process.env_action(x[0])
            with report_dead_workers(env, callback):
                new_obs, rewards, dones, infos = env.step(clipped_actions)
            self._check_transition(rewards, new_obs, dones, infos, only_truncated=True)
            self.num_timesteps += env.num_envs

            # Give access to local variables
            callback.update_locals(locals())
            if not callback.on_step():
                return False

            self._update_info_buffer(infos, dones)
            n_steps += 1
            # A copy, and integers would lose what is added to them
            rewards = np.array(rewards, dtype=np.float32).reshape(-1) * np.ones(env.num_envs, dtype=np.float32)
            dones = np.reshape(np.asarray(dones), env.num_envs)
            self._bootstrap_timeouts(rewards, dones, infos)
            # Values and densities follow later, from many steps at once
            rollout_buffer.add(self._last_obs, x, rewards, self._last_episode_starts, unknown, unknown)  # type: ignore[arg-type]
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]

        with th.no_grad():
            last_values = self.policy.predict_values(obs_as_tensor(new_obs, self.device))  # type: ignore[arg-type]
        self._evaluate_rollout(rollout_buffer)
        if own_values:
            rollout_buffer.set_values(th.stack(own_values))
        rollout_buffer.compute_returns_and_advantage(last_values, dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _empty_buffer(self, rollout_buffer: ChainRolloutBuffer) -> None:
        """
        :param rollout_buffer: buffer, which is made ready for a rollout at the present temperature
        """
        # One temperature for the rewards of a rollout and for its updates
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self.temperature = TemperatureSchedule(self.ent_coef)(self._current_progress_remaining)
        rollout_buffer.temperature = self.temperature
        if rollout_buffer.gae_lambda_diffusion is None:
            # The user has made another one
            rollout_buffer.diffusion_steps = self.diffusion_steps
            rollout_buffer.gae_lambda_diffusion = self._gae_lambda_diffusion()
        rollout_buffer.reset()

    def _sample_path(self, obs: PyTorchObs) -> tuple[th.Tensor, ...]:
        """
        :param obs: observations
        :return: ``x_0 .. x_K``, (K+1, N, d); of a policy with a ``forward`` of its own or with hooks, which SB3 would call
            here, also the values it gives, (K, N)
        """
        own = type(self.policy).forward not in (ChainActorCriticPolicy.forward, DiffusionActorCriticPolicy.forward)
        if not own and is_untouched(self.policy, type(self.policy)):
            return (self.policy.sample_path(obs),)
        return self.policy(obs)[:2]

    def _evaluate_rollout(self, rollout_buffer: ChainRolloutBuffer, chunk: int = 64) -> None:
        """
        Values and log-densities of all denoising steps, and what the temperature multiplies in the soft rewards: the KL of
        each step to the reference kernel, and at the last one the end's share of the bound.

        :param rollout_buffer: full buffer, whose ``step_values``, ``step_log_probs`` and ``step_costs`` are set
        :param chunk: steps of the environments in one pass
        """
        for start in range(0, rollout_buffer.buffer_size, chunk):
            steps = slice(start, start + chunk)
            obs, x = rollout_buffer.chains(steps)
            with th.no_grad():
                values, log_prob, costs = self.policy.evaluate_steps(
                    self.policy.encode(obs), x[1:], x[:-1], self.policy.schedule.all_steps()
                )
                costs[0] += self.policy.process.terminal_log_prob(self.policy.schedule, x[0])
            rollout_buffer.set_evaluation(steps, values, log_prob, costs)

    def _bootstrap_timeouts(self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """
        Add the value of what would have followed where an episode was cut off, see SB3's GitHub issue #633.

        :param rewards: rewards, changed in place
        :param dones: whether an episode ended
        :param infos: ``infos`` of the environments
        """
        for index in np.flatnonzero(dones):
            terminal_obs = infos[index].get("terminal_observation")
            if terminal_obs is not None and infos[index].get("TimeLimit.truncated", False):
                with th.no_grad():
                    terminal_value = self.policy.predict_values(self.policy.obs_to_tensor(terminal_obs)[0])
                rewards[index] += self.gamma * terminal_value.item()

    def train(self) -> None:
        """
        Update policy using the currently gathered rollout buffer.

        :raises ValueError: if the loss is NaN or infinite; the policy keeps its last good weights
        """
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        # Update optimizer learning rate
        self._update_learning_rate(self.policy.optimizer)
        clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        clip_ranges = self._clip_ranges(clip_range)
        logs: dict[str, list[th.Tensor]] = {}

        continue_training = True
        for epoch in range(self.n_epochs):
            logs.pop("train/approx_kl", None)  # of the last epoch, as in SB3
            for rollout_data in self.rollout_buffer.get(self.batch_size):
                loss, info = self._loss(rollout_data, clip_ranges)
                for key, value in info.items():
                    logs.setdefault(key, []).append(value.detach())
                if self.target_kl is not None and info["train/approx_kl"] > 1.5 * self.target_kl:
                    continue_training = False
                    if self.verbose >= 1:
                        print(f"Early stopping at step {epoch} due to reaching max kl: {info['train/approx_kl']:.2f}")
                    break
                optimize(self.policy.optimizer, "loss", loss, self.max_grad_norm, **info)
            self._n_updates += 1
            if not continue_training:
                break

        means = th.stack([th.stack(values).mean() for values in logs.values()])
        for key, mean in zip(logs, means.tolist(), strict=True):
            self.logger.record(key, mean)
        buffer = self.rollout_buffer
        self.logger.record(
            "train/explained_variance", explained_variance(buffer.step_values.flatten(), buffer.step_returns.flatten())
        )
        self.logger.record("train/ent_coef", self.temperature)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)
        if self.clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", self.clip_range_vf(self._current_progress_remaining))  # type: ignore[operator]
        self._log_chains()

    def _clip_ranges(self, clip_range: float) -> float | th.Tensor:
        """
        :param clip_range: clip range of the last denoising step
        :return: clip range of each step, a number for all or (K,)
        """
        if self.clip_range_first_step is None:
            return clip_range
        first = self.clip_range_first_step(self._current_progress_remaining)  # type: ignore[operator]
        return clip_range_by_step(clip_range, first, self.diffusion_steps).to(self.device)

    def _loss(self, data: ChainRolloutBufferSamples, clip_ranges: float | th.Tensor) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """
        Clipped surrogate, direct gradient of the KL and value loss, in the mean over denoising steps.

        :param data: minibatch of chains
        :param clip_ranges: clip range of each step, a number for all or (K,)
        :return: loss, a scalar, and entries of the log
        """
        advantages, kl_coef = data.advantages, th.tensor(self.temperature, device=self.device)
        # Normalization does not make sense if mini batchsize == 1, see GH issue #325
        if self.normalize_advantage and advantages.shape[1] > 1:
            std = advantages.std() + 1e-8
            advantages = (advantages - advantages.mean()) / std
            kl_coef = kl_coef / std
        n_drawn = self.denoising_steps_per_update or self.diffusion_steps
        steps = draw_steps(self.diffusion_steps, n_drawn, advantages.shape[1], advantages.device)  # (M, B)
        contexts, x = self.policy.encode(data.observations), take_steps(data.x, steps)
        values, log_prob, step_kl = self.policy.evaluate_steps(contexts, x, take_steps(data.x, steps - 1), steps)
        old_values, old_log_prob, advantages, returns = (
            take_steps(of_steps, steps - 1) for of_steps in (data.old_values, data.old_log_prob, advantages, data.returns)
        )
        weighted = advantages if self.gamma_diffusion == 1 else advantages * self.gamma_diffusion ** (steps - 1)
        if self.finetuned_steps is not None:
            # The values of all steps are fitted, since advantages bootstrap from the first one's
            is_tuned = (steps <= self.finetuned_steps) * (self.diffusion_steps / self.finetuned_steps)
            weighted, step_kl = weighted * is_tuned, step_kl * is_tuned
        clip_range = clip_ranges[steps - 1] if isinstance(clip_ranges, th.Tensor) else clip_ranges
        policy_loss, info = clipped_surrogate_loss(log_prob, old_log_prob, weighted, clip_range)
        clip_range_vf = None if self.clip_range_vf is None else self.clip_range_vf(self._current_progress_remaining)  # type: ignore[operator]
        value_loss = clipped_value_loss(values, old_values, returns, clip_range_vf)
        entropy_loss = step_kl.mean()
        actor_loss = policy_loss + kl_coef * entropy_loss if self.temperature > 0 else policy_loss
        warming_up = self.num_timesteps <= self.critic_warmup_steps
        if self.clone_coef > 0 and not warming_up:
            clone_kl = self._clone_kl(data.observations, contexts[0], x, steps)
            actor_loss = actor_loss + self.clone_coef * clone_kl
            info["train/clone_kl"] = clone_kl * self.diffusion_steps
        loss = self.vf_coef * value_loss + (0.0 if warming_up else actor_loss)
        info.update(
            {
                "train/policy_gradient_loss": policy_loss,
                "train/value_loss": value_loss,
                "train/entropy_loss": entropy_loss,
                "train/loss": loss,
            }
        )
        return loss, info

    def _log_chains(self) -> None:
        """Log statistics of the chains of the last rollout."""
        buffer, schedule = self.rollout_buffer, self.policy.schedule
        x = th.as_tensor(buffer.actions, device=self.device).reshape(-1, self.diffusion_steps + 1, self.policy.action_dim)
        x = x.transpose(0, 1)  # (K+1, N, d)
        log_prob = th.as_tensor(buffer.step_log_probs, device=self.device).reshape(-1, self.diffusion_steps).T  # (K, N)
        process = self.policy.process
        info = process.describe(log_prob - process.reference_log_prob(schedule, x[1:], x[:-1], schedule.all_steps()), x[0])
        info["diffusion/entropy_bound"] = -(info["diffusion/log_ratio"] + process.terminal_log_prob(schedule, x[0]).mean())
        for key, value in info.items():
            self.logger.record(key, value.item())

    def learn(
        self: SelfDiffPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "DiffPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDiffPPO:
        if self.clone_coef > 0:
            self._make_clone()
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
