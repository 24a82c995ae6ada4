"""
Losses of the actor, as functions of chains that have already been sampled (DMERL, arXiv 2512.02019; see ``docs``).

``V_0(s, x_0)`` is the latent value, see :func:`latent_value`. The estimators of the reverse divergence's gradient descend the
gradient of ``alpha sum_k log(q_k / r_k) - V_0(s, x_0)`` in the mean, the path-space KL to the chain that ends in the Boltzmann
policy. The closed-form ``KL_k`` in place of the log-ratios would have the same mean gradient, but its noise would not
cancel that of ``V_0``'s prior term.
"""

import math
from collections.abc import Callable

import torch as th
from torch.nn import functional as F

from sb3_diffusion.common.chain import (
    Chain,
    ChainSteps,
    at_step,
    denoising_step,
    sample_increment,
    target_score_share,
    terminal_log_prob,
)
from sb3_diffusion.common.noise_schedule import NoiseSchedule

ValueFn = Callable[[th.Tensor], th.Tensor]


def value_and_gradient(value_fn: ValueFn, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    :param value_fn: a value of actions or latent actions, (..., d) -> (...)
    :param x: where, (..., d)
    :return: the value, (...), and its gradient with respect to ``x``, (..., d), both detached. The networks' weights get
        none
    """
    with th.enable_grad():
        x = x.detach().requires_grad_(True)
        value = value_fn(x)
        (gradient,) = th.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def soft_bellman_target(
    rewards: th.Tensor,
    dones: th.Tensor,
    discounts: th.Tensor | float,
    next_values: th.Tensor,
    next_log_prob: th.Tensor,
    ent_coef: th.Tensor,
) -> th.Tensor:
    """
    ``r + gamma (1 - done) [V(s', a') - alpha log pi(a'|s')]`` (SAC, arXiv 1812.05905, equations 2 and 3).

    :param rewards: rewards, (B, 1)
    :param dones: 1 where an episode has ended, else 0, (B, 1)
    :param discounts: discount of what follows, one for all or (B, 1)
    :param next_values: values of the next observations and actions, (B, M)
    :param next_log_prob: bound on the log-probability of these actions, (B,)
    :param ent_coef: temperature alpha
    :return: targets, (B, M)
    """
    return rewards + (1 - dones) * discounts * (next_values - ent_coef * next_log_prob.unsqueeze(1))


def squared_bellman_error(q_values: th.Tensor, target: th.Tensor) -> th.Tensor:
    """
    :param q_values: values of n critics, (B, n)
    :param target: their common target, (B, 1)
    :return: half of the mean squared error, summed over the critics, a scalar
    """
    return 0.5 * F.mse_loss(q_values, target.expand_as(q_values)) * q_values.shape[1]


def latent_value(q_value: th.Tensor, terminal_log_prob: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
    """
    ``V_0(s, x) = Q(s, tanh x) - alpha [log N(x; 0, nu^2) - sum log(1 - tanh^2 x)]``, of categories
    ``Q(s, x) + alpha sum_i log n_i``.

    :param q_value: the critics' value of the action of ``x_0``, (B,)
    :param terminal_log_prob: the term in brackets, see :meth:`.ChainProcess.terminal_log_prob`, (B,)
    :param ent_coef: temperature alpha
    :return: the latent value, (B,)
    """
    return q_value - ent_coef * terminal_log_prob


def latent_value_and_gradient(
    q_fn: ValueFn, schedule: NoiseSchedule, x: th.Tensor, ent_coef: th.Tensor
) -> tuple[th.Tensor, th.Tensor]:
    """
    :func:`latent_value` and its gradient.

    :param q_fn: the critics' value of an action, (B, d) -> (B,)
    :param schedule: noise schedule
    :param x: ``x_0``, (B, d)
    :param ent_coef: temperature alpha
    :return: the latent value, (B,), and its gradient with respect to ``x_0``, (B, d), both detached
    """
    x = x.detach()
    action = th.tanh(x)
    q_value, q_gradient = value_and_gradient(q_fn, action)
    # By hand, since automatic differentiation of the second term takes longer than all the rest but the critics
    prior_gradient = 2 * action - x / schedule.prior_std**2
    gradient = q_gradient * (1 - action**2) - ent_coef * prior_gradient
    return latent_value(q_value, terminal_log_prob(schedule, x), ent_coef), gradient


def pathwise_loss(chain: Chain, value_gradient: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
    """
    Back-propagation through the whole chain, as in DIME (arXiv 2502.02316): exact, in time and memory that grow with K.

    :param chain: chains sampled with gradients
    :param value_gradient: gradient of ``V_0(s, x_0)``, (B, d)
    :param ent_coef: temperature alpha
    :return: loss, a scalar
    """
    return (ent_coef * chain.log_ratio.sum(dim=0) - (value_gradient * chain.x[0]).sum(dim=-1)).mean()


def step_loss(
    schedule: NoiseSchedule,
    u: th.Tensor,
    log_std_ratio: th.Tensor,
    chain_steps: ChainSteps,
    value_gradient: th.Tensor,
    ent_coef: th.Tensor,
) -> th.Tensor:
    """
    ``sum_k [alpha log(q_k / r_k) - V_{k-1}(s, x_{k-1})]``, each step taken once more with gradients from its recorded
    ``x_k`` and with its recorded noise, so that gradients pass through one step and memory does not grow with K.

    :param schedule: noise schedule
    :param u: control at these steps, with gradients, (M, B, d)
    :param log_std_ratio: log-ratio of the standard deviations there, with gradients, (M, B, d)
    :param chain_steps: steps of chains that were sampled without gradients; the sum over all K is estimated from these
    :param value_gradient: gradient of ``V_{k-1}(s, x_{k-1})`` of these steps, (M, B, d)
    :param ent_coef: temperature alpha
    :return: loss, a scalar
    """
    x_prev, log_ratio = denoising_step(schedule, u, log_std_ratio, chain_steps.x, chain_steps.noise, chain_steps.steps)
    return (ent_coef * log_ratio - (value_gradient * x_prev).sum(dim=-1)).mean() * schedule.diffusion_steps


def importance_weights(chain: Chain, value: th.Tensor, ent_coef: th.Tensor, n_action_samples: int) -> th.Tensor:
    """
    Self-normalised importance weights ``softmax(V_0(s, x_0) / alpha - sum_k log(q_k / r_k))`` over the chains of one
    observation, for expectations over the chain that ends in the Boltzmann policy. At the optimum all are equal.

    :param chain: n chains of each observation, one after the other
    :param value: ``V_0(s, x_0)``, (n B,)
    :param ent_coef: temperature alpha
    :param n_action_samples: n
    :return: weights, which sum to 1 over the chains of an observation, (n B,)
    """
    log_weight = value / ent_coef - chain.log_ratio.sum(dim=0)
    return th.softmax(log_weight.reshape(n_action_samples, -1), dim=0).reshape(-1)


def effective_sample_size(weights: th.Tensor, n_action_samples: int) -> th.Tensor:
    """
    :param weights: output of :func:`importance_weights`, (n B,)
    :param n_action_samples: n
    :return: how many equally weighted chains the weighted ones of an observation are worth, from 1 to n, in the mean
    """
    return (1 / (weights.reshape(n_action_samples, -1) ** 2).sum(dim=0)).mean()


def forward_kl_loss(log_prob: th.Tensor, weights: th.Tensor, n_action_samples: int, diffusion_steps: int) -> th.Tensor:
    """
    ``-sum_i (w_i - 1/n) sum_k log q(x_{k-1} | x_k, s)`` over the n chains of each observation, whose gradient is that of the
    forward KL, from the chain that ends in the Boltzmann policy to the policy's. The mean weight ``1/n`` is a control variate:
    the score it multiplies has mean 0, and with it the gradient vanishes at the optimum, on every path.

    :param log_prob: ``log q(x_{k-1} | x_k, s)`` at these steps of chains that were sampled with the same weights of the
        network, with gradients, (M, n B); the sum over all K is estimated from these
    :param weights: output of :func:`importance_weights`, (n B,)
    :param n_action_samples: n
    :param diffusion_steps: number of denoising steps K
    :return: loss, a scalar. Only its gradient has a meaning
    """
    return -((n_action_samples * weights - 1) * log_prob).mean() * diffusion_steps


def wasserstein_loss(
    schedule: NoiseSchedule,
    u: th.Tensor,
    log_std_ratio: th.Tensor,
    chain_steps: ChainSteps,
    value_gradient: th.Tensor,
    ent_coef: th.Tensor,
    fisher_rescaling: bool = True,
) -> th.Tensor:
    """
    Wasserstein policy optimisation (WPO, arXiv 2505.00663) of each kernel: minus the gradient of this loss is that of
    ``sum_k grad_x log q(x | x_k, s) . grad_x [V_{k-1}(s, x) - alpha log(q / r)(x)]`` at the sampled ``x = x_{k-1}``, with
    the second factor held fixed. With the exact gradient of the values that factor vanishes at the optimum, on every path.

    The Fisher rescaling multiplies the gradient by the inverse of the Gaussian's Fisher matrix: the mean's by the
    variance, the standard deviation's by half of it. What is left of ``grad_x log q = -noise / std`` then has the gradient
    of ``x_{k-1}(noise)``, that is, of the reparameterised kernel.

    :param schedule: noise schedule
    :param u: control at these steps, with gradients, (M, B, d)
    :param log_std_ratio: log-ratio of the standard deviations there, with gradients, (M, B, d)
    :param chain_steps: steps of chains that were sampled with the same weights; the sum over all K is estimated from these
    :param value_gradient: gradient of ``V_{k-1}(s, x_{k-1})`` of these steps, (M, B, d)
    :param ent_coef: temperature alpha
    :param fisher_rescaling: whether to rescale; without, narrow kernels take the larger steps
    :return: loss, a scalar. Only its gradient has a meaning
    """
    # All in standard deviations of the reference kernel, where nothing is too narrow for float32
    unit = at_step(schedule.std, chain_steps.steps)
    std = th.exp(log_std_ratio)
    increment = sample_increment(u, log_std_ratio, chain_steps.noise)
    gradient = unit * value_gradient + ent_coef * (chain_steps.noise / std - increment).detach()
    direction = increment if fisher_rescaling else (u - increment.detach()) / (std * unit) ** 2
    return -(direction * gradient).sum(dim=-1).mean() * schedule.diffusion_steps


def trust_region_loss(kl: th.Tensor, kl_bound: th.Tensor, log_kl_coef: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Lagrangian of bounds on KLs, with a multiplier for each (MPO, arXiv 1806.06920; WPO, arXiv 2505.00663).

    :param kl: measured KLs in nats, with gradients, (N,)
    :param kl_bound: their bounds, (N,)
    :param log_kl_coef: logarithms of the multipliers, (N,)
    :return: the penalty to add to the actor's loss, and the multipliers' loss, both scalars
    """
    penalty = (th.exp(log_kl_coef.detach()) * kl).sum()
    return penalty, (log_kl_coef * (kl_bound - kl.detach())).sum()


def lean_adjoint(schedule: NoiseSchedule, steps: th.Tensor, value_gradient: th.Tensor) -> th.Tensor:
    """
    Lean adjoint (Adjoint Matching, arXiv 2409.08861; Adjoint Sampling, arXiv 2504.11713): the gradient at the chain's end
    carried back along the reference dynamics, which are linear. Stands for the gradient of ``V_{k-1}(s, x_{k-1})`` in
    :func:`step_loss`.

    At the optimum its conditional mean given ``x_{k-1}`` is that gradient, for any number of steps: there ``V_{k-1}`` is
    alpha times the log-ratio of the latent's density to the prior's, whose gradient is this mean by the target score
    identity (De Bortoli et al., 2024, arXiv 2402.08667) and Tweedie's formula. Elsewhere it neglects the curvature of the
    steps that follow.

    :param schedule: noise schedule
    :param steps: steps ``k``, (M, B)
    :param value_gradient: gradient of ``V_0(s, x_0)``, (B, d)
    :return: ``sqrt(alpha_bar_{k-1})`` times the gradient, (M, B, d)
    """
    return at_step(schedule.signal, steps - 1) * value_gradient


def mixed_adjoint(
    schedule: NoiseSchedule,
    chain_steps: ChainSteps,
    x_0: th.Tensor,
    log_std_ratio: th.Tensor,
    value_gradient: th.Tensor,
    ent_coef: th.Tensor,
) -> th.Tensor:
    """
    Another stand-in for the gradient of ``V_{k-1}(s, x_{k-1})`` in :func:`step_loss`, with less noise than the lean adjoint's
    where the policy is narrow. At the optimum that gradient is ``alpha [score of x_{k-1} + x_{k-1} / nu^2]``, and the score
    has two unbiased estimators from one chain: the target score identity, which is the lean adjoint, and the denoising score
    ``-(x_{k-1} - sqrt(alpha_bar) x_0) / ((1 - alpha_bar) nu^2)``. Mixed by ``sigma^2 / P_{k-1}`` their noises cancel for a
    Gaussian (De Bortoli et al., 2024, arXiv 2402.08667, mix the two for diffusion models).

    :param schedule: noise schedule
    :param chain_steps: steps of chains that were sampled with the current weights, (M, B)
    :param x_0: ends of these chains, (B, d)
    :param log_std_ratio: log-ratio of the standard deviations at these steps, (M, B, d)
    :param value_gradient: gradient of ``V_0(s, x_0)``, (B, d)
    :param ent_coef: temperature alpha
    :return: gradient of ``V_{k-1}(s, x_{k-1})``, (M, B, d)
    """
    previous = chain_steps.steps - 1
    share = target_score_share(schedule, log_std_ratio.detach(), chain_steps.steps)
    noised = chain_steps.x_prev - at_step(schedule.signal, previous) * x_0  # of variance (1 - alpha_bar) nu^2 at the optimum
    score = chain_steps.x_prev - noised / at_step(schedule.noise_variance, previous).clamp_min(1e-12)
    # At k = 1 the second estimator does not exist, and has no share
    score = th.where((previous == 0).unsqueeze(-1), 0.0, score) * (ent_coef / schedule.prior_std**2)
    return th.lerp(score, lean_adjoint(schedule, chain_steps.steps, value_gradient), share)


def returns_along_chain(log_ratio: th.Tensor, value: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
    """
    Soft returns from each step of a chain to its end, ``G_k = V_0(s, x_0) - alpha sum_{j <= k} log(q_j / r_j)``: targets
    of ``V_k(s, x_k)``.

    :param log_ratio: log-ratios of the steps, (K, B)
    :param value: ``V_0(s, x_0)``, (B,)
    :param ent_coef: temperature alpha
    :return: ``G_0 .. G_K``, (K+1, B)
    """
    return value - ent_coef * th.cat((th.zeros_like(log_ratio[:1]), log_ratio.cumsum(dim=0)))


def clipped_surrogate_loss(
    log_prob: th.Tensor, old_log_prob: th.Tensor, advantages: th.Tensor, clip_range: float | th.Tensor
) -> tuple[th.Tensor, dict[str, th.Tensor]]:
    """
    PPO's clipped surrogate (arXiv 1707.06347, equation 7) of one-step kernels.

    :param log_prob: log-density of each step under the current policy, (...)
    :param old_log_prob: the same under the policy of the rollout, (...)
    :param advantages: advantages, (...)
    :param clip_range: bound of the ratio's distance from 1, a number or one for each step, (...)
    :return: loss, a scalar, and entries of the log: the share of ratios beyond the range, and Schulman's estimate of the KL
        between the two policies
    """
    log_ratio = log_prob - old_log_prob
    ratio = th.exp(log_ratio)
    clipped = th.clamp(ratio, 1 - clip_range, 1 + clip_range)  # type: ignore[arg-type]
    loss = -th.min(advantages * ratio, advantages * clipped).mean()
    with th.no_grad():
        clip_fraction = ((ratio - 1).abs() > clip_range).float().mean()
        approx_kl = ((ratio - 1) - log_ratio).mean()
    return loss, {"train/clip_fraction": clip_fraction, "train/approx_kl": approx_kl}


def clipped_value_loss(
    values: th.Tensor, old_values: th.Tensor, returns: th.Tensor, clip_range: float | None = None
) -> th.Tensor:
    """
    :param values: predicted values, (...)
    :param old_values: the same at the time of the rollout, (...)
    :param returns: their targets, (...)
    :param clip_range: how far a value may move from the old one; no bound if None
    :return: mean squared error, a scalar
    """
    if clip_range is not None:
        values = old_values + th.clamp(values - old_values, -clip_range, clip_range)
    return F.mse_loss(returns, values)


def clip_range_by_step(clip_range: float, clip_range_first: float, diffusion_steps: int) -> th.Tensor:
    """
    A clip range that grows exponentially along the chain, from the first, noisiest step to the last (DPPO, arXiv 2409.00588,
    whose code has the rate 3).

    :param clip_range: clip range of the last step, k = 1
    :param clip_range_first: clip range of the first step, k = K
    :param diffusion_steps: number of denoising steps K
    :return: clip range of ``k = 1 .. K``, (K,)
    """
    rate = 3.0
    done = 1 - th.arange(diffusion_steps, dtype=th.float64) / max(diffusion_steps - 1, 1)
    growth = th.expm1(rate * done) / math.expm1(rate)
    return (clip_range_first + (clip_range - clip_range_first) * growth).float()
