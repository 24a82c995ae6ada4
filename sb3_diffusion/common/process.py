"""
What a policy needs to know of its chain: one object for real actions and one for categories, filled from the functions of
:mod:`.chain` and :mod:`.discrete_chain`.

A *control* is a pair of tensors that says which kernel follows at some ``x_k``: ``(u, log_std_ratio)`` for real actions,
``(log q, log r)`` for categories.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
)

import sb3_diffusion.common.chain as gaussian
import sb3_diffusion.common.discrete_chain as discrete
from sb3_diffusion.common.action_scaling import unscale_action
from sb3_diffusion.common.categories import Categories, is_discrete, latent_dim
from sb3_diffusion.common.chain import Chain, ControlFn, Step
from sb3_diffusion.common.likelihood import (
    NoisedActions,
    categorical_log_likelihood,
    log_likelihood,
    noise_actions,
    noise_categories,
)
from sb3_diffusion.common.noise_schedule import NoiseSchedule

Control = tuple[th.Tensor, th.Tensor]

# Of categories, the automatic temperature's target as a share of the greatest entropy
TARGET_ENTROPY_SHARE = 0.3

# What a network says at a step, ``(x_k, k) -> ...``, k being a step of training: two tensors for real actions, one for
# categories
OutputFn = Callable[[th.Tensor, Step], tuple[th.Tensor, ...]]


class ChainProcess(ABC):
    """
    The chain's kernels, as a policy and its algorithm use them.

    :param action_space: the environment's action space
    """

    # Numbers that a network sees of each dimension of ``x_k``, and gives for it
    input_size: int
    output_size: int

    # Of which one end is the deterministic action, see ChainPolicy.central_action; with 1 it is the end of the likeliest steps
    deterministic_chains: ClassVar[int] = 1

    def __init__(self, action_space: spaces.Space):
        self.action_space = action_space
        self.action_dim = latent_dim(action_space)

    @property
    def input_dim(self) -> int:
        """Numbers that a network sees of ``x_k``; those of one dimension are ``action_dim`` apart."""
        return self.input_size * self.action_dim

    @property
    def output_dim(self) -> int:
        """Numbers that a network gives for a step; those of one dimension are ``action_dim`` apart."""
        return self.output_size * self.action_dim

    @property
    @abstractmethod
    def critic_space(self) -> spaces.Box:
        """Space of the critic's input for an action, see :meth:`critic_input`."""

    @property
    @abstractmethod
    def max_entropy(self) -> float:
        """Entropy of the uniform law over the actions, which no policy exceeds, in nats."""

    @property
    @abstractmethod
    def target_entropy(self) -> float:
        """Default target of the automatic temperature, in nats."""

    @abstractmethod
    def draw_noise(self, schedule: NoiseSchedule, batch_size: int, deterministic: bool = False) -> th.Tensor:
        """
        :param schedule: noise schedule
        :param batch_size: number of chains B
        :param deterministic: the noise of the deterministic action
        :return: noises of a batch of chains: row ``k`` makes ``x_k``, (K+1, B, d)
        """

    @abstractmethod
    def refill_noise(self, noise: th.Tensor, generator: th.Generator) -> None:
        """
        :param noise: where to draw noise anew, in place, (...)
        :param generator: where from
        """

    @abstractmethod
    def prior(self, schedule: NoiseSchedule, noise: th.Tensor) -> th.Tensor:
        """
        :param schedule: noise schedule
        :param noise: the noise that makes ``x_K``, (B, d)
        :return: ``x_K``, (B, d)
        """

    @abstractmethod
    def network_input(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``x_k``, (..., d)
        :return: the network's view of it, (..., input_dim)
        """

    @abstractmethod
    def control_fn(self, output: OutputFn, schedule: NoiseSchedule, trained: NoiseSchedule) -> ControlFn:
        """
        :param output: the network's output at a step of training
        :param schedule: the schedule to run on
        :param trained: the schedule of training
        :return: the control function on ``schedule``
        """

    @abstractmethod
    def sample_chain(self, control_fn: ControlFn, schedule: NoiseSchedule, noise: th.Tensor) -> Chain:
        """
        :param control_fn: control function
        :param schedule: noise schedule
        :param noise: output of :meth:`draw_noise`
        :return: the chains
        """

    @abstractmethod
    def sample_path(self, control_fn: ControlFn, schedule: NoiseSchedule, noise: th.Tensor) -> th.Tensor:
        """
        :param control_fn: control function
        :param schedule: noise schedule
        :param noise: output of :meth:`draw_noise`
        :return: ``x_0 .. x_K`` alone, (K+1, B, d)
        """

    @abstractmethod
    def sample_latent_action(
        self, control_fn: ControlFn, schedule: NoiseSchedule, x: th.Tensor, noise: th.Tensor | None = None
    ) -> th.Tensor:
        """
        :param control_fn: control function
        :param schedule: noise schedule
        :param x: ``x_K``, (B, d)
        :param noise: noises that make ``x_0 ..``, at least (K, B, d); None for the deterministic action, whose ``x_K`` is 0
        :return: ``x_0`` alone, (B, d)
        """

    @abstractmethod
    def take_step(
        self, schedule: NoiseSchedule, control: Control, x: th.Tensor, noise: th.Tensor | None, step: Step
    ) -> th.Tensor:
        """
        :param schedule: noise schedule
        :param control: the kernel at ``x_k``
        :param x: ``x_k``, (B, d)
        :param noise: the noise that makes ``x_{k-1}``, (B, d); None for the deterministic step
        :param step: ``k``, one for all or one for each row, (B,)
        :return: ``x_{k-1}``, (B, d)
        """

    @abstractmethod
    def draw_step_noise(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``x_k``, (B, d)
        :return: the noise of one step, (B, d)
        """

    @abstractmethod
    def log_prob(self, schedule: NoiseSchedule, control: Control, x: th.Tensor, x_prev: th.Tensor, step: Step) -> th.Tensor:
        """
        :param schedule: noise schedule
        :param control: the kernel at ``x_k``
        :param x: ``x_k``, (..., B, d)
        :param x_prev: ``x_{k-1}``, (..., B, d)
        :param step: ``k``, one for all or one for each row, (..., B)
        :return: ``log q(x_{k-1} | x_k, s)`` in nats, (..., B)
        """

    @abstractmethod
    def reference_log_prob(self, schedule: NoiseSchedule, x: th.Tensor, x_prev: th.Tensor, step: Step) -> th.Tensor:
        """
        :param schedule: noise schedule
        :param x: ``x_k``, (..., B, d)
        :param x_prev: ``x_{k-1}``, (..., B, d)
        :param step: ``k``, one for all or one for each row, (..., B)
        :return: ``log r(x_{k-1} | x_k)`` in nats, (..., B)
        """

    @abstractmethod
    def kl(self, control: Control) -> th.Tensor:
        """
        :param control: a kernel
        :return: its KL to the reference kernel in nats, (...)
        """

    @abstractmethod
    def kl_between(self, control: Control, other: Control) -> th.Tensor:
        """
        :param control: a kernel
        :param other: another one at the same ``x_k``
        :return: KL of the first to the second in nats, (...)
        """

    @abstractmethod
    def terminal_log_prob(self, schedule: NoiseSchedule, x: th.Tensor) -> th.Tensor:
        """
        :param schedule: noise schedule
        :param x: ``x_0``, (..., d)
        :return: the end's share of the bound in nats, (...)
        """

    @abstractmethod
    def action_log_prob(self, schedule: NoiseSchedule, chain: Chain) -> th.Tensor:
        """
        :param schedule: noise schedule
        :param chain: chains
        :return: bound on the log-probability of their actions in nats, (B,), see :func:`.chain.action_log_prob`
        """

    @abstractmethod
    def critic_input(self, action: th.Tensor) -> th.Tensor:
        """
        :param action: actions as :meth:`to_action` gives them or a replay buffer holds them, (B, ...)
        :return: input of a critic, (B, D), in :attr:`critic_space`
        """

    @abstractmethod
    def to_action(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``x_0``, (B, d)
        :return: actions as policies of Stable-Baselines3 give them, (B, d), of a ``Discrete`` space (B,)
        """

    @abstractmethod
    def env_action(self, x: th.Tensor) -> np.ndarray:
        """
        :param x: ``x_0``, (B, d)
        :return: actions for the environments' ``step``, ``(B, *shape)``
        """

    @abstractmethod
    def from_step_action(self, action: th.Tensor) -> th.Tensor:
        """
        :param action: an action of the augmented MDP, (B, ...)
        :return: ``x_{k-1}``, (B, d)
        """

    @abstractmethod
    def distribution(self, schedule: NoiseSchedule, control: Control, x: th.Tensor, step: Step) -> Distribution:
        """
        :param schedule: noise schedule
        :param control: the kernel at ``x_k``
        :param x: ``x_k``, (B, d)
        :param step: ``k``, one for each row, (B,)
        :return: the law of ``x_{k-1}``
        """

    @abstractmethod
    def noise_actions(self, schedule: NoiseSchedule, action: th.Tensor, steps: th.Tensor) -> NoisedActions:
        """
        :param schedule: noise schedule
        :param action: actions as :meth:`to_action` gives them, (B, ...)
        :param steps: steps to take of each chain, each with the same probability, (M, B) or (M, 1)
        :return: noised actions for :meth:`log_likelihood`, see :mod:`.likelihood`
        """

    @abstractmethod
    def log_likelihood(self, control_fn: ControlFn, schedule: NoiseSchedule, noised: NoisedActions) -> th.Tensor:
        """
        :param control_fn: control function of B observations
        :param schedule: noise schedule
        :param noised: output of :meth:`noise_actions`
        :return: estimate of a lower bound on the log-likelihood of the actions in nats, with gradients, (B,)
        """

    @abstractmethod
    def describe(self, log_ratio: th.Tensor, x: th.Tensor) -> dict[str, th.Tensor]:
        """
        :param log_ratio: log-ratio of each step's kernel to the reference kernel, in nats, (K, B)
        :param x: ``x_0``, (B, d)
        :return: entries of the log
        """


class GaussianProcess(ChainProcess):
    """
    Real actions in a bounded ``Box``: :mod:`.chain`. Noise is standard normal, and that of the deterministic action is 0.

    :param action_space: the environment's action space
    :param kernel: meaning of the network's output, ``"reference"`` or ``"posterior"``
    :param learn_std: whether the network gives standard deviations, too
    """

    input_size = 1

    def __init__(self, action_space: spaces.Space, kernel: str = "reference", learn_std: bool = True):
        super().__init__(action_space)
        self.kernel = kernel
        self.output_size = 1 + learn_std

    @property
    def critic_space(self) -> spaces.Box:
        assert isinstance(self.action_space, spaces.Box)
        return self.action_space

    @property
    def max_entropy(self) -> float:
        return self.action_dim * math.log(2)

    @property
    def target_entropy(self) -> float:
        # SAC's (arXiv 1812.05905, appendix D)
        return -float(self.action_dim)

    def draw_noise(self, schedule: NoiseSchedule, batch_size: int, deterministic: bool = False) -> th.Tensor:
        return gaussian.draw_noise(schedule, batch_size, self.action_dim, deterministic)

    def refill_noise(self, noise: th.Tensor, generator: th.Generator) -> None:
        noise.normal_(generator=generator)

    def prior(self, schedule: NoiseSchedule, noise: th.Tensor) -> th.Tensor:
        return noise * schedule.prior_std

    def network_input(self, x: th.Tensor) -> th.Tensor:
        return x

    def control_fn(self, output: OutputFn, schedule: NoiseSchedule, trained: NoiseSchedule) -> ControlFn:
        if self.kernel == "posterior":
            return lambda x, step: gaussian.posterior_control(  # type: ignore[misc]
                schedule, *output(x, schedule.trained_steps[step] if isinstance(step, int) else step), x=x, step=step
            )
        control_fn: ControlFn = output  # type: ignore[assignment]
        return control_fn if schedule is trained else gaussian.respaced_control(control_fn, schedule)

    def sample_chain(self, control_fn: ControlFn, schedule: NoiseSchedule, noise: th.Tensor) -> Chain:
        return gaussian.sample_chain(control_fn, schedule, noise)

    def sample_path(self, control_fn: ControlFn, schedule: NoiseSchedule, noise: th.Tensor) -> th.Tensor:
        return gaussian.sample_path(control_fn, schedule, noise)

    def sample_latent_action(
        self, control_fn: ControlFn, schedule: NoiseSchedule, x: th.Tensor, noise: th.Tensor | None = None
    ) -> th.Tensor:
        return gaussian.sample_latent_action(control_fn, schedule, x, noise)

    def take_step(
        self, schedule: NoiseSchedule, control: Control, x: th.Tensor, noise: th.Tensor | None, step: Step
    ) -> th.Tensor:
        mean_coef, std = gaussian.at_step(schedule.mean_coef, step), gaussian.at_step(schedule.std, step)
        return gaussian.apply_increment(x, gaussian.sample_increment(*control, noise), mean_coef, std)

    def draw_step_noise(self, x: th.Tensor) -> th.Tensor:
        return th.randn_like(x)

    def log_prob(self, schedule: NoiseSchedule, control: Control, x: th.Tensor, x_prev: th.Tensor, step: Step) -> th.Tensor:
        return gaussian.kernel_log_prob(schedule, *control, x, x_prev, step)

    def reference_log_prob(self, schedule: NoiseSchedule, x: th.Tensor, x_prev: th.Tensor, step: Step) -> th.Tensor:
        # The kernel without control
        zeros = th.zeros_like(x)
        return gaussian.kernel_log_prob(schedule, zeros, zeros, x, x_prev, step)

    def kl(self, control: Control) -> th.Tensor:
        return gaussian.kernel_kl(*control)

    def kl_between(self, control: Control, other: Control) -> th.Tensor:
        return gaussian.kernel_kl_between(*control, *other)

    def terminal_log_prob(self, schedule: NoiseSchedule, x: th.Tensor) -> th.Tensor:
        return gaussian.terminal_log_prob(schedule, x)

    def action_log_prob(self, schedule: NoiseSchedule, chain: Chain) -> th.Tensor:
        return gaussian.action_log_prob(schedule, chain)

    def critic_input(self, action: th.Tensor) -> th.Tensor:
        return action

    def to_action(self, x: th.Tensor) -> th.Tensor:
        return th.tanh(x)

    def env_action(self, x: th.Tensor) -> np.ndarray:
        assert isinstance(self.action_space, spaces.Box)
        squashed = self.to_action(x).cpu().numpy().reshape(-1, *self.action_space.shape)
        return unscale_action(self.action_space.low, self.action_space.high, squashed)

    def from_step_action(self, action: th.Tensor) -> th.Tensor:
        return action.reshape(-1, self.action_dim)

    def distribution(self, schedule: NoiseSchedule, control: Control, x: th.Tensor, step: Step) -> Distribution:
        mean, std = gaussian.denoising_kernel(schedule, *control, x, step)
        return DiagGaussianDistribution(self.action_dim).proba_distribution(mean, th.log(std))

    def noise_actions(self, schedule: NoiseSchedule, action: th.Tensor, steps: th.Tensor) -> NoisedActions:
        return noise_actions(schedule, action.reshape(-1, self.action_dim), steps)

    def log_likelihood(self, control_fn: ControlFn, schedule: NoiseSchedule, noised: NoisedActions) -> th.Tensor:
        return log_likelihood(control_fn, schedule, noised)

    def describe(self, log_ratio: th.Tensor, x: th.Tensor) -> dict[str, th.Tensor]:
        return gaussian.describe_chain(log_ratio, x)


class CategoricalProcess(ChainProcess):
    """
    Categories, of a ``Discrete``, ``MultiDiscrete`` or ``MultiBinary`` space: :mod:`.discrete_chain`. Noise is uniform in
    [0, 1), and -1 is that of the likeliest steps: the chain starts at the first category of each dimension and takes the one
    likeliest by the belief at each step. The network gives logits of a belief of ``x_0``, and sees ``x_k`` as ones and
    zeros.

    :param action_space: the environment's action space
    """

    deterministic_chains = 16

    def __init__(self, action_space: spaces.Space):
        super().__init__(action_space)
        self.categories = Categories.of(action_space)
        self.input_size = self.output_size = int(self.categories.counts.max())
        exists = np.arange(self.input_size) < self.categories.counts[:, None]
        self._uniform = th.as_tensor(exists / self.categories.counts[:, None], dtype=th.float32)

    @property
    def critic_space(self) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (self.input_dim,))

    @property
    def max_entropy(self) -> float:
        return float(np.log(self.categories.counts).sum())

    @property
    def target_entropy(self) -> float:
        return TARGET_ENTROPY_SHARE * self.max_entropy

    def uniform(self, like: th.Tensor) -> th.Tensor:
        """
        :param like: a tensor on the device where it is needed
        :return: probabilities of the uniform law, (d, n)
        """
        if self._uniform.device != like.device:
            self._uniform = self._uniform.to(like.device)
        return self._uniform

    def draw_noise(self, schedule: NoiseSchedule, batch_size: int, deterministic: bool = False) -> th.Tensor:
        return discrete.draw_uniform(schedule, batch_size, self.action_dim, deterministic)

    def refill_noise(self, noise: th.Tensor, generator: th.Generator) -> None:
        noise.uniform_(generator=generator)

    def prior(self, schedule: NoiseSchedule, noise: th.Tensor) -> th.Tensor:
        log_uniform = th.log(self.uniform(noise).clamp_min(discrete.TINY))
        return discrete.sample_categories(log_uniform.expand(*noise.shape, -1), noise)

    def network_input(self, x: th.Tensor) -> th.Tensor:
        return discrete.one_hot(x, self.input_size).transpose(-1, -2).flatten(-2)

    def control_fn(self, output: OutputFn, schedule: NoiseSchedule, trained: NoiseSchedule) -> ControlFn:
        def control(x: th.Tensor, step: Step) -> Control:
            (logits,) = output(x, schedule.trained_steps[step] if isinstance(step, int) else step)
            uniform = self.uniform(x)
            logits = logits.unflatten(-1, (self.output_size, self.action_dim)).transpose(-1, -2)
            return discrete.posterior_kernel(uniform, schedule, discrete.log_belief(uniform, logits), x, step)

        return control

    def sample_chain(self, control_fn: ControlFn, schedule: NoiseSchedule, noise: th.Tensor) -> Chain:
        x = self.prior(schedule, gaussian.check_noise(schedule, noise)[-1])
        return discrete.sample_categorical_chain(control_fn, schedule, x, noise)

    def sample_path(self, control_fn: ControlFn, schedule: NoiseSchedule, noise: th.Tensor) -> th.Tensor:
        x = self.prior(schedule, gaussian.check_noise(schedule, noise)[-1])
        return discrete.sample_categorical_path(control_fn, schedule, x, noise)

    def sample_latent_action(
        self, control_fn: ControlFn, schedule: NoiseSchedule, x: th.Tensor, noise: th.Tensor | None = None
    ) -> th.Tensor:
        *_, (latent, log_q, _) = discrete.denoise_categories(control_fn, schedule, x, noise)
        return discrete.checked(latent, log_q)

    def take_step(
        self, schedule: NoiseSchedule, control: Control, x: th.Tensor, noise: th.Tensor | None, step: Step
    ) -> th.Tensor:
        return discrete.sample_categories(control[0], noise, control[1])

    def draw_step_noise(self, x: th.Tensor) -> th.Tensor:
        return th.rand_like(x)

    def log_prob(self, schedule: NoiseSchedule, control: Control, x: th.Tensor, x_prev: th.Tensor, step: Step) -> th.Tensor:
        return discrete.category_log_prob(control[0], x_prev)

    def reference_log_prob(self, schedule: NoiseSchedule, x: th.Tensor, x_prev: th.Tensor, step: Step) -> th.Tensor:
        keep = 1 - gaussian.at_step(schedule.beta, step)
        return discrete.category_log_prob(discrete.noising_log_prob(self.uniform(x), keep, x), x_prev)

    def kl(self, control: Control) -> th.Tensor:
        return discrete.categorical_kl(*control)

    def kl_between(self, control: Control, other: Control) -> th.Tensor:
        return discrete.categorical_kl(control[0], other[0])

    def terminal_log_prob(self, schedule: NoiseSchedule, x: th.Tensor) -> th.Tensor:
        return discrete.uniform_log_prob(self.uniform(x)).expand(x.shape[:-1])

    def action_log_prob(self, schedule: NoiseSchedule, chain: Chain) -> th.Tensor:
        return discrete.categorical_path_log_ratio(self.uniform(chain.x), chain)

    def critic_input(self, action: th.Tensor) -> th.Tensor:
        return self.network_input(self.categories.from_action(action))

    def to_action(self, x: th.Tensor) -> th.Tensor:
        return self.categories.to_action(x)

    def env_action(self, x: th.Tensor) -> np.ndarray:
        return self.categories.env_action(x.cpu().numpy())

    def from_step_action(self, action: th.Tensor) -> th.Tensor:
        return self.categories.from_action(action)

    def distribution(self, schedule: NoiseSchedule, control: Control, x: th.Tensor, step: Step) -> Distribution:
        counts, log_q = self.categories.counts.tolist(), control[0]
        logits = th.cat([log_q[..., i, :n] for i, n in enumerate(counts)], dim=-1)
        if isinstance(self.action_space, spaces.Discrete):
            return CategoricalDistribution(counts[0]).proba_distribution(logits)
        return MultiCategoricalDistribution(counts).proba_distribution(logits)

    def noise_actions(self, schedule: NoiseSchedule, action: th.Tensor, steps: th.Tensor) -> NoisedActions:
        x_0 = self.categories.from_action(action)
        return noise_categories(self.uniform(x_0), schedule, x_0, steps)

    def log_likelihood(self, control_fn: ControlFn, schedule: NoiseSchedule, noised: NoisedActions) -> th.Tensor:
        return categorical_log_likelihood(control_fn, schedule, noised)

    def describe(self, log_ratio: th.Tensor, x: th.Tensor) -> dict[str, th.Tensor]:
        return gaussian.describe_steps(log_ratio)


def make_process(action_space: spaces.Space, kernel: str = "reference", learn_std: bool = True) -> ChainProcess:
    """
    :param action_space: the environment's action space
    :param kernel: of real actions: meaning of the network's output, ``"reference"`` or ``"posterior"``
    :param learn_std: of real actions: whether the network gives standard deviations, too
    :return: the chain that ends in such actions
    """
    if is_discrete(action_space):
        return CategoricalProcess(action_space)
    return GaussianProcess(action_space, kernel, learn_std)
