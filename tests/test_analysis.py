"""The analyses against numbers that are known: exact marginals, policies whose modes are known, runs that are not repeated."""

import math

import gymnasium as gym
import matplotlib
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import sb3_diffusion.analysis.sweep
from sb3_diffusion import DiffPPO, DiffSAC, DiffusionActorCriticPolicy, DiffusionMDPWrapper
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
from sb3_diffusion.analysis.__main__ import parse_args
from sb3_diffusion.analysis.bound import cell_volume, fit_control, make_grid, measure_gap, peaks_log_prob
from sb3_diffusion.analysis.command_line import environment
from sb3_diffusion.analysis.mixture import AnnealTemperature
from sb3_diffusion.analysis.modes import get_chain_policy
from sb3_diffusion.analysis.results import read_details, read_results
from sb3_diffusion.analysis.sweep import seconds_per_step, variants_of
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
    schedule, grid = NoiseSchedule(3, prior_std=0.8).double(), make_grid(dim, {1: 601, 2: 41}[dim])
    shift = th.full((1, dim), 0.7, dtype=th.float64)

    def control_fn(x, step):
        return (shift if step == 1 else 0 * shift), 0 * shift

    expected = th.exp(gaussian_log_prob(grid, schedule.std[1] * shift, 0.8))
    th.testing.assert_close(exact_marginal(control_fn, schedule, grid), expected, atol=1e-4, rtol=1e-3)


def test_gap_of_a_single_gaussian_is_zero():
    th.manual_seed(0)
    schedule = NoiseSchedule(1)
    measured = measure_gap(lambda x, step: (0 * x + 0.3, 0 * x - 0.5), schedule)
    assert abs(measured["gap"]) < 4 * measured["standard_error"]
    assert measured["entropy"] == pytest.approx(0.5 * math.log(2 * math.pi * math.e) - 0.5, abs=1e-4)


def test_gap_of_a_wide_prior():
    th.manual_seed(0)
    measured = measure_gap(lambda x, step: (0 * x, 0 * x), NoiseSchedule(1, prior_std=3.0))
    assert abs(measured["gap"]) < 4 * measured["standard_error"]
    assert measured["entropy"] == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 9), abs=1e-4)
    with pytest.raises(ValueError, match="too coarse for its last steps"):
        exact_marginal(lambda x, step: (0 * x, 0 * x), NoiseSchedule(60), make_grid(1, 61))


def test_least_peak_of_a_collapsed_chain():
    """One peak is all there is, at (1.2, 1.2): the other three have nothing."""
    th.manual_seed(0)
    schedule, std = NoiseSchedule(1), 0.25

    def control_fn(x, step):
        return 0 * x + 1.2, 0 * x + math.log(std)

    measured = measure_gap(control_fn, schedule, dim=2, n_chains=10_000, n_points=61)
    assert measured["least_peak"] == pytest.approx(0, abs=1e-12) and measured["share_right"] == pytest.approx(1, abs=1e-4)
    assert measured["marginal_kl"] == pytest.approx(2 * math.log(2), abs=1e-3)  # the same peaks, a quarter of them
    assert abs(measured["gap"]) < 4 * measured["standard_error"] + 1e-3
    assert measured["entropy"] == pytest.approx(math.log(2 * math.pi * math.e * std**2), abs=1e-3)


def test_bound_gap(tmp_path):
    small = dict(n_updates=20, batch_size=32)
    with pytest.raises(ValueError, match="cosin"):
        bound_gap((1,), ("cosine", "cosin"), n_updates=10**9)
    plot_bound_gap(bound_gap((1,), **small), tmp_path / "one_fit.png")
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

    def __init__(self, env_id, actions):
        env = gym.make(env_id)
        self.actions, self.observation_space, self.action_space = actions, env.observation_space, env.action_space

    def predict(self, obs, deterministic=False):
        return self.actions[np.arange(len(obs)) % len(self.actions)], None

    def get_vec_normalize_env(self):
        return None


