"""
Chunks of actions: one action of the policy is n actions of the environment, one after the other, as diffusion policies are
used in robotics (Chi et al., 2023, arXiv 2303.04137).
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_diffusion.common.categories import Categories, check_chain_action_space, is_discrete
from sb3_diffusion.common.checks import check_finite_array, check_fraction, check_integer
from sb3_diffusion.common.wrappers import EpisodeInfo


class _ActionChunks:
    """The space of chunks, and the map from them to the environment's actions."""

    def __init__(self, action_space: spaces.Space, n: int, gamma: float):
        check_chain_action_space(action_space)
        check_integer("n", n, "the number of actions in a chunk")
        check_fraction("gamma", gamma)
        self.n, self.gamma, self.env_action_space = n, gamma, action_space
        self.categories: Categories | None = None
        if isinstance(action_space, spaces.Box):
            low, high = (np.stack([bound] * n) for bound in (action_space.low, action_space.high))
            self.action_space: spaces.Space = spaces.Box(low, high, dtype=action_space.dtype.type)
        else:
            assert is_discrete(action_space)
            self.categories = Categories.of(action_space)
            self.action_space = spaces.MultiDiscrete(np.tile(self.categories.counts, n))

    def split(self, chunk: Any) -> np.ndarray:
        """
        :param chunk: a chunk of actions, real numbers ``(n, *shape)``, categories ``(n * d,)``
        :return: actions of the environment, ``(n, *shape)``
        :raises ValueError: for another shape, NaN or infinity, or a category that does not exist
        """
        chunk = np.asarray(chunk)
        if chunk.shape != self.action_space.shape:
            raise ValueError(f"action of shape {chunk.shape}: a chunk of {self.n} actions has {self.action_space.shape}")
        if self.categories is None:
            check_finite_array("action", chunk)
            return chunk
        if not self.action_space.contains(chunk):
            raise ValueError(f"action {chunk} is not in {self.action_space}")
        return self.categories.env_action(chunk.reshape(self.n, -1))

    def join(self, actions: np.ndarray) -> np.ndarray:
        """
        The inverse of :meth:`split`, of many chunks.

        :param actions: actions of the environment, ``(B, n, *shape)``
        :return: chunks, real numbers ``(B, n, *shape)``, categories ``(B, n * d)``
        """
        if self.categories is None:
            return actions
        size = len(actions)
        return (actions.reshape(size, self.n, -1) - self.categories.start).reshape(size, -1).astype(np.int64)


