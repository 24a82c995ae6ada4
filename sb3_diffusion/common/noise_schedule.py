"""Noise schedules: how much noise each step of the chain adds, and what follows from it."""

import math
from collections.abc import Callable

import torch as th
from torch import nn

from sb3_diffusion.common.carried_settings import STEPS, carry_settings, copy_settings
from sb3_diffusion.common.checks import check_choice, check_integer, check_positive

# The last kernel must keep some width, or its density and KL would be infinite
MIN_BETA = 1e-4

# Far beyond use, and small enough that a schedule is built at once
MAX_DIFFUSION_STEPS = 10_000

# Rates of the variance-preserving SDE (Song et al., 2021, arXiv 2011.13456, appendix C), in noise per unit of chain time
BETA_MIN, BETA_MAX = 0.1, 20.0


def _cosine_betas(n_steps: int) -> th.Tensor:
    """
    Cosine schedule of Nichol & Dhariwal (2021, arXiv 2102.09672, equation 17), ending at ``alpha_bar_K = 0``.

    :param n_steps: number of denoising steps K
    :return: ``beta_1 .. beta_K``, shape (K,), float64; ``beta_K = 1``
    """
    offset = 0.008
    time = th.linspace(0, 1, n_steps + 1, dtype=th.float64)
    alpha_bar = th.cos((time + offset) / (1 + offset) * math.pi / 2) ** 2
    # cos(pi / 2) is not exactly zero in floating point
    alpha_bar[-1] = 0.0
    return 1 - alpha_bar[1:] / alpha_bar[:-1]


def _linear_betas(n_steps: int) -> th.Tensor:
    """
    Noise whose rate grows linearly in time, integrated exactly over each step, so that the total does not depend on K.

    :param n_steps: number of denoising steps K
    :return: ``beta_1 .. beta_K``, shape (K,), float64
    """
    time = th.linspace(0, 1, n_steps + 1, dtype=th.float64)
    total_rate = BETA_MIN * time + 0.5 * (BETA_MAX - BETA_MIN) * time**2
    return 1 - th.exp(total_rate[:-1] - total_rate[1:])


def _constant_betas(n_steps: int) -> th.Tensor:
    """
    The same noise at every step, with the same total as :func:`_linear_betas`.

    :param n_steps: number of denoising steps K
    :return: ``beta_1 .. beta_K``, shape (K,), float64
    """
    rate = 0.5 * (BETA_MIN + BETA_MAX)
    return th.full((n_steps,), 1 - math.exp(-rate / n_steps), dtype=th.float64)


# New ones at the end: saved weights know a schedule by its place
NOISE_SCHEDULES: dict[str, Callable[[int], th.Tensor]] = {
    "cosine": _cosine_betas,
    "linear": _linear_betas,
    "constant": _constant_betas,
}


