"""DiffPPO's policy, which runs whole chains, and stock PPO's, which takes single denoising steps of a wrapped environment."""

import math
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_diffusion.common.arguments import FLAG, Kind, number
from sb3_diffusion.common.carried_settings import carry_settings
from sb3_diffusion.common.categories import check_chain_action_space, flat_action_space, is_discrete
from sb3_diffusion.common.chain import ControlFn, Step, floor_log_std_ratio
from sb3_diffusion.common.checks import check_finite_tensor, check_no_sde
from sb3_diffusion.common.denoisers import make_score_network, make_value_network
from sb3_diffusion.common.likelihood import NoisedActions
from sb3_diffusion.common.noise_schedule import NoiseSchedule
from sb3_diffusion.common.policies import CHAIN_ARGUMENTS, ChainPolicy, get_denoiser_arch, limit_observation
from sb3_diffusion.common.process import CategoricalProcess, Control, make_process
from sb3_diffusion.common.wrappers import AugmentedSpace


def default_features_extractor(observation_space: spaces.Space) -> type[BaseFeaturesExtractor]:
    """
    :param observation_space: observation space
    :return: the default of Stable-Baselines3's policies for it
    """
    if isinstance(observation_space, spaces.Dict):
        return CombinedExtractor
    return NatureCNN if is_image_space(observation_space) else FlattenExtractor


