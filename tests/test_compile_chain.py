"""``compile_chain``: the same numbers, and all that a policy can do. Without the C++ compiler, which is torch's own matter."""

import copy
import pickle
from functools import partial

import gymnasium as gym
import pytest
import torch as th

from sb3_diffusion import DiffPPO, DiffSAC, DiffWPO
from sb3_diffusion.common.policies import compiled

SMALL = dict(net_arch=[8], compile_chain=True)


@pytest.fixture(autouse=True)
def traced_only(monkeypatch):
    monkeypatch.setattr(th, "compile", partial(th.compile, backend="eager"))
    yield
    compiled.cache_clear()
    th._dynamo.reset()


def make_model(algorithm, **kwargs):
    if algorithm is DiffPPO:
        kwargs |= dict(n_steps=16, batch_size=8, n_epochs=1)
    else:
        kwargs |= dict(learning_starts=5, batch_size=8, buffer_size=100)
    return algorithm("MlpPolicy", "Pendulum-v1", diffusion_steps=3, policy_kwargs=SMALL, device="cpu", seed=0, **kwargs)


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffWPO, DiffPPO])
def test_compiled_chain_is_the_same(algorithm, tmp_path):
    model = make_model(algorithm)
    model.learn(16)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    plain = algorithm.load(
        tmp_path / "model", custom_objects=dict(policy_kwargs=dict(net_arch=[8])), env=gym.make("Pendulum-v1"), device="cpu"
    )
    obs = plain.observation_space.sample()
    for n_steps in (3, 2):
        for each in (model, loaded, plain):
            (each.policy if algorithm is DiffPPO else each.actor).inference_steps = n_steps
        action = plain.predict(obs, deterministic=True)[0]
        for each in (model, loaded):
            assert each.predict(obs, deterministic=True)[0] == pytest.approx(action, abs=1e-6)


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffPPO])
def test_a_copy_has_weights_of_its_own(algorithm):
    policy = make_model(algorithm).policy
    obs = policy.observation_space.sample()
    action = policy.predict(obs, deterministic=True)[0]
    copies = copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))
    with th.no_grad():
        for param in policy.parameters():
            param.add_(1.0)
    assert policy.predict(obs, deterministic=True)[0] != pytest.approx(action, abs=1e-3)
    for each in copies:
        assert each.compile_chain if algorithm is DiffPPO else each.actor.compile_chain
        assert each.predict(obs, deterministic=True)[0] == pytest.approx(action, abs=1e-6)


def test_compiled_chain_back_propagates():
    model = make_model(DiffSAC, actor_loss="pathwise")
    model.learn(10)
    assert model._n_updates > 0
