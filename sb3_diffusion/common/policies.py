"""Actors and policies: the one place where noise schedule, score network and chain meet."""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel, BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim, is_image_space, preprocess_obs
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
from sb3_diffusion.common.categories import (
    check_chain_action_space,
    check_stored_action_space,
    flat_action_space,
    is_discrete,
)
from sb3_diffusion.common.chain import (
    Chain,
    ControlFn,
    Step,
    at_step,
)
from sb3_diffusion.common.checks import (
    check_finite_tensor,
    check_integer,
    check_no_sde,
)
from sb3_diffusion.common.critics import make_critic_rule
from sb3_diffusion.common.denoisers import make_score_network, make_value_network
from sb3_diffusion.common.losses import draw_steps
from sb3_diffusion.common.noise_schedule import NoiseSchedule
from sb3_diffusion.common.process import ChainProcess, make_process
from sb3_diffusion.common.score_network import DenoisingNetwork
from sb3_diffusion.common.wrappers import AugmentedSpace

# Where ``net_arch`` says nothing of the head that runs at every denoising step, it has one hidden layer of at most
# this width
MAX_DEFAULT_DENOISER_WIDTH = 64

# Greater observations count as this for the actor: its networks work in single precision, which activations must not exceed
OBSERVATION_MAX = 1e15


def get_denoiser_arch(net_arch: list[int] | dict[str, list[int]], critic: str) -> list[int]:
    """
    :param net_arch: widths of the hidden layers: a list, or ``dict(pi=[...], <critic>=[...], denoiser=[...])``
    :param critic: key of the critic's widths
    :return: widths of the head that runs at every denoising step
    :raises ValueError: for other keys
    """
    encoder_arch = net_arch.get("pi", []) if isinstance(net_arch, dict) else net_arch
    default = [min([*encoder_arch[-1:], MAX_DEFAULT_DENOISER_WIDTH])]
    if not isinstance(net_arch, dict):
        return default
    if unknown := net_arch.keys() - {"pi", critic, "denoiser"}:
        raise ValueError(f"net_arch has the keys {sorted(unknown)}: choose from 'pi', {critic!r} and 'denoiser'")
    return net_arch.get("denoiser", default)