class ChainActorCriticPolicy(ChainPolicy, ActorCriticPolicy):
    """
    Diffusion actor with a value function ``V(s, x_k, k)`` over the steps of the chain, which runs whole chains: the policy of
    :class:`.DiffPPO`.

    :param observation_space: observation space
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
    :param features_extractor_class: features extractor to use; if None, that of the class
    :param features_extractor_kwargs: keyword arguments of the features extractor
    :param share_features_extractor: whether policy and value function share the features extractor
    :param normalize_images: whether to divide images by 255
    :param optimizer_class: optimizer to use
    :param optimizer_kwargs: keyword arguments of the optimizer other than the learning rate. If None and the optimizer is
        Adam or AdamW, ``eps=1e-5`` and its fused kernel are used
    :param diffusion_steps: number of denoising steps K, 5 if None
    :param noise_schedule: ``"cosine"``, ``"linear"`` or ``"constant"``
    :param prior_std: standard deviation of the prior of the latent action, 1 if None
    :param learn_std: whether the standard deviation of each kernel is learned or the reference kernel's
    :param denoiser_activation_fn: activation of the heads
    :param kernel: ``"reference"`` or ``"posterior"``, see :class:`DiffusionActor`
    :param compile_chain: compile the loop over the denoising steps, see :class:`DiffusionSACPolicy`
    :param state_value: make the value function one of the state alone, as in DPPO (arXiv 2409.00588)
    :param denoiser_class: network of one's own for the steps of the chain and for their values, in the place of
        :class:`.DenoisingNetwork`, see :class:`.OwnDenoiser`, :class:`.GraphDenoiser` and :class:`.TourDenoiser`. It is
        made with ``features_dim``, ``action_dim``, ``input_dim``, ``output_dim`` and ``diffusion_steps``; ``net_arch`` is then
        empty if None
    :param denoiser_kwargs: its other keyword arguments
    :param min_denoising_std: least standard deviation of each denoising kernel of real actions in training, in units of the
        latent action; ``predict`` on a plain observation has no such floor
    :raises ValueError: for gSDE, actions of another space, or a chain that cannot be built
    """

    # What its own keyword arguments may be in a file
    arguments: ClassVar[dict[str, Kind]] = {
        **CHAIN_ARGUMENTS,
        "state_value": FLAG,
        "min_denoising_std": number(0),
    }
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
        min_denoising_std: float = 0.0,
    ):
        check_no_sde(use_sde)
        check_chain_action_space(action_space)
        self.process = make_process(action_space, kernel, learn_std)
        if denoiser_class is not None and net_arch is None:
            net_arch = []
        if optimizer_kwargs is None and optimizer_class in (th.optim.Adam, th.optim.AdamW):
            optimizer_kwargs = dict(eps=1e-5, fused=True)
        self.features_space = self._find_features_space(observation_space)
        if features_extractor_class is None:
            features_extractor_class = self._choose_features_extractor()
        # SB3's policy builds its networks in its constructor, so what they need is set before
        self.chain_kwargs = dict(
            diffusion_steps=self._chain_setting("diffusion_steps", diffusion_steps, 5),
            noise_schedule=noise_schedule,
            prior_std=self._chain_setting("prior_std", prior_std, 1.0),
            learn_std=learn_std,
            denoiser_activation_fn=denoiser_activation_fn,
            kernel=kernel,
            compile_chain=compile_chain,
            state_value=state_value,
            denoiser_class=denoiser_class,
            denoiser_kwargs=denoiser_kwargs,
            min_denoising_std=min_denoising_std,
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
        self._squash_output = True

    def _find_features_space(self, observation_space: spaces.Space) -> spaces.Space:
        """
        :param observation_space: observation space
        :return: the features extractor's space
        """
        return observation_space

    def _choose_features_extractor(self) -> type[BaseFeaturesExtractor]:
        return self.default_features_extractor_class

    def _chain_setting(self, name: str, value: Any, default: Any) -> Any:
        """
        :param name: name of an argument
        :param value: its value, None if it was not given
        :param default: its default
        :return: the value to use
        """
        return default if value is None else value

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
        carry_settings(self, dict(state_value=(chain["state_value"], (False, True))))
        if self.ortho_init:
            extractors = {self.features_extractor, self.pi_features_extractor, self.vf_features_extractor}
            networks = () if own["denoiser_class"] else (self.score_network, self.value_net)
            for module in (*extractors, self.mlp_extractor, *networks):
                module.apply(partial(self.init_weights, gain=np.sqrt(2)))
        if self.ortho_init and not own["denoiser_class"]:
            # The policy starts as the prior
            self.init_weights(self.score_network.head[-1], gain=0.01)
            self.init_weights(self.value_net.head[-1], gain=1)
        if any(param.is_complex() for param in self.parameters()):
            # The fused kernel takes no complex parameters
            self.optimizer_kwargs = {key: value for key, value in self.optimizer_kwargs.items() if key != "fused"}
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

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """
        :param obs: observations, without latent action and step
        :param features_extractor: the one to use; if None those of policy and values
        :return: features, (B, F), or of two extractors both
        """
        preprocessed = self._preprocess(obs)
        if features_extractor is not None:
            return features_extractor(preprocessed)
        if self.share_features_extractor:
            return self.features_extractor(preprocessed)
        return self.pi_features_extractor(preprocessed), self.vf_features_extractor(preprocessed)

    def _encode_latent(self, latent_pi: th.Tensor) -> th.Tensor:
        context = self.score_network.encode(latent_pi)
        check_finite_tensor("encoded observation", context)
        return context

    def encode(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """
        :param obs: observations, without latent action and step
        :return: encoded observations for the steps of the chain and for their values, each (B, W)
        :raises ValueError: if that has NaN or infinite entries
        """
        features = self.extract_features(obs)
        if isinstance(features, tuple):
            latents = self.mlp_extractor.forward_actor(features[0]), self.mlp_extractor.forward_critic(features[1])
        else:
            latents = self.mlp_extractor(features)
        return self._encode_latent(latents[0]), self.value_net.encode(latents[1])

    def encode_for_actor(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: observations, without latent action and step
        :return: encoded observations for the steps of the chain, (B, W)
        :raises ValueError: if that has NaN or infinite entries
        """
        features = self.extract_features(obs, self.pi_features_extractor)
        return self._encode_latent(self.mlp_extractor.forward_actor(features))

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """
        :param obs: observations
        :raises ValueError: always: the density of a whole chain is unknown
        """
        raise ValueError(
            "the distribution of a diffusion policy's actions has no closed form. policy.log_likelihood(obs, actions) is a "
            "lower bound on their log-density, and policy(obs) draws actions"
        )

    def log_likelihood(self, obs: PyTorchObs, actions: th.Tensor | NoisedActions, n_steps: int | None = None) -> th.Tensor:
        """
        :param obs: observations
        :param actions: actions in [-1, 1], (B, ...), or output of :meth:`ChainPolicy.noise_actions`
        :param n_steps: denoising steps of each action, drawn at random; all if None
        :return: output of :meth:`ChainPolicy.chain_log_likelihood`, (B,)
        """
        return self.chain_log_likelihood(self.encode_for_actor(obs), actions, n_steps)

    def training_control_fn(self, control_fn: ControlFn) -> ControlFn:
        """
        :param control_fn: control function on the schedule of training
        :return: that of the kernels that rollouts sample and updates evaluate, with their floor under the standard deviation
        """
        min_std = self.chain_kwargs["min_denoising_std"]
        if min_std == 0 or isinstance(self.process, CategoricalProcess):
            return control_fn

        def control(x: th.Tensor, step: Step) -> Control:
            u, log_std_ratio = control_fn(x, step)
            return u, floor_log_std_ratio(self.schedule, log_std_ratio, min_std, step)

        return control

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
        control = self.training_control_fn(self.control_fn(contexts[0]))(x, step)
        log_prob = self.process.log_prob(self.schedule, control, x, x_prev, step)
        return self._step_values(contexts[1], x, step), log_prob, self.process.kl(control)

    def _step_values(self, value_context: th.Tensor, x: th.Tensor, step: Step) -> th.Tensor:
        x = self.network_input(x, step)
        if self.chain_kwargs["state_value"]:
            x, step = th.zeros_like(x), self.schedule.diffusion_steps
        return self.value_net(value_context, x, step).squeeze(-1)

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
        return self._run_training_chain(context, noise)

    def _run_training_chain(self, context: th.Tensor, noise: th.Tensor) -> th.Tensor:
        x = self.run_chain(self._sample_training_path, context, self.schedule, noise)
        check_finite_tensor("latent action", x[0])
        return x

    def _sample_training_path(self, control_fn: ControlFn, schedule: NoiseSchedule, noise: th.Tensor) -> th.Tensor:
        return self.process.sample_path(self.training_control_fn(control_fn), schedule, noise)

    def forward(
        self, obs: PyTorchObs, deterministic: bool = False, noise: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Sample whole chains. Index ``k - 1`` of a dimension K belongs to step ``k``.

        :param obs: observations
        :param deterministic: take the kernels' means, or their likeliest categories
        :param noise: noises of the process, (K+1, B, d); drawn if None
        :return: ``x_0 .. x_K``, (K+1, B, d), ``V(s, x_k, k)`` and ``log q(x_{k-1} | x_k, s)`` of all steps, each (K, B)
        """
        contexts = self.encode(obs)
        if noise is None:
            noise = self.process.draw_noise(self.schedule, len(contexts[0]), deterministic)
        x = self._run_training_chain(contexts[0], noise)
        values, log_prob, _ = self.evaluate_steps(contexts, x[1:], x[:-1], self.schedule.all_steps())
        return x, values, log_prob

    def predict_values(self, obs: PyTorchObs, noise: th.Tensor | None = None) -> th.Tensor:
        """
        :param obs: observations
        :param noise: noise of the process that makes ``x_K``, (B, d); drawn if None
        :return: ``V(s, x_K, K)`` of a fresh ``x_K``, (B, 1)
        """
        value_context = self.encode(obs)[1]
        if noise is None:
            noise = self.process.draw_noise(self.schedule, len(value_context))[-1]
        x = self.process.prior(self.schedule, noise)
        step = self.schedule.steps[-1:].expand(len(x))
        return self._step_values(value_context, x, step).unsqueeze(-1)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.act(self.encode_for_actor(observation), deterministic)


class DiffusionActorCriticPolicy(ChainActorCriticPolicy):
    """
    The policy for stock ``stable_baselines3.PPO`` on an environment in a :class:`.DiffusionMDPWrapper`, whose observation
    tells it the number of steps and the prior. One step of the environment is then one denoising step, and the entropy that
    the policy reports is minus the KL of that step's kernel to the reference kernel. In :class:`.DiffPPO`, on the environment
    itself, it runs whole chains.

    The arguments are those of :class:`ChainActorCriticPolicy`. On an augmented observation ``diffusion_steps`` and
    ``prior_std`` are what the wrapper says, and ``features_extractor_class`` is ``NatureCNN`` or ``CombinedExtractor`` where
    the environment's observation is an image or a ``Dict``.

    :param args: arguments of :class:`ChainActorCriticPolicy`
    :param kwargs: keyword arguments of :class:`ChainActorCriticPolicy`
    :raises ValueError: also for a chain that is not the wrapper's
    """

    augmented: AugmentedSpace | None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # On the augmented MDP the action is a latent one, which the wrapper squashes
        self._squash_output = self.augmented is None

    def _find_features_space(self, observation_space: spaces.Space) -> spaces.Space:
        discrete = isinstance(self.process, CategoricalProcess)
        self.augmented = AugmentedSpace.parse(observation_space, self.process.action_dim, discrete)
        return observation_space if self.augmented is None else self.augmented.inner

    def _choose_features_extractor(self) -> type[BaseFeaturesExtractor]:
        if self.augmented is None:
            return super()._choose_features_extractor()
        return default_features_extractor(self.features_space)

    def _chain_setting(self, name: str, value: Any, default: Any) -> Any:
        """
        :param name: name of an argument that the wrapper has, too
        :param value: its value, None if it was not given
        :param default: default on a plain observation
        :return: the value to use
        :raises ValueError: if it is not the wrapper's
        """
        if self.augmented is None:
            return super()._chain_setting(name, value, default)
        expected = getattr(self.augmented, name)
        if value is not None and not math.isclose(value, expected, rel_tol=1e-6):
            raise ValueError(f"{name}={value!r}: DiffusionMDPWrapper has {name}={expected!r}, leave it out here")
        return expected

    def _split(self, obs: PyTorchObs) -> tuple[tuple[th.Tensor, th.Tensor], th.Tensor, th.Tensor]:
        """
        :param obs: augmented observations
        :return: output of :meth:`encode`; ``x_k``, (B, d); ``k``, (B,)
        :raises ValueError: if the observation space is not augmented
        """
        if self.augmented is None:
            raise ValueError(
                f"observation_space={self.observation_space} has no denoising step: wrap the environment in a "
                "DiffusionMDPWrapper, or train it with DiffPPO. A policy of DiffPPO with a forward() of its own is a subclass "
                "of ChainActorCriticPolicy"
            )
        inner, x, step = self.augmented.split(obs, self.action_dim)
        return self.encode(inner), x, step

    def _sample_step(
        self, context: th.Tensor, x: th.Tensor, step: th.Tensor, deterministic: bool, noise: th.Tensor | None
    ) -> th.Tensor:
        if noise is None and not deterministic:
            noise = self.process.draw_step_noise(x)
        control = self.training_control_fn(self.control_fn(context))(x, step)
        return self.process.take_step(self.schedule, control, x, noise, step)

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
        One denoising step of the augmented MDP.

        :param obs: augmented observations
        :param deterministic: take the kernels' means, or their likeliest categories
        :param noise: noise of the process, (B, d); drawn if None
        :return: ``x_{k-1}`` in the shape of the action, ``V(s, x_k, k)``, (B, 1), and ``log q(x_{k-1} | x_k, s)``, (B,)
        :raises ValueError: if the observation space is not augmented
        """
        contexts, x, step = self._split(obs)
        x_prev = self._sample_step(contexts[0], x, step, deterministic, noise)
        values, log_prob, _ = self.evaluate_steps(contexts, x, x_prev, step)
        return self._step_action(x_prev), values.unsqueeze(-1), log_prob

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        :param obs: augmented observations
        :param actions: ``x_{k-1}``, (B, d)
        :return: ``V(s, x_k, k)``, (B, 1), ``log q(x_{k-1} | x_k, s)``, (B,), and the entropy's bound ``-KL_k``, (B,)
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
        control = self.training_control_fn(self.control_fn(contexts[0]))(x, step)
        return self.process.distribution(self.schedule, control, x, step)

    def predict_values(self, obs: PyTorchObs, noise: th.Tensor | None = None) -> th.Tensor:
        """
        :param obs: observations, plain or augmented
        :param noise: on plain observations the noise of the process that makes ``x_K``, (B, d); drawn if None
        :return: ``V(s, x_k, k)``, on plain observations that of a fresh ``x_K``, (B, 1)
        """
        if self.augmented is None:
            return super().predict_values(obs, noise)
        contexts, x, step = self._split(obs)
        return self._step_values(contexts[1], x, step).unsqueeze(-1)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if self.augmented is None:
            return super()._predict(observation, deterministic)
        contexts, x, step = self._split(observation)
        return self._step_action(self._sample_step(contexts[0], x, step, deterministic, noise=None))


class ChainActorCriticCnnPolicy(ChainActorCriticPolicy):
    """:class:`ChainActorCriticPolicy` for images, with SB3's ``NatureCNN`` unless another features extractor is given."""

    default_features_extractor_class = NatureCNN


class ChainActorCriticMultiInputPolicy(ChainActorCriticPolicy):
    """
    :class:`ChainActorCriticPolicy` for ``Dict`` observations, with SB3's ``CombinedExtractor`` unless another features
    extractor is given.
    """

    default_features_extractor_class = CombinedExtractor


class DiffusionActorCriticCnnPolicy(DiffusionActorCriticPolicy):
    """:class:`DiffusionActorCriticPolicy` for images, with SB3's ``NatureCNN`` unless another features extractor is given."""

    default_features_extractor_class = NatureCNN


class DiffusionActorCriticMultiInputPolicy(DiffusionActorCriticPolicy):
    """
    :class:`DiffusionActorCriticPolicy` for ``Dict`` observations, with SB3's ``CombinedExtractor`` unless another features
    extractor is given.
    """

    default_features_extractor_class = CombinedExtractor


MlpPolicy = ChainActorCriticPolicy
CnnPolicy = ChainActorCriticCnnPolicy
MultiInputPolicy = ChainActorCriticMultiInputPolicy
