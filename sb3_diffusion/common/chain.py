"""
The denoising chain: its kernels, samples, densities and the bound on its entropy, as functions of tensors.

Notation and equations follow DMERL (arXiv 2512.02019): ``x_K`` is noise, step ``k`` goes from ``x_k`` to ``x_{k-1}``, and
the action is ``tanh(x_0)``. All kernels are diagonal Gaussians. A *control function* is any callable
``(x_k, k) -> (u, log_std_ratio)``, with ``k`` an integer or a tensor with one step for each row.
"""

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import torch as th
from torch.nn import functional as F

from sb3_diffusion.common.noise_schedule import NoiseSchedule

Step = int | th.Tensor
ControlFn = Callable[[th.Tensor, Step], tuple[th.Tensor, th.Tensor]]


def take_steps(values: th.Tensor, index: th.Tensor) -> th.Tensor:
    """
    :param values: values of each denoising step of each chain, (K or K+1, B, ...)
    :param index: which of them to take, (M, B), or the same consecutive ones for all chains, (M, 1)
    :return: a copy, or in the second case a view, (M, B, ...)
    """
    if index.shape[1] == 1 != values.shape[1]:
        start = int(index[0])
        return values[start : start + len(index)]
    return values[index, th.arange(index.shape[1], device=index.device)]


def draw_steps(n_steps: int, n_drawn: int, batch_size: int, device: th.device) -> th.Tensor:
    """
    :param n_steps: number of denoising steps K
    :param n_drawn: how many steps to draw for each sample, from 1; all of them from K on. They follow one another, and the
        first follows the last
    :param batch_size: number of samples B
    :param device: where the result is needed
    :return: steps between 1 and K, each equally likely, (n_drawn, B), or all of them in order, (K, 1)
    """
    if n_drawn >= n_steps:
        return th.arange(1, n_steps + 1, device=device)[:, None]
    first = th.randint(n_steps, (batch_size,), device=device)
    return (first + th.arange(n_drawn, device=device)[:, None]) % n_steps + 1


class ChainSteps(NamedTuple):
    """
    Some steps of a batch of chains, as they were sampled.

    :param steps: ``k``, (M, B), or the same for all chains, (M, 1)
    :param x: ``x_k``, (M, B, d)
    :param x_prev: ``x_{k-1}``, (M, B, d)
    :param noise: noise that made ``x_{k-1}``, (M, B, d)
    """

    steps: th.Tensor
    x: th.Tensor
    x_prev: th.Tensor
    noise: th.Tensor


class Chain(NamedTuple):
    """
    A batch of sampled chains.

    :param x: ``x[k]`` is ``x_k``, (K+1, B, d)
    :param noise: ``noise[K]`` made ``x_K`` and ``noise[k-1]`` made ``x_{k-1}``, (K+1, B, d)
    :param log_ratio: ``log_ratio[k-1]`` is ``log q(x_{k-1} | x_k, s) - log r(x_{k-1} | x_k)``, (K, B)
    """

    x: th.Tensor
    noise: th.Tensor
    log_ratio: th.Tensor

    @property
    def action(self) -> th.Tensor:
        """The squashed result ``tanh(x_0)``, (B, d)."""
        return th.tanh(self.x[0])

    def take(self, steps: th.Tensor) -> ChainSteps:
        """
        :param steps: steps ``k``, (M, B), or consecutive ones, the same for all chains, (M, 1)
        :return: the chain at these steps
        """
        return ChainSteps(steps, take_steps(self.x, steps), take_steps(self.x, steps - 1), take_steps(self.noise, steps - 1))

    def first(self, batch_size: int) -> "Chain":
        """
        :param batch_size: number of chains B
        :return: a view of the first B chains
        """
        return Chain(*(part[:, :batch_size] for part in self))

    def end(self) -> "Chain":
        """
        :return: a copy whose ``x`` and ``noise`` hold only ``x_0``'s, so that they take no more memory for more steps
        """
        return Chain(self.x[:1].clone(), self.noise[:1].clone(), self.log_ratio.clone())


