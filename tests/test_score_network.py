import numpy as np
import pytest
import torch as th

from sb3_diffusion import DiffSAC
from sb3_diffusion.common.score_network import (
    CONTROL_MAX,
    LOG_STD_RATIO_MAX,
    LOG_STD_RATIO_MIN,
    ControlNetwork,
    DenoisingNetwork,
    time_features,
)


def test_time_features_tell_all_steps_apart():
    features = time_features(64)
    assert features.shape == (65, 16)
    assert th.pdist(features).min() > 1e-2


@pytest.mark.parametrize("encoder_arch, denoiser_arch", [([], [8]), ([16], [8, 8]), ([16, 16], [4])])
def test_one_step_for_all_equals_one_step_for_each_row(encoder_arch, denoiser_arch):
    network = DenoisingNetwork(3, 2, 1, 5, encoder_arch, denoiser_arch)
    features, x = th.randn(7, 3), th.randn(7, 2)
    context = network.encode(features)
    single = network(context, x, 4)
    assert single.shape == (7, 1)
    th.testing.assert_close(network(context, x, th.full((7,), 4)), single)
    stacked = network(context, x.expand(3, 7, 2), th.tensor([[1], [4], [5]]).expand(3, 7))
    assert stacked.shape == (3, 7, 1)
    th.testing.assert_close(stacked[1], single)


def test_first_layer_equals_one_layer_of_the_concatenation():
    network = DenoisingNetwork(3, 2, 1, 5, [], [8])
    features, x = th.randn(7, 3), th.randn(7, 2)
    weight = th.cat((network.context_layer.weight, network.latent_layer.weight, network.time_layer.weight), dim=1)
    inputs = th.cat((features, x, network.time_features[3].expand(7, -1)), dim=1)
    expected = network.head(inputs @ weight.T + network.context_layer.bias)
    th.testing.assert_close(network(network.encode(features), x, 3), expected)


@pytest.mark.parametrize("learn_std", [True, False])
def test_score_network_starts_near_the_prior(learn_std):
    network = ControlNetwork(3, 2, 5, [16], [16], learn_std=learn_std)
    u, log_std_ratio = network.control(network.encode(th.randn(100, 3)), th.randn(100, 2), 2)
    assert u.shape == log_std_ratio.shape == (100, 2)
    assert u.abs().max() < 0.3 and log_std_ratio.abs().max() < 0.3
    if not learn_std:
        assert (log_std_ratio == 0).all()


def test_log_std_ratio_is_clamped():
    network = ControlNetwork(3, 2, 5, [], [4])
    with th.no_grad():
        network.head[-1].bias[2], network.head[-1].bias[3] = -100.0, 100.0
    _, log_std_ratio = network.control(network.encode(th.randn(1, 3)), th.randn(1, 2), 2)
    assert log_std_ratio.tolist() == [[LOG_STD_RATIO_MIN, LOG_STD_RATIO_MAX]]


def test_control_shrinks_with_the_number_of_steps_and_is_bounded():
    network = ControlNetwork(3, 2, 4, [], [4])
    with th.no_grad():
        network.head[-1].bias[0], network.head[-1].bias[1] = 1e3, 1.0
        network.head[-1].weight.zero_()
    u, _ = network.control(network.encode(th.randn(1, 3)), th.randn(1, 2), 2)
    assert u.tolist() == [[CONTROL_MAX, 4**-0.5]]


def test_head_without_hidden_layers():
    with pytest.raises(ValueError, match="at least one hidden layer"):
        ControlNetwork(3, 2, 5, [16], [])


class Adapted(th.nn.Linear):
    """A layer with something added to it, as adapters do."""

    def forward(self, x):
        return super().forward(x) + 1.0


@pytest.mark.parametrize("name", ["latent_layer", "time_layer"])
@pytest.mark.parametrize("how", ["subclass", "hook"])
def test_what_a_user_adds_to_a_layer_acts_in_training_and_sampling(name, how):
    network = ControlNetwork(3, 2, 4, [8], [8])
    context, x = network.encode(th.randn(5, 3)), th.randn(5, 2)
    plain = network(context, x, th.full((5,), 2))
    layer = getattr(network, name)
    if how == "subclass":
        layer.__class__ = Adapted
    else:
        layer.register_forward_hook(lambda module, inputs, output: output + 1.0)
    changed = network(context, x, th.full((5,), 2))
    assert (changed - plain).abs().max() > 1e-3
    assert th.allclose(network(context, x, 2), changed, atol=1e-6)
    assert th.allclose(network.unroll(context)(x, 2), changed, atol=1e-6)
    assert th.allclose(network.unroll(context)(None, 4), network(context, 0 * x, 4), atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantised_actor_acts():
    model = DiffSAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[16]), buffer_size=10, seed=0)
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    before = model.predict(obs, deterministic=True)[0]
    model.policy.actor = th.ao.quantization.quantize_dynamic(model.policy.actor, {th.nn.Linear})
    after = model.predict(obs, deterministic=True)[0]
    assert not np.array_equal(before, after) and np.allclose(before, after, atol=0.05)
