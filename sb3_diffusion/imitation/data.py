"""Demonstrations from arrays, files, replay buffers and Minari data sets, checked against the spaces of a model."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecTransposeImage

from sb3_diffusion.common.action_scaling import unscale_action
from sb3_diffusion.common.env_checks import fits_dtype

NumpyObs = np.ndarray | dict[str, np.ndarray]
Value = TypeVar("Value")

# What arrays are called elsewhere: in DPPO's files (arXiv 2409.00588) and in D4RL's (arXiv 2004.07219)
ALIASES = {"states": "observations", "traj_lengths": "episode_lengths", "terminals": "dones", "timeouts": "truncations"}
REQUIRED = ("observations", "actions")
KNOWN = (*REQUIRED, "next_observations", "rewards", "dones", "truncations", "episode_lengths")

# How far an action may lie beyond its bounds, as a share of their distance: what rounding does
BOUND_TOLERANCE = 1e-5


class Episode(NamedTuple):
    """
    One episode of T steps.

    :param observations: observations of its steps, and maybe the last one, T or T + 1
    :param actions: actions in the environment's bounds, (T, ...)
    :param rewards: rewards, (T,), if known
    :param terminated: whether the environment ended it, and it was not cut off
    :param next_observations: next observation of each step, T of them, if given
    """

    observations: NumpyObs
    actions: np.ndarray
    rewards: np.ndarray | None
    terminated: bool
    next_observations: NumpyObs | None = None


class Demonstrations(NamedTuple):
    """
    N steps of all episodes, one after the other.

    :param observations: observations, (N, ...)
    :param actions: actions in the environment's bounds, (N, ...)
    :param next_observations: next observations, (N, ...); the observation itself where ``has_next`` is False
    :param has_next: whether the next observation is known, or not needed because the episode terminates, (N,)
    :param rewards: rewards, (N,), None if not known
    :param terminations: whether the environment ended the episode here, (N,)
    :param truncations: whether the episode was cut off here, (N,)
    :param episodes: number of the episode of each step, from 0, (N,)
    """

    observations: NumpyObs
    actions: np.ndarray
    next_observations: NumpyObs
    has_next: np.ndarray
    rewards: np.ndarray | None
    terminations: np.ndarray
    truncations: np.ndarray
    episodes: np.ndarray

    def __len__(self) -> int:
        return len(self.actions)


def map_obs(function: Callable[[np.ndarray], Any], obs: NumpyObs) -> Any:
    """
    :param function: function of one array
    :param obs: array or arrays by key
    :return: the result, or the results by key
    """
    return {key: function(value) for key, value in obs.items()} if isinstance(obs, dict) else function(obs)


def load_demonstrations(data: Any, observation_space: spaces.Space, action_space: spaces.Space) -> Demonstrations:
    """
    Read demonstrations and check them.

    :param data: one of

        - a dict of arrays, one row a step: ``observations`` (for ``Dict`` observations a dict of arrays) and ``actions``, and
          if known ``rewards``, ``dones`` (the environment ended the episode), ``truncations`` (the episode was cut off),
          ``next_observations``, ``episode_lengths``. Without the last of these an episode ends where a done or a truncation is
        - the path of an ``.npz`` file with such arrays, or with DPPO's ``states``, ``actions`` and ``traj_lengths``
        - the path of an ``.hdf5`` file with such arrays, or with D4RL's ``terminals`` and ``timeouts``; needs ``h5py``
        - a ``ReplayBuffer``
        - a ``minari.MinariDataset``, the path of one, or its id: a local one, or one to download
    :param observation_space: the model's observation space
    :param action_space: the model's action space
    :return: the demonstrations
    :raises ValueError: for what cannot be used, naming the episode
    :raises ImportError: if a package is missing that the file needs
    """
    if isinstance(data, Demonstrations):
        check_actions("the data", data.actions, action_space)
        check_observations("the data: observations", data.observations, observation_space)
        return data
    checked = [
        check_episode(f"episode {index}", episode, observation_space, action_space)
        for index, episode in enumerate(read_episodes(data))
    ]
    if not checked:
        raise ValueError("the data have no episodes")
    return join_episodes(checked)


def read_episodes(data: Any) -> Iterable[Episode]:
    """
    :param data: see :func:`load_demonstrations`
    :return: its episodes, not checked yet
    :raises ValueError: for data of another kind
    """
    if isinstance(data, Mapping):
        if unknown := sorted(map(str, data.keys() - set(KNOWN) - set(ALIASES))):
            raise ValueError(f"the data have the keys {unknown}: choose from {', '.join(KNOWN)}")
        return split_arrays(data)
    if isinstance(data, ReplayBuffer):
        return buffer_episodes(data)
    if isinstance(data, (str, Path)):
        return read_path(data)
    if hasattr(data, "iterate_episodes"):
        return minari_episodes(data)
    raise ValueError(
        f"data of type {type(data).__name__}: give a dict of arrays, a ReplayBuffer, a MinariDataset or its id, or the path "
        "of an .npz or .hdf5 file or of a Minari data set"
    )


def read_path(path: str | Path) -> Iterable[Episode]:
    """
    :param path: path of a file or of a Minari data set, or the id of one
    :return: its episodes
    :raises ValueError: if it is none of these
    """
    file = Path(path)
    if file.suffix == ".npz" and file.is_file():
        with np.load(file, allow_pickle=False) as arrays:
            return list(split_arrays({key: arrays[key] for key in (*KNOWN, *ALIASES) if key in arrays.files}))
    if file.suffix in (".hdf5", ".h5") and file.is_file():
        return read_hdf5(file)
    if file.suffix in (".npz", ".hdf5", ".h5"):
        raise ValueError(f"data={str(path)!r}: there is no such file")
    minari = import_minari()
    if file.is_dir():
        # A data set's own folder holds the folder "data"
        return minari_episodes(minari.MinariDataset(file / "data" if (file / "data").is_dir() else file))
    try:
        return minari_episodes(minari.load_dataset(str(path), download=True))
    except Exception as error:
        raise ValueError(
            f"data={str(path)!r}: no .npz or .hdf5 file, no folder of a Minari data set, and Minari knows no data set of this "
            f"id that it can load: {error}"
        ) from error


def read_hdf5(file: Path) -> Iterable[Episode]:
    """
    :param file: HDF5 file, flat or Minari's
    :return: its episodes
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError("HDF5 files need h5py: pip install 'sb3-diffusion[minari]'") from error

    def read(entry: Any) -> Any:
        return {key: read(value) for key, value in entry.items()} if isinstance(entry, h5py.Group) else entry[()]

    with h5py.File(file) as entries:
        if any(key.startswith("episode_") for key in entries):
            return minari_episodes(import_minari().MinariDataset(file.parent))
        return list(split_arrays({key: read(entries[key]) for key in (*KNOWN, *ALIASES) if key in entries}))


