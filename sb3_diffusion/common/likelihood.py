"""
The likelihood of given actions: the denoising kernels against the noising of the data, in closed form.

A data point ``x_0`` is noised, ``x_k ~ N(sqrt(alpha_bar_k) x_0, (1 - alpha_bar_k) nu^2)``. Given ``x_0`` and ``x_k`` the
noising process says in closed form where ``x_{k-1}`` is. How well the denoising kernels fit that is a lower bound on the
log-likelihood of the data (Ho et al., 2020, arXiv 2006.11239).
"""

from typing import NamedTuple

import torch as th

from sb3_diffusion.common.chain import ControlFn, at_step, terminal_log_prob
from sb3_diffusion.common.discrete_chain import (
    LOG_ZERO,
    noising_log_prob,
    one_hot,
    posterior_kernel,
    sample_categories,
    uniform_log_prob,
)
from sb3_diffusion.common.noise_schedule import NoiseSchedule

# Actions beyond it count as this, since the latent of one on the bound is infinite: artanh(0.999) = 3.8
ACTION_MAX = 0.999


class NoisedActions(NamedTuple):
    """
    Actions with the noise of some steps, and the exact reversal of that noise: all of the likelihood that weights do not
    change.

    :param steps: ``k``, (M, B)
    :param x: ``x_k``, (M, B, d)
    :param reversal: law of ``x_{k-1}`` given ``x_k`` and ``x_0``: output of :func:`bridge`; of categories their
        probabilities, (M, B, d, n)
    :param end: the end's share of the bound in nats, (B,)
    """

    steps: th.Tensor
    x: th.Tensor
    reversal: tuple[th.Tensor, ...]
    end: th.Tensor

    def take(self, rows: slice) -> "NoisedActions":
        """
        :param rows: which of the actions
        :return: these alone
        """
        reversal = tuple(part[:, rows] for part in self.reversal)
        return NoisedActions(self.steps[:, rows], self.x[:, rows], reversal, self.end[rows])


def latent_action(action: th.Tensor) -> th.Tensor:
    """
    The inverse of the squash. Actions on the bounds, whose latent would be infinite, are held off them: the change is at most
    0.0005 of the range between the bounds, and keeps the latents within 3.8.

    :param action: actions in [-1, 1], (..., d)
    :return: ``x_0 = artanh(a)`` with ``|a|`` at most ``ACTION_MAX``, (..., d)
    """
    return th.atanh(action.clamp(-ACTION_MAX, ACTION_MAX))


def noise_latent(schedule: NoiseSchedule, x_0: th.Tensor, noise: th.Tensor, step: th.Tensor) -> th.Tensor:
    """
    Sample ``x_k`` given ``x_0``.

    :param schedule: noise schedule
    :param x_0: data, (..., B, d)
    :param noise: standard normal noise, (..., B, d)
    :param step: ``k``, (..., B)
    :return: ``x_k``, (..., B, d)
    """
    std = th.sqrt(schedule.noise_variance) * schedule.prior_std
    return th.addcmul(at_step(schedule.signal, step) * x_0, at_step(std, step), noise)


