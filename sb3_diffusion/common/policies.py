"""Actors and policies: the one place where noise schedule, score network and chain meet."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    get_actor_critic_arch,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from sb3_diffusion.common.chain import Chain, ControlFn, Step, action_log_prob, at_step, draw_noise, sample_chain
from sb3_diffusion.common.checks import check_finite_tensor, check_integer, check_no_sde
from sb3_diffusion.common.noise_schedule import NoiseSchedule
from sb3_diffusion.common.score_network import DenoisingNetwork, ScoreNetwork

# Where ``net_arch`` says nothing of the head that runs at every denoising step, it has one hidden layer of at most
# this width
MAX_DEFAULT_DENOISER_WIDTH = 64


class DiffusionActor(BasePolicy):
    """
    Actor that samples actions by a chain of denoising steps.

    :param observation_space: observation space
    :param action_space: action space, a bounded ``Box``
    :param net_arch: widths of the encoder of the observation, run once per chain
    :param denoiser_arch: widths of the head, run once per denoising step
    :param features_extractor: network to extract features
    :param features_dim: number of features F
    :param activation_fn: activation of the encoder
    :param denoiser_activation_fn: activation of the head
    :param diffusion_steps: number of denoising steps K
    :param noise_schedule: ``"cosine"``, ``"linear"`` or ``"constant"``
    :param prior_std: standard deviation of the prior of the latent action
    :param learn_std: whether the standard deviation of each kernel is learned or the reference kernel's
    :param encode_once: run the encoder once per chain and a small head per step; if False, one network of the widths
        ``net_arch`` runs at every step
    :param normalize_images: whether to divide images by 255
    """

    action_space: spaces.Box
    optimizer: th.optim.Optimizer

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        net_arch: list[int],
        denoiser_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        denoiser_activation_fn: type[nn.Module] = nn.SiLU,
        diffusion_steps: int = 5,
        noise_schedule: str = "cosine",
        prior_std: float = 1.0,
        learn_std: bool = True,
        encode_once: bool = True,
        normalize_images: bool = True,
    ):
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
            squash_output=True,
        )
        self.constructor_kwargs = dict(
            net_arch=net_arch,
            denoiser_arch=denoiser_arch,
            features_dim=features_dim,
            activation_fn=activation_fn,
            denoiser_activation_fn=denoiser_activation_fn,
            diffusion_steps=diffusion_steps,
            noise_schedule=noise_schedule,
            prior_std=prior_std,
            learn_std=learn_std,
            encode_once=encode_once,
        )
        self.action_dim = get_action_dim(action_space)
        self.schedule = NoiseSchedule(diffusion_steps, noise_schedule, prior_std)
        self.inference_schedule = self.schedule
        self.score_network = ScoreNetwork(
            features_dim,
            self.action_dim,
            self.schedule.diffusion_steps,
            encoder_arch=net_arch if encode_once else [],
            denoiser_arch=denoiser_arch if encode_once else net_arch,
            activation_fn=activation_fn,
            denoiser_activation_fn=denoiser_activation_fn,
            learn_std=learn_std,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(self.constructor_kwargs, features_extractor=self.features_extractor)
        return data

    @property
    def inference_steps(self) -> int:
        """Denoising steps of :meth:`forward` and ``predict``; training always uses ``diffusion_steps``."""
        return self.inference_schedule.diffusion_steps

    @inference_steps.setter
    def inference_steps(self, n_steps: int) -> None:
        trained = n_steps == self.schedule.diffusion_steps
        self.inference_schedule = self.schedule if trained else self.schedule.respaced(n_steps)

    def encode(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: observations
        :return: what every denoising step needs to know of them, (B, W)
        :raises ValueError: if that has NaN or infinite entries
        """
        context = self.score_network.encode(self.extract_features(obs, self.features_extractor))
        check_finite_tensor("encoded observation", context)
        return context

    def control_fn(self, context: th.Tensor) -> ControlFn:
        """
        :param context: output of :meth:`encode`, (B, W)
        :return: the control function of these observations on the schedule of training
        """

        def control(x: th.Tensor, step: Step) -> tuple[th.Tensor, th.Tensor]:
            return self.score_network.control(context, at_step(self.schedule.visibility, step) * x, step)

        return control

    def sample(self, context: th.Tensor, noise: th.Tensor | None = None) -> Chain:
        """
        Sample chains on the schedule of training.

        :param context: output of :meth:`encode`, (B, W)
        :param noise: standard normal noises, (K+1, B, d); drawn if None
        :return: the chains
        :raises ValueError: if they end in NaN or infinite latent actions
        """
        if noise is None:
            noise = draw_noise(self.schedule, len(context), self.action_dim)
        chain = sample_chain(self.control_fn(context), self.schedule, noise)
        check_finite_tensor("latent action", chain.x[0])
        return chain

    def action_log_prob(self, obs: PyTorchObs, noise: th.Tensor | None = None) -> tuple[th.Tensor, th.Tensor]:
        """
        What SAC asks of its actor.

        :param obs: observations
        :param noise: standard normal noises, (K+1, B, d); drawn if None
        :return: actions in [-1, 1], (B, d), and what stands for their log-probability, (B,); see
            :func:`.chain.action_log_prob`
        """
        chain = self.sample(self.encode(obs), noise)
        return chain.action, action_log_prob(self.schedule, chain)

    def forward(self, obs: PyTorchObs, deterministic: bool = False, noise: th.Tensor | None = None) -> th.Tensor:
        """
        :param obs: observations
        :param deterministic: start at 0 and follow the kernels' means
        :param noise: standard normal noises, (inference_steps+1, B, d); drawn if None
        :return: actions in [-1, 1], (B, d)
        """
        context, schedule = self.encode(obs), self.inference_schedule
        if noise is None:
            noise = draw_noise(schedule, len(context), self.action_dim, deterministic)
        if schedule is self.schedule:
            return self.sample(context, noise).action
        trained = self.control_fn(context)

        def control(x: th.Tensor, step: Step) -> tuple[th.Tensor, th.Tensor]:
            u, rho = trained(x, int(schedule.steps[step]))
            return u * schedule.control_scale[step], rho

        return sample_chain(control, schedule, noise).action

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self(observation, deterministic)