def at_step(values: th.Tensor, step: Step) -> th.Tensor:
    """
    :param values: a buffer of the noise schedule, (K+1,)
    :param step: ``k``, one for all or one for each row, (..., B)
    :return: the value of each step, a scalar or (..., B, 1)
    """
    return values[step] if isinstance(step, int) else values[step].unsqueeze(-1)


def gaussian_log_prob(x: th.Tensor, mean: th.Tensor | float, std: th.Tensor | float) -> th.Tensor:
    """
    Log-density of a diagonal Gaussian.

    :param x: where, (..., d)
    :param mean: mean, a number or (..., d)
    :param std: standard deviation, a number or (..., d)
    :return: log-density in nats, (...)
    """
    log_std = math.log(std) if isinstance(std, float) else th.log(std)
    return (-0.5 * ((x - mean) / std) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).sum(dim=-1)


def denoising_kernel(
    schedule: NoiseSchedule, u: th.Tensor, log_std_ratio: th.Tensor, x: th.Tensor, step: Step
) -> tuple[th.Tensor, th.Tensor]:
    """
    The policy's kernel ``q(x_{k-1} | x_k, s)``. With ``u = 0`` and ``log_std_ratio = 0`` it is the reference kernel
    ``r(x_{k-1} | x_k)``.

    :param schedule: noise schedule
    :param u: control, (..., B, d)
    :param log_std_ratio: log-ratio of standard deviations, (..., B, d)
    :param x: ``x_k``, (..., B, d)
    :param step: ``k``, one for all or one for each row, (..., B)
    :return: mean and standard deviation of ``x_{k-1}``, each (..., B, d)
    """
    std = at_step(schedule.std, step)
    return apply_increment(x, u, at_step(schedule.mean_coef, step), std), std * th.exp(log_std_ratio)


def belief_variance(schedule: NoiseSchedule, variance: th.Tensor, step: Step) -> th.Tensor:
    """
    ``P_k = alpha_bar_k sigma^2 + 1 - alpha_bar_k``: the variance of ``x_k`` under a belief of ``x_0``.

    :param schedule: noise schedule
    :param variance: ``sigma^2``, the belief's variance in units of the prior's, (..., B, d)
    :param step: ``k``, one for all or one for each row, (..., B)
    :return: variance in units of the prior's, (..., B, d)
    """
    return th.addcmul(at_step(schedule.noise_variance, step), at_step(schedule.alpha_bar, step), variance)


def posterior_control(
    schedule: NoiseSchedule, mean: th.Tensor, log_std: th.Tensor, x: th.Tensor, step: Step
) -> tuple[th.Tensor, th.Tensor]:
    """
    The control of the posterior kernel, the exact reversal of the noising process for the belief ``x_0 ~ N(m, sigma^2)``:
    with ``P_k`` of :func:`belief_variance`

    ``u = sqrt(beta_k alpha_bar_{k-1}) [m - sqrt(alpha_bar_k) (1 - sigma^2) x_k] / P_k``,
    ``log_std_ratio = log(P_{k-1} / P_k) / 2``,

    all in units of the prior's standard deviation. A belief that does not depend on ``(x_k, k)`` makes the chain end in that
    Gaussian, for any number of steps and with no gap in the bound.

    :param schedule: noise schedule, of training or of inference
    :param mean: ``m / nu``, (..., B, d)
    :param log_std: ``log(sigma / nu)``, (..., B, d)
    :param x: ``x_k``, (..., B, d)
    :param step: ``k``, one for all or one for each row, (..., B)
    :return: control ``u`` and log-ratio of standard deviations ``log_std_ratio``, each (..., B, d)
    """
    table = schedule.belief_table[:, step]  # (5,) or (5, ..., B)
    offset, factor, offset_before, factor_before, signal = (table if isinstance(step, int) else table.unsqueeze(-1)).unbind(0)
    variance = th.exp(2 * log_std)
    # The number of operations is the cost: both variances are in units of sqrt(beta_k alpha_bar_{k-1})
    now, before = th.addcmul(offset, factor, variance), th.addcmul(offset_before, factor_before, variance)
    u = th.addcmul(mean, signal, th.addcmul(x, variance, x, value=-1), value=-1) / now
    return u, 0.5 * th.log(before / now)


