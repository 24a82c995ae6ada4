"""The two chains behind one object, and more steps at inference than in training."""

import sys

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)

from sb3_diffusion import DiffPPO
from sb3_diffusion.analysis.__main__ import main
from sb3_diffusion.common import chain
from sb3_diffusion.common.discrete_chain import all_states, exact_marginals
from sb3_diffusion.common.noise_schedule import NoiseSchedule
from sb3_diffusion.common.process import CategoricalProcess, GaussianProcess, make_process

BOX = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 4], np.float32))


def test_choice():
    assert isinstance(make_process(BOX), GaussianProcess)
    for space in (spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)):
        assert isinstance(make_process(space), CategoricalProcess)


def test_sizes():
    assert (make_process(BOX).input_dim, make_process(BOX).output_dim) == (2, 4)
    assert make_process(BOX, learn_std=False).output_dim == 2
    process = make_process(spaces.MultiDiscrete([2, 5, 3]))
    assert (process.action_dim, process.input_dim, process.output_dim) == (3, 15, 15)
    seen = process.network_input(th.tensor([[1.0, 4.0, 0.0]])).unflatten(-1, (5, 3))[0]
    assert seen.argmax(dim=0).tolist() == [1, 4, 0] and (seen.sum(dim=0) == 1).all()


def test_gaussian_process_is_the_chains_functions():
    process, schedule = make_process(BOX), NoiseSchedule(4, prior_std=1.5)
    u, log_std_ratio, x, x_prev, noise = th.randn(5, 6, 2)
    control = (u, log_std_ratio)
    for step in (1, 4):
        assert th.equal(
            process.log_prob(schedule, control, x, x_prev, step),
            chain.kernel_log_prob(schedule, u, log_std_ratio, x, x_prev, step),
        )
        zeros = th.zeros_like(x)
        assert th.equal(
            process.reference_log_prob(schedule, x, x_prev, step),
            chain.kernel_log_prob(schedule, zeros, zeros, x, x_prev, step),
        )
        taken = process.take_step(schedule, control, x, noise, step)
        assert th.equal(taken, chain.denoising_step(schedule, u, log_std_ratio, x, noise, step)[0])
        mean, _ = chain.denoising_kernel(schedule, u, log_std_ratio, x, step)
        assert th.equal(process.take_step(schedule, control, x, None, step), mean)
    assert th.equal(process.kl(control), chain.kernel_kl(u, log_std_ratio))
    assert th.equal(process.terminal_log_prob(schedule, x), chain.terminal_log_prob(schedule, x))
    assert th.equal(process.to_action(x), th.tanh(x))
    np.testing.assert_allclose(process.env_action(x), BOX.low + (np.tanh(x.numpy()) + 1) / 2 * (BOX.high - BOX.low), atol=1e-6)
    assert isinstance(process.distribution(schedule, control, x, th.full((6,), 2)), DiagGaussianDistribution)


@pytest.mark.parametrize("space", [spaces.Discrete(3, start=1), spaces.MultiDiscrete([2, 3])])
def test_log_ratio_of_categories_has_the_mean_kl(space):
    process, schedule = make_process(space), NoiseSchedule(3)
    counts = process.categories.counts.tolist()
    states = all_states(counts)
    logits = th.randn(process.output_dim, generator=th.Generator().manual_seed(0))
    control_fn = process.control_fn(lambda x, _: (logits.expand(len(x), -1),), schedule, schedule)
    for step in (1, 2, 3):
        control = control_fn(states, step)
        ratio, probability = (th.zeros(len(states)) for _ in range(2))
        for end in states:
            log_q = process.log_prob(schedule, control, states, end.expand_as(states), step)
            log_r = process.reference_log_prob(schedule, states, end.expand_as(states), step)
            ratio, probability = ratio + th.exp(log_q) * (log_q - log_r), probability + th.exp(log_q)
        th.testing.assert_close(probability, th.ones(len(states)))
        th.testing.assert_close(ratio, process.kl(control), atol=1e-5, rtol=1e-5)
        distribution = process.distribution(schedule, control, states, th.full((len(states),), step))
        expected = CategoricalDistribution if isinstance(space, spaces.Discrete) else MultiCategoricalDistribution
        assert isinstance(distribution, expected)
        given = states.squeeze(-1) if isinstance(space, spaces.Discrete) else states
        th.testing.assert_close(distribution.log_prob(given), process.log_prob(schedule, control, states, states, step))