def import_minari() -> Any:
    """
    :return: the package ``minari``
    :raises ImportError: if it is not installed
    """
    try:
        import minari
    except ImportError as error:
        raise ImportError("Minari data sets need minari, and Python 3.11: pip install 'sb3-diffusion[minari]'") from error
    return minari


def minari_episodes(dataset: Any) -> Iterator[Episode]:
    """
    :param dataset: a ``minari.MinariDataset``
    :return: its episodes
    """
    for episode in dataset.iterate_episodes():
        terminated = bool(len(episode.terminations) and episode.terminations[-1])
        yield Episode(episode.observations, episode.actions, episode.rewards, terminated)


def split_arrays(data: Mapping[str, Any]) -> Iterator[Episode]:
    """
    :param data: arrays by name, see :func:`load_demonstrations`
    :return: their episodes
    :raises ValueError: if one is missing or their lengths differ
    """
    arrays = {ALIASES.get(key, key): value for key, value in data.items() if value is not None}
    if missing := [name for name in REQUIRED if name not in arrays]:
        raise ValueError(f"the data have no {' and no '.join(missing)}")
    actions = np.asarray(arrays["actions"])
    n_steps = len(actions)
    columns: dict[str, Any] = {}
    for name in ("observations", "next_observations", "rewards", "dones", "truncations"):
        if name not in arrays:
            continue
        value = arrays[name]
        columns[name] = map_obs(np.asarray, dict(value) if isinstance(value, Mapping) else value)
        lengths = {len(part) for part in (columns[name].values() if isinstance(columns[name], dict) else [columns[name]])}
        if lengths != {n_steps}:
            raise ValueError(f"{name} of length {sorted(lengths)}, actions of length {n_steps}: they must be the same")
    ended, cut = (read_flags(name, columns.get(name, np.zeros(n_steps)), n_steps) for name in ("dones", "truncations"))
    bounds = episode_bounds(arrays.get("episode_lengths"), ended | cut)
    for start, end in pairwise(bounds):
        part = {name: map_obs(itemgetter(slice(start, end)), value) for name, value in columns.items()}
        terminated = bool(end > start and ended[end - 1] and not cut[end - 1])
        yield Episode(part["observations"], actions[start:end], part.get("rewards"), terminated, part.get("next_observations"))


