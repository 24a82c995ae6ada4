import copy

import numpy as np
import pytest
import torch as th
from sb3_contrib import CrossQ
from sb3_contrib.common.torch_layers import BatchRenorm1d
from torch import nn

from sb3_diffusion.common.batch_renorm import (
    NativeBatchRenorm1d,
    fold_batch_renorm,
    set_batch_renorm_training,
    use_native_batch_renorm,
)

N_FEATURES = 5


def make_pair(**kwargs):
    """A layer of sb3-contrib's and the native one, with the same random parameters."""
    theirs, ours = BatchRenorm1d(N_FEATURES, **kwargs), NativeBatchRenorm1d(N_FEATURES, **kwargs)
    with th.no_grad():
        theirs.scale.uniform_(0.5, 2.0)
        theirs.bias.normal_()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def batches(n_batches):
    """Batches that drift, features from narrow to wide."""
    generator = th.Generator().manual_seed(0)
    scale = th.tensor([1e-3, 0.1, 1.0, 10.0, 100.0])
    for index in range(n_batches):
        yield th.randn(16, N_FEATURES, generator=generator) * scale * (1 + 0.1 * index) + 0.3 * index * scale


def output_and_gradients(layer, x, weights):
    x = x.clone().requires_grad_()
    output = layer(x)
    return output, *th.autograd.grad((output * weights).sum(), (x, layer.scale, layer.bias))


def assert_close(ours, theirs):
    for our, their in zip(ours, theirs, strict=True):
        # Of each feature by itself, since their scales differ
        assert ((our - their).abs() <= 2e-4 * their.abs().amax(dim=0) + 1e-6).all()


@pytest.mark.parametrize("warmup_steps", [-1, 3, 100])
def test_same_numbers_gradients_and_state(warmup_steps):
    theirs, ours = make_pair(warmup_steps=warmup_steps, momentum=0.1)
    for x in batches(10):
        weights = th.randn(x.shape)
        assert_close(output_and_gradients(ours, x, weights), output_and_gradients(theirs, x, weights))
        for name, value in theirs.state_dict().items():
            assert th.allclose(ours.state_dict()[name], value, rtol=1e-4, atol=1e-6), name
    for layer in (theirs, ours):
        layer.eval()
    assert_close(output_and_gradients(ours, x, weights), output_and_gradients(theirs, x, weights))
    assert ours.steps == theirs.steps == 10


def test_by_hand():
    """Two rows, -1 and 3: mean 1, unbiased variance 8."""
    layer = NativeBatchRenorm1d(1, eps=1.0, momentum=0.25)
    output = layer(th.tensor([[-1.0], [3.0]]))
    assert th.allclose(output, th.tensor([[-2.0], [2.0]]) / 3)
    assert layer.ra_mean.item() == pytest.approx(0.25)
    assert layer.ra_var.item() == pytest.approx(0.75 + 0.25 * 8)


def test_a_feature_that_does_not_vary_has_a_finite_gradient():
    """Such as a dead unit's. After the warm-up sb3-contrib's layer divides by its standard deviation."""
    x, weights = th.randn(8, N_FEATURES), th.randn(8, N_FEATURES)
    x[:, 0] = 0.7
    for warmup_steps in (-1, 100):
        _, ours = make_pair(warmup_steps=warmup_steps)
        assert all(th.isfinite(value).all() for value in output_and_gradients(ours, x, weights))


def test_three_dimensions_as_in_sb3_contrib():
    theirs, ours = make_pair()
    x = th.randn(4, 3, N_FEATURES)
    for layer in (theirs, ours):
        layer.eval()
    assert th.equal(ours(x), theirs(x))


def test_the_mode_of_batch_renormalisation_alone():
    network = nn.Sequential(BatchRenorm1d(3), nn.Dropout(), nn.BatchNorm1d(3), NativeBatchRenorm1d(3))
    set_batch_renorm_training(network, False)
    assert [layer.training for layer in network] == [False, True, True, False]
    set_batch_renorm_training(network, True)
    assert all(layer.training for layer in network)