class ActionChunkWrapper(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """
    Makes n actions of the environment one action of the policy. The environment takes them one after the other, and the policy
    sees the observation after the last. An episode that ends within a chunk ends there: the rest is not executed, and
    ``terminated``, ``truncated`` and ``info`` are those of the last step taken.

    A chunk is a ``Box`` of shape ``(n, *shape)``; of categories it is a ``MultiDiscrete`` with all n in one row, counted from
    0, which stock algorithms take, too.

    The reward of a chunk is ``sum_i gamma**i r_i``. Between chunks the algorithm discounts: give it ``gamma**n``. If an
    episode is *cut off* after j < n steps of a chunk, the algorithm weights the value of what would have followed by
    ``gamma**n`` in place of ``gamma**j``; a time limit that is a multiple of n avoids that.

    The steps of an algorithm are chunks. Episodes that a ``Monitor`` reports have the environment's length, on whichever side
    it is; only the *file* of one outside counts chunks, and its return is that of the discounted rewards.

    :param env: environment with a bounded ``Box``, ``Discrete``, ``MultiDiscrete`` or ``MultiBinary`` of actions
    :param n: number of actions in a chunk
    :param gamma: discount of the rewards within a chunk, from 0 to 1
    :raises ValueError: for other actions, or a number that is out of range
    """

    def __init__(self, env: gym.Env, n: int, gamma: float = 1.0):
        gym.utils.RecordConstructorArgs.__init__(self, n=n, gamma=gamma)
        gym.Wrapper.__init__(self, env)
        self.chunks = _ActionChunks(env.action_space, n, gamma)
        self.action_space = self.chunks.action_space
        self._length = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._length = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        :param action: a chunk of actions, real numbers ``(n, *shape)``, categories ``(n * d,)``
        :return: observation, reward, terminated, truncated, info
        :raises ValueError: for another shape, NaN or infinity, or a category that does not exist
        """
        total = 0.0
        for i, env_action in enumerate(self.chunks.split(action)):
            obs, reward, terminated, truncated, info = self.env.step(env_action)
            total += self.chunks.gamma**i * float(reward)
            self._length += 1
            if terminated or truncated:
                info = EpisodeInfo.of(info, self._length)
                break
        return obs, total, terminated, truncated, info


class VecActionChunkWrapper(VecEnvWrapper):
    """
    :class:`ActionChunkWrapper` around a ``DummyVecEnv`` or a ``SubprocVecEnv``. Where an episode ends within a chunk, that
    environment is reset and waits for the others.

    No other ``VecEnv`` can let one environment wait, nor can wrappers around these two: ``VecNormalize`` and ``VecMonitor``
    belong outside.

    :param venv: environments with a bounded ``Box``, ``Discrete``, ``MultiDiscrete`` or ``MultiBinary`` of actions
    :param n: number of actions in a chunk
    :param gamma: discount of the rewards within a chunk, from 0 to 1
    :raises ValueError: for another ``VecEnv``, other actions, or a number that is out of range
    """

    venv: DummyVecEnv | SubprocVecEnv

    def __init__(self, venv: VecEnv, n: int, gamma: float = 1.0):
        if not isinstance(venv, (DummyVecEnv, SubprocVecEnv)):
            raise ValueError(
                f"venv is a {type(venv).__name__}, whose environments all take each step: give a DummyVecEnv or a "
                "SubprocVecEnv and put other wrappers outside, or wrap each environment in an ActionChunkWrapper"
            )
        self.chunks = _ActionChunks(venv.action_space, n, gamma)
        super().__init__(venv, action_space=self.chunks.action_space)
        self._lengths = [0] * self.num_envs

    def reset(self) -> VecEnvObs:
        self._lengths = [0] * self.num_envs
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = [self.chunks.split(chunk) for chunk in actions]

    def step_wait(self) -> VecEnvStepReturn:
        obs: list[Any] = [None] * self.num_envs
        infos: list[dict[str, Any]] = [{}] * self.num_envs
        reset_infos = list(self.venv.reset_infos)
        rewards, dones = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=bool)
        for i in range(self.chunks.n):
            running = np.flatnonzero(~dones).tolist()
            for index, result in zip(running, self._step_some(running, i), strict=True):
                obs[index], reward, dones[index], infos[index], reset_info = result
                rewards[index] += self.chunks.gamma**i * float(reward)
                self._lengths[index] += 1
                if dones[index]:
                    infos[index] = EpisodeInfo.of(infos[index], self._lengths[index])
                    self._lengths[index] = 0
                    reset_infos[index] = reset_info or {}
        self.venv.reset_infos = reset_infos
        return self._stack(obs), rewards.astype(np.float32), dones, infos

    def _step_some(self, indices: list[int], i: int) -> list[tuple[Any, float, bool, dict[str, Any], dict[str, Any] | None]]:
        """Step some of the environments; for each, observation, reward, end, info, and info of the reset."""
        if isinstance(self.venv, DummyVecEnv):
            return [_step_and_reset(self.venv.envs[index], self._actions[index][i]) for index in indices]
        for index in indices:
            self.venv.remotes[index].send(("step", self._actions[index][i]))
        return [self.venv.remotes[index].recv() for index in indices]

    def _stack(self, obs: list[Any]) -> VecEnvObs:
        """Observations of all environments, as the ``VecEnv`` inside gives them."""
        if isinstance(self.venv, DummyVecEnv):
            for index, one in enumerate(obs):
                self.venv._save_obs(index, one)
            return self.venv._obs_from_buf()
        if isinstance(self.observation_space, spaces.Dict):
            return {key: np.stack([one[key] for one in obs]) for key in self.observation_space.spaces}
        return np.stack(obs)


def _step_and_reset(env: gym.Env, action: Any) -> tuple[Any, float, bool, dict[str, Any], dict[str, Any] | None]:
    """One step, and a reset at the end of an episode, as a worker of a ``SubprocVecEnv`` does."""
    obs, reward, terminated, truncated, info = env.step(action)
    done, reset_info = terminated or truncated, None
    info["TimeLimit.truncated"] = truncated and not terminated
    if done:
        info["terminal_observation"] = obs
        obs, reset_info = env.reset()
    return obs, float(reward), done, info, reset_info