def read_flags(name: str, values: np.ndarray, n_steps: int) -> np.ndarray:
    """
    :param name: ``dones`` or ``truncations``
    :param values: one for each step
    :param n_steps: number of steps N
    :return: whether they are set, (N,)
    :raises ValueError: if they are not one flag a step
    """
    if values.dtype.kind not in "fiub" or values.size != n_steps:
        raise ValueError(f"{name} of type {values.dtype} and shape {values.shape}: give one flag for each of {n_steps} steps")
    check_finite(name, values)
    return values.reshape(n_steps) > 0


def episode_bounds(lengths: Any, last: np.ndarray) -> np.ndarray:
    """
    :param lengths: number of steps of each episode, if given
    :param last: whether each step ends an episode, (N,)
    :return: where each episode starts, and N, (E + 1,)
    :raises ValueError: if the lengths do not sum up to N
    """
    if lengths is None:
        bounds = np.concatenate(([0], np.flatnonzero(last) + 1))
        return bounds if bounds[-1] == len(last) else np.append(bounds, len(last))
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise ValueError(
            f"episode_lengths of type {lengths.dtype} and shape {lengths.shape}: give an integer for each episode"
        )
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    if bounds[-1] != len(last):
        raise ValueError(f"the episodes' lengths sum up to {bounds[-1]}, there are {len(last)} steps")
    if (lengths < 0).any():
        raise ValueError(f"episode {int(np.argmin(lengths))} has the length {lengths.min()}")
    if inside := sorted(set(np.flatnonzero(last) + 1) - set(bounds)):
        raise ValueError(
            f"step {inside[0] - 1} ends an episode by dones or truncations, but lies inside episode "
            f"{np.searchsorted(bounds, inside[0]) - 1} by episode_lengths"
        )
    return bounds


def buffer_episodes(buffer: ReplayBuffer) -> Iterator[Episode]:
    """
    :param buffer: replay buffer, whose actions are scaled to [-1, 1], as Stable-Baselines3's algorithms do
    :return: its episodes, environment by environment
    """
    order = (np.arange(buffer.size()) + (buffer.pos if buffer.full else 0)) % buffer.buffer_size
    if buffer.full and buffer.optimize_memory_usage:
        order = order[1:]  # the transition that is written next has lost its observation
    following = (order + 1) % buffer.buffer_size
    for index in range(buffer.n_envs):
        take = lambda values, rows=order, column=index: values[rows, column]  # noqa: E731
        actions = take(buffer.actions).reshape(len(order), *(buffer.action_space.shape or ()))
        if isinstance(buffer.action_space, spaces.Box):
            actions = unscale_action(buffer.action_space.low, buffer.action_space.high, actions)
        in_one_array = buffer.optimize_memory_usage
        after = take(buffer.observations, following) if in_one_array else map_obs(take, buffer.next_observations)
        yield from split_arrays(
            {
                "observations": map_obs(take, buffer.observations),
                "next_observations": after,
                "actions": actions,
                "rewards": take(buffer.rewards),
                "dones": take(buffer.dones),
                "truncations": take(buffer.timeouts),
            }
        )