class DiffusionValue(BaseModel):
    """
    Soft values ``V_k(s, x_k)``, k >= 1, along the chain (DMERL, arXiv 2512.02019).

    :param observation_space: observation space
    :param action_space: action space
    :param net_arch: widths of the encoder of the observation
    :param denoiser_arch: widths of the head over ``(x_k, k)``
    :param features_extractor: network to extract features
    :param features_dim: number of features F
    :param activation_fn: activation of the encoder
    :param denoiser_activation_fn: activation of the head
    :param diffusion_steps: number of denoising steps K
    :param share_features_extractor: whether the features extractor is the actor's, and not trained here
    :param normalize_images: whether to divide images by 255
    """

    features_extractor: BaseFeaturesExtractor
    optimizer: th.optim.Optimizer

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        net_arch: list[int],
        denoiser_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        denoiser_activation_fn: type[nn.Module] = nn.SiLU,
        diffusion_steps: int = 5,
        share_features_extractor: bool = False,
        normalize_images: bool = True,
    ):
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images
        )
        self.share_features_extractor = share_features_extractor
        self.network = DenoisingNetwork(
            features_dim,
            get_action_dim(action_space),
            1,
            diffusion_steps,
            encoder_arch=net_arch,
            denoiser_arch=denoiser_arch,
            activation_fn=activation_fn,
            denoiser_activation_fn=denoiser_activation_fn,
        )

    def encode(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: observations
        :return: what the values of every step need to know of them, (B, W)
        """
        with th.set_grad_enabled(not self.share_features_extractor and th.is_grad_enabled()):
            features = self.extract_features(obs, self.features_extractor)
        return self.network.encode(features)

    def forward(self, context: th.Tensor, x: th.Tensor, step: Step) -> th.Tensor:
        """
        :param context: output of :meth:`encode`, (..., B, W)
        :param x: ``x_k``, (..., B, d)
        :param step: ``k``, one for all or one for each row, (..., B)
        :return: ``V_k(s, x_k)``, (..., B)
        """
        return self.network(context, x, step).squeeze(-1)


class DiffusionSACPolicy(SACPolicy):
    """
    Diffusion actor with SAC's critics. Works in stock ``stable_baselines3.SAC``, which back-propagates through the chain,
    and in
    :class:`.DiffSAC`.

    :param observation_space: observation space
    :param action_space: action space, a bounded ``Box``
    :param lr_schedule: learning rate schedule
    :param net_arch: widths of the hidden layers: a list for the encoder of the observation and the critics alike, or
        ``dict(pi=[...], qf=[...], denoiser=[...])``, the last being the head that runs at every denoising step. Left out,
        the head has one hidden layer, as wide as the encoder's last and at most 64
    :param activation_fn: activation of the encoder and the critics
    :param use_sde: not supported
    :param log_std_init: of gSDE, not used
    :param use_expln: of gSDE, not used
    :param clip_mean: of gSDE, not used
    :param features_extractor_class: features extractor to use
    :param features_extractor_kwargs: keyword arguments of the features extractor
    :param normalize_images: whether to divide images by 255
    :param optimizer_class: optimizer to use
    :param optimizer_kwargs: keyword arguments of the optimizer other than the learning rate. If None and the optimizer is
        Adam or AdamW, its fused kernel is used
    :param n_critics: number of critics
    :param share_features_extractor: whether actor and critics share the features extractor
    :param diffusion_steps: number of denoising steps K
    :param noise_schedule: ``"cosine"``, ``"linear"`` or ``"constant"``
    :param prior_std: standard deviation of the prior of the latent action
    :param learn_std: whether the standard deviation of each kernel is learned or the reference kernel's
    :param encode_once: run the encoder once per chain and a small head per step; if False, one network of the widths
        ``net_arch["pi"]`` runs at every step
    :param denoiser_activation_fn: activation of the head
    :param use_diffusion_value: also build the value network over ``(s, x_k, k)``
    :raises ValueError: for gSDE, actions that are not a bounded ``Box``, or a chain that cannot be built
    """

    actor: DiffusionActor  # type: ignore[assignment]
    diffusion_value: DiffusionValue | None

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        use_sde: bool = False,
        log_std_init: float = -3,
        use_expln: bool = False,
        clip_mean: float = 2.0,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 2,
        share_features_extractor: bool = False,
        diffusion_steps: int = 5,
        noise_schedule: str = "cosine",
        prior_std: float = 1.0,
        learn_std: bool = True,
        encode_once: bool = True,
        denoiser_activation_fn: type[nn.Module] = nn.SiLU,
        use_diffusion_value: bool = False,
    ):
        check_no_sde(use_sde)
        box = isinstance(action_space, spaces.Box) and action_space.is_bounded("both")
        if not box or not (action_space.low < action_space.high).all():
            raise ValueError(f"action_space={action_space}: a diffusion policy needs a Box with finite bounds, low < high")
        if optimizer_kwargs is None and optimizer_class in (th.optim.Adam, th.optim.AdamW):
            optimizer_kwargs = dict(fused=True)
        if net_arch is None:
            net_arch = [256, 256]
        actor_arch, _ = get_actor_critic_arch(net_arch)
        denoiser_arch = [min([*actor_arch[-1:], MAX_DEFAULT_DENOISER_WIDTH])]
        if isinstance(net_arch, dict):
            if unknown := net_arch.keys() - {"pi", "qf", "denoiser"}:
                raise ValueError(f"net_arch has the keys {sorted(unknown)}: choose from 'pi', 'qf' and 'denoiser'")
            if "denoiser" in net_arch and not encode_once:
                raise ValueError("encode_once=False runs net_arch['pi'] at every step: leave net_arch['denoiser'] out")
            denoiser_arch = net_arch.get("denoiser", denoiser_arch)
        # SAC's policy builds its networks in its constructor, so what they need is set before
        self.chain_kwargs = dict(
            diffusion_steps=diffusion_steps,
            noise_schedule=noise_schedule,
            prior_std=prior_std,
            learn_std=learn_std,
            encode_once=encode_once,
        )
        self.denoiser_kwargs = dict(
            denoiser_arch=denoiser_arch,
            denoiser_activation_fn=denoiser_activation_fn,
        )
        self.use_diffusion_value = use_diffusion_value
        self._n_action_candidates = 1
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch,
            activation_fn,
            use_sde,
            log_std_init,
            use_expln,
            clip_mean,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images,
            optimizer_class,
            optimizer_kwargs,
            n_critics,
            share_features_extractor,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.diffusion_value = None
        if self.use_diffusion_value:
            self.diffusion_value = self.make_diffusion_value()
            shared = self.share_features_extractor
            self.diffusion_value.optimizer = self.optimizer_class(
                [p for name, p in self.diffusion_value.named_parameters() if not (shared and "features_extractor" in name)],
                lr=lr_schedule(1),  # type: ignore[call-arg]
                **self.optimizer_kwargs,
            )

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> DiffusionActor:  # type: ignore[override]
        kwargs = self._update_features_extractor(self.net_args, features_extractor)
        return DiffusionActor(**kwargs, **self.denoiser_kwargs, **self.chain_kwargs).to(self.device)  # type: ignore[arg-type]

    def make_diffusion_value(self) -> DiffusionValue:
        """
        :return: the value network over ``(s, x_k, k)``
        """
        shared = self.actor.features_extractor if self.share_features_extractor else None
        kwargs = self._update_features_extractor(self.net_args, shared)
        return DiffusionValue(
            **kwargs,
            **self.denoiser_kwargs,  # type: ignore[arg-type]
            diffusion_steps=self.actor.schedule.diffusion_steps,
            share_features_extractor=self.share_features_extractor,
        ).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            self.chain_kwargs,
            denoiser_activation_fn=self.denoiser_kwargs["denoiser_activation_fn"],
            use_diffusion_value=self.use_diffusion_value,
            share_features_extractor=self.share_features_extractor,
            normalize_images=self.normalize_images,
        )
        return data

    @property
    def n_action_candidates(self) -> int:
        """Number of actions of which ``predict`` takes the one that the critics value most; 1 is off."""
        return self._n_action_candidates

    @n_action_candidates.setter
    def n_action_candidates(self, n_candidates: int) -> None:
        check_integer("n_action_candidates", n_candidates)
        self._n_action_candidates = n_candidates

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if self.n_action_candidates == 1:
            return self.actor(observation, deterministic)
        return self._best_of_candidates(observation, deterministic)

    def _best_of_candidates(self, obs: PyTorchObs, deterministic: bool) -> th.Tensor:
        """
        :param obs: observations
        :param deterministic: draw the candidates from a fixed seed, the first of them being the chain of means
        :return: for each observation the one of ``n_action_candidates`` actions that the critics value most, (B, d)
        """
        n, actor = self.n_action_candidates, self.actor
        repeat = lambda tensor: tensor.repeat_interleave(n, dim=0)  # noqa: E731
        obs = {key: repeat(value) for key, value in obs.items()} if isinstance(obs, dict) else repeat(obs)
        batch_size = len(next(iter(obs.values()))) if isinstance(obs, dict) else len(obs)
        noise = draw_noise(actor.inference_schedule, batch_size, actor.action_dim)
        if deterministic:
            # The same for every observation, so that an action does not depend on what else is in the batch
            generator = th.Generator(device=noise.device).manual_seed(0)
            candidates = noise[:, :n].clone().normal_(generator=generator)
            candidates[:, 0] = 0.0
            noise = candidates.repeat(1, batch_size // n, 1)
        actions = actor(obs, noise=noise)
        value = th.cat(self.critic(obs, actions), dim=1).min(dim=1).values.reshape(-1, n)  # (B, n)
        best = value.argmax(dim=1) + n * th.arange(len(value), device=value.device)
        return actions[best]

    def set_training_mode(self, mode: bool) -> None:
        super().set_training_mode(mode)
        if self.diffusion_value is not None:
            self.diffusion_value.set_training_mode(mode)


class DiffusionSACCnnPolicy(DiffusionSACPolicy):
    """
    :class:`DiffusionSACPolicy` for images.

    :param observation_space: observation space
    :param action_space: action space, a bounded ``Box``
    :param lr_schedule: learning rate schedule
    :param net_arch: widths of the hidden layers
    :param features_extractor_class: features extractor to use, SB3's ``NatureCNN``
    :param kwargs: the other arguments of :class:`DiffusionSACPolicy`
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        *,
        features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space, action_space, lr_schedule, net_arch, features_extractor_class=features_extractor_class, **kwargs
        )


class DiffusionSACMultiInputPolicy(DiffusionSACCnnPolicy):
    """
    :class:`DiffusionSACPolicy` for ``Dict`` observations.

    :param observation_space: observation space, a ``Dict``
    :param action_space: action space, a bounded ``Box``
    :param lr_schedule: learning rate schedule
    :param net_arch: widths of the hidden layers
    :param features_extractor_class: features extractor to use, SB3's ``CombinedExtractor``
    :param kwargs: the other arguments of :class:`DiffusionSACPolicy`
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        *,
        features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space, action_space, lr_schedule, net_arch, features_extractor_class=features_extractor_class, **kwargs
        )