def target_score_share(schedule: NoiseSchedule, log_std_ratio: th.Tensor, step: Step) -> th.Tensor:
    """
    ``sigma^2 / P_{k-1}``, from the kernel alone: the share of the target score identity in :func:`.losses.mixed_adjoint`.

    :param schedule: noise schedule
    :param log_std_ratio: log-ratio of standard deviations, (..., B, d)
    :param step: ``k``, one for all or one for each row, (..., B)
    :return: share, from 0 to 1, and 1 at the last step, k = 1, (..., B, d)
    """
    ratio = th.exp(2 * log_std_ratio)  # P_{k-1} / P_k
    # Solved for sigma^2
    left = ratio * at_step(schedule.noise_variance, step) - at_step(schedule.noise_variance, step - 1)
    right = at_step(schedule.alpha_bar, step - 1) - ratio * at_step(schedule.alpha_bar, step)
    variance = (left / right.clamp_min(1e-12)).clamp_min(0.0)
    return (variance / belief_variance(schedule, variance, step - 1).clamp_min(1e-12)).clamp(0.0, 1.0)


def kernel_kl(u: th.Tensor, log_std_ratio: th.Tensor) -> th.Tensor:
    """
    Closed form of ``KL_k = KL(q(. | x_k, s) || r(. | x_k))``. In units of the reference kernel it does not depend on the
    schedule.

    :param u: control, (..., d)
    :param log_std_ratio: log-ratio of standard deviations, (..., d)
    :return: KL in nats, (...)
    """
    return (0.5 * (th.exp(2 * log_std_ratio) + u**2 - 1) - log_std_ratio).sum(dim=-1)


def kernel_kl_between(u: th.Tensor, log_std_ratio: th.Tensor, other_u: th.Tensor, other_log_std_ratio: th.Tensor) -> th.Tensor:
    """
    Closed form of the KL between two denoising kernels at the same ``x_k``, ``KL(q(. | x_k, s) || p(. | x_k, s))``, which is
    :func:`kernel_kl` where ``p`` is the reference kernel. In units of the reference kernel it does not depend on the schedule.

    :param u: control of ``q``, (..., d)
    :param log_std_ratio: log-ratio of its standard deviations, (..., d)
    :param other_u: control of ``p``, (..., d)
    :param other_log_std_ratio: log-ratio of its standard deviations, (..., d)
    :return: KL in nats, (...)
    """
    growth = log_std_ratio - other_log_std_ratio
    shift = (u - other_u) * th.exp(-other_log_std_ratio)
    return (0.5 * (th.expm1(2 * growth) + shift**2) - growth).sum(dim=-1)


def floor_log_std_ratio(schedule: NoiseSchedule, log_std_ratio: th.Tensor, min_std: float, step: Step) -> th.Tensor:
    """
    A kernel whose standard deviation is at least ``min_std``: DPPO's ``min_sampling_denoising_std`` and
    ``min_logprob_denoising_std`` (arXiv 2409.00588, appendix C), which are one number here.

    :param schedule: noise schedule
    :param log_std_ratio: log-ratio of standard deviations, (..., B, d)
    :param min_std: least standard deviation of ``x_{k-1}``, positive
    :param step: ``k``, one for all or one for each row, (..., B)
    :return: log-ratio of the standard deviations with that floor, (..., B, d)
    """
    return th.maximum(log_std_ratio, th.log(min_std / at_step(schedule.std, step)))


