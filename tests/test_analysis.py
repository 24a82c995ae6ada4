"""The analyses against numbers that are known: exact marginals, policies whose modes are known, runs that are not repeated."""

import json
import math

import gymnasium as gym
import matplotlib
import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC

import sb3_diffusion.analysis.sweep
from sb3_diffusion import DiffPPO, DiffSAC
from sb3_diffusion.analysis import (
    action_density,
    action_distribution,
    bound_gap,
    divergence,
    divergence_table,
    exact_marginal,
    fit_mixture,
    k_sweep,
    k_sweep_table,
    mode_coverage,
    plot_action_distribution,
    plot_bound_gap,
    plot_denoising,
    plot_k_sweep,
    plot_score_field,
    plot_trajectories,
)
from sb3_diffusion.analysis.bound import cell_volume, fit_control, make_grid, measure_gap, peaks_log_prob
from sb3_diffusion.analysis.mixture import AnnealTemperature
from sb3_diffusion.analysis.sweep import seconds_per_step
from sb3_diffusion.common.chain import gaussian_log_prob
from sb3_diffusion.common.noise_schedule import NoiseSchedule

matplotlib.use("Agg")
SMALL = dict(policy_kwargs=dict(net_arch=[8]), device="cpu", seed=0)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("dim", [1, 2])
def test_target_is_normalised(dim):
    grid = make_grid(dim)
    assert th.exp(peaks_log_prob(grid)).sum().item() * cell_volume(grid) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dim", [1, 2])
def test_marginal_of_a_gaussian_chain(dim):
    """Without control the chain stays at the prior; a constant control of the last step shifts it."""
    schedule, grid = NoiseSchedule(3, prior_std=0.8).double(), make_grid(dim, {1: 601, 2: 61}[dim])
    shift = th.full((1, dim), 0.7, dtype=th.float64)

    def control_fn(x, step):
        return (shift if step == 1 else 0 * shift), 0 * shift

    expected = th.exp(gaussian_log_prob(grid, schedule.std[1] * shift, 0.8))
    th.testing.assert_close(exact_marginal(control_fn, schedule, grid), expected, atol=1e-4, rtol=1e-3)


def test_gap_of_a_single_gaussian_is_zero():
    schedule = NoiseSchedule(1)
    measured = measure_gap(lambda x, step: (0 * x + 0.3, 0 * x - 0.5), schedule)
    assert abs(measured["gap"]) < 4 * measured["standard_error"]
    assert measured["entropy"] == pytest.approx(0.5 * math.log(2 * math.pi * math.e) - 0.5, abs=1e-4)


def test_bound_gap(tmp_path):
    small = dict(n_updates=20, batch_size=32)
    rows = [{"fit": "forward", **row} for row in bound_gap((1, 3), ("cosine",), **small)]
    rows += [{"fit": "cold", **row} for row in bound_gap((3,), divergence="reverse", anneal=False, **small)]
    assert [row["diffusion_steps"] for row in rows] == [1, 3, 3]
    assert all(row["path_kl"] > row["marginal_kl"] - 4 * row["standard_error"] for row in rows)
    plot_bound_gap(rows, tmp_path / "gap.png")
    assert (tmp_path / "gap.png").stat().st_size > 0
    with pytest.raises(ValueError, match="one or two dimensions"):
        make_grid(3)
    with pytest.raises(ValueError, match="divergence='both': choose one of"):
        fit_control(NoiseSchedule(2), divergence="both")


class Stub:
    """A policy whose actions are given."""

    def __init__(self, actions):
        self.actions = actions

    def predict(self, obs, deterministic=False):
        return self.actions[np.arange(len(obs)) % len(self.actions)], None


def test_mode_coverage_of_known_policies():
    goals = Stub(np.array([[0.5, 0.1], [0.5, -0.2], [-0.3, 0.0], [0.1, 0.9]]))
    assert mode_coverage(goals, "MultiGoal-v0")["shares"].tolist() == [0.5, 0.25, 0.25, 0.0]
    well = mode_coverage(Stub(np.array([[0.5], [-0.5], [-0.5], [-0.5]])), "TurningDoubleWell-v0")
    assert well["shares"].tolist() == [0.25] * 8
    assert well["reward"] == pytest.approx(1) and well["magnitude"] == 0.5 and well["magnitude_std"] == 0
    with pytest.raises(ValueError, match="knows the modes of"):
        mode_coverage(well, "Pendulum-v1")


def test_exact_density_is_that_of_the_samples():
    model = DiffSAC("MlpPolicy", gym.make("TurningGMM-v0"), diffusion_steps=3, **SMALL)
    th.manual_seed(0)
    with th.no_grad():
        model.actor.score_network.head[-1].bias += th.tensor([1.0, -0.5])
    obs = np.array([1.0, 0.0], dtype=np.float32)
    actions, density = action_density(model, obs)
    samples = action_distribution(model, obs, 50_000)
    cumulative = np.concatenate(([0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(actions))))
    assert cumulative[-1] == pytest.approx(1, abs=1e-3)
    for quantile in (0.1, 0.5, 0.9):
        assert np.interp(np.quantile(samples, quantile), actions, cumulative) == pytest.approx(quantile, abs=0.01)
    distance = mode_coverage(model, "TurningGMM-v0")["total_variation"]
    assert distance.shape == (8,) and (distance > 0).all() and (distance < 1).all()


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffPPO])
def test_pictures(algorithm):
    env = gym.make("MultiGoal-v0")
    model = algorithm("MlpPolicy", env, diffusion_steps=2, **SMALL)
    obs = np.zeros(2, dtype=np.float32)
    assert len(plot_action_distribution(model, obs, n_samples=20).lines) == 1
    assert [ax.get_title() for ax in plot_denoising(model, obs, n_samples=20)] == ["k = 2", "k = 1", "k = 0"]
    assert len(plot_score_field(model, obs, n_points=4).collections) == 1
    assert len(plot_trajectories(model, env, n_episodes=3, max_steps=5).lines) == 4
    with pytest.raises(ValueError, match="choose from 1 to 2"):
        plot_score_field(model, obs, step=3)


