from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_diffusion.common.envs.rendering import BLUE, GREEN, GREY, RED, Discs, draw_discs

SIDES = {"left": -1.0, "right": 1.0}


class ObstacleEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    A point in the plane, a goal above it and a round obstacle between the two: around it lead two equally long ways, and
    the mean of the two leads into it.

    The observation is the position, the action a move in [-1, 1]^2, in units of 2; about four moves lead around. The start
    is N((0, -2), 0.05^2), or where ``reset(options=dict(position=...))`` says, the goal at (0, 2). The reward is 1 at a
    distance below 0.4 from the goal, where the episode ends, and 0 elsewhere. A move that touches the obstacle, of radius 1.2
    around the origin, or the edge of the plane, 2.6 to the sides and 2.8 upwards and downwards, ends the episode, too.
    ``info["is_success"]`` says which it was.

    :param render_mode: ``"rgb_array"`` or None
    :param closed: close one way, ``"left"`` or ``"right"``, by a wall from the obstacle to the edge; None leaves both open
    :param shaped: add to the reward by which share of the start's the shortest way to the goal has become shorter, as if no
        way were closed; so that the goal need not be found by chance
    :raises ValueError: for another way
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    LIMITS = np.array([2.6, 2.8])
    START, START_STD = np.array([0.0, -2.0]), 0.05
    GOAL, GOAL_RADIUS = np.array([0.0, 2.0]), 0.4
    OBSTACLE_RADIUS, STEP = 1.2, 2.0

    def __init__(self, render_mode: str | None = None, closed: str | None = None, shaped: bool = False):
        if closed is not None and closed not in SIDES:
            raise ValueError(f"closed={closed!r}: choose 'left', 'right' or None")
        self.render_mode = render_mode
        self.closed = closed
        self.shaped = shaped
        self.observation_space = spaces.Box(-self.LIMITS.astype(np.float32), self.LIMITS.astype(np.float32))
        self.action_space = spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float32)
        self.position = self.START
        self.trail: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        start = self.np_random.normal(self.START, self.START_STD)
        start = np.asarray((options or {}).get("position", start), dtype=np.float64)
        if start.shape != (2,) or not (np.abs(start) < self.LIMITS).all() or np.linalg.norm(start) <= self.OBSTACLE_RADIUS:
            raise ValueError(f"options['position']={start}: give two coordinates within the plane and outside the obstacle")
        self.position = start
        self.trail = [start]
        return start.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        before = self.position
        move = self.STEP * np.asarray(action, dtype=np.float64).clip(-1.0, 1.0)
        self.position = (before + move).clip(-self.LIMITS, self.LIMITS)
        self.trail.append(self.position)
        crashed = self._crosses(before, self.position) or bool((np.abs(self.position) >= self.LIMITS).any())
        success = not crashed and bool(np.linalg.norm(self.GOAL - self.position) < self.GOAL_RADIUS)
        reward = float(success)
        if self.shaped:
            reward += (way_left(before) - way_left(self.position)) / way_left(self.START)
        return self.position.astype(np.float32), reward, success or crashed, False, {"is_success": success}

    def _crosses(self, start: np.ndarray, end: np.ndarray) -> bool:
        """Whether a straight move touches the obstacle or the wall of the closed way."""
        if distance_to_segment(np.zeros(2), start, end) <= self.OBSTACLE_RADIUS:
            return True
        if self.closed is None or start[1] * end[1] > 0:
            return False
        share = start[1] / (start[1] - end[1]) if start[1] != end[1] else 0.0
        return bool(np.sign((start + share * (end - start))[0]) == SIDES[self.closed])

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            return None
        discs: Discs = [(np.zeros(2), self.OBSTACLE_RADIUS, GREY), (self.GOAL, self.GOAL_RADIUS, GREEN)]
        if self.closed is not None:
            wall = SIDES[self.closed] * np.arange(self.OBSTACLE_RADIUS, self.LIMITS[0], 0.05)
            discs += [(np.array([x, 0.0]), 0.1, GREY) for x in wall]
        discs += [(position, 0.06, BLUE) for position in self.trail] + [(self.position, 0.12, RED)]
        return draw_discs(discs, np.zeros(2), 3.0)