def kernel_kl_by_part(
    u: th.Tensor, log_std_ratio: th.Tensor, old_u: th.Tensor, old_log_std_ratio: th.Tensor
) -> tuple[th.Tensor, th.Tensor]:
    """
    Closed forms of the KL from an old kernel to a new one, for the mean and for the standard deviation apart, as trust
    regions have them (MPO, arXiv 1806.06920; WPO, arXiv 2505.00663): ``KL(q_old || N(new mean, old std))`` and
    ``KL(q_old || N(old mean, new std))``, at the same ``x_k``. In units of the reference kernel they do not depend on the
    schedule.

    :param u: control of the new kernel, (..., d)
    :param log_std_ratio: log-ratio of its standard deviations, (..., d)
    :param old_u: control of the old kernel, (..., d)
    :param old_log_std_ratio: log-ratio of its standard deviations, (..., d)
    :return: KL of the mean and KL of the standard deviation in nats, each (...)
    """
    kl_mean = 0.5 * ((u - old_u) * th.exp(-old_log_std_ratio)) ** 2
    shrinkage = old_log_std_ratio - log_std_ratio
    return kl_mean.sum(dim=-1), (0.5 * th.expm1(2 * shrinkage) - shrinkage).sum(dim=-1)


def sample_increment(u: th.Tensor, log_std_ratio: th.Tensor, noise: th.Tensor | None) -> th.Tensor:
    """
    Increment of a denoising step, control and noise, in standard deviations of the reference kernel.

    :param u: control, (..., d)
    :param log_std_ratio: log-ratio of standard deviations, (..., d)
    :param noise: standard normal noise, (..., d); None for the kernel's mean
    :return: ``u + exp(log_std_ratio) noise``, (..., d)
    """
    # The exponential of a part of a larger tensor would take several times as long
    return u if noise is None else th.addcmul(u, th.exp(log_std_ratio.contiguous()), noise)


def apply_increment(x: th.Tensor, increment: th.Tensor, mean_coef: th.Tensor, std: th.Tensor) -> th.Tensor:
    """
    :param x: ``x_k``, (..., B, d)
    :param increment: control and noise, in standard deviations of the reference kernel, (..., B, d)
    :param mean_coef: ``sqrt(1 - beta_k)``, a scalar or (..., B, 1)
    :param std: ``sqrt(beta_k) nu``, a scalar or (..., B, 1)
    :return: ``x_{k-1}``, (..., B, d)
    """
    return th.addcmul(mean_coef * x, std, increment)


def _increment_log_ratio(increment: th.Tensor, log_std_ratio: th.Tensor, noise: th.Tensor) -> th.Tensor:
    """
    ``log q(x_{k-1} | x_k, s) - log r(x_{k-1} | x_k)`` of a sampled step, whose mean over the noise is :func:`kernel_kl`.

    :param increment: output of :func:`sample_increment`, (..., d)
    :param log_std_ratio: log-ratio of standard deviations, (..., d)
    :param noise: its noise, (..., d)
    :return: log-ratio in nats, (...)
    """
    return (0.5 * (increment - noise) * (increment + noise) - log_std_ratio).sum(dim=-1)


def denoising_step(
    schedule: NoiseSchedule, u: th.Tensor, log_std_ratio: th.Tensor, x: th.Tensor, noise: th.Tensor, step: Step
) -> tuple[th.Tensor, th.Tensor]:
    """
    Sample one denoising kernel.

    :param schedule: noise schedule
    :param u: control, (..., B, d)
    :param log_std_ratio: log-ratio of standard deviations, (..., B, d)
    :param x: ``x_k``, (..., B, d)
    :param noise: standard normal noise, (..., B, d)
    :param step: ``k``, one for all or one for each row, (..., B)
    :return: ``x_{k-1}``, (..., B, d), and :func:`_increment_log_ratio`, (..., B)
    """
    increment = sample_increment(u, log_std_ratio, noise)
    x_prev = apply_increment(x, increment, at_step(schedule.mean_coef, step), at_step(schedule.std, step))
    return x_prev, _increment_log_ratio(increment, log_std_ratio, noise)