def test_pictures_of_one_dimension_and_of_a_gaussian():
    env = gym.make("TurningDoubleWell-v0")
    obs = np.array([1.0, 0.0], dtype=np.float32)
    model = DiffSAC("MlpPolicy", env, diffusion_steps=2, **SMALL)
    assert len(plot_denoising(model, obs, n_samples=20)) == 3
    with pytest.raises(ValueError, match="drawn for two"):
        plot_score_field(model, obs)
    stock = SAC("MlpPolicy", env, **SMALL)
    assert len(plot_action_distribution(stock, obs, n_samples=20).patches) == 60
    assert set(mode_coverage(stock, env, 50)) == {"shares", "reward", "magnitude", "magnitude_std"}
    with pytest.raises(ValueError, match="has no denoising chain"):
        plot_denoising(stock, obs)


def test_k_sweep_runs_once_and_writes(tmp_path, monkeypatch):
    kwargs = dict(learning_starts=10, batch_size=8, policy_kwargs=dict(net_arch=[8]))
    arguments = dict(diffusion_steps=(2,), seeds=(0,), eval_every=15, eval_episodes=1, **kwargs)
    monkeypatch.setattr(
        sb3_diffusion.analysis.sweep, "seconds_per_step", lambda *_, **__: {"sac": 1.0, "diffsac-adjoint_K2": 2.0}
    )
    runs = k_sweep("Pendulum-v1", 30, tmp_path, **arguments)
    assert set(runs) == {"sac", "diffsac-adjoint_K2"}
    assert [point["step"] for point in runs["sac"][0]["points"]] == [15, 30]
    path = tmp_path / "Pendulum-v1" / "diffsac-adjoint_K2_seed0.json"
    assert json.loads(path.read_text())["settings"]["diffusion_steps"] == 2
    monkeypatch.setattr(sb3_diffusion.analysis.sweep, "_make_model", lambda *args: pytest.fail("trained again"))
    again = k_sweep("Pendulum-v1", 30, tmp_path, **arguments)
    assert again == {name: json.loads(json.dumps(of_name)) for name, of_name in runs.items()}
    with pytest.raises(ValueError, match="other settings: steps=30, not 40"):
        k_sweep("Pendulum-v1", 40, tmp_path, **arguments)
    assert [point["seconds"] for point in runs["diffsac-adjoint_K2"][0]["points"]] == [10, 40]
    assert k_sweep_table(runs).count("\n") == 3
    plot_k_sweep(runs, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 0


def test_seconds_per_step():
    variants = {"sac": None, "chain": dict(diffusion_steps=2)}
    seconds = seconds_per_step(variants, "Pendulum-v1", n_rounds=2, n_steps=5, batch_size=8, policy_kwargs=dict(net_arch=[8]))
    assert set(seconds) == set(variants) and min(seconds.values()) > 0


def test_divergence(tmp_path):
    settings = dict(n_steps=60, eval_every=30, eval_episodes=1, seeds=(3,), learning_starts=20, batch_size=8, policy_kwargs={})
    runs = divergence("TurningDoubleWell-v0", tmp_path, **settings)
    assert {path.stem for path in (tmp_path / "TurningDoubleWell-v0").iterdir()} == {
        "reverse-adjoint_seed3",
        "reverse-pathwise_seed3",
        "forward_seed3",
    }
    assert all(0 <= point["least_share"] <= 0.5 for (run,) in runs.values() for point in run["points"])
    header, *lines = divergence_table(runs).splitlines()
    assert header.endswith("| CPU seconds | share of the rarest mode |") and len(lines) == 4
    assert "least_share" not in divergence("Pendulum-v1", tmp_path, **settings)["forward"][0]["points"][0]


def test_fit_mixture_ends_at_temperature_one():
    model = DiffSAC("MlpPolicy", gym.make("TurningGMM-v0"), ent_coef=1.0, diffusion_steps=2, learning_starts=100, **SMALL)
    temperatures = []
    callback = AnnealTemperature(20.0, 1.0, 8)
    callback.init_callback(model)
    for step in (0, 2, 4, 8):
        model.num_timesteps = step
        callback.on_step()
        temperatures.append(model.ent_coef_tensor.item())
    assert temperatures == pytest.approx([20, math.sqrt(20), 1, 1])
    row = fit_mixture(1, n_steps=120, learning_starts=50, policy_kwargs=dict(net_arch=[8]))
    assert row["diffusion_steps"] == 1 and 0 < row["total_variation"] <= row["worst_heading"] <= 1
