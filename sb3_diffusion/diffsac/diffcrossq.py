from typing import Any

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_diffusion.diffsac.diffsac import DiffSAC
from sb3_diffusion.diffsac.policies import DiffusionSACPolicy


class DiffCrossQ(DiffSAC):
    """
    Diffusion CrossQ (DiffCrossQ): :class:`.DiffSAC` with CrossQ's critics, which have batch renormalisation in place of target
    networks, and CrossQ's learning rate and delay of the actor. The actor's learning rate is three times as high.
    Papers: CrossQ, https://arxiv.org/abs/1902.05605; DMERL, https://arxiv.org/abs/2512.02019

    The arguments are those of sb3-contrib's ``CrossQ``, then :class:`.DiffSAC`'s. Where ``net_arch`` is left out the critics
    have two hidden layers of 256, not sb3-contrib's 1024, with which an update takes six times as long on a CPU:
    ``policy_kwargs=dict(net_arch=dict(pi=[256, 256], qf=[1024, 1024]))``.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: learning rate for adam optimizer, the same for all networks unless ``qf_learning_rate`` is given,
        times ``actor_lr_scale`` for the actor; it can be a function of the current progress remaining (from 1 to 0)
    :param actor_lr_scale: the actor's learning rate is this times ``learning_rate``
    :param policy_delay: update the actor and the temperature every ``policy_delay`` gradient steps
    :param replay_recency: how much more often recent transitions are drawn from the replay buffer, see :class:`.DiffSAC`;
        1, as in CrossQ, draws all equally often
    :param policy_kwargs: additional arguments to be passed to the policy on creation, see :class:`.DiffusionSACPolicy`;
        of CrossQ's critics there are ``batch_norm_momentum``, ``batch_norm_eps`` and ``renorm_warmup_steps``
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: for an argument that is out of range, with the allowed ones
    """

    def __init__(
        self,
        policy: str | type[DiffusionSACPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 1_000_000,  # 1e6
        learning_starts: int = 100,
        batch_size: int = 256,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        ent_coef: str | float = "auto",
        target_entropy: str | float = "auto",
        policy_delay: int = 3,
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
        actor_lr_scale: float = 3.0,
        replay_recency: float = 2.0,
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
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=1.0,  # no target networks
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            ent_coef=ent_coef,
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
            critic_type="crossq",
            replay_recency=replay_recency,
            diffusion_steps=diffusion_steps,
            noise_schedule=noise_schedule,
            prior_std=prior_std,
            actor_loss=actor_loss,
            denoising_steps_per_update=denoising_steps_per_update,
            n_action_samples=n_action_samples,
            divergence=divergence,
            demonstration_share=demonstration_share,
            demonstration_coef=demonstration_coef,
            critic_warmup_steps=critic_warmup_steps,
            _init_setup_model=_init_setup_model,
        )