def kernel_log_prob(
    schedule: NoiseSchedule, u: th.Tensor, log_std_ratio: th.Tensor, x: th.Tensor, x_prev: th.Tensor, step: Step
) -> th.Tensor:
    """
    ``log q(x_{k-1} | x_k, s)`` of any path. The increment is taken before the control enters, so that two evaluations with
    the same control agree however narrow the kernel is, as the first ratio of PPO's must.

    :param schedule: noise schedule
    :param u: control, (..., B, d)
    :param log_std_ratio: log-ratio of standard deviations, (..., B, d)
    :param x: ``x_k``, (..., B, d)
    :param x_prev: ``x_{k-1}``, (..., B, d)
    :param step: ``k``, one for all or one for each row, (..., B)
    :return: log-density in nats, (..., B)
    """
    std = at_step(schedule.std, step)
    increment = (x_prev - at_step(schedule.mean_coef, step) * x) / std  # in standard deviations of the reference kernel
    noise = (increment - u) * th.exp(-log_std_ratio)
    constant = x.shape[-1] * (th.log(std) + 0.5 * math.log(2 * math.pi))
    # What has a gradient comes first, in few operations
    return -th.addcmul(log_std_ratio, noise, noise, value=0.5).sum(dim=-1) - constant.squeeze(-1)


def implied_score(schedule: NoiseSchedule, u: th.Tensor, x: th.Tensor, step: Step) -> th.Tensor:
    """
    The score ``grad_x log q(x_k | s)`` that a control stands for.

    :param schedule: noise schedule
    :param u: control, (..., B, d)
    :param x: ``x_k``, (..., B, d)
    :param step: ``k``, one for all or one for each row, (..., B)
    :return: score, (..., B, d)
    """
    return -x / schedule.prior_std**2 + at_step(schedule.mean_coef / schedule.std, step) * u


def draw_noise(schedule: NoiseSchedule, batch_size: int, action_dim: int, deterministic: bool = False) -> th.Tensor:
    """
    :param schedule: noise schedule
    :param batch_size: number of chains B
    :param action_dim: dimension d of the action
    :param deterministic: zeros, so that the chain starts at 0 and follows the kernels' means
    :return: the noises of a batch of chains, (K+1, B, d)
    """
    make = th.zeros if deterministic else th.randn
    return make(schedule.diffusion_steps + 1, batch_size, action_dim, device=schedule.beta.device)


def respaced_control(control_fn: ControlFn, schedule: NoiseSchedule) -> ControlFn:
    """
    :param control_fn: control function on the schedule of training
    :param schedule: a respaced schedule, see :meth:`.NoiseSchedule.respaced`
    :return: the control function on that schedule
    """

    def control(x: th.Tensor, step: Step) -> tuple[th.Tensor, th.Tensor]:
        assert isinstance(step, int)
        u, log_std_ratio = control_fn(x, schedule.trained_steps[step])
        return u * schedule.control_scale[step], log_std_ratio

    return control


def _denoise(
    control_fn: ControlFn, schedule: NoiseSchedule, x: th.Tensor, noise: th.Tensor | None = None
) -> Iterator[tuple[th.Tensor, th.Tensor, th.Tensor]]:
    """
    The loop over the denoising steps, from ``k = K`` to 1.

    :param control_fn: control function
    :param schedule: noise schedule
    :param x: ``x_K``, (B, d)
    :param noise: standard normal noises that make ``x_0 ..``, at least (K, B, d); None to follow the kernels' means
    :return: for each step ``x_{k-1}``, the increment that made it, in standard deviations of the reference kernel, and
        ``log_std_ratio``, each (B, d)
    """
    noises = [None] * schedule.diffusion_steps if noise is None else noise.unbind(0)
    mean_coef, std = schedule.mean_coef.unbind(0), schedule.std.unbind(0)
    for step in range(schedule.diffusion_steps, 0, -1):
        u, log_std_ratio = control_fn(x, step)
        increment = sample_increment(u, log_std_ratio, noises[step - 1])
        x = apply_increment(x, increment, mean_coef[step], std[step])
        yield x, increment, log_std_ratio


