"""The environments with several good actions: dynamics and rewards by hand, gymnasium's and SB3's checkers."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from scipy.integrate import trapezoid
from stable_baselines3.common.env_checker import check_env

from sb3_diffusion.common.envs import MultiGoalEnv, ObstacleEnv, TurningDoubleWellEnv, TurningGMMEnv
from sb3_diffusion.common.envs.obstacle import demonstrate, distance_to_segment, plan_around, way_left

IDS = ["MultiGoal-v0", "Obstacle-v0", "TurningDoubleWell-v0", "TurningGMM-v0"]


@pytest.mark.parametrize("env_id", IDS)
def test_checkers(env_id):
    check_env(gym.make(env_id), warn=True)
    gymnasium_check_env(gym.make(env_id, render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("env_id", IDS)
def test_truncated_after_100_steps_and_drawn(env_id):
    env = gym.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape, dtype=np.float32)
    steps = [env.step(action) for _ in range(100)]
    assert [truncated for _, _, _, truncated, _ in steps] == [False] * 99 + [True]
    image = env.render()
    assert image.shape == (256, 256, 3) and image.dtype == np.uint8 and image.std() > 0


def test_without_an_import():
    code = "import gymnasium; print(gymnasium.make('sb3_diffusion:MultiGoal-v0').spec.max_episode_steps)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "100"


def test_multi_goal():
    env = MultiGoalEnv()
    starts = np.stack([env.reset(seed=seed)[0] for seed in range(500)])
    assert starts.mean(axis=0) == pytest.approx([0, 0], abs=0.02) and starts.std() == pytest.approx(0.1, rel=0.1)
    obs, _ = env.reset(options=dict(position=[1.0, 0.0]))
    assert obs.tolist() == [1, 0]
    obs, reward, terminated, _, _ = env.step(np.array([1.0, 0.5]))
    assert obs.tolist() == [2, 0.5] and not terminated
    assert reward == pytest.approx(-30 * 1.25 - (3**2 + 0.5**2))
    env.reset(options=dict(position=[0.0, -3.5]))
    _, reward, terminated, _, _ = env.step(np.array([0.0, -0.75]))
    assert terminated and reward == pytest.approx(-30 * 0.75**2 - 0.75**2 + 10)
    env.reset(options=dict(position=[-6.5, 6.5]))
    assert env.step(np.array([-1.0, 1.0]))[0].tolist() == [-7, 7]
    with pytest.raises(ValueError, match="two finite coordinates"):
        env.reset(options=dict(position=[np.nan, 0.0]))


def test_turning():
    env = TurningDoubleWellEnv()
    headings = [tuple(env.reset(seed=seed)[0].round(3)) for seed in range(300)]
    assert len(set(headings)) == 8 and min(headings.count(heading) for heading in set(headings)) > 15
    obs, _ = env.reset(options=dict(heading=0))
    assert obs.tolist() == [1, 0]
    half = np.sqrt(0.5)
    assert env.step(np.array([0.5]))[0] == pytest.approx([half, half])
    assert env.position == pytest.approx([half, half])
    assert env.step(np.array([-0.1]))[0] == pytest.approx([1, 0])
    assert env.step(np.array([-0.1]))[0] == pytest.approx([half, -half])
    assert env.position == pytest.approx([1 + 2 * half, 0])
    with pytest.raises(ValueError, match="from 0 to 7"):
        env.reset(options=dict(heading=8))


@pytest.mark.parametrize(
    "action, reward", [(0.0, 0.85), (0.5, 1.0), (-0.5, 1.0), (1.0, 0.0), (-1.0, 0.0), (0.25, 0.85 + 0.15 * 7 / 16)]
)
def test_double_well(action, reward):
    env = TurningDoubleWellEnv()
    env.reset(seed=0)
    assert env.step(np.array([action]))[1] == pytest.approx(reward)


def test_gmm():
    env, grid = TurningGMMEnv(), np.linspace(-1, 1, 20_001)
    assert env.means.shape == (8, 5) and np.abs(env.means).max() <= 0.75
    assert np.array_equal(env.means, TurningGMMEnv().means)
    for heading in range(8):
        assert trapezoid(env.density(grid, heading), grid) == pytest.approx(1, abs=1e-5)
    env.reset(options=dict(heading=3))
    kernels = np.exp(-0.5 * ((0.3 - env.means[3]) / 0.05) ** 2) / (0.05 * np.sqrt(2 * np.pi))
    assert env.step(np.array([0.3]))[1] == pytest.approx(np.log(kernels.mean()))


def test_obstacle():
    env = ObstacleEnv()
    starts = np.stack([env.reset(seed=seed)[0] for seed in range(300)])
    assert starts.mean(axis=0) == pytest.approx([0, -2], abs=0.02) and starts.std(axis=0) == pytest.approx(0.05, rel=0.2)

    def go(start, action, closed=None):
        env = ObstacleEnv(closed=closed)
        env.reset(options=dict(position=start))
        obs, reward, terminated, _, info = env.step(np.array(action))
        return obs.tolist(), reward, terminated, info["is_success"]

    assert go([0.0, -2.0], [0.5, 0.1]) == (pytest.approx([1.0, -1.8]), 0.0, False, False)
    assert go([0.0, -2.0], [0.0, 1.0])[1:] == (0.0, True, False)  # through the obstacle, though it ends behind it
    assert go([2.0, 0.0], [0.5, 0.0])[1:] == (0.0, True, False)  # out of the plane
    assert go([1.0, 2.0], [-0.5, 0.0])[1:] == (1.0, True, True)
    assert go([1.8, -0.5], [0.0, 0.5])[2] is False
    assert go([1.8, -0.5], [0.0, 0.5], closed="right")[1:] == (0.0, True, False)
    assert go([1.8, -0.5], [0.0, 0.5], closed="left")[2] is False
    assert go([-1.8, -0.5], [0.0, 0.5], closed="left")[2] is True
    with pytest.raises(ValueError, match="closed='up': choose 'left', 'right' or None"):
        ObstacleEnv(closed="up")
    with pytest.raises(ValueError, match="outside the obstacle"):
        env.reset(options=dict(position=[0.0, 0.5]))
    assert gym.make("Obstacle-v0", closed="left").unwrapped.closed == "left"


def test_the_way_around_the_obstacle():
    # Two tangents of length 1.6, and an arc of pi - 2 arccos(0.6)
    start = 2 * 1.6 + 1.2 * (np.pi - 2 * np.arccos(0.6))
    assert way_left(ObstacleEnv.START) == pytest.approx(start)
    assert way_left(np.array([1.2, 0.0])) == pytest.approx(start / 2)
    assert way_left(np.array([0.6, 0.0])) == pytest.approx(start / 2)  # within the obstacle as on its edge
    assert way_left(np.array([2.0, 1.0])) == pytest.approx(np.sqrt(5))
    assert way_left(ObstacleEnv.GOAL) == 0

    env = ObstacleEnv(shaped=True)
    obs, _ = env.reset(options=dict(position=ObstacleEnv.START))
    rewards, terminated = [], False
    while not terminated:
        obs, reward, terminated, _, _ = env.step(plan_around(obs, "left"))
        rewards.append(reward)
    assert sum(rewards) == pytest.approx(2 - np.linalg.norm(ObstacleEnv.GOAL - env.position) / start)
    assert rewards[0] > 0.1


def test_distance_to_segment():
    assert distance_to_segment(np.zeros(2), np.array([-1.0, 1.0]), np.array([1.0, 1.0])) == pytest.approx(1)
    assert distance_to_segment(np.zeros(2), np.array([3.0, 4.0]), np.array([6.0, 8.0])) == pytest.approx(5)
    assert distance_to_segment(np.zeros(2), np.array([3.0, 4.0]), np.array([3.0, 4.0])) == pytest.approx(5)


@pytest.mark.parametrize("side, sign", [("left", -1), ("right", 1)])
def test_planner_keeps_its_side_and_arrives(side, sign):
    for closed in (None, {"left": "right", "right": "left"}[side]):
        env = ObstacleEnv(closed=closed)
        obs, _ = env.reset(seed=0)
        terminated, n_steps = False, 0
        while not terminated:
            obs, _, terminated, _, info = env.step(plan_around(obs, side))
            n_steps += 1
        assert info["is_success"] and n_steps <= 5
        assert min(sign * position[0] for position in env.trail[1:-1]) > 0
    with pytest.raises(ValueError, match="side='up'"):
        plan_around(obs, "up")


def test_demonstrations_are_two_sided_and_repeatable():
    data = demonstrate(gym.make("Obstacle-v0"), 40, seed=1)
    again = demonstrate(gym.make("Obstacle-v0"), 40, seed=1)
    assert all(np.array_equal(data[key], again[key]) for key in data)
    assert data["dones"].sum() == 40 and data["rewards"].sum() >= 39
    firsts = data["actions"][np.concatenate(([True], data["dones"][:-1]))]
    assert (np.sign(firsts[:, 0]) == np.tile([-1, 1], 20)).all()
