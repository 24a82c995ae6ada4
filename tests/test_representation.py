"""Chains fitted to known targets."""

import math

import pytest
import torch as th

from sb3_diffusion.analysis.representation import ESTIMATORS, TARGETS, fit_representation, make_target, representation


@pytest.mark.parametrize("name", TARGETS)
def test_targets_are_densities(name):
    """By quadrature in one dimension."""
    log_prob, one_gaussian, dim = make_target(name)
    assert one_gaussian >= 0
    if dim == 1:
        x = th.linspace(-5, 5, 4001)[:, None]
        for context in range(4):
            mass = th.exp(log_prob(th.full((len(x),), context), x)).sum().item() * 10 / 4000
            assert mass == pytest.approx(1, abs=1e-3)


def test_best_gaussian_of_the_correlated_target():
    """Independent dimensions with the inverses of the precision's diagonal for variances: KL by samples."""
    log_prob, one_gaussian, dim = make_target("correlated")
    center = th.zeros(1, dim)
    contexts = th.zeros(1, dtype=th.long)
    mode = center.clone().requires_grad_()
    precision = -th.autograd.functional.hessian(lambda x: log_prob(contexts, x[None]).sum(), mode[0])
    std = precision.diagonal() ** -0.5
    mean = th.linalg.solve(precision, precision @ center[0] + th.autograd.grad(log_prob(contexts, mode).sum(), mode)[0][0])
    x = mean + std * th.randn(20_000, dim, generator=th.Generator().manual_seed(0))
    policy = th.distributions.Normal(mean, std).log_prob(x).sum(dim=-1)
    kl = policy - log_prob(contexts.expand(len(x)), x)
    assert kl.mean().item() == pytest.approx(one_gaussian, abs=0.2)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_few_updates_come_nearer(estimator):
    few, more = (fit_representation("narrow", 3, "posterior", estimator, n_updates) for n_updates in (1, 150))
    assert more["path_kl"] < 0.5 * few["path_kl"]
    assert more["one_gaussian"] == 0.0


def test_rows():
    rows = list(representation(["two_peaks_1d"], ["reference", "posterior"], ["adjoint"], [1, 2], n_updates=2))
    assert [row["kernel"] for row in rows] == ["reference", "posterior"]
    assert set(rows[0]) == {"target", "kernel", "estimator", "K = 1", "K = 2", "one Gaussian"}
    assert rows[0]["one Gaussian"] == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(target="wide"), "target='wide': choose one of"),
        (dict(estimator="score"), "estimator='score': choose one of"),
        (dict(kernel="none"), "kernel='none': choose one of"),
        (dict(n_updates=0), "n_updates=0: choose 1 or more"),
    ],
)
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        fit_representation(**{"target": "narrow", "diffusion_steps": 2, **kwargs})