def check_noise(schedule: NoiseSchedule, noise: th.Tensor) -> th.Tensor:
    """
    :param schedule: noise schedule
    :param noise: noises, (K+1, B, d)
    :return: the same
    :raises ValueError: if the noise has not one row for each of ``x_K .. x_0``
    """
    n_steps = schedule.diffusion_steps
    if noise.ndim != 3 or len(noise) != n_steps + 1:
        raise ValueError(
            f"noise of shape {tuple(noise.shape)}: a chain of {n_steps} steps needs ({n_steps + 1}, batch, action)"
        )
    return noise


def sample_prior(schedule: NoiseSchedule, noise: th.Tensor) -> th.Tensor:
    """
    :param schedule: noise schedule
    :param noise: standard normal noises, (K+1, B, d)
    :return: ``x_K``, (B, d)
    :raises ValueError: if the noise has not one row for each of ``x_K .. x_0``
    """
    return check_noise(schedule, noise)[-1] * schedule.prior_std


def sample_chain(control_fn: ControlFn, schedule: NoiseSchedule, noise: th.Tensor) -> Chain:
    """
    Sample chains by reparameterisation. Gradients flow to the control function through every step, unless they are
    switched off.

    :param control_fn: control function
    :param schedule: noise schedule
    :param noise: standard normal noises, (K+1, B, d)
    :return: the chains
    :raises ValueError: if the noise has not one row for each of ``x_K .. x_0``
    """
    x = sample_prior(schedule, noise)
    pieces, log_ratios, end = [x.unsqueeze(0)], [], schedule.diffusion_steps
    steps = _denoise(control_fn, schedule, x, noise)
    # Groups of eight steps save calls. One group of all steps keeps many small tensors alive and fragments the memory
    while group := list(islice(steps, 8)):
        latents, increments, log_std_ratios = (th.stack(part[::-1]) for part in zip(*group, strict=True))
        start = end - len(group)
        log_ratios.append(_increment_log_ratio(increments, log_std_ratios, noise[start:end]))
        pieces.append(latents)
        end = start
    return Chain(th.cat(pieces[::-1]), noise, th.cat(log_ratios[::-1]))


def sample_path(control_fn: ControlFn, schedule: NoiseSchedule, noise: th.Tensor) -> th.Tensor:
    """
    :param control_fn: control function
    :param schedule: noise schedule
    :param noise: standard normal noises, (K+1, B, d)
    :return: ``x_0 .. x_K`` alone, (K+1, B, d)
    :raises ValueError: if the noise has not one row for each of ``x_K .. x_0``
    """
    x = sample_prior(schedule, noise)
    latents = [latent for latent, _, _ in _denoise(control_fn, schedule, x, noise)]
    return th.stack((*latents[::-1], x))


def sample_latent_action(
    control_fn: ControlFn, schedule: NoiseSchedule, x: th.Tensor, noise: th.Tensor | None = None
) -> th.Tensor:
    """
    :param control_fn: control function
    :param schedule: noise schedule
    :param x: ``x_K``, (B, d)
    :param noise: standard normal noises that make ``x_0 ..``, at least (K, B, d); None to follow the kernels' means
    :return: ``x_0`` alone, (B, d)
    """
    *_, (latent, _, _) = _denoise(control_fn, schedule, x, noise)
    return latent


def path_log_ratio(schedule: NoiseSchedule, chain: Chain) -> th.Tensor:
    """
    ``L = log N(x_0; 0, nu^2 I) + sum_k [log q(x_{k-1} | x_k, s) - log r(x_{k-1} | x_k)]``. By the data-processing inequality
    its mean is at least the mean log-density of ``x_0`` (DMERL).

    :param schedule: noise schedule
    :param chain: chains
    :return: log-ratio of each path in nats, (B,)
    """
    return gaussian_log_prob(chain.x[0], 0.0, schedule.prior_std) + chain.log_ratio.sum(dim=0)


