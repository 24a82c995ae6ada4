"""Walks in the plane whose step is of length 1 and whose heading turns by 45 degrees to the side of the action's sign."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_diffusion.common.envs.rendering import BLUE, GREEN, RED, Discs, draw_discs

N_HEADINGS = 8
HEADINGS = np.stack([(np.cos(angle), np.sin(angle)) for angle in np.arange(N_HEADINGS) * 2 * np.pi / N_HEADINGS])


class TurningEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    Base of the two environments: everything but the reward. The observation is the heading's unit vector, one of
    eight, the action a number in [-1, 1]. The start is any heading, each equally likely, or the one that
    ``reset(options=dict(heading=...))`` says, from 0 to 7.

    :param render_mode: ``"rgb_array"`` or None
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, shape=(1,), dtype=np.float32)
        self.heading = 0
        self.position = np.zeros(2)
        self.trail: list[np.ndarray] = []

    def reward(self, action: np.ndarray, heading: int) -> np.ndarray:
        """
        :param action: actions, (...)
        :param heading: heading before the turn, from 0 to 7
        :return: rewards, (...)
        """
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        heading = (options or {}).get("heading", int(self.np_random.integers(N_HEADINGS)))
        if heading not in range(N_HEADINGS):
            raise ValueError(f"options['heading']={heading!r}: choose from 0 to {N_HEADINGS - 1}")
        self.heading = int(heading)
        self.position = np.zeros(2)
        self.trail = [self.position]
        return HEADINGS[self.heading].astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        turn = float(np.clip(np.asarray(action, dtype=np.float64).item(), -1.0, 1.0))
        reward = float(self.reward(np.array(turn), self.heading))
        self.heading = (self.heading + int(np.sign(turn))) % N_HEADINGS
        self.position = self.position + HEADINGS[self.heading]
        self.trail.append(self.position)
        return HEADINGS[self.heading].astype(np.float32), reward, False, False, {}

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            return None
        ahead = [self.position + HEADINGS[self.heading] * length for length in np.linspace(0.2, 0.8, 7)]
        discs: Discs = [(position, 0.12, BLUE) for position in self.trail] + [(point, 0.08, GREEN) for point in ahead]
        return draw_discs([*discs, (self.position, 0.25, RED)], self.position, 8.0)


class TurningDoubleWellEnv(TurningEnv):
    """
    Two equally good actions in every state. With ``c`` their middle, ``w`` half of their distance, ``u = [(a - c) / w]^2`` and
    ``u_edge`` the value of ``u`` at the edge on that side, the reward is ``0.85 + 0.15 [1 - (1 - u)^2]`` up to ``u = 1`` and
    ``1 - [(u - 1) / (u_edge - 1)]^2`` beyond: 1 at the best actions, 0.85 between them, 0 at the edges.

    :param wells: the two best actions, between -1 and 1
    :param render_mode: ``"rgb_array"`` or None
    :raises ValueError: for wells out of order or out of range
    """

    HEIGHT = 0.85

    def __init__(self, wells: tuple[float, float] = (-0.5, 0.5), render_mode: str | None = None):
        super().__init__(render_mode)
        low, high = wells
        if not -1 < low < high < 1:
            raise ValueError(f"wells={wells}: choose two actions between -1 and 1, the lower one first")
        self.middle, self.distance = (low + high) / 2, (high - low) / 2

    def reward(self, action: np.ndarray, heading: int) -> np.ndarray:
        z = (np.asarray(action) - self.middle) / self.distance
        u, u_edge = z**2, ((1 - np.sign(z) * self.middle) / self.distance) ** 2
        inside = self.HEIGHT + (1 - self.HEIGHT) * (1 - (1 - u) ** 2)
        return np.where(u <= 1, inside, 1 - ((u - 1) / (u_edge - 1)) ** 2)


class TurningGMMEnv(TurningEnv):
    """
    At each heading the reward is the log-density of a mixture of five Gaussians with equal weights, so that at temperature 1
    and discount 0 the best policy is the mixture itself. The means are the same whenever the environment is made.

    :param render_mode: ``"rgb_array"`` or None
    """

    N_COMPONENTS, STD, MEAN_MAX = 5, 0.05, 0.75

    def __init__(self, render_mode: str | None = None):
        super().__init__(render_mode)
        generator = np.random.default_rng(0)
        self.means = generator.uniform(-self.MEAN_MAX, self.MEAN_MAX, size=(N_HEADINGS, self.N_COMPONENTS))

    def density(self, action: np.ndarray, heading: int) -> np.ndarray:
        """
        :param action: actions, (...)
        :param heading: heading, from 0 to 7
        :return: density of the mixture, (...)
        """
        return np.exp(self.reward(action, heading))

    def reward(self, action: np.ndarray, heading: int) -> np.ndarray:
        z = (np.asarray(action)[..., None] - self.means[heading]) / self.STD
        return np.logaddexp.reduce(-0.5 * z**2, axis=-1) - np.log(self.N_COMPONENTS * self.STD * np.sqrt(2 * np.pi))