def check_episode(where: str, episode: Episode, observation_space: spaces.Space, action_space: spaces.Space) -> Demonstrations:
    """
    :param where: which episode it is, for errors
    :param episode: one episode
    :param observation_space: the model's observation space
    :param action_space: the model's action space
    :return: its steps, in the shapes and types of the spaces
    :raises ValueError: for what cannot be used
    """
    n_steps = len(episode.actions)
    if n_steps == 0:
        raise ValueError(f"{where} is empty: leave it out of the data")
    actions = check_actions(where, np.asarray(episode.actions), action_space)
    observations = check_observations(f"{where}: observations", episode.observations, observation_space)
    n_obs = {len(value) for value in (observations.values() if isinstance(observations, dict) else [observations])}
    if n_obs not in ({n_steps}, {n_steps + 1}):
        raise ValueError(f"{where}: {sorted(n_obs)} observations for {n_steps} actions, there must be as many, or one more")
    has_next = np.ones(n_steps, dtype=bool)
    if episode.next_observations is not None:
        following = check_observations(f"{where}: next_observations", episode.next_observations, observation_space)
    else:
        has_next[-1] = n_obs == {n_steps + 1} or episode.terminated
        following = map_obs(lambda value: np.concatenate((value[1:], value[-1:]))[:n_steps], observations)
    rewards = None if episode.rewards is None else np.asarray(episode.rewards, dtype=np.float32).reshape(-1)
    if rewards is not None:
        if len(rewards) != n_steps:
            raise ValueError(f"{where}: {len(rewards)} rewards for {n_steps} actions")
        check_finite(f"{where}: rewards", rewards)
    last = np.arange(n_steps) == n_steps - 1
    return Demonstrations(
        map_obs(lambda value: value[:n_steps], observations),
        actions,
        following,
        has_next,
        rewards,
        last & episode.terminated,
        last & (not episode.terminated),
        np.zeros(n_steps, dtype=np.int64),
    )


def check_finite(what: str, values: np.ndarray) -> None:
    """
    :param what: which values they are, for the error
    :param values: values, one row a step
    :raises ValueError: if one is NaN or infinite
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        step = int(np.argmin(np.isfinite(values.reshape(len(values), -1)).all(axis=1)))
        raise ValueError(f"{what} have NaN or infinite entries, first at step {step}: {values[step]}")


def check_observations(what: str, observations: Any, space: spaces.Space) -> Any:
    """
    :param what: which observations they are, for errors
    :param observations: observations, one row a step
    :param space: the model's observation space
    :return: the same in its shape
    :raises ValueError: if they do not fit
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(observations, Mapping) or observations.keys() != space.keys():
            found = sorted(observations) if isinstance(observations, Mapping) else type(observations).__name__
            raise ValueError(f"{what}: {found}, the model's observation space has the keys {sorted(space)}")
        return {key: check_observations(f"{what}[{key!r}]", observations[key], part) for key, part in space.items()}
    if isinstance(observations, (Mapping, tuple)):
        raise ValueError(f"{what}: several arrays, the model's observation space is {space}")
    values, shape = np.asarray(observations), space.shape or ()
    if is_image_space(space) and values.shape[1:] != shape and values.ndim == 4:
        values = VecTransposeImage.transpose_image(values)
    if values.shape[1:] not in (shape, (int(np.prod(shape)),)):
        raise ValueError(f"{what} of shape {values.shape[1:]}, the model's are of shape {shape}")
    if values.dtype.kind not in "fiub" or (isinstance(space, spaces.Discrete) and values.dtype.kind == "f"):
        raise ValueError(f"{what} of type {values.dtype}, the model's observation space is {space}")
    check_finite(what, values)
    # In units of the same type: an image in [0, 1] is not one of 0 to 255
    if is_image_space(space) and values.dtype != space.dtype:
        raise ValueError(f"{what} of type {values.dtype}, the model's images are {space.dtype}")
    values = values.reshape(len(values), *shape)
    if not isinstance(space, spaces.Box) and not all(map(space.contains, values.astype(space.dtype))):
        raise ValueError(f"{what} are not all in the model's observation space, {space}")
    if space.dtype is not None and not fits_dtype(values, np.dtype(space.dtype)):
        raise ValueError(f"{what} of type {values.dtype} do not fit the {space.dtype} of the model's observation space")
    return values.astype(np.float32) if values.dtype.kind == "f" else values


