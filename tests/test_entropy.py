import math

import numpy as np
import pytest
from stable_baselines3 import SAC

from sb3_diffusion import DiffSAC
from sb3_diffusion.analysis.entropy import policy_entropy, sample_entropy


@pytest.mark.parametrize("dim", [1, 3, 6])
def test_entropy_of_a_gaussian(dim):
    std = np.geomspace(0.01, 10, dim)
    samples = np.random.default_rng(0).normal(size=(4000, dim)) * std
    expected = np.sum(np.log(std)) + 0.5 * dim * math.log(2 * math.pi * math.e)
    assert sample_entropy(samples) == pytest.approx(expected, abs=0.12)


def test_entropy_of_two_peaks():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(4000, 1)) * 0.1 + rng.choice([-5.0, 5.0], size=(4000, 1))
    assert sample_entropy(samples) == pytest.approx(
        math.log(0.1) + 0.5 * math.log(2 * math.pi * math.e) + math.log(2), abs=0.1
    )


def test_bad_input():
    with pytest.raises(ValueError, match="4 samples: the distance to the neighbour number 4 needs more"):
        sample_entropy(np.zeros((4, 2)))
    with pytest.raises(ValueError, match="SAC: give an off-policy model of this package"):
        policy_entropy(SAC("MlpPolicy", "Pendulum-v1", buffer_size=10))
    with pytest.raises(ValueError, match="with transitions in its buffer"):
        policy_entropy(DiffSAC("MlpPolicy", "Pendulum-v1", buffer_size=10))


def test_one_step_has_no_gap():
    """At K = 1 the bound is the entropy itself."""
    model = DiffSAC("MlpPolicy", "Pendulum-v1", diffusion_steps=1, learning_starts=20, buffer_size=200, seed=0).learn(60)
    measured = policy_entropy(model, n_states=8, n_samples=2000)
    assert measured["entropy"] == pytest.approx(measured["entropy_bound"], abs=0.1)
