"""
The denoising chain of categories: its kernels, samples, densities and the bound on its entropy, as functions of tensors.

Each of ``d`` dimensions has ``n_i`` categories, ``x_K`` is uniform, and with probability ``beta_k`` the noising process draws
a category anew (D3PM, arXiv 2107.03006, section 3). That kernel is symmetric, so it is reversible with the uniform law, and
the reference kernel is the same one; the bound of :mod:`.chain` follows with ``-sum_i log n_i`` in the place of the prior's
log-density.

Notation: ``n`` is the greatest of the ``n_i``, and a dimension with fewer categories has probability 0 at the others.
``uniform``, (d, n), has ``1 / n_i`` at the categories that exist. ``x`` holds the numbers of the categories as floats, as
buffers do. A *control function* is a callable ``(x_k, k) -> (log q, log r)``: the logarithms of the policy's and the reference
kernel's probabilities of each category of ``x_{k-1}``, each (..., B, d, n).
"""

from collections.abc import Iterator

import torch as th
from torch.nn import functional as F

from sb3_diffusion.common.chain import Chain, ControlFn, Step, at_step
from sb3_diffusion.common.checks import is_recorded
from sb3_diffusion.common.noise_schedule import NoiseSchedule

# Stands for the logarithm of probability 0 where a difference of two must be finite
LOG_ZERO = -1e4

# Below the least probability of a noising kernel
TINY = 1e-30

# A noise for which the category likeliest by the belief is taken, and for x_K the first
LIKELIEST = -1.0


def one_hot(x: th.Tensor, n_categories: int) -> th.Tensor:
    """
    :param x: categories, (...)
    :param n_categories: n
    :return: 1 at the category, else 0, (..., n), float32
    """
    return F.one_hot(x.long(), n_categories).float()


def noising_log_prob(uniform: th.Tensor, keep: th.Tensor, x: th.Tensor) -> th.Tensor:
    """
    Logarithms of ``keep 1[j = x] + (1 - keep) / n_i``. With ``keep = 1 - beta_k`` this is the noising kernel
    ``pi(x_k = j | x_{k-1} = x)``, and because that is symmetric also the reference kernel ``r(x_{k-1} = j | x_k = x)``; with
    ``keep = alpha_bar_k`` it is ``k`` steps of noise at once.

    :param uniform: probabilities of the uniform law, (d, n)
    :param keep: probability that the category is kept, a scalar or (..., B, 1)
    :param x: categories, (..., B, d)
    :return: log-probabilities of all categories, (..., B, d, n)
    """
    keep = keep.unsqueeze(-1)
    probability = th.addcmul((1 - keep) * uniform, keep, one_hot(x, uniform.shape[-1]))
    return th.where(uniform > 0, th.log(probability.clamp_min(TINY)), LOG_ZERO)


def log_belief(uniform: th.Tensor, logits: th.Tensor) -> th.Tensor:
    """
    :param uniform: probabilities of the uniform law, (d, n)
    :param logits: any numbers, (..., d, n)
    :return: log-probabilities of a belief of ``x_0``, with no probability for categories that do not exist, (..., d, n)
    """
    return th.log_softmax(th.where(uniform > 0, logits, LOG_ZERO), dim=-1)


def posterior_kernel(
    uniform: th.Tensor, schedule: NoiseSchedule, belief: th.Tensor, x: th.Tensor, step: Step
) -> tuple[th.Tensor, th.Tensor]:
    """
    The policy's kernel: the exact reversal of the noising process for the belief that ``x_0`` has the law ``c``,

    ``q(x_{k-1} = j | x_k = l) ~ [(1 - beta_k) 1[j = l] + beta_k / n] [alpha_bar_{k-1} c_j + (1 - alpha_bar_{k-1}) / n]``,

    for each dimension. A belief that does not depend on ``(x_k, k)`` makes the chain end in the product of the ``c``, for any
    number of steps and with no gap in the bound. ``c = 1 / n`` is the reference kernel.

    :param uniform: probabilities of the uniform law, (d, n)
    :param schedule: noise schedule, of training or of inference
    :param belief: ``log c``, output of :func:`log_belief`, (..., B, d, n)
    :param x: ``x_k``, (..., B, d)
    :param step: ``k``, one for all or one for each row, (..., B)
    :return: ``log q`` and ``log r`` of each category of ``x_{k-1}``, each (..., B, d, n)
    """
    reference = noising_log_prob(uniform, 1 - at_step(schedule.beta, step), x)
    alpha_bar = at_step(schedule.alpha_bar, step - 1).unsqueeze(-1)
    # In logarithms, so that categories which a sharp belief excludes keep their gradient
    prior = th.log(1 - alpha_bar).clamp_min(LOG_ZERO) + th.log(uniform.clamp_min(TINY))
    kept = th.log(alpha_bar) + belief
    noised_belief = kept + F.softplus(prior - kept)  # th.logaddexp, which ONNX does not have
    return th.log_softmax(th.where(uniform > 0, reference + noised_belief, LOG_ZERO), dim=-1), reference


