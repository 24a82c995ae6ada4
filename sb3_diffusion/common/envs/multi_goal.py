from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_diffusion.common.envs.rendering import BLUE, GREY, RED, Discs, draw_discs


class MultiGoalEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    A point in the plane and four goals at the same distance: from the middle, four first actions are equally good.
    After the multi-goal environment of soft Q-learning (Haarnoja et al., 2017, arXiv 1702.08165).

    The observation is the position, in [-7, 7]^2, the action the move, in [-1, 1]^2. The reward of a move ``a`` to ``s'`` is
    ``-30 |a|^2 - min_g |s' - g|^2``, and 10 more at a distance below 1 from a goal, where the episode ends. It starts at
    N(0, 0.1^2), or where ``reset(options=dict(position=...))`` says.

    :param render_mode: ``"rgb_array"`` or None
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    GOALS = np.array([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0], [0.0, -5.0]])
    LIMIT = 7.0
    START_STD = 0.1
    ACTION_COST, GOAL_REWARD, GOAL_RADIUS = 30.0, 10.0, 1.0

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-self.LIMIT, self.LIMIT, shape=(2,), dtype=np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float32)
        self.position = np.zeros(2)
        self.trail: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        start = self.np_random.normal(0.0, self.START_STD, size=2)
        start = np.asarray((options or {}).get("position", start), dtype=np.float64)
        if start.shape != (2,) or not np.isfinite(start).all():
            raise ValueError(f"options['position']={start}: give two finite coordinates")
        self.position = start.clip(-self.LIMIT, self.LIMIT)
        self.trail = [self.position]
        return self.position.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        action = np.asarray(action, dtype=np.float64).clip(-1.0, 1.0)
        self.position = (self.position + action).clip(-self.LIMIT, self.LIMIT)
        self.trail.append(self.position)
        distances = np.linalg.norm(self.GOALS - self.position, axis=1)
        terminated = bool(distances.min() < self.GOAL_RADIUS)
        reward = -self.ACTION_COST * (action**2).sum() - distances.min() ** 2 + self.GOAL_REWARD * terminated
        return self.position.astype(np.float32), float(reward), terminated, False, {}

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            return None
        discs: Discs = [(goal, self.GOAL_RADIUS, GREY) for goal in self.GOALS]
        discs += [(position, 0.1, BLUE) for position in self.trail] + [(self.position, 0.25, RED)]
        return draw_discs(discs, np.zeros(2), self.LIMIT + 0.5)
