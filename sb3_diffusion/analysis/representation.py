"""Distance of a chain of K steps to known targets, by kernel and estimator of the actor's gradient."""

import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any

import numpy as np
import torch as th

from sb3_diffusion.analysis.fitting import FittedChain
from sb3_diffusion.common.chain import draw_noise, draw_steps, gaussian_log_prob, path_log_ratio
from sb3_diffusion.common.checks import check_choice
from sb3_diffusion.common.losses import lean_adjoint, mixed_adjoint, pathwise_loss, step_loss, value_and_gradient
from sb3_diffusion.common.noise_schedule import NoiseSchedule

# A function of which context each row is in, (B,), and of latent actions, (B, d), that gives log-densities, (B,)
ContextLogProbFn = Callable[[th.Tensor, th.Tensor], th.Tensor]

N_CONTEXTS, BATCH_SIZE, START_TEMPERATURE = 4, 256, 10.0
ESTIMATORS = ("pathwise", "adjoint", "mixed_adjoint")


def narrow(centers: th.Tensor) -> tuple[ContextLogProbFn, float]:
    """
    :param centers: center of each context, (N_CONTEXTS, d)
    :return: a Gaussian of standard deviation 0.1, and the path KL of the best Gaussian policy in nats
    """
    return lambda contexts, x: gaussian_log_prob(x, centers[contexts], 0.1), 0.0


def two_peaks(centers: th.Tensor) -> tuple[ContextLogProbFn, float]:
    """
    :param centers: center of one peak of each context, the other one being opposite, (N_CONTEXTS, d)
    :return: two Gaussians of standard deviation 0.2, and the path KL of one of them in nats
    """

    def log_prob(contexts: th.Tensor, x: th.Tensor) -> th.Tensor:
        sides = [gaussian_log_prob(x, sign * centers[contexts], 0.2) for sign in (1, -1)]
        return th.logaddexp(*sides) - math.log(2)

    return log_prob, math.log(2)


def correlated(centers: th.Tensor) -> tuple[ContextLogProbFn, float]:
    """
    :param centers: center of each context, (N_CONTEXTS, d)
    :return: a Gaussian whose covariance has eigenvalues from 1e-4 to 1 along random axes, and the path KL in nats of the best
        Gaussian of independent dimensions, which has the inverses of the precision's diagonal for variances
    """
    dim = centers.shape[1]
    axes, _ = th.linalg.qr(th.randn(dim, dim, generator=th.Generator().manual_seed(1)))
    eigenvalues = th.logspace(-4, 0, dim)
    to_axes = axes / eigenvalues.sqrt()
    log_det = eigenvalues.log().sum().item()
    diagonal = (to_axes**2).sum(dim=1).log().sum().item()

    def log_prob(contexts: th.Tensor, x: th.Tensor) -> th.Tensor:
        return gaussian_log_prob((x - centers[contexts]) @ to_axes, 0.0, 1.0) - 0.5 * log_det

    return log_prob, 0.5 * (log_det + diagonal)


TARGETS: dict[str, tuple[Callable[[th.Tensor], tuple[ContextLogProbFn, float]], int]] = {
    "narrow": (narrow, 6),
    "two_peaks": (two_peaks, 6),
    "two_peaks_1d": (two_peaks, 1),
    "correlated": (correlated, 6),
}


def make_target(name: str) -> tuple[ContextLogProbFn, float, int]:
    """
    :param name: key of ``TARGETS``
    :return: its log-density, the path KL in nats of the best Gaussian policy, and the dimension d
    """
    check_choice("target", name, TARGETS)
    make, dim = TARGETS[name]
    centers = 0.7 * th.randn(N_CONTEXTS, dim, generator=th.Generator().manual_seed(1))
    # In one dimension the peaks must not touch
    centers = centers if dim > 1 else th.linspace(0.5, 1.4, N_CONTEXTS)[:, None]
    return *make(centers), dim


def actor_loss(
    model: FittedChain, contexts: th.Tensor, log_prob: ContextLogProbFn, estimator: str, n_steps: int, ent_coef: th.Tensor
) -> th.Tensor:
    """
    DiffSAC's actor loss with a known value in the critics' place.

    :param model: chain
    :param contexts: which context, (B,)
    :param log_prob: log-density of the target, which stands for ``Q``
    :param estimator: one of ``ESTIMATORS``
    :param n_steps: denoising steps of each chain that the loss uses, drawn at random where K is greater
    :param ent_coef: temperature alpha
    :return: loss, a scalar
    """
    schedule, context = model.schedule, model.encode(contexts)

    def latent_value(x: th.Tensor) -> th.Tensor:
        return log_prob(contexts, x) - ent_coef * gaussian_log_prob(x, 0.0, schedule.prior_std)

    with th.set_grad_enabled(estimator == "pathwise"):
        chain = model.sample(context)
    _, gradient = value_and_gradient(latent_value, chain.x[0])
    if estimator == "pathwise":
        return pathwise_loss(chain, gradient, ent_coef)
    chain_steps = chain.take(draw_steps(schedule.diffusion_steps, n_steps, len(contexts), contexts.device))
    u, log_std_ratio = model.control_fn(context)(chain_steps.x, chain_steps.steps)
    if estimator == "adjoint":
        step_gradient = lean_adjoint(schedule, chain_steps.steps, gradient)
    else:
        step_gradient = mixed_adjoint(schedule, chain_steps, chain.x[0], log_std_ratio, gradient, ent_coef)
    return step_loss(schedule, u, log_std_ratio, chain_steps, step_gradient, ent_coef)