def bridge(schedule: NoiseSchedule, x_0: th.Tensor, x: th.Tensor, step: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    The exact reversal of the noising process given its start, ``pi(x_{k-1} | x_k, x_0)``: the posterior kernel of a belief
    without width, :func:`.chain.posterior_control` with ``sigma = 0``. At k = 1 its variance is 0.

    :param schedule: noise schedule
    :param x_0: data, (..., B, d)
    :param x: ``x_k``, (..., B, d)
    :param step: ``k``, (..., B)
    :return: mean and variance of the increment in standard deviations of the reference kernel, (..., B, d) and (..., B, 1)
    """
    offset, _, offset_before, _, signal = schedule.belief_table[:, step].unsqueeze(-1).unbind(0)
    return th.addcmul(x_0 / schedule.prior_std, signal, x, value=-1) / offset, offset_before / offset


def expected_log_ratio(u: th.Tensor, log_std_ratio: th.Tensor, mean: th.Tensor, variance: th.Tensor) -> th.Tensor:
    """
    ``E[log q(x_{k-1} | x_k, s) - log r(x_{k-1} | x_k)]`` over an increment of that mean and variance, as :func:`bridge` gives
    them. Everything is in units of the reference kernel, so that it does not depend on the schedule.

    :param u: control, (..., d)
    :param log_std_ratio: log-ratio of standard deviations, (..., d)
    :param mean: mean of the increment, (..., d)
    :param variance: its variance, (..., 1)
    :return: log-ratio in nats, (...)
    """
    missed = mean - u
    missed = th.addcmul(variance, missed, missed)
    # What has a gradient in few operations, whose number is the cost
    loss = th.addcmul(log_std_ratio, missed, th.exp(-2 * log_std_ratio), value=0.5).sum(dim=-1)
    return 0.5 * th.addcmul(variance, mean, mean).sum(dim=-1) - loss


def noise_actions(schedule: NoiseSchedule, action: th.Tensor, steps: th.Tensor) -> NoisedActions:
    """
    :param schedule: noise schedule
    :param action: actions in [-1, 1], (B, d)
    :param steps: steps to take of each chain, each with the same probability, (M, B) or (M, 1)
    :return: the actions with noise
    """
    x_0 = latent_action(action)
    steps = steps.expand(-1, len(x_0))
    x = noise_latent(schedule, x_0, th.randn(*steps.shape, x_0.shape[-1], device=x_0.device), steps)  # (M, B, d)
    return NoisedActions(steps, x, bridge(schedule, x_0.expand_as(x), x, steps), terminal_log_prob(schedule, x_0))


def log_likelihood(control_fn: ControlFn, schedule: NoiseSchedule, noised: NoisedActions) -> th.Tensor:
    """
    ``log N(x_0; 0, nu^2) + sum_k E[log q / r] - sum_i log(1 - tanh(x_0i)^2)``, a lower bound on the log-likelihood of the
    action ``tanh(x_0)``, in the mean over the noise. With K = 1 and the cosine schedule it is the log-likelihood itself.

    :param control_fn: control function of B observations
    :param schedule: noise schedule
    :param noised: output of :func:`noise_actions`
    :return: estimate of the bound in nats, with gradients, (B,)
    """
    log_ratio = expected_log_ratio(*control_fn(noised.x, noised.steps), *noised.reversal)  # (M, B)
    return noised.end + log_ratio.mean(dim=0) * schedule.diffusion_steps


def noise_categories(uniform: th.Tensor, schedule: NoiseSchedule, x_0: th.Tensor, steps: th.Tensor) -> NoisedActions:
    """
    The same for categories. The reversal of the noise is the posterior kernel of a belief that is sure of ``x_0``.

    :param uniform: probabilities of the uniform law, (d, n)
    :param schedule: noise schedule
    :param x_0: categories, (B, d)
    :param steps: steps to take of each chain, each with the same probability, (M, B) or (M, 1)
    :return: the categories with noise
    """
    steps = steps.expand(-1, len(x_0))
    x_0 = x_0.expand(len(steps), -1, -1)  # (M, B, d)
    x = sample_categories(noising_log_prob(uniform, at_step(schedule.alpha_bar, steps), x_0), th.rand_like(x_0))
    certain = LOG_ZERO * (1 - one_hot(x_0, uniform.shape[-1]))
    log_bridge, _ = posterior_kernel(uniform, schedule, certain, x, steps)
    return NoisedActions(steps, x, (th.exp(log_bridge),), uniform_log_prob(uniform).expand(x_0.shape[1]))


def categorical_log_likelihood(control_fn: ControlFn, schedule: NoiseSchedule, noised: NoisedActions) -> th.Tensor:
    """
    The same for categories: ``-sum_i log n_i + sum_k E[log q(x_{k-1} | x_k, s) - log r(x_{k-1} | x_k)]``. With K = 1 and the
    cosine schedule it is the log-likelihood itself.

    :param control_fn: control function of B observations
    :param schedule: noise schedule
    :param noised: output of :func:`noise_categories`
    :return: estimate of the bound in nats, with gradients, (B,)
    """
    log_q, log_r = control_fn(noised.x, noised.steps)
    log_ratio = (noised.reversal[0] * (log_q - log_r)).sum(dim=(-2, -1))  # (M, B)
    return noised.end + log_ratio.mean(dim=0) * schedule.diffusion_steps