def test_mode_coverage_of_known_policies():
    goals = Stub("MultiGoal-v0", np.array([[0.5, 0.1], [0.5, -0.2], [-0.3, 0.0], [0.1, 0.9]]))
    assert mode_coverage(goals, "MultiGoal-v0")["shares"].tolist() == [0.5, 0.25, 0.25, 0.0]
    stub = Stub("TurningDoubleWell-v0", np.array([[0.5], [-0.5], [-0.5], [-0.5]]))
    well = mode_coverage(stub, "TurningDoubleWell-v0")
    assert well["shares"].tolist() == [0.25] * 8
    assert well["reward"] == pytest.approx(1) and well["magnitude"] == 0.5 and well["magnitude_std"] == 0
    with pytest.raises(ValueError, match="knows the modes of"):
        mode_coverage(stub, "Pendulum-v1")
    with pytest.raises(ValueError, match="not a VecEnv"):
        mode_coverage(goals, make_vec_env("MultiGoal-v0"))
    with pytest.raises(ValueError, match="without wrappers that change them"):
        mode_coverage(goals, "TurningDoubleWell-v0")
    stub.action_space = gym.spaces.Box(0, 1, (1,))
    with pytest.raises(ValueError, match="without wrappers that change them"):
        mode_coverage(stub, "TurningDoubleWell-v0")


def test_mode_coverage_sees_what_the_model_is_used_to():
    env = VecNormalize(make_vec_env("TurningDoubleWell-v0"))
    model = SAC("MlpPolicy", env, **SMALL).learn(50)
    seen = []
    predict, model.predict = model.predict, lambda obs, **kwargs: seen.append(obs[0]) or predict(obs, **kwargs)
    mode_coverage(model, "TurningDoubleWell-v0", n_samples=5)
    np.testing.assert_allclose(seen[0], env.normalize_obs(np.array([1.0, 0.0], dtype=np.float32)))


@pytest.mark.parametrize("settings", [{}, dict(inference_steps=1), dict(prior_std=2.5)])
def test_exact_density_is_that_of_the_samples(settings):
    inference_steps = settings.pop("inference_steps", 3)
    model = DiffSAC("MlpPolicy", gym.make("TurningGMM-v0"), diffusion_steps=3, **settings, **SMALL)
    model.actor.inference_steps = inference_steps
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
    model.policy.n_action_candidates = 2
    with pytest.raises(ValueError, match="not of the best of several"):
        action_density(model, obs)


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
    with pytest.raises(ValueError, match="not a VecEnv"):
        plot_trajectories(model, model.get_env())
    get_chain_policy(model).inference_steps = 1
    assert [ax.get_title() for ax in plot_denoising(model, obs, n_samples=20)] == ["k = 1", "k = 0"]


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
    augmented = PPO(DiffusionActorCriticPolicy, DiffusionMDPWrapper(env, 2), device="cpu", seed=0)
    with pytest.raises(ValueError, match="has no denoising chain"):
        plot_denoising(augmented, obs)
    with pytest.raises(ValueError, match="a Box"):
        plot_action_distribution(PPO("MlpPolicy", "CartPole-v1", device="cpu"), np.zeros(4))


