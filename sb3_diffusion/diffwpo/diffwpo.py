import math
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule

from sb3_diffusion.common.arguments import FLAG, POSITIVE, Kind, choice, number, whole
from sb3_diffusion.common.chain import Chain, ChainSteps, kernel_kl_by_part
from sb3_diffusion.common.checks import optimize
from sb3_diffusion.common.losses import trust_region_loss, wasserstein_loss
from sb3_diffusion.diffsac.off_policy import DiffusionOffPolicyAlgorithm, Info
from sb3_diffusion.diffsac.policies import DiffusionActor, DiffusionSACPolicy
from sb3_diffusion.diffwpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

# What the multipliers aim at, as a share of the bounds: a learned multiplier holds its KL at the aim in the mean, now above
# it and now below
_KL_AIM = 0.9

# Range of the multipliers, so that one whose bound has long been slack is back in time
KL_COEF_MIN, KL_COEF_MAX = 1e-4, 1e6


class DiffWPO(DiffusionOffPolicyAlgorithm):
    """
    Diffusion Wasserstein Policy Optimization (DiffWPO): each denoising step is a Gaussian policy that follows the action
    gradient of its value, within a trust region around a target policy. With ``diffusion_steps=1`` and the cosine schedule
    it is WPO with a squashed Gaussian.
    Papers: WPO, https://arxiv.org/abs/2505.00663; DMERL (version 2), https://arxiv.org/abs/2512.02019

    The arguments from ``policy`` to ``denoising_steps_per_update`` are :class:`.DiffSAC`'s, with its defaults.

    :param actor_loss: where the gradients of the values along the chain come from: ``"adjoint"`` carries the critics'
        gradient back along the linear reference dynamics (Adjoint Matching, arXiv 2409.08861); ``"mixed_adjoint"`` has less
        noise, see :func:`.losses.mixed_adjoint`; ``"diffusion_value"`` learns
        the values of the steps of the chain, as the paper does
    :param denoising_steps_per_update: how many denoising steps of each chain an update of the actor uses, drawn at
        random where K is greater; bounds time and memory for any K
    :param n_action_samples: number of chains of each observation in an update of the actor
    :param fisher_rescaling: whether the actor's gradient is rescaled by the inverse of the Gaussian kernels' Fisher matrix
    :param kl_bound_mean: bound of the KL that a change of the kernels' means makes between the target policy and the
        current one, summed over the chain, in nats for each action dimension
    :param kl_bound_std: the same for the standard deviations
    :param kl_coef: initial value of the multipliers of both bounds
    :param kl_coef_learning_rate: learning rate of the logarithms of the multipliers; 0 holds them as they are
    :param target_policy_update_interval: copy the policy to the target policy every so many gradient steps
    :param demonstration_share: share of each batch that is drawn from demonstrations, see :class:`.DiffSAC`
    :param demonstration_coef: weight of the demonstrations' log-likelihood in the actor's loss, see :class:`.DiffSAC`
    :param critic_warmup_steps: steps of the environment in which only the critics learn
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: for an argument that is out of range, with the allowed ones
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    arguments: ClassVar[dict[str, Kind]] = {
        **DiffusionOffPolicyAlgorithm.arguments,
        "actor_loss": choice(("adjoint", "mixed_adjoint", "diffusion_value")),
        "fisher_rescaling": FLAG,
        "kl_bound_mean": POSITIVE,
        "kl_bound_std": POSITIVE,
        "kl_coef": number(KL_COEF_MIN, KL_COEF_MAX),
        "kl_coef_learning_rate": number(0),
        "target_policy_update_interval": whole(1),
    }
    actor_target: DiffusionActor

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
        n_action_samples: int = 1,
        fisher_rescaling: bool = True,
        kl_bound_mean: float = 1.0,
        kl_bound_std: float = 0.1,
        kl_coef: float = 0.01,
        kl_coef_learning_rate: float = 1e-2,
        target_policy_update_interval: int = 100,
        demonstration_share: float = 0.0,
        demonstration_coef: float | Schedule = 0.0,
        critic_warmup_steps: int = 0,
        _init_setup_model: bool = True,
    ):
        self.fisher_rescaling = fisher_rescaling
        self.kl_bound_mean = kl_bound_mean
        self.kl_bound_std = kl_bound_std
        self.kl_coef = kl_coef
        self.kl_coef_learning_rate = kl_coef_learning_rate
        self.target_policy_update_interval = target_policy_update_interval
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            ent_coef=ent_coef,
            target_update_interval=target_update_interval,
            target_entropy=target_entropy,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            use_sde_at_warmup=use_sde_at_warmup,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            qf_learning_rate=qf_learning_rate,
            actor_lr_scale=actor_lr_scale,
            policy_delay=policy_delay,
            critic_type=critic_type,
            replay_recency=replay_recency,
            diffusion_steps=diffusion_steps,
            noise_schedule=noise_schedule,
            prior_std=prior_std,
            actor_loss=actor_loss,
            denoising_steps_per_update=denoising_steps_per_update,
            n_action_samples=n_action_samples,
            demonstration_share=demonstration_share,
            demonstration_coef=demonstration_coef,
            critic_warmup_steps=critic_warmup_steps,
            _init_setup_model=_init_setup_model,
        )

    def _get_needed_policy_kwargs(self) -> dict[str, Any]:
        return {**super()._get_needed_policy_kwargs(), "use_actor_target": True}

    def _setup_model(self) -> None:
        super()._setup_model()
        self.log_kl_coef = th.full((2,), math.log(self.kl_coef), device=self.device, requires_grad=True)
        self.kl_coef_optimizer = th.optim.Adam([self.log_kl_coef], lr=self.kl_coef_learning_rate, fused=True)

    def _create_aliases(self) -> None:
        super()._create_aliases()
        assert self.policy.actor_target is not None
        self.actor_target = self.policy.actor_target

    def _actor_loss(
        self, obs: PyTorchObs, context: th.Tensor, chain: Chain, chain_steps: ChainSteps, ent_coef: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, Info]:
        """The loss of Wasserstein policy optimisation within the trust region."""
        u, log_std_ratio = self.actor.control_fn(context)(chain_steps.x, chain_steps.steps)
        value, step_gradient, info = self._step_value_gradient(obs, chain, chain_steps, log_std_ratio, ent_coef)
        loss = wasserstein_loss(
            self.actor.schedule, u, log_std_ratio, chain_steps, step_gradient, ent_coef, self.fisher_rescaling
        )
        penalty, kl_info = self._update_trust_region(obs, chain_steps, u, log_std_ratio)
        return loss + penalty, value, {**info, **kl_info}

    def _update_targets(self) -> None:
        super()._update_targets()
        if self._n_updates % self.target_policy_update_interval == 0:
            self.actor_target.load_state_dict(self.actor.state_dict())

    def _update_trust_region(
        self, obs: PyTorchObs, chain_steps: ChainSteps, u: th.Tensor, log_std_ratio: th.Tensor
    ) -> tuple[th.Tensor, Info]:
        """
        Penalty for leaving the target policy, and one step of the multipliers.

        :param obs: observations, B of them
        :param chain_steps: steps of n chains of each observation, (M, n B)
        :param u: the current policy's control there, with gradients, (M, n B, d)
        :param log_std_ratio: its log-ratio of standard deviations, with gradients, (M, n B, d)
        :return: a term of the actor's loss, and entries of the log
        """
        with th.no_grad():
            context = self._encode_for_update(obs, self.actor_target)
            old_u, old_log_std_ratio = self.actor_target.control_fn(context)(chain_steps.x, chain_steps.steps)
        # Of the whole chain, estimated from the steps that were drawn, for each action dimension
        scale = self.diffusion_steps / u.shape[-1]
        kl = th.stack([part.mean() * scale for part in kernel_kl_by_part(u, log_std_ratio, old_u, old_log_std_ratio)])  # (2,)
        aim = _KL_AIM * kl.new_tensor([self.kl_bound_mean, self.kl_bound_std])
        penalty, dual_loss = trust_region_loss(kl, aim, self.log_kl_coef)
        kl_coef = th.exp(self.log_kl_coef.detach())
        optimize(self.kl_coef_optimizer, "loss of the trust region's multipliers", dual_loss, kl=kl)
        with th.no_grad():
            self.log_kl_coef.clamp_(math.log(KL_COEF_MIN), math.log(KL_COEF_MAX))
        info = {"train/kl_mean": kl[0], "train/kl_std": kl[1]}
        info.update({"train/kl_coef_mean": kl_coef[0], "train/kl_coef_std": kl_coef[1]})
        return penalty, info

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "actor_target"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, saved_pytorch_variables = super()._get_torch_save_params()
        return [*state_dicts, "kl_coef_optimizer"], [*saved_pytorch_variables, "log_kl_coef"]