def test_noise_of_another_shape():
    process, schedule = make_process(spaces.MultiBinary(2)), NoiseSchedule(3)
    with pytest.raises(ValueError, match="a chain of 3 steps needs"):
        process.sample_path(lambda x, step: x, schedule, th.rand(3, 5, 2))


@pytest.mark.parametrize("n_steps", [1, 2, 3, 6, 9])
def test_any_number_of_steps_ends_in_a_belief_that_ignores_the_chain(n_steps):
    process, trained = make_process(spaces.MultiDiscrete([2, 3])), NoiseSchedule(3)
    schedule = trained.refined(n_steps) if n_steps > 3 else trained.respaced(n_steps)
    logits = th.tensor([0.3, -1.0, 0.5, 0.8, 0.0, 2.0])
    control_fn = process.control_fn(lambda x, _: (logits.expand(len(x), -1),), schedule, trained)
    states = all_states([2, 3])
    log_marginals, mean = exact_marginals(control_fn, schedule, states)
    by_dimension = logits.reshape(3, 2)
    first, second = th.log_softmax(by_dimension[:2, 0], 0), th.log_softmax(by_dimension[:, 1], 0)
    expected = first[states[:, 0].long()] + second[states[:, 1].long()]
    th.testing.assert_close(log_marginals[0], expected, atol=1e-5, rtol=0)
    th.testing.assert_close(mean, (th.exp(expected) * expected).sum(), atol=1e-5, rtol=0)


def test_more_steps_at_inference():
    trained = NoiseSchedule(3)
    finer = trained.refined(9)
    assert finer.diffusion_steps == 9
    # The first step alone is blind to x_K, and the last is the network's last
    assert finer.trained_steps[9] == 3 and 3 not in finer.trained_steps[:9] and finer.trained_steps[1] == 1
    assert finer.trained_steps == sorted(finer.trained_steps)
    with pytest.raises(ValueError, match="inference_steps=2"):
        trained.refined(2)
    model = DiffPPO("MlpPolicy", "Pendulum-v1", diffusion_steps=3)
    with pytest.raises(ValueError, match="choose from 1 to 3"):
        model.policy.inference_steps = 6
    model = DiffPPO("MlpPolicy", "Pendulum-v1", diffusion_steps=3, policy_kwargs=dict(kernel="posterior"))
    model.policy.inference_steps = 6
    assert np.isfinite(model.predict(np.zeros(3, np.float32))[0]).all()


def test_solver_of_one_graph(tmp_path, monkeypatch, capsys):
    path = tmp_path / "graph.txt"
    path.write_text("5 6\n1 2 1\n2 3 1\n3 4 1\n4 5 1\n5 1 1\n1 3 1\n")
    settings = '{"policy_kwargs": {"net_arch": [8]}, "n_steps": 1}'
    arguments = [str(path), "--steps", "32", "--samples", "64", "--settings", settings, "--out", str(tmp_path / "sides.txt")]
    monkeypatch.setattr(sys, "argv", ["analysis", "maxcut", *arguments])
    main()
    assert "| best found, after one-exchange | 5.0000 |" in capsys.readouterr().out
    sides = np.loadtxt(tmp_path / "sides.txt")
    edges = np.array([[1, 2], [2, 3], [3, 4], [4, 5], [5, 1], [1, 3]]) - 1
    assert (sides[edges[:, 0]] != sides[edges[:, 1]]).sum() == 5
    path.write_text("2 1\n")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "says 1 edges and has 0" in capsys.readouterr().err.splitlines()[-1]