def test_k_sweep_runs_once_and_writes(tmp_path, monkeypatch):
    kwargs = dict(learning_starts=10, batch_size=8, policy_kwargs=dict(net_arch=[8]), chain_kwargs=dict(actor_loss="pathwise"))
    arguments = dict(diffusion_steps=(2,), seeds=(0,), eval_every=15, eval_episodes=1, **kwargs)
    path = tmp_path / "sweep.csv"
    monkeypatch.setattr(sb3_diffusion.analysis.sweep, "seconds_per_step", lambda _: {"sac": 1.0, "diffsac-pathwise_K2": 2.0})
    results = k_sweep("Pendulum-v1", 30, path, **arguments)
    assert results[["name", "step", "seconds"]].to_numpy().tolist() == [
        ["sac", 15, 5.0],
        ["sac", 30, 20.0],
        ["diffsac-pathwise_K2", 15, 10.0],
        ["diffsac-pathwise_K2", 30, 40.0],
    ]
    assert read_details(path)["Pendulum-v1 diffsac-pathwise_K2 0"]["run"]["settings"]["diffusion_steps"] == 2
    monkeypatch.setattr(sb3_diffusion.analysis.sweep, "seconds_per_step", lambda _: pytest.fail("measured again"))
    assert k_sweep("Pendulum-v1", 30, path, **arguments).equals(results)
    with pytest.raises(ValueError, match="other settings: steps=30, not 45"):
        k_sweep("Pendulum-v1", 45, path, **arguments)
    assert k_sweep_table(results).count("\n") == 3
    plot_k_sweep(results, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 0


def test_seconds_per_step():
    settings = dict(batch_size=8, policy_kwargs=dict(net_arch=[8]))
    runs = variants_of({"sac": None, "chain": dict(diffusion_steps=2)}, "Pendulum-v1", 10_000, (0,), **settings)
    seconds = seconds_per_step(runs, n_rounds=2, n_steps=5)
    assert list(seconds) == ["sac", "chain"] and min(seconds.values()) > 0


def test_divergence(tmp_path):
    settings = dict(steps=60, eval_every=30, eval_episodes=1, seeds=(3,), learning_starts=20, batch_size=8, policy_kwargs={})
    results = divergence("TurningDoubleWell-v0", tmp_path / "divergence.csv", **settings)
    assert results["name"].unique().tolist() == ["reverse-adjoint", "reverse-pathwise", "forward"]
    assert results["least_share"].between(0, 0.5).all()
    header, *lines = divergence_table(results).splitlines()
    assert header.endswith("| CPU seconds | share of the rarest mode |") and len(lines) == 4
    of_pendulum = divergence("Pendulum-v1", tmp_path / "divergence.csv", **settings)
    assert len(of_pendulum) == 6 and "share" not in divergence_table(of_pendulum)
    with pytest.raises(ValueError, match="has no default settings"):
        divergence("Pendulum-v1", tmp_path / "divergence.csv")


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
    with pytest.raises(ValueError, match="ent_coef is not free"):
        fit_mixture(1, ent_coef="auto")
    row = fit_mixture(1, steps=120, learning_starts=50, policy_kwargs=dict(net_arch=[8]))
    assert row["diffusion_steps"] == 1 and 0 < row["total_variation"] <= row["worst_heading"] <= 1


@pytest.mark.parametrize(
    "command, message",
    [
        ("k_sweep --steps 10", "--steps 10 is no multiple of --eval-every 10000"),
        ("k_sweep --steps -5", "argument --steps: -5: choose 1 or more"),
        ("k_sweep --steps many", "argument --steps: invalid integer value: 'many'"),
        ("k_sweep --diffusion-steps 0", "argument --diffusion-steps: 0: choose 1 or more"),
        ("k_sweep --jobs -1", "argument --jobs: -1: choose 1 or more"),
        ("k_sweep --seeds -1", "argument --seeds: -1: choose a seed from 0"),
        ("k_sweep --env NoSuch-v0", "argument --env: Environment `NoSuch` doesn't exist"),
        ("divergence --envs Pendulum-v1", "Pendulum-v1 has no steps of its own"),
        ("divergence --steps 7", "--steps 7 is no multiple of --eval-every 2000"),
        ("bound_gap --updates 0", "argument --updates: 0: choose 1 or more"),
        ("bound_gap --prior-std 0", "argument --prior-std: 0: choose a positive and finite number"),
        ("representation --updates 0", "argument --updates: 0: choose 1 or more"),
    ],
)
def test_wrong_values_on_the_command_line(command, message, monkeypatch, capsys):
    """One line and code 2, before anything is trained."""
    monkeypatch.setattr("sys.argv", ["analysis", *command.split()])
    with pytest.raises(SystemExit) as ended:
        parse_args()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_tasks_are_found_by_the_full_id(tmp_path):
    env_id = environment("sb3_diffusion:MultiGoal-v0")
    settings = dict(seeds=[0], eval_every=40, learning_starts=20, policy_kwargs=dict(net_arch=[8]))
    results = k_sweep(env_id, 40, tmp_path / "sweep.csv", [1], **settings)
    assert set(results["env"]) == {"MultiGoal-v0"} and (results["seconds"] >= 0).all()


def test_another_table_is_no_table_of_results(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv is no table of results, it has no column env"):
        read_results(tmp_path / "other.csv")


def test_a_training_without_an_update_is_refused():
    with pytest.raises(ValueError, match="learning_starts=100: the run has 10 steps"):
        fit_mixture(1, 10, learning_starts=100)
