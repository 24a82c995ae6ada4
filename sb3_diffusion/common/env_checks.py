"""Checks of what environments return: training stops with a clear error before anything wrong is stored."""

import math
import multiprocessing.connection
import numbers
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import ForkProcess
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from sb3_diffusion.common.checks import check_finite_array


class EnvCheckMixin(BaseAlgorithm):
    """An algorithm that looks at what its environments return before it learns from it."""

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        _watch_environments(self.env)
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        assert self._last_obs is not None
        check_observations(
            "first observation",
            self._last_obs,
            self.observation_space,
            self.n_envs,
            self._vec_normalize_env,
            self._reads_all_numbers(),
        )
        return result

    def _reads_all_numbers(self) -> bool:
        """Whether NaN in an observation would reach the networks: a user's features extractor may replace it."""
        return self.policy.features_extractor_class in (FlattenExtractor, NatureCNN, CombinedExtractor)

    def _check_transition(
        self,
        reward: npt.ArrayLike,
        new_obs: Any,
        dones: npt.ArrayLike,
        infos: list[dict[str, Any]],
        only_truncated: bool = False,
    ) -> None:
        """See :func:`check_transition`."""
        vec_normalize, finite = self._vec_normalize_env, self._reads_all_numbers()
        check_transition(reward, new_obs, dones, infos, self.observation_space, vec_normalize, finite, only_truncated)


def _check_observation(
    name: str, value: Any, space: spaces.Space, batch: tuple[int, ...] = (), check_dtype: bool = True
) -> None:
    """
    NumPy fills an array of a space's shape and dtype with much that does not fit it: it repeats a single number and cuts
    fractions off.
    """
    if isinstance(space, spaces.Dict):
        for key, subspace in space.spaces.items():
            try:
                part = value[key]
            except (LookupError, TypeError, ValueError) as error:
                raise ValueError(f"{name} has no {key!r}, which is in its space {space}: {value}") from error
            _check_observation(f"{name}[{key!r}]", part, subspace, batch, check_dtype)
        return
    array = np.asarray(value)
    if not _fits_shape(array.shape, (*batch, *(space.shape or ()))):
        raise ValueError(f"{name} has the shape {array.shape}, but its space {space} says {space.shape}: {value}")
    if check_dtype and array.dtype != space.dtype and not fits_dtype(array, np.dtype(space.dtype)):
        raise ValueError(f"{name} is of {array.dtype}, which does not fit the {space.dtype} of its space {space}: {value}")