def distance_to_segment(point: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    """
    :param point: point, (2,)
    :param start: start of a segment, (2,)
    :param end: its end, (2,)
    :return: least distance of the point from the segment
    """
    along = end - start
    share = np.clip(np.dot(point - start, along) / max(float(np.dot(along, along)), 1e-12), 0.0, 1.0)
    return float(np.linalg.norm(start + share * along - point))


def way_left(position: np.ndarray) -> float:
    """
    :param position: position, (2,)
    :return: length of the shortest way to the goal of :class:`ObstacleEnv`: straight, or along two tangents of the obstacle
        and its edge between them; within the obstacle as on its edge
    """
    radius, goal = ObstacleEnv.OBSTACLE_RADIUS, ObstacleEnv.GOAL
    if distance_to_segment(np.zeros(2), position, goal) >= radius:
        return float(np.linalg.norm(goal - position))
    distances = np.maximum([np.linalg.norm(position), np.linalg.norm(goal)], radius)
    cosine = np.dot(position, goal) / max(float(np.linalg.norm(position) * np.linalg.norm(goal)), 1e-12)
    arc = np.arccos(np.clip(cosine, -1.0, 1.0)) - np.arccos(radius / distances).sum()
    return float(np.sqrt(distances**2 - radius**2).sum() + radius * max(arc, 0.0))


def plan_around(position: np.ndarray, side: str, clearance: float = 0.3, speed: float = 0.8) -> np.ndarray:
    """
    The scripted planner of :class:`ObstacleEnv`: along the shortest way around the obstacle that keeps a distance from it,
    first along the tangent, then along the circle, then straight to the goal.

    :param position: position, (2,)
    :param side: ``"left"`` or ``"right"``
    :param clearance: distance to keep from the obstacle
    :param speed: length of the action, less where the goal is nearer
    :return: action, (2,)
    :raises ValueError: for another side
    """
    if side not in SIDES:
        raise ValueError(f"side={side!r}: choose 'left' or 'right'")
    position = np.asarray(position, dtype=np.float64)
    radius = ObstacleEnv.OBSTACLE_RADIUS + clearance
    distance = float(np.linalg.norm(position))
    if distance_to_segment(np.zeros(2), position, ObstacleEnv.GOAL) >= radius:
        direction = ObstacleEnv.GOAL - position
        speed = min(speed, float(np.linalg.norm(direction)) / ObstacleEnv.STEP)
    else:
        # From the line to the middle by the angle of the tangent; inside of the circle outwards, to be back on it
        turn = np.arcsin(min(radius / distance, 1.0)) + max(radius - distance, 0.0)
        angle = np.arctan2(*-position[::-1]) - SIDES[side] * turn
        direction = np.array([np.cos(angle), np.sin(angle)])
    direction = direction / max(float(np.linalg.norm(direction)), 1e-12)
    return (speed * direction).clip(-1.0, 1.0)


def demonstrate(env: gym.Env, n_episodes: int, noise: float = 0.05, seed: int = 0) -> dict[str, np.ndarray]:
    """
    Episodes of the planner, in turn around the one and the other side.

    :param env: an :class:`ObstacleEnv`, wrapped or not
    :param n_episodes: number of episodes
    :param noise: standard deviation of the noise on the planner's actions
    :param seed: seed of the starts and the noise
    :return: ``observations``, ``next_observations`` and ``actions``, each (N, 2), ``rewards``, ``dones`` (the episode ended)
        and ``truncations`` (it was cut off), each (N,)
    """
    rng = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {
        key: [] for key in ("observations", "next_observations", "actions", "rewards", "dones", "truncations")
    }
    for episode in range(n_episodes):
        obs, _ = env.reset(seed=int(rng.integers(2**31)))
        terminated = truncated = False
        while not (terminated or truncated):
            action = plan_around(obs, ("left", "right")[episode % 2]) + rng.normal(0.0, noise, size=2)
            action = action.clip(-1.0, 1.0).astype(np.float32)
            next_obs, reward, terminated, truncated, _ = env.step(action)
            for key, value in zip(columns, (obs, next_obs, action, reward, terminated, truncated), strict=True):
                columns[key].append(value)
            obs = next_obs
    return {key: np.array(values) for key, values in columns.items()}
