import math

import pytest
import torch as th

from sb3_diffusion.common.noise_schedule import MIN_BETA, NOISE_SCHEDULES, NoiseSchedule
from sb3_diffusion.common.score_network import KERNELS

SCHEDULES = list(NOISE_SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n_steps", [1, 2, 5, 64, 1000])
def test_schedule_is_variance_preserving(name, n_steps):
    schedule = NoiseSchedule(n_steps, name, prior_std=2.0)
    assert schedule.beta.shape == (n_steps + 1,)
    assert schedule.beta[0] == 0 and schedule.alpha_bar[0] == 1
    assert (schedule.beta[1:] >= MIN_BETA * 0.999).all() and (schedule.beta <= 1).all()
    # A latent action of the prior's variance keeps it at every step
    th.testing.assert_close(schedule.mean_coef**2 * 4.0 + schedule.std**2, th.full((n_steps + 1,), 4.0))
    th.testing.assert_close(schedule.alpha_bar, th.cumprod(1 - schedule.beta, dim=0), atol=1e-6, rtol=1e-4)
    # Almost nothing of the action is left in x_K
    assert schedule.alpha_bar[-1] < 1e-4


def test_cosine_schedule_by_hand():
    # f(t) = cos^2((t + 0.008) / 1.008 * pi / 2), alpha_bar_1 = f(1/2) / f(0) for K = 2
    f = [math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0.0, 0.5)]
    schedule = NoiseSchedule(2, "cosine")
    assert schedule.beta[1].item() == pytest.approx(1 - f[1] / f[0], rel=1e-6)
    assert schedule.beta[2].item() == 1.0
    assert schedule.visibility.tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("name", ["linear", "constant"])
def test_total_noise_does_not_depend_on_the_number_of_steps(name):
    # The exponent is the integral of the rate 0.1 + 19.9 t over the unit interval
    for n_steps in (1, 3, 20):
        assert NoiseSchedule(n_steps, name).alpha_bar[-1].item() == pytest.approx(math.exp(-10.05), rel=1e-2)


def test_places_that_saved_weights_know():
    assert tuple(NOISE_SCHEDULES)[:3] == ("cosine", "linear", "constant")
    assert KERNELS[:2] == ("reference", "posterior")


def test_tables_are_not_persistent():
    assert list(NoiseSchedule(5).state_dict()) == ["trained_settings", "trained_values"]


def test_respaced_schedule():
    schedule = NoiseSchedule(6, "linear")
    same = schedule.respaced(6)
    for name in ("steps", "beta", "alpha_bar", "std", "control_scale"):
        th.testing.assert_close(getattr(same, name), getattr(schedule, name), atol=1e-6, rtol=1e-5)
    fewer = schedule.respaced(3)
    assert fewer.steps.tolist() == [0, 2, 4, 6]
    th.testing.assert_close(fewer.alpha_bar, schedule.alpha_bar[[0, 2, 4, 6]])
    # Two steps with a constant prediction of x_0 move the mean as far as one respaced step with the same prediction:
    # x_0 = sqrt(ab_k) x_k + nu u (1 - ab_k) / sqrt(ab_{k-1} - ab_k)
    ab, x, u = schedule.alpha_bar.double(), 0.3, 0.7
    predicted = ab[4].sqrt() * x + u * (1 - ab[4]) / (ab[3] - ab[4]).sqrt()
    posterior = ((ab[2] - ab[4]) / ab[2].sqrt() * predicted + (ab[4] / ab[2]).sqrt() * (1 - ab[2]) * x) / (1 - ab[4])
    moved = fewer.mean_coef[2] * x + fewer.std[2] * fewer.control_scale[2] * u
    assert moved.item() == pytest.approx(posterior.item(), rel=1e-4)


@pytest.mark.parametrize(
    "kwargs, match",
    [
        (dict(diffusion_steps=0), "diffusion_steps=0"),
        (dict(diffusion_steps=-3), "at least 1"),
        (dict(diffusion_steps=2.5), "integer"),
        (dict(diffusion_steps=True), "integer"),
        (dict(diffusion_steps="5"), "integer"),
        (dict(diffusion_steps=float("nan")), "integer"),
        (dict(diffusion_steps=5, name="quadratic"), "'cosine', 'linear', 'constant'"),
        (dict(diffusion_steps=5, prior_std=0.0), "prior_std=0.0"),
        (dict(diffusion_steps=5, prior_std=-1.0), "positive"),
        (dict(diffusion_steps=5, prior_std=float("nan")), "finite"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        NoiseSchedule(**kwargs)


@pytest.mark.parametrize("n_steps", [0, 7])
def test_respaced_out_of_range(n_steps):
    with pytest.raises(ValueError, match=f"inference_steps={n_steps}"):
        NoiseSchedule(6).respaced(n_steps)
