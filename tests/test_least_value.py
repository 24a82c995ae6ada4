"""The least of several critics' values, and its gradient, against automatic differentiation."""

import pytest
import torch as th
from torch import nn

from sb3_diffusion import DiffCrossQ, DiffSAC, DiffTQC
from sb3_diffusion.common.batch_renorm import NativeBatchRenorm1d
from sb3_diffusion.diffsac import critics
from sb3_diffusion.diffsac.least_value import least_value, linear_layers


def make_network(widths, renorm=False, activation_fn=nn.ReLU, bias=True):
    layers = []
    for n_inputs, n_outputs in zip([5, *widths], [*widths, 1], strict=True):
        if renorm:
            layer = NativeBatchRenorm1d(n_inputs)
            with th.no_grad():
                for values in (layer.ra_mean, layer.ra_var, layer.scale, layer.bias):
                    values.uniform_(0.5, 1.5)
            layers.append(layer.eval())
        layers += [nn.Linear(n_inputs, n_outputs, bias=bias), activation_fn()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("kwargs", [{}, dict(renorm=True), dict(bias=False)], ids=["plain", "renorm", "no bias"])
@pytest.mark.parametrize("widths", [[], [8], [8, 6]], ids=str)
@pytest.mark.parametrize("n_critics", [1, 2, 3])
def test_value_and_gradient(n_critics, widths, kwargs):
    th.manual_seed(0)
    networks = [make_network(widths, **kwargs) for _ in range(n_critics)]
    features, actions = th.randn(20, 3), th.randn(20, 2, requires_grad=True)
    weights = th.rand(20)
    expected = th.cat([network(th.cat((features, actions), dim=1)) for network in networks], dim=1).min(dim=1).values
    (expected_gradient,) = th.autograd.grad((weights * expected).sum(), actions)
    value = least_value(actions, features, [linear_layers(network) for network in networks])
    (gradient,) = th.autograd.grad((weights * value).sum(), actions)
    th.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    th.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


def test_networks_that_do_anything_else_are_not_taken():
    hooked, untrained = make_network([8]), make_network([8], renorm=True)
    hooked[0].register_forward_hook(lambda *_: None)
    untrained.train()
    others = [make_network([8], activation_fn=nn.Tanh), nn.Sequential(nn.ReLU(), nn.Linear(5, 1)), nn.Linear(5, 1)]
    for network in (hooked, untrained, *others):
        assert linear_layers(network) is None


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffCrossQ, DiffTQC])
def test_training_is_the_same(algorithm, monkeypatch):
    """DiffTQC's actor ascends a mean, and does not use it."""

    def train():
        kwargs = dict(learning_starts=10, batch_size=16, buffer_size=100, policy_kwargs=dict(net_arch=[16]), seed=0)
        model = algorithm("MlpPolicy", "Pendulum-v1", device="cpu", **kwargs).learn(30)
        return th.cat([param.detach().flatten() for param in model.actor.parameters()])

    calls = []
    monkeypatch.setattr(critics, "least_value", lambda *args: calls.append(1) or least_value(*args))
    fast = train()
    assert bool(calls) == (algorithm is not DiffTQC)
    monkeypatch.setattr(critics, "linear_layers", lambda network: None)
    th.testing.assert_close(fast, train(), rtol=1e-3, atol=1e-5)
