"""The SAC family's actor, critics and values along the chain."""

from typing import Any, ClassVar

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

from sb3_diffusion.common.action_scaling import ActionScaling
from sb3_diffusion.common.arguments import FLAG, FRACTION, Kind, number, optional, whole
from sb3_diffusion.common.categories import check_stored_action_space
from sb3_diffusion.common.chain import Step
from sb3_diffusion.common.checks import check_finite_tensor, check_integer, check_no_sde
from sb3_diffusion.common.denoisers import make_score_network
from sb3_diffusion.common.likelihood import NoisedActions
from sb3_diffusion.common.noise_schedule import NoiseSchedule
from sb3_diffusion.common.policies import CHAIN_ARGUMENTS, ChainPolicy, get_denoiser_arch, limit_observation
from sb3_diffusion.common.process import make_process
from sb3_diffusion.common.score_network import DenoisingNetwork
from sb3_diffusion.diffsac.critics import make_critic_rule, repeat_observations

# Far beyond use
_MAX_QUANTILES = 10_000


class DiffusionActor(ChainPolicy, BasePolicy):
    """
    Actor that samples actions by a chain of denoising steps.

    :param observation_space: observation space
    :param action_space: action space: a bounded ``Box``, or ``Discrete``, ``MultiDiscrete`` or ``MultiBinary``
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
    :param actor_batch_norm: whether a batch renormalisation stands before each layer of the encoder
    :param batch_norm_kwargs: its keyword arguments ``momentum``, ``eps`` and ``warmup_steps``
    :param kernel: meaning of the network's output: ``"reference"``, by how much its kernel differs from the reference
        kernel, or ``"posterior"``, its belief of ``x_0``, see :func:`.chain.posterior_control`
    :param compile_chain: compile the loop over the denoising steps, see ``torch.compile``
    :param normalize_images: whether to divide images by 255
    """

    optimizer: th.optim.Optimizer

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
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
        actor_batch_norm: bool = False,
        batch_norm_kwargs: dict[str, Any] | None = None,
        kernel: str = "reference",
        compile_chain: bool = False,
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
            actor_batch_norm=actor_batch_norm,
            batch_norm_kwargs=batch_norm_kwargs,
            kernel=kernel,
            compile_chain=compile_chain,
        )
        if actor_batch_norm and not (encode_once and net_arch):
            raise ValueError(
                "actor_batch_norm=True is for the encoder of the observation: it needs encode_once=True and at least one "
                "layer in net_arch['pi']"
            )
        self.process = make_process(action_space, kernel, learn_std)
        self.action_dim = self.process.action_dim
        self.schedule = NoiseSchedule(diffusion_steps, noise_schedule, prior_std)
        self.inference_schedule = self.schedule
        self.score_network = make_score_network(
            self.process,
            features_dim,
            self.schedule.diffusion_steps,
            control_scale=None,
            encoder_arch=net_arch if encode_once else [],
            denoiser_arch=denoiser_arch if encode_once else net_arch,
            activation_fn=activation_fn,
            denoiser_activation_fn=denoiser_activation_fn,
            encoder_batch_norm=(batch_norm_kwargs or {}) if actor_batch_norm else None,
        )
        self.compile_chain = compile_chain

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(self.constructor_kwargs, features_extractor=self.features_extractor)
        return data

    def encode(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: observations
        :return: encoded observations, (B, W)
        :raises ValueError: if that has NaN or infinite entries
        """
        features = self.extract_features(limit_observation(obs), self.features_extractor)
        context = self.score_network.encode(features)
        check_finite_tensor("encoded observation", context)
        return context

    def action_log_prob(self, obs: PyTorchObs, noise: th.Tensor | None = None) -> tuple[th.Tensor, th.Tensor]:
        """
        What SAC asks of its actor.

        :param obs: observations
        :param noise: noises of the process, (K+1, B, d); drawn if None
        :return: actions in [-1, 1], (B, d), or the environment's categories, and the bound on their log-probability, (B,);
            see :func:`.chain.action_log_prob`
        """
        chain = self.sample(self.encode(obs), noise)
        return self.process.to_action(chain.x[0]), self.process.action_log_prob(self.schedule, chain)

    def log_likelihood(self, obs: PyTorchObs, actions: th.Tensor | NoisedActions, n_steps: int | None = None) -> th.Tensor:
        """
        :param obs: observations
        :param actions: actions in [-1, 1], (B, ...), or output of :meth:`ChainPolicy.noise_actions`
        :param n_steps: denoising steps of each action, drawn at random; all if None
        :return: output of :meth:`ChainPolicy.chain_log_likelihood`, (B,)
        """
        return self.chain_log_likelihood(self.encode(obs), actions, n_steps)

    def forward(self, obs: PyTorchObs, deterministic: bool = False, noise: th.Tensor | None = None) -> th.Tensor:
        """
        :param obs: observations
        :param deterministic: start at 0 and follow the kernels' means, or the likeliest categories
        :param noise: noises of the process, (inference_steps+1, B, d); drawn if None
        :return: output of :meth:`ChainPolicy.act`
        """
        return self.act(self.encode(obs), deterministic, noise)

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
        :return: encoded observations, (B, W)
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


class DiffusionSACPolicy(ActionScaling, SACPolicy):
    """
    Diffusion actor with SAC's critics. Works in stock ``stable_baselines3.SAC``, which back-propagates through the chain,
    and in :class:`.DiffSAC`, there with other critics, too, and with ``divergence="forward"`` on categories.

    :param observation_space: observation space
    :param action_space: action space: a bounded ``Box``, or ``Discrete``, ``MultiDiscrete`` or ``MultiBinary`` of one axis,
        which critics see as ones and zeros
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
        Adam or AdamW, its fused kernel is used, with CrossQ's critics and its ``betas=(0.5, 0.999)``
    :param n_critics: number of critics
    :param share_features_extractor: whether actor and critics share the features extractor
    :param diffusion_steps: number of denoising steps K
    :param noise_schedule: ``"cosine"``, ``"linear"`` or ``"constant"``
    :param prior_std: standard deviation of the prior of the latent action
    :param learn_std: whether the standard deviation of each kernel is learned or the reference kernel's
    :param encode_once: run the encoder once per chain and a small head per step; if False, one network of the widths
        ``net_arch["pi"]`` runs at every step
    :param denoiser_activation_fn: activation of the head
    :param actor_batch_norm: whether a batch renormalisation stands before each layer of the encoder, as in CrossQ's actor; if
        None, with CrossQ's critics, where there is such an encoder
    :param kernel: ``"reference"`` or ``"posterior"``, see :class:`DiffusionActor`; if None, the latter with CrossQ's critics
        and the former with others
    :param compile_chain: compile the loop over the denoising steps with ``torch.compile``, which needs a C++ compiler and
        takes about half a minute at first; for many steps or one observation at a time it pays
    :param critic_type: critics: ``"sac"``, ``"crossq"`` or ``"tqc"``, see :class:`.DiffSAC`. Stock SAC trains ``"sac"`` alone
    :param n_quantiles: of TQC's critics: number of quantiles of each, 25 if None
    :param top_quantiles_to_drop_per_net: of TQC's critics: how many of the top quantiles of each are left out of the target,
        2 if None
    :param batch_norm_momentum: of CrossQ's critics and their actor: weight of a batch in the running statistics, 0.01 if None
    :param batch_norm_eps: of CrossQ's critics and their actor: added to the variance, 0.001 if None
    :param renorm_warmup_steps: of CrossQ's critics and their actor: updates with the batch's statistics alone, 100,000 if None
    :param use_diffusion_value: also build the value network over ``(s, x_k, k)``
    :param use_actor_target: also build a target actor, a copy of the actor that only the algorithm changes
    :raises ValueError: for gSDE, actions of another space, or a chain that cannot be built
    """

    # What its own keyword arguments may be in a file
    arguments: ClassVar[dict[str, Kind]] = {
        **CHAIN_ARGUMENTS,
        "encode_once": FLAG,
        "actor_batch_norm": optional(FLAG),
        "n_quantiles": optional(whole(1, _MAX_QUANTILES)),
        "top_quantiles_to_drop_per_net": optional(whole(0, _MAX_QUANTILES)),
        "renorm_warmup_steps": optional(whole()),
        "batch_norm_momentum": optional(FRACTION),
        "batch_norm_eps": optional(number(0)),
    }
    actor: DiffusionActor  # type: ignore[assignment]
    critic: BaseModel  # type: ignore[assignment]
    critic_target: BaseModel | None  # type: ignore[assignment]
    diffusion_value: DiffusionValue | None
    actor_target: DiffusionActor | None

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
        actor_batch_norm: bool | None = None,
        kernel: str | None = None,
        compile_chain: bool = False,
        critic_type: str = "sac",
        n_quantiles: int | None = None,
        top_quantiles_to_drop_per_net: int | None = None,
        batch_norm_momentum: float | None = None,
        batch_norm_eps: float | None = None,
        renorm_warmup_steps: int | None = None,
        use_diffusion_value: bool = False,
        use_actor_target: bool = False,
    ):
        check_no_sde(use_sde)
        check_stored_action_space(action_space)
        # SAC's policy builds its networks in its constructor, so what they need is set before
        self.critic_type = critic_type
        self.critic_options = dict(
            n_quantiles=n_quantiles,
            top_quantiles_to_drop_per_net=top_quantiles_to_drop_per_net,
            batch_norm_momentum=batch_norm_momentum,
            batch_norm_eps=batch_norm_eps,
            renorm_warmup_steps=renorm_warmup_steps,
        )
        self.critic_rule = make_critic_rule(critic_type, **self.critic_options)
        if optimizer_kwargs is None and optimizer_class in (th.optim.Adam, th.optim.AdamW):
            optimizer_kwargs = dict(fused=True, betas=self.critic_rule.betas)
        if net_arch is None:
            net_arch = [256, 256]
        if kernel is None:
            kernel = self.critic_rule.kernel
        if actor_batch_norm is None:
            has_encoder = encode_once and len(get_actor_critic_arch(net_arch)[0]) > 0
            actor_batch_norm = self.critic_rule.actor_batch_norm and has_encoder
        denoiser_arch = get_denoiser_arch(net_arch, critic="qf")
        if isinstance(net_arch, dict) and "denoiser" in net_arch and not encode_once:
            raise ValueError("encode_once=False runs net_arch['pi'] at every step: leave net_arch['denoiser'] out")
        self.chain_kwargs = dict(
            diffusion_steps=diffusion_steps,
            noise_schedule=noise_schedule,
            prior_std=prior_std,
            learn_std=learn_std,
            encode_once=encode_once,
            actor_batch_norm=actor_batch_norm,
            kernel=kernel,
            compile_chain=compile_chain,
        )
        self.denoiser_kwargs = dict(
            denoiser_arch=denoiser_arch,
            denoiser_activation_fn=denoiser_activation_fn,
        )
        self.use_diffusion_value = use_diffusion_value
        self.use_actor_target = use_actor_target
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
        if self.optimizer_kwargs.get("fused") and any(param.is_complex() for param in self.parameters()):
            # That kernel of the optimizers takes no complex parameters
            self.optimizer_kwargs = {**self.optimizer_kwargs, "fused": False}
            super()._build(lr_schedule)
        if not self.critic_rule.has_target:
            self.critic_target = None
        self.diffusion_value = None
        if self.use_diffusion_value:
            self.diffusion_value = self.make_diffusion_value()
            shared = self.share_features_extractor
            self.diffusion_value.optimizer = self.optimizer_class(
                [p for name, p in self.diffusion_value.named_parameters() if not (shared and "features_extractor" in name)],
                lr=lr_schedule(1),  # type: ignore[call-arg]
                **self.optimizer_kwargs,
            )
        self.actor_target = None
        if self.use_actor_target:
            self.actor_target = self.make_actor()
            self.actor_target.load_state_dict(self.actor.state_dict())
            self.actor_target.set_training_mode(False)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> DiffusionActor:  # type: ignore[override]
        kwargs = self._update_features_extractor(self.net_args, features_extractor)
        settings: dict[str, Any] = {**self.denoiser_kwargs, **self.chain_kwargs}
        return DiffusionActor(**kwargs, **settings, batch_norm_kwargs=self.critic_rule.renorm_kwargs).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> BaseModel:  # type: ignore[override]
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        kwargs["action_space"] = self.actor.process.critic_space
        return self.critic_rule.make_network(**kwargs).to(self.device)

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
            critic_type=self.critic_type,
            **self.critic_options,
            denoiser_activation_fn=self.denoiser_kwargs["denoiser_activation_fn"],
            use_diffusion_value=self.use_diffusion_value,
            use_actor_target=self.use_actor_target,
            share_features_extractor=self.share_features_extractor,
            normalize_images=self.normalize_images,
        )
        return data

    @property
    def inference_steps(self) -> int:
        """Denoising steps of ``predict``; training always uses ``diffusion_steps``."""
        return self.actor.inference_steps

    @inference_steps.setter
    def inference_steps(self, n_steps: int) -> None:
        self.actor.inference_steps = n_steps

    @property
    def n_action_candidates(self) -> int:
        """Number of actions of which ``predict`` takes the one that the critics value most; 1 is off."""
        return self._n_action_candidates

    @n_action_candidates.setter
    def n_action_candidates(self, n_candidates: int) -> None:
        check_integer("n_action_candidates", n_candidates)
        self._n_action_candidates = n_candidates

    def log_likelihood(self, obs: PyTorchObs, actions: th.Tensor | NoisedActions, n_steps: int | None = None) -> th.Tensor:
        """
        :param obs: observations
        :param actions: actions in [-1, 1], (B, ...), or output of :meth:`ChainPolicy.noise_actions`
        :param n_steps: denoising steps of each action, drawn at random; all if None
        :return: output of :meth:`ChainPolicy.chain_log_likelihood`, (B,)
        """
        return self.actor.log_likelihood(obs, actions, n_steps)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if self.n_action_candidates == 1:
            return self.actor(observation, deterministic)
        return self._best_of_candidates(observation, deterministic)

    def _best_of_candidates(self, obs: PyTorchObs, deterministic: bool) -> th.Tensor:
        """The best of ``n_action_candidates`` actions by the critics; their noise is fixed if deterministic."""
        n, actor = self.n_action_candidates, self.actor
        batch_size = len(next(iter(obs.values()))) if isinstance(obs, dict) else len(obs)
        if not deterministic:
            return self.best_candidate(obs, actor.process.draw_noise(actor.inference_schedule, n * batch_size))
        # The same for every observation, so that an action does not depend on what else is in the batch
        candidates = actor.process.draw_noise(actor.inference_schedule, n, deterministic=True)
        first = candidates[:, 0].clone()
        actor.process.refill_noise(candidates, th.Generator(device=candidates.device).manual_seed(0))
        candidates[:, 0] = first
        return self.best_candidate(obs, candidates.repeat_interleave(batch_size, dim=1))

    def best_candidate(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        """
        :param obs: observations, B of them
        :param noise: noises of the process, of ``n_action_candidates`` chains at each observation, one after the other,
            (inference_steps+1, n B, d)
        :return: for each observation the one of their actions that the critics value most, (B, d), of a ``Discrete`` space
            (B, 1)
        """
        n, actor = self.n_action_candidates, self.actor
        obs = repeat_observations(obs, n)
        actions = actor(obs, noise=noise)  # (n B, ...)
        q_values = self.critic_rule.join(self.critic(obs, actor.process.critic_input(actions)))
        value = self.critic_rule.value(q_values).reshape(n, -1)
        best = value.argmax(dim=0).reshape(1, -1, 1).expand(1, -1, actor.action_dim)
        return actions.reshape(n, -1, actor.action_dim).gather(0, best).squeeze(0)

    def set_training_mode(self, mode: bool) -> None:
        trained = [net for net in (self.actor, self.critic, self.diffusion_value) if net is not None]
        # Every prediction asks for it, and each walk through all modules costs as much as a layer
        if any(net.training != mode for net in trained):
            for net in trained:
                net.set_training_mode(mode)
        self.training = mode


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


MlpPolicy = DiffusionSACPolicy
CnnPolicy = DiffusionSACCnnPolicy
MultiInputPolicy = DiffusionSACMultiInputPolicy