def category_log_prob(log_probs: th.Tensor, x: th.Tensor) -> th.Tensor:
    """
    :param log_probs: log-probabilities of all categories, (..., B, d, n)
    :param x: categories, (..., B, d)
    :return: log-probability of these, the sum over the dimensions, in nats, (..., B)
    """
    return log_probs.gather(-1, x.long().unsqueeze(-1)).squeeze(-1).sum(dim=-1)


def categorical_kl(log_q: th.Tensor, log_r: th.Tensor) -> th.Tensor:
    """
    Closed form of ``KL_k = KL(q(. | x_k, s) || r(. | x_k))``.

    :param log_q: log-probabilities of the policy's kernel, (..., d, n)
    :param log_r: log-probabilities of the reference kernel, (..., d, n)
    :return: KL in nats, (...)
    """
    return (th.exp(log_q) * (log_q - log_r)).sum(dim=(-2, -1))


def sample_categories(log_probs: th.Tensor, noise: th.Tensor | None, log_r: th.Tensor | None = None) -> th.Tensor:
    """
    :param log_probs: log-probabilities of all categories, (..., d, n)
    :param noise: uniform noise in [0, 1), (..., d), by which the inverse of the distribution function is taken; where it is
        negative, or None, the likeliest category, the first of several
    :param log_r: log-probabilities of the reference kernel, (..., d, n). With it the likeliest category is that of the belief,
        with which ``log q - log r`` grows: the kernel itself keeps to ``x_k`` in all but the surest cases
    :return: categories as float32, (..., d)
    """
    drawn = th.empty(0)
    if noise is not None:
        below = th.exp(log_probs).cumsum(dim=-1)
        drawn = (below / below[..., -1:] <= noise.unsqueeze(-1)).sum(dim=-1)
        # An exported file has to hold both
        if not (is_recorded() or bool((noise < 0).any())):
            return drawn.float()
    score = log_probs if log_r is None else th.where(log_r > LOG_ZERO / 2, log_probs - log_r, LOG_ZERO)
    likeliest = score.argmax(dim=-1)
    return (likeliest if noise is None else th.where(noise < 0, likeliest, drawn)).float()


def draw_uniform(schedule: NoiseSchedule, batch_size: int, action_dim: int, deterministic: bool = False) -> th.Tensor:
    """
    :param schedule: noise schedule
    :param batch_size: number of chains B
    :param action_dim: dimension d of the action
    :param deterministic: ``LIKELIEST`` everywhere, so that the chain starts at the first categories and follows the likeliest
    :return: the noises of a batch of chains, uniform in [0, 1), (K+1, B, d)
    """
    shape, device = (schedule.diffusion_steps + 1, batch_size, action_dim), schedule.beta.device
    return th.full(shape, LIKELIEST, device=device) if deterministic else th.rand(shape, device=device)


def denoise_categories(
    control_fn: ControlFn, schedule: NoiseSchedule, x: th.Tensor, noise: th.Tensor | None = None
) -> Iterator[tuple[th.Tensor, th.Tensor, th.Tensor]]:
    """
    The loop over the denoising steps, from ``k = K`` to 1.

    :param control_fn: control function
    :param schedule: noise schedule
    :param x: ``x_K``, (B, d)
    :param noise: uniform noises that make ``x_0 ..``, at least (K, B, d); None to take the likeliest categories
    :return: for each step ``x_{k-1}``, (B, d), and ``log q`` and ``log r``, each (B, d, n)
    """
    for step in range(schedule.diffusion_steps, 0, -1):
        log_q, log_r = control_fn(x, step)
        x = sample_categories(log_q, None if noise is None else noise[step - 1], log_r)
        yield x, log_q, log_r


def checked(x: th.Tensor, log_q: th.Tensor) -> th.Tensor:
    """
    :param x: ``x_0``, (B, d)
    :param log_q: log-probabilities that it was drawn with, (B, d, n)
    :return: the same, but NaN where they are: a comparison with NaN draws a category, too
    """
    return x + 0 * log_q[..., 0].detach()