def _fits_shape(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether NumPy broadcasts one shape to the other without repetition: they differ in dimensions of 1 alone."""
    if shape == expected:
        return True
    as_wide = math.prod(shape) == math.prod(expected)
    stripped = shape[next((index for index, size in enumerate(shape) if size != 1), len(shape)) :]
    return as_wide and (stripped == () or expected[-len(stripped) :] == stripped)


def fits_dtype(array: np.ndarray, dtype: np.dtype) -> bool:
    """
    :param array: array of numbers
    :param dtype: dtype
    :return: whether nothing but the precision of real numbers is lost in that dtype
    """
    if array.dtype.kind == "O" and all(isinstance(number, numbers.Number) for number in array.flat):
        array = array.astype(np.float64)
    if array.dtype.kind not in "biuf" or dtype.kind == "f":
        return array.dtype.kind in "biuf"
    with np.errstate(invalid="ignore"):
        return np.array_equal(array.astype(dtype), array)


def check_transition(
    reward: npt.ArrayLike,
    new_obs: np.ndarray | Mapping[str, np.ndarray],
    dones: npt.ArrayLike,
    infos: list[dict[str, Any]],
    observation_space: spaces.Space,
    vec_normalize: VecNormalize | None = None,
    finite: bool = True,
    only_truncated: bool = False,
) -> None:
    """
    :param reward: rewards of one step of the environments
    :param new_obs: observations after it
    :param dones: whether an episode has ended; only there the last observation of an episode counts
    :param infos: ``infos`` of the environments
    :param observation_space: space of the observations
    :param vec_normalize: normalisation that they have passed through, if any
    :param finite: whether observations must be finite
    :param only_truncated: whether the last observation of an episode counts only where it was cut off, as in PPO
    :raises ValueError: if a reward is not a number, an observation does not fit its space, or either is NaN or infinite
    """
    # Some environments have nothing to say in their infos, not even a dict for each
    dones = np.asarray(dones)
    n_envs = dones.size
    _check_reward(reward, (n_envs,))
    if vec_normalize is not None:
        check_finite_array("reward", vec_normalize.get_original_reward())
    check_observations("observation", new_obs, observation_space, n_envs, vec_normalize, finite)
    check_dtype = vec_normalize is None
    for done, info in zip(np.ravel(dones), infos, strict=False):
        counts = done and (info.get("TimeLimit.truncated", False) or not only_truncated)
        last = info.get("terminal_observation") if counts else None
        if last is not None:
            _check_observation("terminal observation", last, observation_space, (), check_dtype)
            if finite:
                check_finite_array("terminal observation", last)


def check_observations(
    name: str,
    obs: np.ndarray | Mapping[str, np.ndarray],
    observation_space: spaces.Space,
    n_envs: int,
    vec_normalize: VecNormalize | None = None,
    finite: bool = True,
) -> None:
    """
    :param name: name of the value, for the error
    :param obs: observations of all environments
    :param observation_space: their space
    :param n_envs: number of environments
    :param vec_normalize: normalisation that they have passed through, if any
    :param finite: whether they must be finite
    :raises ValueError: if they do not fit their space, or an entry is NaN or infinite
    """
    _check_observation(name, obs, observation_space, (n_envs,), check_dtype=vec_normalize is None)
    if finite:
        check_finite_array(name, obs)
    # Before its first reset or step it has none
    if vec_normalize is not None and hasattr(vec_normalize, "old_obs"):
        # Normalisation clips infinite values, but it has counted them
        original = vec_normalize.get_original_obs()
        _check_observation(name, original, vec_normalize.venv.observation_space, (n_envs,))
        if finite:
            check_finite_array(name, original)


def _check_reward(reward: npt.ArrayLike, shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` if rewards are not finite numbers, one for each environment or one for all."""
    array = np.asarray(reward)
    if array.dtype.kind == "O" and all(isinstance(number, numbers.Real) for number in array.flat):
        array = array.astype(np.float64)
    if not (array.ndim == 0 or _fits_shape(array.shape, shape)) or array.dtype.kind not in "biuf":
        raise ValueError(f"reward must be one number for each environment, not {reward!r}. Look at the environment's step()")
    check_finite_array("reward", array)


def _innermost(env: VecEnv | None) -> VecEnv | None:
    """The environments below all ``VecEnvWrapper``; they may be of any class."""
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    return env


def _watch_environments(env: VecEnv | None) -> None:
    """
    Have the spaces and observations of environments in this process checked at each step, before ``DummyVecEnv`` fits them
    into its arrays; and the spaces of those in other processes now, of which SB3 has asked the first one only.
    """
    base = _innermost(env)
    if type(base) is DummyVecEnv:
        # Beneath wrappers, and not as one, so that set_attr() still reaches the user's outermost. A function of the user's
        # own stays, one that an earlier training has left is replaced
        before = vars(base).get("_save_obs")
        if before is not None and getattr(before, "func", None) is not _save_checked_observation:
            return
        base._save_obs = partial(_save_checked_observation, base, {})  # type: ignore[method-assign]
    elif isinstance(base, SubprocVecEnv):
        for index, spaces_ in enumerate(zip(base.get_attr("observation_space"), base.get_attr("action_space"), strict=True)):
            _check_spaces(index, spaces_, base)
        if isinstance(base.processes[0], ForkProcess):
            warnings.warn(
                "SubprocVecEnv with start_method='fork': when a worker dies, the others hold its pipe open and training "
                "hangs. The default start method reports it"
            )


def _save_checked_observation(
    base: DummyVecEnv, known: dict[int, tuple[spaces.Space, spaces.Space]], index: int, obs: Any
) -> None:
    """Check an observation, then do what ``DummyVecEnv._save_obs`` does."""
    env = base.envs[index]
    now = env.observation_space, getattr(env, "action_space", base.action_space)
    before = known.get(index)
    # A comparison takes longer than a step of some environments
    if before is None or now[0] is not before[0] or now[1] is not before[1]:
        _check_spaces(index, now, base)
        known[index] = now
    _check_observation("observation", obs, base.observation_space)
    type(base)._save_obs(base, index, obs)


def _check_spaces(index: int, found: tuple[spaces.Space, spaces.Space], base: VecEnv) -> None:
    """
    Raise ``ValueError`` if an environment has other spaces than at the start of the training, but for bounds of observations.
    """
    right = base.observation_space, base.action_space
    equal = _have_one_form(found[0], right[0]), _are_same_actions(found[1], right[1])
    for name, space, expected, is_right in zip(("observation", "action"), found, right, equal, strict=True):
        if not is_right:
            raise ValueError(
                f"The {name} space of environment {index} is {space}, but training is for {expected}: an environment must "
                "keep its spaces, and all must have the same. For other spaces, make another model"
            )


def _have_one_form(first: spaces.Space, second: spaces.Space) -> bool:
    """Whether two spaces are equal but for their bounds, which no network looks at."""
    if isinstance(first, spaces.Dict) and isinstance(second, spaces.Dict):
        # Keys beyond those of the training are not read
        both = first.spaces.keys() >= second.spaces.keys()
        return both and all(_have_one_form(first[key], second[key]) for key in second.spaces)
    if isinstance(first, spaces.Box) and isinstance(second, spaces.Box):
        return first.shape == second.shape and first.dtype == second.dtype
    return first == second


def _are_same_actions(first: spaces.Space, second: spaces.Space) -> bool:
    """Whether two spaces of actions are equal but for rounding and the precision of numbers."""
    if isinstance(first, spaces.Box) and isinstance(second, spaces.Box) and first.shape == second.shape:
        bounds = (np.allclose(getattr(first, name), getattr(second, name)) for name in ("low", "high"))
        return first.dtype.kind == second.dtype.kind and all(bounds)
    if isinstance(first, spaces.Discrete) and isinstance(second, spaces.Discrete):
        return (first.n, first.start) == (second.n, second.start)
    return first == second


def stop_dead_workers(env: VecEnv | None) -> dict[int, int | None]:
    """
    Close a ``SubprocVecEnv`` some of whose processes are gone, since its own ``close`` would wait for answers that do not
    come, or fail.

    :param env: environments, in this process or in others
    :return: exit codes of the processes that are gone, by their index; empty, and nothing is closed, if none is
    """
    base = _innermost(env)
    if not isinstance(base, SubprocVecEnv) or base.closed:
        return {}
    ended = multiprocessing.connection.wait([process.sentinel for process in base.processes], timeout=1.0)
    for process in base.processes:
        if process.sentinel in ended:
            process.join(timeout=1.0)
    dead = {index: process.exitcode for index, process in enumerate(base.processes) if process.exitcode is not None}
    if dead:
        for process in base.processes:
            process.terminate()
        base.closed = True
    return dead


@contextmanager
def report_dead_workers(env: VecEnv, callback: BaseCallback) -> Iterator[None]:
    """
    Say what has happened when a process of a ``SubprocVecEnv`` is gone, after the callbacks have been told that training
    ends, so that a checkpoint of all that has been learned can be written.

    :param env: environments of a rollout
    :param callback: callback of the training
    :raises RuntimeError: if a worker has died
    """
    try:
        yield
    except (EOFError, ConnectionError) as error:
        dead = stop_dead_workers(env)
        if not dead:
            raise
        callback.on_training_end()
        names = ", ".join(f"{index} (exit code {exitcode})" for index, exitcode in dead.items())
        raise RuntimeError(
            f"Worker {names} of SubprocVecEnv has died. Minus 9 is most often the system, out of memory; with 1 the worker "
            "has printed an error of the environment. Go on from the last checkpoint with resume_latest() and a new env"
        ) from error