def limit_observation(obs: PyTorchObs) -> PyTorchObs:
    """
    :param obs: observations
    :return: the same between minus and plus ``OBSERVATION_MAX``; those that are infinite become NaN, to be found
    """

    def limit(values: th.Tensor) -> th.Tensor:
        if not values.is_floating_point():
            return values
        # Zero times infinity is NaN
        bound = min(OBSERVATION_MAX, th.finfo(values.dtype).max)
        return th.add(values.clamp(-bound, bound), values, alpha=0)

    return {key: limit(value) for key, value in obs.items()} if isinstance(obs, dict) else limit(obs)


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    :param function: function
    :return: what ``torch.compile`` makes of it, the same for all who ask, so that copies of a policy need no own
    """
    return th.compile(function)


class ChainPolicy(ActionScaling):
    """What all diffusion policies share: sampling chains with their score network on their noise schedule."""

    compile_chain: bool
    action_dim: int
    process: ChainProcess
    schedule: NoiseSchedule
    inference_schedule: NoiseSchedule
    score_network: Any

    @property
    def inference_steps(self) -> int:
        """
        Denoising steps of :meth:`act` and ``predict``; training always uses ``diffusion_steps``. With the posterior kernel,
        and so with categories, they may be more.
        """
        return self.inference_schedule.diffusion_steps

    @inference_steps.setter
    def inference_steps(self, n_steps: int) -> None:
        trained = self.schedule
        if n_steps == trained.diffusion_steps:
            self.inference_schedule = trained
        elif self.score_network.kernel == "posterior" and n_steps > trained.diffusion_steps:
            self.inference_schedule = trained.refined(n_steps)
        else:
            self.inference_schedule = trained.respaced(n_steps)

    def control_fn(self, context: th.Tensor, schedule: NoiseSchedule | None = None) -> ControlFn:
        """
        :param context: what the score network needs to know of the observations, (B, W)
        :param schedule: the schedule of training, which None is, too, or of inference
        :return: the control function of these observations on that schedule
        """
        network, process, trained = self.score_network, self.process, self.schedule
        forward_step: Callable[[th.Tensor | None, int], th.Tensor] | None = None

        def output(x: th.Tensor, step: Step) -> tuple[th.Tensor, ...]:
            nonlocal forward_step
            if not isinstance(step, int):
                return network.control(context, at_step(trained.visibility, step) * process.network_input(x), step)
            if forward_step is None:
                forward_step = network.unroll(context)
            visible = process.network_input(x) if step in trained.visible_steps else None
            return network.to_control(forward_step(visible, step))

        return process.control_fn(output, trained if schedule is None else schedule, trained)

    def run_chain(self, sampler: Callable[..., Any], context: th.Tensor, schedule: NoiseSchedule, *inputs: th.Tensor) -> Any:
        """
        All denoising steps. What takes most of the time of small batches are their many operations, and with
        ``compile_chain`` they are compiled.

        :param sampler: a function of a control function, a noise schedule and the inputs, see :mod:`.chain`
        :param context: what the score network needs to know of the observations, (B, W)
        :param schedule: the schedule of training or of inference
        :param inputs: other arguments of the sampler
        :return: what the sampler returns
        """
        run = compiled(ChainPolicy._run_chain) if self.compile_chain else ChainPolicy._run_chain
        return run(self, sampler, context, schedule, *inputs)

    def _run_chain(self, sampler: Callable[..., Any], context: th.Tensor, schedule: NoiseSchedule, *inputs: th.Tensor) -> Any:
        return sampler(self.control_fn(context, schedule), schedule, *inputs)

    def sample(self, context: th.Tensor, noise: th.Tensor | None = None) -> Chain:
        """
        Sample chains on the schedule of training.

        :param context: what the score network needs to know of the observations, (B, W)
        :param noise: noises of the process, (K+1, B, d); drawn if None
        :return: the chains
        :raises ValueError: if they end in NaN or infinite latent actions
        """
        if noise is None:
            noise = self.process.draw_noise(self.schedule, len(context))
        chain = self.run_chain(self.process.sample_chain, context, self.schedule, noise)
        check_finite_tensor("latent action", chain.x[0])
        return chain

    def act(self, context: th.Tensor, deterministic: bool = False, noise: th.Tensor | None = None) -> th.Tensor:
        """
        :param context: what the score network needs to know of the observations, (B, W)
        :param deterministic: start at 0 and follow the kernels' means, or the likeliest categories
        :param noise: noises of the process, (inference_steps+1, B, d); drawn if None
        :return: real actions in [-1, 1], (B, d), or the environment's categories, see :meth:`.ChainProcess.to_action`
        :raises ValueError: if they are NaN
        """
        schedule, process = self.inference_schedule, self.process
        if noise is None and not deterministic:
            noise = process.draw_noise(schedule, len(context))
        if noise is None:
            start = context.new_zeros(len(context), self.action_dim)
            x = self.run_chain(process.sample_latent_action, context, schedule, start)
        else:
            x = self.run_chain(process.sample_latent_action, context, schedule, process.prior(schedule, noise[-1]), noise)
        check_finite_tensor("latent action", x)
        return process.to_action(x)

    def chain_log_likelihood(self, context: th.Tensor, actions: th.Tensor, n_steps: int | None = None) -> th.Tensor:
        """
        A lower bound on the log-likelihood of given actions, estimated from one noising of each, see :mod:`.likelihood`.

        :param context: what the score network needs to know of the observations, (B, W)
        :param actions: real actions in [-1, 1] or the environment's categories, (B, ...)
        :param n_steps: denoising steps of each action, drawn at random; all if None
        :return: bound in nats, with gradients, (B,)
        """
        schedule = self.schedule
        steps = draw_steps(schedule.diffusion_steps, n_steps or schedule.diffusion_steps, len(actions), actions.device)
        return self.process.log_likelihood(self.control_fn(context), schedule, actions, steps)


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
    :param kernel: what the network says of a step: ``"reference"``, by how much its kernel differs from the reference
        kernel, or ``"posterior"``, what it believes of ``x_0``, see :func:`.chain.posterior_control`
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
            encoder_batch_norm=actor_batch_norm,
        )
        self.compile_chain = compile_chain

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(self.constructor_kwargs, features_extractor=self.features_extractor)
        return data

    def encode(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: observations
        :return: what every denoising step needs to know of them, (B, W)
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
        :return: actions in [-1, 1], (B, d), or the environment's categories, and what stands for their log-probability, (B,);
            see :func:`.chain.action_log_prob`
        """
        chain = self.sample(self.encode(obs), noise)
        return self.process.to_action(chain.x[0]), self.process.action_log_prob(self.schedule, chain)

    def log_likelihood(self, obs: PyTorchObs, actions: th.Tensor, n_steps: int | None = None) -> th.Tensor:
        """
        :param obs: observations
        :param actions: actions in [-1, 1], (B, ...)
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
    :param batch_norm_momentum: of CrossQ's critics: weight of a batch in the running statistics, 0.01 if None
    :param batch_norm_eps: of CrossQ's critics: added to the variance, 0.001 if None
    :param renorm_warmup_steps: of CrossQ's critics: updates with the batch's statistics alone, 100,000 if None
    :param use_diffusion_value: also build the value network over ``(s, x_k, k)``
    :param use_actor_target: also build a target actor, a copy of the actor that only the algorithm changes
    :raises ValueError: for gSDE, actions of another space, or a chain that cannot be built
    """

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
        return DiffusionActor(**kwargs, **self.denoiser_kwargs, **self.chain_kwargs).to(self.device)  # type: ignore[arg-type]

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

    def log_likelihood(self, obs: PyTorchObs, actions: th.Tensor, n_steps: int | None = None) -> th.Tensor:
        """
        :param obs: observations
        :param actions: actions in [-1, 1], (B, ...)
        :param n_steps: denoising steps of each action, drawn at random; all if None
        :return: output of :meth:`ChainPolicy.chain_log_likelihood`, (B,)
        """
        return self.actor.log_likelihood(obs, actions, n_steps)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if self.n_action_candidates == 1:
            return self.actor(observation, deterministic)
        return self._best_of_candidates(observation, deterministic)

    def _best_of_candidates(self, obs: PyTorchObs, deterministic: bool) -> th.Tensor:
        """
        :param obs: observations
        :param deterministic: draw the candidates from a fixed seed, the first of them being the chain of means
        :return: output of :meth:`best_candidate`
        """
        n, actor = self.n_action_candidates, self.actor
        batch_size = len(next(iter(obs.values()))) if isinstance(obs, dict) else len(obs)
        if not deterministic:
            return self.best_candidate(obs, actor.process.draw_noise(actor.inference_schedule, n * batch_size))
        # The same for every observation, so that an action does not depend on what else is in the batch
        candidates = actor.process.draw_noise(actor.inference_schedule, n, deterministic=True)
        first = candidates[:, 0].clone()
        actor.process.refill_noise(candidates, th.Generator(device=candidates.device).manual_seed(0))
        candidates[:, 0] = first
        return self.best_candidate(obs, candidates.repeat(1, batch_size, 1))

    def best_candidate(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        """
        :param obs: observations, B of them
        :param noise: noises of the process, of ``n_action_candidates`` chains at each observation, one after the other,
            (inference_steps+1, B n, d)
        :return: for each observation the one of their actions that the critics value most, (B, d), of a ``Discrete`` space
            (B, 1)
        """
        n = self.n_action_candidates
        repeat = lambda tensor: tensor.unsqueeze(1).expand(-1, n, *tensor.shape[1:]).flatten(0, 1)  # noqa: E731
        obs = {key: repeat(value) for key, value in obs.items()} if isinstance(obs, dict) else repeat(obs)
        actions = self.actor(obs, noise=noise)
        rule = self.critic_rule
        value = rule.value(rule.join(self.critic(obs, self.actor.process.critic_input(actions)))).reshape(-1, n)  # (B, n)
        actions = actions.reshape(-1, n, self.actor.action_dim)
        best = value.argmax(dim=1).reshape(-1, 1, 1).expand(-1, 1, self.actor.action_dim)
        return actions.gather(1, best).squeeze(1)

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


class DiffusionActorCriticPolicy(ChainPolicy, ActorCriticPolicy):
    """
    Diffusion actor with a value function ``V(s, x_k, k)`` over the steps of the chain.

    In stock ``stable_baselines3.PPO`` it works on an environment in a :class:`.DiffusionMDPWrapper`, whose observation tells
    it the number of steps and the prior; one step of the environment is then one denoising step, and the entropy it
    reports is minus the KL of that step's kernel to the reference kernel. In :class:`.DiffPPO` it works on the environment
    itself and runs whole chains.

    :param observation_space: observation space, plain or augmented
    :param action_space: action space: a bounded ``Box``, ``Discrete``, ``MultiDiscrete`` or ``MultiBinary``
    :param lr_schedule: learning rate schedule
    :param net_arch: widths of the hidden layers: a list for the encoders of the policy and of the value function alike, or
        ``dict(pi=[...], vf=[...], denoiser=[...])``, the last being the heads that run at every denoising step. Left out,
        a head has one hidden layer, as wide as the encoder's last and at most 64
    :param activation_fn: activation of the encoders
    :param ortho_init: whether to use orthogonal initialization
    :param use_sde: not supported
    :param log_std_init: of a Gaussian policy, not used
    :param full_std: of gSDE, not used
    :param use_expln: of gSDE, not used
    :param squash_output: of gSDE, must be False; actions are always squashed
    :param features_extractor_class: features extractor to use; if None, ``FlattenExtractor``, and on an augmented
        observation ``NatureCNN`` or ``CombinedExtractor`` where the environment's is an image or a ``Dict``
    :param features_extractor_kwargs: keyword arguments of the features extractor
    :param share_features_extractor: whether policy and value function share the features extractor
    :param normalize_images: whether to divide images by 255
    :param optimizer_class: optimizer to use
    :param optimizer_kwargs: keyword arguments of the optimizer other than the learning rate. If None and the optimizer is
        Adam or AdamW, ``eps=1e-5`` and its fused kernel are used
    :param diffusion_steps: number of denoising steps K; on an augmented observation what the wrapper says
    :param noise_schedule: ``"cosine"``, ``"linear"`` or ``"constant"``
    :param prior_std: standard deviation of the prior of the latent action; on an augmented observation what the wrapper says
    :param learn_std: whether the standard deviation of each kernel is learned or the reference kernel's
    :param denoiser_activation_fn: activation of the heads
    :param kernel: ``"reference"`` or ``"posterior"``, see :class:`DiffusionActor`
    :param compile_chain: compile the loop over the denoising steps, see :class:`DiffusionSACPolicy`
    :param state_value: make the value function one of the state alone, as in DPPO (arXiv 2409.00588)
    :param denoiser_class: network of one's own for the steps of the chain and for their values, in the place of
        :class:`.DenoisingNetwork`, see :class:`.OwnDenoiser` and :class:`.GraphDenoiser`. It is made with ``features_dim``,
        ``action_dim``, ``input_dim``, ``output_dim`` and ``diffusion_steps``; ``net_arch`` is then empty if None
    :param denoiser_kwargs: its other keyword arguments
    :param whole_chain: :meth:`forward` runs all denoising steps; :class:`.DiffPPO` says so
    :raises ValueError: for gSDE, actions of another space, or a chain that cannot be built or is not the wrapper's
    """

    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor

    value_net: Any

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        ortho_init: bool = True,
        use_sde: bool = False,
        log_std_init: float = 0.0,
        full_std: bool = True,
        use_expln: bool = False,
        squash_output: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = True,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        diffusion_steps: int | None = None,
        noise_schedule: str = "cosine",
        prior_std: float | None = None,
        learn_std: bool = True,
        denoiser_activation_fn: type[nn.Module] = nn.SiLU,
        kernel: str = "reference",
        compile_chain: bool = False,
        state_value: bool = False,
        denoiser_class: type[nn.Module] | None = None,
        denoiser_kwargs: dict[str, Any] | None = None,
        whole_chain: bool = False,
    ):
        check_no_sde(use_sde)
        check_chain_action_space(action_space)
        self.process = make_process(action_space, kernel, learn_std)
        if denoiser_class is not None and net_arch is None:
            net_arch = []
        if optimizer_kwargs is None and optimizer_class in (th.optim.Adam, th.optim.AdamW):
            optimizer_kwargs = dict(eps=1e-5, fused=True)
        augmented = AugmentedSpace.parse(observation_space, self.process.action_dim, is_discrete(action_space))
        self.augmented = augmented
        self.features_space = observation_space if augmented is None else augmented.inner
        if features_extractor_class is None:
            features_extractor_class = self.default_features_extractor_class
            if augmented is not None:
                features_extractor_class = default_features_extractor(self.features_space)
        # SB3's policy builds its networks in its constructor, so what they need is set before
        self.chain_kwargs = dict(
            diffusion_steps=self._from_wrapper("diffusion_steps", diffusion_steps, 5),
            noise_schedule=noise_schedule,
            prior_std=self._from_wrapper("prior_std", prior_std, 1.0),
            learn_std=learn_std,
            denoiser_activation_fn=denoiser_activation_fn,
            kernel=kernel,
            compile_chain=compile_chain,
            state_value=state_value,
            denoiser_class=denoiser_class,
            denoiser_kwargs=denoiser_kwargs,
            whole_chain=whole_chain,
        )
        super().__init__(
            observation_space,
            flat_action_space(action_space),
            lr_schedule,
            net_arch,
            activation_fn,
            ortho_init,
            use_sde,
            log_std_init,
            full_std,
            use_expln,
            squash_output,
            features_extractor_class,
            features_extractor_kwargs,
            share_features_extractor,
            normalize_images,
            optimizer_class,
            optimizer_kwargs,
        )
        self.action_space = action_space
        self.compile_chain = compile_chain
        # On the augmented MDP the action is a latent one, which the wrapper squashes
        self._squash_output = augmented is None

    def _from_wrapper(self, name: str, value: Any, default: Any) -> Any:
        """
        :param name: name of an argument that the wrapper has, too
        :param value: its value, None if it was not given
        :param default: default on a plain observation
        :return: the value to use
        :raises ValueError: if it is not the wrapper's
        """
        if self.augmented is None:
            return default if value is None else value
        expected = getattr(self.augmented, name)
        if value is not None and not math.isclose(value, expected, rel_tol=1e-6):
            raise ValueError(f"{name}={value!r}: DiffusionMDPWrapper has {name}={expected!r}, leave it out here")
        return expected

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        return self.features_extractor_class(self.features_space, **self.features_extractor_kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        """
        Create the networks and the optimizer.

        :param lr_schedule: learning rate schedule, ``lr_schedule(1)`` is the initial learning rate
        """
        self._build_mlp_extractor()
        chain = self.chain_kwargs
        self.action_dim = self.process.action_dim
        self.schedule = NoiseSchedule(chain["diffusion_steps"], chain["noise_schedule"], chain["prior_std"])
        self.inference_schedule = self.schedule
        heads: dict[str, Any] = dict(
            encoder_arch=[],
            denoiser_arch=get_denoiser_arch(self.net_arch, critic="vf"),
            denoiser_activation_fn=chain["denoiser_activation_fn"],
        )
        own = dict(denoiser_class=chain["denoiser_class"], denoiser_kwargs=chain["denoiser_kwargs"])
        dims, n_steps = self.mlp_extractor, self.schedule.diffusion_steps
        self.score_network = make_score_network(self.process, dims.latent_dim_pi, n_steps, **own, **heads)
        self.value_net = make_value_network(self.process, dims.latent_dim_vf, n_steps, **own, **heads)
        if self.ortho_init:
            extractors = {self.features_extractor, self.pi_features_extractor, self.vf_features_extractor}
            networks = () if own["denoiser_class"] else (self.score_network, self.value_net)
            for module in (*extractors, self.mlp_extractor, *networks):
                module.apply(partial(self.init_weights, gain=np.sqrt(2)))
        if self.ortho_init and not own["denoiser_class"]:
            # The policy starts as the prior
            self.init_weights(self.score_network.head[-1], gain=0.01)
            self.init_weights(self.value_net.head[-1], gain=1)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            self.chain_kwargs,
            squash_output=False,
            share_features_extractor=self.share_features_extractor,
            normalize_images=self.normalize_images,
        )
        return data

    def _preprocess(self, obs: PyTorchObs) -> PyTorchObs:
        return preprocess_obs(limit_observation(obs), self.features_space, normalize_images=self.normalize_images)

    def _encode_features(self, pi_features: th.Tensor) -> th.Tensor:
        context = self.score_network.encode(self.mlp_extractor.forward_actor(pi_features))
        check_finite_tensor("encoded observation", context)
        return context

    def encode(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """
        :param obs: observations, without latent action and step
        :return: what the steps of the chain and their values need to know of them, each (B, W)
        :raises ValueError: if that has NaN or infinite entries
        """
        preprocessed = self._preprocess(obs)
        pi_features = vf_features = self.pi_features_extractor(preprocessed)
        if not self.share_features_extractor:
            vf_features = self.vf_features_extractor(preprocessed)
        value_context = self.value_net.encode(self.mlp_extractor.forward_critic(vf_features))
        return self._encode_features(pi_features), value_context

    def encode_for_actor(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: observations, without latent action and step
        :return: what the steps of the chain need to know of them, (B, W)
        :raises ValueError: if that has NaN or infinite entries
        """
        return self._encode_features(self.pi_features_extractor(self._preprocess(obs)))

    def log_likelihood(self, obs: PyTorchObs, actions: th.Tensor, n_steps: int | None = None) -> th.Tensor:
        """
        :param obs: observations
        :param actions: actions in [-1, 1], (B, ...)
        :param n_steps: denoising steps of each action, drawn at random; all if None
        :return: output of :meth:`ChainPolicy.chain_log_likelihood`, (B,)
        """
        return self.chain_log_likelihood(self.encode_for_actor(obs), actions, n_steps)

    def evaluate_steps(
        self, contexts: tuple[th.Tensor, th.Tensor], x: th.Tensor, x_prev: th.Tensor, step: Step
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param contexts: output of :meth:`encode`
        :param x: ``x_k``, (..., B, d)
        :param x_prev: ``x_{k-1}``, (..., B, d)
        :param step: ``k``, one for each row, (..., B)
        :return: ``V(s, x_k, k)``, ``log q(x_{k-1} | x_k, s)`` and ``KL_k`` to the reference kernel, each (..., B)
        """
        control = self.control_fn(contexts[0])(x, step)
        log_prob = self.process.log_prob(self.schedule, control, x, x_prev, step)
        return self._step_values(contexts[1], x, step), log_prob, self.process.kl(control)

    def _step_values(self, value_context: th.Tensor, x: th.Tensor, step: Step) -> th.Tensor:
        x = at_step(self.schedule.visibility, step) * self.process.network_input(x)
        if self.chain_kwargs["state_value"]:
            x, step = th.zeros_like(x), self.schedule.diffusion_steps
        return self.value_net(value_context, x, step).squeeze(-1)

    def _forward_chain(
        self, obs: PyTorchObs, deterministic: bool, noise: th.Tensor | None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        contexts = self.encode(obs)
        if noise is None:
            noise = self.process.draw_noise(self.schedule, len(contexts[0]), deterministic)
        chain = self.sample(contexts[0], noise)
        values, log_prob, _ = self.evaluate_steps(contexts, chain.x[1:], chain.x[:-1], self.schedule.all_steps())
        return chain.x, values, log_prob

    def sample_path(self, obs: PyTorchObs, noise: th.Tensor | None = None) -> th.Tensor:
        """
        What a rollout needs of :meth:`forward`.

        :param obs: observations, without latent action and step
        :param noise: noises of the process, (K+1, B, d); drawn if None
        :return: ``x_0 .. x_K``, (K+1, B, d)
        """
        context = self.encode_for_actor(obs)
        if noise is None:
            noise = self.process.draw_noise(self.schedule, len(context))
        x = self.run_chain(self.process.sample_path, context, self.schedule, noise)
        check_finite_tensor("latent action", x[0])
        return x

    def _split(self, obs: PyTorchObs) -> tuple[tuple[th.Tensor, th.Tensor], th.Tensor, th.Tensor]:
        """
        :param obs: augmented observations
        :return: output of :meth:`encode`; ``x_k``, (B, d); ``k``, (B,)
        :raises ValueError: if the observation space is not augmented
        """
        if self.augmented is None:
            raise ValueError(
                f"observation_space={self.observation_space} has no denoising step: wrap the environment in a "
                "DiffusionMDPWrapper, or train it with DiffPPO"
            )
        inner, x, step = self.augmented.split(obs, self.action_dim)
        return self.encode(inner), x, step

    def _sample_step(
        self, context: th.Tensor, x: th.Tensor, step: th.Tensor, deterministic: bool, noise: th.Tensor | None
    ) -> th.Tensor:
        if noise is None and not deterministic:
            noise = self.process.draw_step_noise(x)
        return self.process.take_step(self.schedule, self.control_fn(context)(x, step), x, noise, step)

    def _step_action(self, x_prev: th.Tensor) -> th.Tensor:
        """
        :param x_prev: ``x_{k-1}``, (B, d)
        :return: the same as an action of the augmented MDP, (B, *shape)
        """
        action = self.process.to_action(x_prev) if is_discrete(self.action_space) else x_prev
        return action.reshape(-1, *self.action_space.shape)  # type: ignore[misc]

    def forward(
        self, obs: PyTorchObs, deterministic: bool = False, noise: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        One denoising step of the augmented MDP, or with ``whole_chain`` all of them. Index ``k - 1`` of a dimension K belongs
        to step ``k``.

        :param obs: observations, augmented unless ``whole_chain``
        :param deterministic: take the kernels' means, or their likeliest categories
        :param noise: noise of the process, (B, d), with ``whole_chain`` (K+1, B, d); drawn if None
        :return: ``x_{k-1}`` in the shape of the action, ``V(s, x_k, k)``, (B, 1), and ``log q(x_{k-1} | x_k, s)``, (B,); with
            ``whole_chain`` ``x_0 .. x_K``, (K+1, B, d), and values and log-densities of all steps, each (K, B)
        :raises ValueError: if the observation space is not augmented
        """
        if self.chain_kwargs["whole_chain"]:
            return self._forward_chain(obs, deterministic, noise)
        contexts, x, step = self._split(obs)
        x_prev = self._sample_step(contexts[0], x, step, deterministic, noise)
        values, log_prob, _ = self.evaluate_steps(contexts, x, x_prev, step)
        return self._step_action(x_prev), values.unsqueeze(-1), log_prob

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        :param obs: augmented observations
        :param actions: ``x_{k-1}``, (B, d)
        :return: ``V(s, x_k, k)``, (B, 1), ``log q(x_{k-1} | x_k, s)``, (B,), and what stands for the entropy, ``-KL_k``, (B,)
        :raises ValueError: if the observation space is not augmented
        """
        contexts, x, step = self._split(obs)
        values, log_prob, step_kl = self.evaluate_steps(contexts, x, self.process.from_step_action(actions), step)
        return values.unsqueeze(-1), log_prob, -step_kl

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """
        :param obs: augmented observations
        :return: the distribution of ``x_{k-1}``
        :raises ValueError: if the observation space is not augmented: the density of a whole chain is unknown
        """
        contexts, x, step = self._split(obs)
        return self.process.distribution(self.schedule, self.control_fn(contexts[0])(x, step), x, step)

    def predict_values(self, obs: PyTorchObs, noise: th.Tensor | None = None) -> th.Tensor:
        """
        :param obs: observations, plain or augmented
        :param noise: on plain observations the noise of the process that makes ``x_K``, (B, d); drawn if None
        :return: ``V(s, x_k, k)``, on plain observations that of a fresh ``x_K``, (B, 1)
        """
        if self.augmented is not None:
            contexts, x, step = self._split(obs)
        else:
            contexts = self.encode(obs)
            if noise is None:
                noise = self.process.draw_noise(self.schedule, len(contexts[1]))[-1]
            x = self.process.prior(self.schedule, noise)
            step = self.schedule.steps[-1:].expand(len(x))
        return self._step_values(contexts[1], x, step).unsqueeze(-1)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if self.augmented is None:
            return self.act(self.encode_for_actor(observation), deterministic)
        contexts, x, step = self._split(observation)
        return self._step_action(self._sample_step(contexts[0], x, step, deterministic, noise=None))


def default_features_extractor(observation_space: spaces.Space) -> type[BaseFeaturesExtractor]:
    """
    :param observation_space: observation space
    :return: what Stable-Baselines3's policies would take for it
    """
    if isinstance(observation_space, spaces.Dict):
        return CombinedExtractor
    return NatureCNN if is_image_space(observation_space) else FlattenExtractor


class DiffusionActorCriticCnnPolicy(DiffusionActorCriticPolicy):
    """:class:`DiffusionActorCriticPolicy` for images, with SB3's ``NatureCNN`` unless another features extractor is given."""

    default_features_extractor_class = NatureCNN


class DiffusionActorCriticMultiInputPolicy(DiffusionActorCriticPolicy):
    """
    :class:`DiffusionActorCriticPolicy` for ``Dict`` observations, with SB3's ``CombinedExtractor`` unless another features
    extractor is given.
    """

    default_features_extractor_class = CombinedExtractor
