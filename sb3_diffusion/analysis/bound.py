"""
How tight is the bound? Chains whose exact marginal density quadrature gives, in one or two dimensions, fitted to a target with
several peaks (DMERL, arXiv 2512.02019: the gap between the KL of the paths and that of their ends).
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch as th

from sb3_diffusion.analysis.fitting import FittedChain
from sb3_diffusion.common.chain import (
    ControlFn,
    denoising_kernel,
    draw_noise,
    gaussian_log_prob,
    kernel_log_prob,
    path_log_ratio,
    sample_chain,
)
from sb3_diffusion.common.checks import check_choice
from sb3_diffusion.common.losses import forward_kl_loss, importance_weights
from sb3_diffusion.common.noise_schedule import NoiseSchedule

LogProbFn = Callable[[th.Tensor], th.Tensor]

PEAK, PEAK_STD = 1.2, 0.25


def peaks_log_prob(x: th.Tensor) -> th.Tensor:
    """
    Log-density of Gaussians of standard deviation 0.25 around all corners of ``{-1.2, 1.2}^d``, with equal weights.

    :param x: where, (..., d)
    :return: log-density in nats, (...)
    """
    sides = [(-0.5 * ((x - side) / PEAK_STD) ** 2) for side in (-PEAK, PEAK)]
    constant = math.log(2 * PEAK_STD * math.sqrt(2 * math.pi))
    return (th.logaddexp(*sides) - constant).sum(dim=-1)


def make_grid(dim: int, n_points: int | None = None, limit: float = 6.0) -> th.Tensor:
    """
    :param dim: dimension d, 1 or 2
    :param n_points: points along each axis G; 2,401 in one dimension and 161 in two if None
    :param limit: the grid reaches from minus to plus this
    :return: points with equal spacing, (G^d, d), float64
    :raises ValueError: for another dimension
    """
    if dim not in (1, 2):
        raise ValueError(f"dim={dim!r}: quadrature is for one or two dimensions")
    axis = th.linspace(-limit, limit, n_points or {1: 2401, 2: 161}[dim], dtype=th.float64)
    return th.cartesian_prod(*[axis] * dim).reshape(-1, dim)


def cell_volume(grid: th.Tensor) -> float:
    """
    :param grid: output of :func:`make_grid`
    :return: weight of each point in an integral
    """
    return (grid[1] - grid[0]).norm().item() ** grid.shape[1]


def exact_marginal(control_fn: ControlFn, schedule: NoiseSchedule, grid: th.Tensor) -> th.Tensor:
    """
    Density of ``x_0`` by quadrature: that of each latent is the integral of the kernel over the one before.

    :param control_fn: control function, in the grid's precision or the schedule's
    :param schedule: noise schedule
    :param grid: output of :func:`make_grid`, (G, d)
    :return: density on the grid, (G,)
    :raises ValueError: if the grid is too small for the chain, or too coarse for its narrowest kernel, so that the density
        does not sum up to 1
    """
    volume, dtype = cell_volume(grid), schedule.beta.dtype
    density = th.exp(gaussian_log_prob(grid, 0.0, schedule.prior_std))
    for step in range(schedule.diffusion_steps, 0, -1):
        x = grid.to(dtype)
        u, log_std_ratio = control_fn(x, step)
        mean, std = (part.expand_as(grid).to(grid.dtype) for part in denoising_kernel(schedule, u, log_std_ratio, x, step))
        # Row by row of the earlier latent, so that memory stays bounded
        result = th.zeros_like(density)
        for chunk in th.arange(len(grid)).split(max(1, 4_000_000 // len(grid))):
            kernel = th.exp(gaussian_log_prob(grid[None], mean[chunk, None], std[chunk, None]))  # (from, to)
            result += density[chunk] @ kernel * volume
        density = result
    mass = density.sum().item() * volume
    if abs(mass - 1) > 0.01:
        raise ValueError(
            f"The density sums up to {mass:.3f}: the grid of {len(grid)} points up to {grid[-1, 0]:.3g} is too small for this "
            "chain, or too coarse for its last steps. Take fewer steps, a smaller prior_std, or more points"
        )
    return density


def _path_space_loss(
    control_fn: ControlFn,
    schedule: NoiseSchedule,
    noise: th.Tensor,
    temperature: float,
    divergence: str,
    log_prob: LogProbFn,
) -> th.Tensor:
    """
    :param control_fn: control function, with gradients
    :param schedule: noise schedule
    :param noise: standard normal noises of B chains, (K+1, B, d)
    :param temperature: weight of the entropy
    :param divergence: ``"reverse"`` or ``"forward"``, as DiffSAC has them
    :param log_prob: log-density of the target, (B, d) -> (B,)
    :return: loss, a scalar, whose gradient is that of the divergence between the chain and the one that ends in the target,
        divided by the temperature
    """
    if divergence == "reverse":
        chain = sample_chain(control_fn, schedule, noise)
        return (temperature * path_log_ratio(schedule, chain) - log_prob(chain.x[0])).mean()
    with th.no_grad():
        chain = sample_chain(control_fn, schedule, noise)
        alpha, x_0 = th.tensor(temperature), chain.x[0]
        value = log_prob(x_0) - alpha * gaussian_log_prob(x_0, 0.0, schedule.prior_std)
        weights = importance_weights(chain, value, alpha, len(value))
    chain_steps = chain.take(schedule.all_steps())
    step_log_prob = kernel_log_prob(
        schedule, *control_fn(chain_steps.x, chain_steps.steps), chain_steps.x, chain_steps.x_prev, chain_steps.steps
    )
    return forward_kl_loss(step_log_prob, weights, len(weights), schedule.diffusion_steps)


def fit_control(
    schedule: NoiseSchedule,
    dim: int = 1,
    divergence: str = "forward",
    anneal: bool = True,
    n_updates: int = 3000,
    batch_size: int = 512,
    learning_rate: float = 3e-3,
    seed: int = 0,
    kernel: str = "reference",
    log_prob: LogProbFn = peaks_log_prob,
) -> ControlFn:
    """
    Fit a chain to a target.

    :param schedule: noise schedule
    :param dim: dimension d
    :param divergence: divergence to descend, see :func:`_path_space_loss`
    :param anneal: let the temperature fall from 10 to 1 over the first half, so that every peak is kept; else it is 1
    :param n_updates: number of gradient steps
    :param batch_size: chains of a gradient step
    :param learning_rate: of Adam, at first; it falls to 0 over the second half
    :param seed: seed
    :param kernel: ``"reference"`` or ``"posterior"``, see :class:`.ControlNetwork`
    :param log_prob: log-density of the target, (B, d) -> (B,)
    :return: control function
    :raises ValueError: for an unknown divergence
    """
    check_choice("divergence", divergence, ("forward", "reverse"))
    th.manual_seed(seed)
    model = FittedChain(schedule, dim, kernel=kernel)
    optimizer = th.optim.Adam(model.parameters(), lr=learning_rate)
    control_fn = model.control_without_context()
    for update in range(n_updates):
        progress = update / n_updates
        optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, 2 * (1 - progress))
        temperature = max(10.0 ** (1 - 2 * progress), 1.0) if anneal else 1.0
        noise = draw_noise(schedule, batch_size, dim)
        optimizer.zero_grad()
        _path_space_loss(control_fn, schedule, noise, temperature, divergence, log_prob).backward()
        optimizer.step()
    return control_fn


def measure_gap(
    control_fn: ControlFn,
    schedule: NoiseSchedule,
    dim: int = 1,
    n_chains: int = 100_000,
    n_points: int | None = None,
    log_prob: LogProbFn = peaks_log_prob,
) -> dict[str, float]:
    """
    :param control_fn: control function
    :param schedule: noise schedule
    :param dim: dimension d
    :param n_chains: chains from which the KL of the paths is estimated
    :param n_points: points of the quadrature along each axis, see :func:`make_grid`
    :param log_prob: log-density of the target, (B, d) -> (B,)
    :return: in nats ``path_kl``, its ``standard_error``, the exact ``marginal_kl`` of ``x_0`` and their ``gap``; the exact
        ``entropy`` of ``x_0``; ``share_right``, the probability of ``x_0 > 0`` along the first axis; ``least_peak``, the least
        probability of being within three standard deviations of a peak along each axis, at most ``0.997^d / 2^d`` if even
    :raises ValueError: see :func:`make_grid` and :func:`exact_marginal`
    """
    grid = make_grid(dim, n_points, max(6.0, 5 * schedule.prior_std))
    with th.no_grad():
        chain = sample_chain(control_fn, schedule, draw_noise(schedule, n_chains, dim))
        path_kl = (path_log_ratio(schedule, chain) - log_prob(chain.x[0])).double()
        density = exact_marginal(control_fn, schedule, grid)
    corners = th.cartesian_prod(*[th.tensor([-PEAK, PEAK], dtype=grid.dtype)] * dim).reshape(-1, 1, dim)
    at_peaks = ((grid - corners).abs() < 3 * PEAK_STD).all(dim=-1)  # (2^d, G)
    volume, log_density = cell_volume(grid), th.log(density.clamp(min=1e-300))
    marginal_kl = (density * (log_density - log_prob(grid))).sum().item() * volume
    return {
        "path_kl": path_kl.mean().item(),
        "standard_error": path_kl.std().item() / math.sqrt(n_chains),
        "marginal_kl": marginal_kl,
        "gap": path_kl.mean().item() - marginal_kl,
        "entropy": -(density * log_density).sum().item() * volume,
        "share_right": density[grid[:, 0] > 0].sum().item() * volume,
        "least_peak": min(density[at_peak].sum().item() for at_peak in at_peaks) * volume,
    }


def bound_gap(
    diffusion_steps: Iterable[int] = (1, 2, 5, 10, 20),
    noise_schedules: Iterable[str] = ("cosine",),
    dim: int = 1,
    prior_std: float = 1.0,
    **fit_kwargs: Any,
) -> list[dict[str, Any]]:
    """
    Fit chains to :func:`peaks_log_prob` and measure the gap of the bound on their entropy.

    :param diffusion_steps: numbers of denoising steps K
    :param noise_schedules: names of noise schedules
    :param dim: dimension d, 1 or 2
    :param prior_std: standard deviation of the prior
    :param fit_kwargs: arguments of :func:`fit_control`
    :return: for each schedule and K a row with the output of :func:`measure_gap`
    :raises ValueError: for another dimension, an unknown schedule or number of steps, or see :func:`measure_gap`
    """
    make_grid(dim)  # Errors must show before the first fit
    steps = list(diffusion_steps)
    schedules = {(name, k): NoiseSchedule(k, name, prior_std) for name in noise_schedules for k in steps}
    return [
        {
            "noise_schedule": name,
            "diffusion_steps": k,
            **measure_gap(fit_control(schedule, dim, **fit_kwargs), schedule, dim),
        }
        for (name, k), schedule in schedules.items()
    ]


def plot_bound_gap(rows: list[dict[str, Any]], path: str | Path) -> None:
    """
    The KLs, on a logarithmic scale, their gap, and the share of the right side against K.

    :param rows: rows of :func:`bound_gap`, with a key ``fit`` where several fits are to be told apart
    :param path: where the picture goes
    """
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.4))
    for ax, key in zip(axes, ("path_kl", "marginal_kl", "gap", "share_right"), strict=True):
        for name in dict.fromkeys((row.get("fit", ""), row["noise_schedule"]) for row in rows):
            of_name = [row for row in rows if (row.get("fit", ""), row["noise_schedule"]) == name]
            label = ", ".join(filter(None, name))
            ax.plot([row["diffusion_steps"] for row in of_name], [row[key] for row in of_name], "o-", label=label)
        steps = sorted({row["diffusion_steps"] for row in rows})
        ax.set(xlabel="denoising steps K", title=key.replace("_", " "), xscale="log", xticks=steps, xticklabels=steps)
        if key in ("path_kl", "marginal_kl"):
            ax.set(yscale="log")
        ax.xaxis.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].set(ylabel="nats")
    axes[-1].set(ylim=(0, 1))
    axes[0].legend()
    figure.tight_layout()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