def test_a_model_of_crossq():
    """The public recipe of the docs: the same training, to rounding, with the optimizer that the model has."""
    policy_kwargs = dict(net_arch=dict(pi=[8], qf=[8]))
    model = CrossQ("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, seed=0, learning_starts=20, batch_size=16)
    model.learn(25)
    native = copy.deepcopy(model.policy)
    before = {name: value.clone() for name, value in native.state_dict().items()}
    assert use_native_batch_renorm(native) is native
    layers = [module for module in native.modules() if isinstance(module, BatchRenorm1d)]
    assert layers and all(type(layer) is NativeBatchRenorm1d for layer in layers)
    assert all(th.equal(before[name], value) for name, value in native.state_dict().items())

    obs, actions = th.randn(16, 3), th.rand(16, 1)
    values = []
    for policy in (model.policy, native):
        policy.set_training_mode(True)
        for _ in range(3):
            policy.critic.optimizer.zero_grad()
            q_values = th.cat(policy.critic(obs, actions), dim=1)
            (q_values**2).mean().backward()
            policy.critic.optimizer.step()
        values.append(q_values.detach())
    assert np.allclose(*values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_folded_layers_are_the_same_function(bias):
    network = nn.Sequential(
        *(NativeBatchRenorm1d(N_FEATURES), nn.Linear(N_FEATURES, 7, bias=bias), nn.Tanh(), nn.Linear(7, 6)),
        *(NativeBatchRenorm1d(6), nn.LayerNorm(6), NativeBatchRenorm1d(6)),
    )
    for layer in network:
        if isinstance(layer, NativeBatchRenorm1d):
            for tensor in (layer.scale, layer.bias, layer.ra_mean):
                nn.init.normal_(tensor)
            layer.ra_var.uniform_(0.5, 2.0)
    network.eval()
    x = th.randn(8, N_FEATURES, requires_grad=True)
    expected, found = network(x), fold_batch_renorm(network)(x)
    assert th.allclose(expected, found, atol=1e-5)
    gradients = [th.autograd.grad((output**3).sum(), x)[0] for output in (expected, found)]
    assert th.allclose(*gradients, rtol=1e-3, atol=1e-3)


def test_layers_of_ones_own_are_not_folded():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    hooked = nn.Linear(N_FEATURES, 3)
    hooked.register_forward_hook(lambda module, args, output: output + 1)
    training = NativeBatchRenorm1d(N_FEATURES).train()
    x = th.randn(8, N_FEATURES)
    for layers in (
        (NativeBatchRenorm1d(N_FEATURES).eval(), Doubled(N_FEATURES, 3)),
        (NativeBatchRenorm1d(N_FEATURES).eval(), hooked),
    ):
        network = nn.Sequential(*layers)
        assert th.equal(fold_batch_renorm(network)(x), network(x))
    fold_batch_renorm(nn.Sequential(training, nn.Linear(N_FEATURES, 3)))(x)
    assert training.steps == 1


@pytest.mark.parametrize("act", [nn.Tanh(), nn.Linear(N_FEATURES, N_FEATURES)])
def test_a_layer_that_is_there_twice_acts_twice(act):
    renorm, linear = NativeBatchRenorm1d(N_FEATURES).eval(), nn.Linear(N_FEATURES, N_FEATURES)
    network, x = nn.Sequential(renorm, linear, act, linear, act), th.randn(8, N_FEATURES)
    assert th.allclose(fold_batch_renorm(network)(x), network(x), atol=1e-5)


def test_a_network_without_batch_renormalisation_is_left_alone():
    network = nn.Sequential(nn.Linear(N_FEATURES, 3), nn.ReLU())
    assert fold_batch_renorm(network) is network