class NoiseSchedule(nn.Module):
    """
    Noise of a chain ``x_K -> ... -> x_0``. Step ``k`` goes from ``x_k`` to ``x_{k-1}``, so index ``k`` of each buffer belongs
    to step ``k`` and index 0 is the end of the chain (``beta_0 = 0``, ``alpha_bar_0 = 1``).

    The tables are not persistent: they follow from the arguments, and must not be averaged or randomised with the weights.

    :param diffusion_steps: number of denoising steps K, at least 1
    :param name: ``"cosine"``, ``"linear"`` or ``"constant"``
    :param prior_std: standard deviation ``nu`` of the prior of ``x_K``
    :raises ValueError: for fewer than one step, an unknown name or a prior that is not positive and finite
    """

    steps: th.Tensor
    beta: th.Tensor
    mean_coef: th.Tensor
    std: th.Tensor
    alpha_bar: th.Tensor
    signal: th.Tensor
    noise_variance: th.Tensor
    belief_table: th.Tensor
    visibility: th.Tensor
    control_scale: th.Tensor

    def __init__(self, diffusion_steps: int, name: str = "cosine", prior_std: float = 1.0):
        super().__init__()
        check_integer("diffusion_steps", diffusion_steps, "the number of denoising steps")
        check_choice("noise_schedule", name, NOISE_SCHEDULES)
        check_positive("prior_std", prior_std, "the standard deviation of the prior")
        self.name = name
        self.prior_std = float(prior_std)
        choices = dict(diffusion_steps=(int(diffusion_steps), STEPS), noise_schedule=(name, tuple(NOISE_SCHEDULES)))
        carry_settings(self, choices, number=("prior_std", self.prior_std))
        beta = NOISE_SCHEDULES[name](diffusion_steps).clamp(MIN_BETA, 1.0)
        steps = th.arange(diffusion_steps + 1)
        self._register(steps, th.cat((th.zeros(1, dtype=th.float64), beta)), th.ones_like(steps, dtype=th.float64))

    def _register(self, steps: th.Tensor, beta: th.Tensor, control_scale: th.Tensor) -> None:
        """
        :param steps: index of each step among those the score network was trained for, (K+1,)
        :param beta: noise of each step, (K+1,), float64
        :param control_scale: factor of the score network's control, (K+1,), float64
        """
        self.register_buffer("steps", steps, persistent=False)
        # The same where a number is needed
        self.trained_steps: list[int] = steps.tolist()
        self.visible_steps = {step for step, value in enumerate(beta.tolist()) if value < 1}
        alpha_bar = th.cumprod(1 - beta, dim=0)
        for name, value in {
            "beta": beta,
            "mean_coef": th.sqrt(1 - beta),
            "std": th.sqrt(beta) * self.prior_std,
            "alpha_bar": alpha_bar,
            # Of x_k given x_0, in units of the prior's: the factor on x_0, and the variance
            "signal": th.sqrt(alpha_bar),
            "noise_variance": 1 - alpha_bar,
            "belief_table": self._belief_table(beta, alpha_bar),
            # A kernel with beta_k = 1 forgets x_k, and so does the best one: the score network need not see that noise
            "visibility": (beta < 1).double(),
            "control_scale": control_scale,
        }.items():
            self.register_buffer(name, value.float(), persistent=False)

    def _belief_table(self, beta: th.Tensor, alpha_bar: th.Tensor) -> th.Tensor:
        """
        :param beta: noise of each step, (K+1,)
        :param alpha_bar: share of ``x_0``'s variance that is left at each step, (K+1,)
        :return: coefficients of :func:`.chain.posterior_control` at each step, (5, K+1). With
            ``b_k = sqrt(beta_k alpha_bar_{k-1})`` these are offset and factor of ``P_k / b_k``, those of ``P_{k-1} / b_k``, as
            functions of ``sigma^2``, and ``sqrt(alpha_bar_k) / nu``. Step 0 does not exist, and has the numbers of step 1
        """
        now, before = alpha_bar[1:], alpha_bar[:-1]
        coef = th.sqrt(beta[1:] * before)
        table = th.stack(((1 - now) / coef, now / coef, (1 - before) / coef, before / coef, th.sqrt(now) / self.prior_std))
        return th.cat((table[:, :1], table), dim=1)

    @property
    def diffusion_steps(self) -> int:
        """Number of denoising steps K."""
        return len(self.beta) - 1

    def all_steps(self) -> th.Tensor:
        """
        :return: ``k = 1 .. K``, the same for each row of a batch, (K, 1)
        """
        return self.steps[1:, None]

    def respaced(self, n_steps: int) -> "NoiseSchedule":
        """
        A schedule of fewer steps through the same noise levels (Nichol & Dhariwal, 2021, section 4), for faster inference
        with a network trained on this one. The control is rescaled so that the implied prediction of ``x_0`` stays the same.

        :param n_steps: number of steps of the new schedule, from 1 to K
        :return: the new schedule
        :raises ValueError: if ``n_steps`` is out of range
        """
        check_integer("inference_steps", n_steps)
        if n_steps > self.diffusion_steps:
            raise ValueError(
                f"inference_steps={n_steps!r}: choose from 1 to {self.diffusion_steps}, the steps it was trained with"
            )
        kept = th.linspace(0, self.diffusion_steps, n_steps + 1, device=self.beta.device).round().long()
        alpha_bar = self.alpha_bar.double()[kept]
        beta = th.cat((alpha_bar.new_zeros(1), 1 - alpha_bar[1:] / alpha_bar[:-1]))
        trained = self.alpha_bar.double()
        one_step = trained[kept[1:] - 1] - trained[kept[1:]]
        control_scale = th.sqrt((alpha_bar[:-1] - alpha_bar[1:]) / one_step)
        schedule = NoiseSchedule(n_steps, self.name, self.prior_std)
        copy_settings(schedule, self)
        schedule._register(self.steps[kept], beta, th.cat((alpha_bar.new_ones(1), control_scale)))
        return schedule

    def refined(self, n_steps: int) -> "NoiseSchedule":
        """
        A schedule of more steps, for inference with a network that says what it believes of ``x_0``: at each step it is asked
        as at the step of training with the nearest noise level.

        :param n_steps: number of steps of the new schedule, at least K
        :return: the new schedule
        :raises ValueError: if ``n_steps`` is out of range
        """
        check_integer("inference_steps", n_steps, least=self.diffusion_steps)
        schedule = NoiseSchedule(n_steps, self.name, self.prior_std).to(self.beta.device)
        copy_settings(schedule, self)
        nearest = (schedule.alpha_bar[1:, None] - self.alpha_bar[1:]).abs().argmin(dim=1) + 1
        # The first step alone is blind to x_k, if it is in training
        nearest[:-1].clamp_(max=max(self.visible_steps - {0}, default=1))
        schedule.steps[1:] = nearest
        schedule.trained_steps = schedule.steps.tolist()
        return schedule