def check_actions(where: str, actions: np.ndarray, space: spaces.Space) -> np.ndarray:
    """
    :param where: which episode it is, for errors
    :param actions: actions, one row a step
    :param space: the model's action space
    :return: the same in its shape and type
    :raises ValueError: if they are of another space
    """
    shape, real = space.shape or (), isinstance(space, spaces.Box) and space.dtype.kind == "f"
    # In a Box of integers DiffPPO acts with real numbers, and so may a demonstration
    allowed = "f" if real else "fiub" if isinstance(space, spaces.Box) else "iub"
    if actions.dtype.kind not in allowed:
        kind = "categories, as of a Discrete space" if actions.dtype.kind in "iub" else f"of type {actions.dtype}"
        raise ValueError(f"{where}: the actions are {kind}, the model's action space is {space}")
    if actions.shape[1:] not in (shape, (int(np.prod(shape)),)):
        raise ValueError(f"{where}: actions of shape {actions.shape[1:]}, the model's are of shape {shape}")
    check_finite(f"{where}: actions", actions)
    actions = actions.reshape(len(actions), *shape)
    low, high = action_bounds(space)
    with np.errstate(over="ignore"):
        tolerance = BOUND_TOLERANCE * (high - low) if real else 0.0
    beyond = (actions < low - tolerance) | (actions > high + tolerance)
    if beyond.any():
        step = int(np.argmax(beyond.reshape(len(beyond), -1).any(axis=1)))
        raise ValueError(
            f"{where}: the action of step {step}, {actions[step]}, is not in the model's action space, {space}. Actions must "
            "be in the environment's units"
        )
    clipped = np.clip(actions, low, high)
    return clipped.astype(np.float32) if isinstance(space, spaces.Box) and not real else clipped.astype(space.dtype)


def action_bounds(space: spaces.Space) -> tuple[Any, Any]:
    """
    :param space: action space
    :return: least and greatest action
    :raises ValueError: for a space that has none
    """
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    if isinstance(space, spaces.MultiBinary):
        return 0, 1
    raise ValueError(f"action_space={space}: demonstrations need a Box, Discrete, MultiDiscrete or MultiBinary")


def join_episodes(parts: list[Demonstrations]) -> Demonstrations:
    """
    :param parts: steps of each episode
    :return: all of them, with the episodes numbered
    """

    def join(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: np.concatenate([value[key] for value in values]) for key in values[0]}
        return np.concatenate(values)

    known = [name for name in Demonstrations._fields if name not in ("rewards", "episodes")]
    rewards = [part.rewards for part in parts]
    return Demonstrations(
        **{name: join([getattr(part, name) for part in parts]) for name in known},
        rewards=None if any(reward is None for reward in rewards) else join(rewards),
        episodes=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
    )