def sample_categorical_chain(control_fn: ControlFn, schedule: NoiseSchedule, x: th.Tensor, noise: th.Tensor) -> Chain:
    """
    :param control_fn: control function
    :param schedule: noise schedule
    :param x: ``x_K``, (B, d)
    :param noise: uniform noises, (K+1, B, d)
    :return: the chains
    """
    latents, log_ratios = [x], []
    for latent, log_q, log_r in denoise_categories(control_fn, schedule, x, noise):
        latents.append(latent)
        log_ratios.append(category_log_prob(log_q - log_r, latent))
    latents[-1] = checked(latents[-1], log_q)
    return Chain(th.stack(latents[::-1]), noise, th.stack(log_ratios[::-1]))


def sample_categorical_path(control_fn: ControlFn, schedule: NoiseSchedule, x: th.Tensor, noise: th.Tensor) -> th.Tensor:
    """
    :param control_fn: control function
    :param schedule: noise schedule
    :param x: ``x_K``, (B, d)
    :param noise: uniform noises, (K+1, B, d)
    :return: ``x_0 .. x_K`` alone, (K+1, B, d)
    """
    steps = list(denoise_categories(control_fn, schedule, x, noise))
    x_0 = checked(*steps[-1][:2])
    return th.stack((x_0, *(latent for latent, _, _ in steps[-2::-1]), x))


def uniform_log_prob(uniform: th.Tensor) -> th.Tensor:
    """
    :param uniform: probabilities of the uniform law, (d, n)
    :return: ``-sum_i log n_i``, the log-probability of any state under the uniform law, a scalar
    """
    return th.log(uniform.amax(dim=-1)).sum()


def categorical_path_log_ratio(uniform: th.Tensor, chain: Chain) -> th.Tensor:
    """
    ``L = -sum_i log n_i + sum_k [log q(x_{k-1} | x_k, s) - log r(x_{k-1} | x_k)]``. By the data-processing inequality its mean
    is at least the mean log-probability of ``x_0`` (DMERL, arXiv 2512.02019).

    :param uniform: probabilities of the uniform law, (d, n)
    :param chain: chains
    :return: log-ratio of each path in nats, (B,)
    """
    return uniform_log_prob(uniform) + chain.log_ratio.sum(dim=0)


def categorical_path_log_ratio_noising(
    control_fn: ControlFn, uniform: th.Tensor, schedule: NoiseSchedule, x: th.Tensor
) -> th.Tensor:
    """
    The same number as :func:`categorical_path_log_ratio`, for any path and from the noising kernels:
    ``L = log p(x_K) + sum_k [log q(x_{k-1} | x_k, s) - log pi(x_k | x_{k-1})]``.

    :param control_fn: control function
    :param uniform: probabilities of the uniform law, (d, n)
    :param schedule: noise schedule
    :param x: paths, ``x[k]`` being ``x_k``, (K+1, B, d)
    :return: log-ratio of each path in nats, (B,)
    """
    log_ratio = uniform_log_prob(uniform).expand(x.shape[1])
    for step in range(schedule.diffusion_steps, 0, -1):
        noising = noising_log_prob(uniform, 1 - schedule.beta[step], x[step - 1])
        log_ratio = log_ratio + category_log_prob(control_fn(x[step], step)[0], x[step - 1])
        log_ratio = log_ratio - category_log_prob(noising, x[step])
    return log_ratio


def all_states(counts: list[int]) -> th.Tensor:
    """
    :param counts: number of categories of each dimension, d of them
    :return: all S = prod n_i states, (S, d), float32
    """
    return th.cartesian_prod(*(th.arange(n) for n in counts)).reshape(-1, len(counts)).float()


def exact_marginals(control_fn: ControlFn, schedule: NoiseSchedule, states: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    The laws of the latent actions by summation over all states. Takes time and memory that grow with the square of their
    number.

    :param control_fn: control function of one observation, which takes (S, d)
    :param schedule: noise schedule
    :param states: output of :func:`all_states`, (S, d)
    :return: log-probabilities of the states under ``x_0 .. x_K``, (K+1, S), and the mean of ``L``,
        :func:`categorical_path_log_ratio`, over all paths, a scalar; ``E[L] - E[log q(x_0)]`` is the gap of the bound
    """
    log_marginals = [states.new_full((len(states),), -th.log(th.tensor(float(len(states)))).item())]
    mean = log_marginals[0][0]
    for step in range(schedule.diffusion_steps, 0, -1):
        log_q, log_r = control_fn(states, step)
        # All states at all states, (S, S): to the second index from the first
        log_kernel = category_log_prob(log_q[:, None].expand(-1, len(states), -1, -1), states.expand(len(states), -1, -1))
        mean = mean + (th.exp(log_marginals[-1]) * categorical_kl(log_q, log_r)).sum()
        log_marginals.append(th.logsumexp(log_marginals[-1][:, None] + log_kernel, dim=0))
    return th.stack(log_marginals[::-1]), mean