def fit_representation(
    target: str,
    diffusion_steps: int,
    kernel: str = "posterior",
    estimator: str = "mixed_adjoint",
    n_updates: int = 800,
    n_steps: int = 8,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Fit a chain to a known density in four contexts, at a temperature that falls from 10 to 1 over the first half.

    :param target: key of ``TARGETS``
    :param diffusion_steps: number of denoising steps K
    :param kernel: ``"reference"`` or ``"posterior"``
    :param estimator: one of ``ESTIMATORS``
    :param n_updates: number of gradient steps
    :param n_steps: denoising steps of each chain in a gradient step, not used by ``"pathwise"``
    :param learning_rate: of Adam; it falls linearly to 0 over the second half
    :param seed: seed
    :return: the settings, the ``path_kl`` to the target and that of ``one_gaussian``, the best Gaussian, in nats
    :raises ValueError: for an unknown target, kernel or estimator, or no updates
    """
    check_choice("estimator", estimator, ESTIMATORS)
    log_prob, one_gaussian, dim = make_target(target)
    if n_updates < 1:
        raise ValueError(f"n_updates={n_updates}: choose 1 or more")
    th.manual_seed(seed)
    schedule = NoiseSchedule(diffusion_steps)
    model = FittedChain(schedule, dim, N_CONTEXTS, kernel, encoder_arch=[64, 64], denoiser_arch=[64])
    optimizer = th.optim.Adam(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), fused=True)
    for update in range(n_updates):
        progress = update / n_updates
        temperature = th.tensor(max(START_TEMPERATURE ** (1 - 2 * progress), 1.0))
        optimizer.param_groups[0]["lr"] = learning_rate * min(2 * (1 - progress), 1.0)
        contexts = th.randint(N_CONTEXTS, (BATCH_SIZE,))
        optimizer.zero_grad()
        # Over the temperature, so that Adam's mean squared gradient does not lag behind what falls by a factor of ten
        (actor_loss(model, contexts, log_prob, estimator, n_steps, temperature) / temperature).backward()
        optimizer.step()
    with th.no_grad():
        contexts = th.arange(N_CONTEXTS).repeat_interleave(1000)
        chain = model.sample(model.encode(contexts), draw_noise(schedule, len(contexts), dim))
        path_kl = (path_log_ratio(schedule, chain) - log_prob(contexts, chain.x[0])).mean().item()
    settings = {"target": target, "kernel": kernel, "estimator": estimator, "diffusion_steps": diffusion_steps}
    return {**settings, "path_kl": path_kl, "one_gaussian": one_gaussian}


def _fit(settings: dict[str, Any]) -> dict[str, Any]:
    return fit_representation(**settings)


def representation(
    targets: Iterable[str] = tuple(TARGETS),
    kernels: Iterable[str] = ("reference", "posterior"),
    estimators: Iterable[str] = ESTIMATORS,
    diffusion_steps: Iterable[int] = (1, 2, 5, 10, 20, 40),
    n_jobs: int = 1,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """
    Every combination. At K = 1 both kernels and all estimators but ``"pathwise"`` are the same.

    :param targets: keys of ``TARGETS``
    :param kernels: ``"reference"``, ``"posterior"``
    :param estimators: some of ``ESTIMATORS``
    :param diffusion_steps: numbers of denoising steps K
    :param n_jobs: fits at a time, in processes of their own with one thread each; with 1 they run in this process
    :param settings: other arguments of :func:`fit_representation`
    :return: a row for each target, kernel and estimator, with the path KL of each K, as soon as all of them are there
    """
    steps = list(diffusion_steps)
    rows = list(product(targets, kernels, estimators))
    tasks = [
        dict(target=target, kernel=kernel, estimator=estimator, diffusion_steps=k, **settings)
        for target, kernel, estimator in rows
        for k in steps
    ]
    if n_jobs == 1:
        yield from _rows(map(_fit, tasks), len(steps))
        return
    with multiprocessing.get_context("spawn").Pool(n_jobs, th.set_num_threads, (1,)) as pool:
        yield from _rows(pool.imap(_fit, tasks), len(steps))


def _rows(fits: Iterable[dict[str, Any]], n_steps: int) -> Iterator[dict[str, Any]]:
    """
    :param fits: fits, those of one row after the other
    :param n_steps: how many there are to a row
    :return: rows
    """
    for of_row in zip(*[iter(fits)] * n_steps, strict=True):
        first = of_row[0]
        row: dict[str, Any] = {key: first[key] for key in ("target", "kernel", "estimator")}
        row |= {f"K = {fit['diffusion_steps']}": float(np.round(fit["path_kl"], 4)) for fit in of_row}
        yield {**row, "one Gaussian": first["one_gaussian"]}