def describe_steps(log_ratio: th.Tensor) -> dict[str, th.Tensor]:
    """
    :param log_ratio: log-ratio of each step's kernel to the reference kernel, in nats, (K, B)
    :return: entries of the log: the mean log-ratio of all steps and of the first, middle and last, which estimates their KL
    """
    step_kl = log_ratio.mean(dim=1)  # (K,)
    n_steps = len(step_kl)
    info = {f"diffusion/kl_step_{step}": step_kl[step - 1] for step in sorted({1, (n_steps + 1) // 2, n_steps})}
    info["diffusion/log_ratio"] = step_kl.sum()
    return info


def describe_chain(log_ratio: th.Tensor, x_0: th.Tensor) -> dict[str, th.Tensor]:
    """
    :param log_ratio: log-ratio of each step's kernel to the reference kernel, in nats, (K, B)
    :param x_0: ends of the chains, (B, d)
    :return: entries of the log: :func:`describe_steps`, and the share of actions beyond 0.99 of the range
    """
    saturation = (x_0.abs() > math.atanh(0.99)).float().mean()
    return {**describe_steps(log_ratio), "diffusion/action_saturation": saturation}


def path_log_ratio_noising(control_fn: ControlFn, schedule: NoiseSchedule, x: th.Tensor) -> th.Tensor:
    """
    The same number as :func:`path_log_ratio`, for any path and from the noising kernels: the noising process is
    reversible, so that ``L = log p(x_K) + sum_k [log q(x_{k-1} | x_k, s) - log pi(x_k | x_{k-1})]``.

    :param control_fn: control function
    :param schedule: noise schedule
    :param x: paths, ``x[k]`` being ``x_k``, (K+1, B, d)
    :return: log-ratio of each path in nats, (B,)
    """
    log_ratio = gaussian_log_prob(x[-1], 0.0, schedule.prior_std)
    zeros = th.zeros_like(x[0])
    for step in range(schedule.diffusion_steps, 0, -1):
        u, log_std_ratio = control_fn(x[step], step)
        denoising = gaussian_log_prob(x[step - 1], *denoising_kernel(schedule, u, log_std_ratio, x[step], step))
        # The noising kernel has the reference kernel's form, in the other direction
        noising = gaussian_log_prob(x[step], *denoising_kernel(schedule, zeros, zeros, x[step - 1], step))
        log_ratio = log_ratio + denoising - noising
    return log_ratio


def squash_log_det(x: th.Tensor) -> th.Tensor:
    """
    ``sum_i log(1 - tanh(x_i)^2)``, the log-determinant of the squash, without the cancellation at large ``x``.

    :param x: latent action, (..., d)
    :return: log-determinant in nats, (...)
    """
    return (2 * (math.log(2) - x - F.softplus(-2 * x))).sum(dim=-1)


def terminal_log_prob(schedule: NoiseSchedule, x: th.Tensor) -> th.Tensor:
    """
    ``log N(x_0; 0, nu^2 I) - sum_i log(1 - tanh(x_0i)^2)``: the end's share of the bound, which stands in ``V_0``.

    :param schedule: noise schedule
    :param x: ``x_0``, (..., d)
    :return: log-density in nats, (...)
    """
    return gaussian_log_prob(x, 0.0, schedule.prior_std) - squash_log_det(x)


def action_log_prob(schedule: NoiseSchedule, chain: Chain) -> th.Tensor:
    """
    An estimate of ``log pi(a|s)``: the path log-ratio ``L`` less the squash's log-determinant. Minus its mean is a lower
    bound on the policy's entropy; a single step from ``beta_1 = 1`` is a plain Gaussian, and there it is the log-density
    itself, as in SAC.

    ``L_hat``, with the closed-form ``KL_k`` in place of each log-ratio, has the same mean. But at the optimum
    ``Q - alpha L`` is the same number on every path, while ``Q - alpha L_hat`` is not: of the two ``L`` gives the critic
    the quieter target.

    :param schedule: noise schedule
    :param chain: chains
    :return: log-probability bound of each action in nats, (B,)
    """
    return terminal_log_prob(schedule, chain.x[0]) + chain.log_ratio.sum(dim=0)
