"""Checkpoints that are whole or not there, and going on from the newest one."""

import hashlib
import io
import json
import os
import pickle
import pkgutil
import random
import re
import shutil
import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_diffusion.common.checks import check_integer
from sb3_diffusion.common.env_checks import stop_dead_workers
from sb3_diffusion.saving.files import sync_folder, write_file

MODEL, REPLAY_BUFFER, VEC_NORMALIZE = "model.zip", "replay_buffer.pkl", "vecnormalize.pkl"
RANDOM_STATE, DESCRIPTION = "random_state.json", "checkpoint.json"
# A folder of this name is being written or removed, and is never read
TEMPORARY = ".tmp"

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class CheckpointCallback(BaseCallback):
    """
    Save a checkpoint every ``save_freq`` calls of ``env.step()``, at the end of training, and when SIGTERM or Ctrl-C asks to
    stop. A checkpoint is a folder ``<name_prefix>_<num_timesteps>_steps`` with all that :func:`resume_latest` needs. It is
    written beside its place, synchronised with the disk and renamed: at any moment it is there as a whole or not at all.

    A checkpoint stands between two rollouts, where no update is half done: one that falls due within a rollout is written
    after the update that follows it.

    On SIGTERM or Ctrl-C a checkpoint is written at the end of the current step, and training ends with ``SystemExit(143)``
    or ``KeyboardInterrupt``. A second signal ends it at once. A rollout of an on-policy algorithm that is cut short is lost,
    and its steps do not count in ``num_timesteps``.

    When the disk is full, or cannot be written for another reason, the checkpoints before it stay as they are, a warning
    says so, and training goes on; the next one falls due as usual. Only where a signal ends training the error is raised.

    :param save_freq: Save checkpoints every ``save_freq`` call of the callback; with several environments each call is a
        step of all of them.
    :param save_path: Path to the folder where the checkpoints will be saved.
    :param name_prefix: Common prefix to the checkpoints
    :param save_replay_buffer: Save the replay buffer, without which an off-policy algorithm cannot go on as before
    :param save_vecnormalize: Save the ``VecNormalize`` statistics
    :param verbose: Verbosity level: 0 for no output, 2 for indicating when saving a checkpoint
    :param keep: how many checkpoints to keep; an older one is removed when a new one is complete. All if None.
    :param handle_signals: whether to write a checkpoint on SIGTERM and Ctrl-C. Python allows it in the main thread only;
        elsewhere signals are left alone.
    :raises ValueError: for an argument that is out of range; at the start of training, if the folder has checkpoints of this
        prefix beyond the model's step, which are of another run, or if the callback is the child of an event callback
    :raises OSError: at the start of training, if the folder cannot be made
    """

    def __init__(
        self,
        save_freq: int,
        save_path: str | Path,
        name_prefix: str = "rl_model",
        save_replay_buffer: bool = True,
        save_vecnormalize: bool = True,
        verbose: int = 0,
        keep: int | None = None,
        handle_signals: bool = True,
    ):
        super().__init__(verbose)
        check_integer("save_freq", save_freq)
        if keep is not None:
            check_integer("keep", keep)
        self.save_freq = save_freq
        self.save_path = Path(save_path)
        self.name_prefix = name_prefix
        self.save_replay_buffer = save_replay_buffer
        self.save_vecnormalize = save_vecnormalize
        self.keep = keep
        self.handle_signals = handle_signals
        self._is_due = False
        self._signal: int | None = None
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self._rollout_start = 0

    def _on_training_start(self) -> None:
        if self.parent is not None:
            raise ValueError(
                f"CheckpointCallback within {type(self.parent).__name__}: it would not hear of the ends of rollouts. Give it "
                "to learn() itself, or in a list of callbacks"
            )
        self.save_path.mkdir(parents=True, exist_ok=True)
        for path in find_checkpoints(self.save_path, self.name_prefix):
            if get_steps(path) > self.model.num_timesteps and find_damage(path) is None:
                raise ValueError(
                    f"{path} is ahead of this run, which is at step {self.model.num_timesteps}: it is of another run. Go on "
                    "with resume_latest() and learn(..., reset_num_timesteps=False), or choose another save_path"
                )
        for path in self.save_path.glob(f"{self.name_prefix}_*_steps{TEMPORARY}"):
            shutil.rmtree(path)
        self._is_due, self._signal, self._rollout_start = False, None, self.model.num_timesteps
        if self.handle_signals and threading.current_thread() is threading.main_thread():
            self._previous_handlers = {signum: signal.signal(signum, self._on_signal) for signum in SIGNALS}

    def _on_rollout_start(self) -> None:
        self._rollout_start = self.model.num_timesteps
        if self._is_due:
            self._try_to_save()
        if self._signal is not None:
            self._stop()

    def _on_step(self) -> bool:
        self._is_due = self._is_due or self.n_calls % self.save_freq == 0
        if self._signal is not None:
            if isinstance(self.model, OffPolicyAlgorithm):
                # What this step has brought is not in the replay buffer yet
                self.model.num_timesteps -= self.training_env.num_envs
            self._stop()
        return True

    def _on_training_end(self) -> None:
        self._try_to_save()
        if self._signal is not None:
            self._stop()
        self._restore_handlers()

    def _try_to_save(self) -> None:
        """Save, or warn that it could not be done."""
        self._is_due = False
        try:
            self._save()
        except OSError as error:
            warnings.warn(
                f"No checkpoint could be written at step {self.model.num_timesteps}: {error}. The earlier ones in "
                f"{self.save_path} are as they were; the next one is tried in {self.save_freq} calls, if training goes on. "
                "Make room on the disk; with keep= the callback holds fewer checkpoints"
            )

    def _save(self) -> None:
        if isinstance(self.model, OnPolicyAlgorithm) and not self.model.rollout_buffer.full:
            # The policy has not learned from these steps and never will
            self.model.num_timesteps = self._rollout_start
        path = self.save_path / f"{self.name_prefix}_{self.model.num_timesteps}_steps"
        if find_damage(path) is not None:
            save_checkpoint(self.model, path, self.save_replay_buffer, self.save_vecnormalize)
            if self.verbose >= 2:
                print(f"Saving checkpoint to {path}")
        if self.keep is not None:
            for old in find_checkpoints(self.save_path, self.name_prefix)[: -self.keep]:
                remove(old)

    def _stop(self) -> None:
        """End the training once a signal has asked for it."""
        signum, self._signal = self._signal, None
        try:
            self._save()
        finally:
            self._restore_handlers()
        if signum == signal.SIGINT:
            # A terminal sends Ctrl-C to the workers of a SubprocVecEnv, too
            stop_dead_workers(self.training_env)
        # As a shell does, 128 + the number of the signal that ended the process
        raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(128 + signal.SIGTERM)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._signal is None and self._is_training(frame):
            self._signal = signum
            # Not print, which must not be called again while it is at work
            os.write(2, b"Training ends with a checkpoint after this step. A second signal ends it at once\n")
        else:
            self._restore_handlers()
            signal.raise_signal(signum)

    def _is_training(self, frame: FrameType | None) -> bool:
        """Whether a training is under way; one that an error has ended does not say so to its callbacks."""
        while frame is not None:
            if frame.f_code.co_name == "learn" and frame.f_locals.get("self") is self.model:
                return True
            frame = frame.f_back
        return False

    def _restore_handlers(self) -> None:
        for signum, handler in self._previous_handlers.items():
            if signal.getsignal(signum) == self._on_signal:
                signal.signal(signum, handler or signal.SIG_DFL)


def resume_latest(
    folder: str | Path,
    env: GymEnv | str,
    name_prefix: str | None = None,
    device: th.device | str = "auto",
    custom_objects: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """
    Go on from the newest complete checkpoint of :class:`CheckpointCallback`::

        model = resume_latest("checkpoints", "Pendulum-v1")
        model.learn(100_000 - model.num_timesteps, callback, reset_num_timesteps=False)

    so that the schedules of the learning rate and the like end where they would have ended. Networks, optimisers,
    temperature, counters, replay buffer, statistics of ``VecNormalize`` and random states are those of the checkpoint. The
    environments begin a new episode: the state of a simulator is not saved.

    A checkpoint is loaded with pickle, as SB3's models are: load only what you trust.

    :param folder: ``save_path`` of the callback
    :param env: environment to go on with, made as for the first run. One that the run has normalised may, but need not, be
        wrapped in a ``VecNormalize``: its settings and statistics are those of the checkpoint.
    :param name_prefix: ``name_prefix`` of the callback, needed where the folder has checkpoints of several
    :param device: Device on which the code should run.
    :param custom_objects: as in SB3's ``load``
    :param kwargs: extra arguments to change the model when loading
    :return: the model
    :raises FileNotFoundError: if there is no checkpoint
    :raises ValueError: if there are checkpoints, but none is complete; if they are of several runs; or if the environment
        does not fit
    """
    checkpoints = find_checkpoints(folder, name_prefix)
    prefixes = sorted({path.name.rsplit("_", 2)[0] for path in checkpoints})
    if len(prefixes) > 1:
        raise ValueError(f"{folder} has checkpoints of several runs: choose name_prefix from {', '.join(map(repr, prefixes))}")
    if not checkpoints:
        which = "" if name_prefix is None else f" of name_prefix={name_prefix!r}"
        raise FileNotFoundError(f"{folder} has no checkpoint{which} of sb3_diffusion's CheckpointCallback")
    for path in reversed(checkpoints):
        damage = find_damage(path)
        if damage is None:
            return load_checkpoint(path, env, device, custom_objects, **kwargs)
        warnings.warn(f"{path} is damaged and left out: {damage}")
    raise ValueError(f"None of the checkpoints in {folder} is complete: {', '.join(path.name for path in checkpoints)}")


def find_checkpoints(folder: str | Path, name_prefix: str | None = None) -> list[Path]:
    """
    :param folder: folder of checkpoints
    :param name_prefix: their prefix; any if None
    :return: checkpoints, complete or not, in the order of their steps
    """
    prefix = ".+" if name_prefix is None else re.escape(name_prefix)
    paths = [path for path in Path(folder).glob("*_steps") if re.fullmatch(rf"{prefix}_\d+_steps", path.name)]
    return sorted(filter(Path.is_dir, paths), key=get_steps)


def get_steps(path: Path) -> int:
    """
    :param path: path of a checkpoint
    :return: its number of steps
    """
    return int(path.name.split("_")[-2])


def find_damage(path: Path) -> str | None:
    """
    :param path: path of a checkpoint
    :return: its fault; None if it is complete
    """
    try:
        for name, expected in json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))["files"].items():
            if describe_file(path / name) != expected:
                return f"{name} is not as it was written"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def describe_file(path: Path) -> dict[str, Any]:
    """
    :param path: path of a file
    :return: its size in bytes and its checksum
    """
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            checksum.update(chunk)
    return {"size": path.stat().st_size, "sha256": checksum.hexdigest()}


def save_checkpoint(
    model: BaseAlgorithm, path: str | Path, save_replay_buffer: bool = True, save_vecnormalize: bool = True
) -> None:
    """
    Write a checkpoint, whole or not at all.

    :param model: model, between two rollouts
    :param path: path of the checkpoint's folder
    :param save_replay_buffer: whether to save the replay buffer, if there is one
    :param save_vecnormalize: whether to save the ``VecNormalize`` statistics, if there are any
    :raises OSError: if it cannot be written
    """
    path = Path(path)
    temporary = path.with_name(path.name + TEMPORARY)
    vec_normalize = model.get_vec_normalize_env()
    # In memory first, because a full disk within a zip file is not always reported as an OSError
    archive = io.BytesIO()
    model.save(archive)
    contents: dict[str, Callable[[BinaryIO], Any]] = {
        MODEL: lambda file: file.write(archive.getbuffer()),
        RANDOM_STATE: lambda file: file.write(json.dumps(get_random_state(model)).encode()),
    }
    if save_replay_buffer and isinstance(model, OffPolicyAlgorithm) and model.replay_buffer is not None:
        contents[REPLAY_BUFFER] = model.save_replay_buffer  # type: ignore[assignment]
    if save_vecnormalize and vec_normalize is not None:
        contents[VEC_NORMALIZE] = lambda file: pickle.dump(vec_normalize, file)  # as VecNormalize.save
    # At import this package is not complete yet
    from sb3_diffusion import __version__

    description = {
        "algorithm": f"{type(model).__module__}:{type(model).__qualname__}",
        "num_timesteps": model.num_timesteps,
        "normalized": vec_normalize is not None,
        "sb3_diffusion": __version__,
    }
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name, write in contents.items():
            write_file(temporary / name, write)
        description["files"] = {name: describe_file(temporary / name) for name in contents}
        write_file(temporary / DESCRIPTION, lambda file: file.write(json.dumps(description, indent=1).encode()))
        sync_folder(temporary)
        if path.exists():
            remove(path)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """
    :param path: checkpoint to remove, of which never a part is left under its name
    """
    doomed = path.with_name(f"{path.name}.old{TEMPORARY}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def load_checkpoint(
    path: str | Path,
    env: GymEnv | str,
    device: th.device | str = "auto",
    custom_objects: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """
    :param path: path of a complete checkpoint
    :param env: as in :func:`resume_latest`, and so are the others
    :param device: Device on which the code should run.
    :param custom_objects: as in SB3's ``load``
    :param kwargs: extra arguments to change the model when loading
    :return: the model
    :raises ValueError: if the environment does not fit
    """
    path = Path(path)
    description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
    env = _normalize_as_before(path, maybe_make_env(env, verbose=0), description["normalized"])
    algorithm: type[BaseAlgorithm] = pkgutil.resolve_name(description["algorithm"])
    model = algorithm.load(path / MODEL, env, device=device, custom_objects=custom_objects, **kwargs)
    if isinstance(model, OffPolicyAlgorithm):
        if (path / REPLAY_BUFFER).exists():
            load_replay_buffer(model, path / REPLAY_BUFFER)
        else:
            warnings.warn(f"{path} was saved without the replay buffer: training goes on with an empty one")
    set_random_state(model, json.loads((path / RANDOM_STATE).read_text(encoding="utf-8")))
    return model


def _normalize_as_before(path: Path, env: GymEnv, normalized: bool) -> GymEnv:
    """Put the environment into the checkpoint's ``VecNormalize``, if it has one."""
    outer = unwrap_vec_normalize(env) if isinstance(env, VecEnv) else None
    if (path / VEC_NORMALIZE).exists():
        if outer is not None:
            vars(outer).update(vars(VecNormalize.load(str(path / VEC_NORMALIZE), outer.venv)))
            return env
        venv = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: Monitor(env)])
        return VecNormalize.load(str(path / VEC_NORMALIZE), venv)
    if normalized and outer is None:
        raise ValueError(
            f"{path} is of a run with VecNormalize, saved without its statistics: wrap env in a VecNormalize that has them"
        )
    if outer is not None and not normalized:
        raise ValueError(f"{path} is of a run without VecNormalize: leave it out of env")
    return env


def load_replay_buffer(model: OffPolicyAlgorithm, path: Path) -> None:
    """
    Load a replay buffer, whose last episode ends where it was saved: the environments begin a new one.

    :param model: model that gets it
    :param path: path of the file
    :raises ValueError: if it is of another number of environments
    """
    with warnings.catch_warnings():
        # HerReplayBuffer's, of just this
        warnings.filterwarnings("ignore", message="The last trajectory in the replay buffer will be truncated")
        model.load_replay_buffer(path)
    buffer = model.replay_buffer
    assert isinstance(buffer, ReplayBuffer)
    if buffer.n_envs != model.n_envs:
        raise ValueError(f"{path} is of {buffer.n_envs} environments, env has {model.n_envs}: make as many as before")
    if buffer.size() == 0:
        return
    last = (buffer.pos - 1) % buffer.buffer_size
    if buffer.optimize_memory_usage:
        # The next observation of the last transition will be overwritten, see SB3's GitHub issue #46
        buffer.dones[last] = True
    elif buffer.handle_timeout_termination:
        # For n-step returns, which run on to the end of an episode
        buffer.timeouts[last] = np.maximum(buffer.timeouts[last], 1 - buffer.dones[last])


def get_random_state(model: BaseAlgorithm) -> dict[str, Any]:
    """
    :param model: model
    :return: states of all random number generators that SB3 seeds, in JSON's types
    """
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": th.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in th.cuda.get_rng_state_all()] if th.cuda.is_available() else [],
        "action_space": model.action_space.np_random.bit_generator.state,
        "environments": _get_environment_states(model.get_env()),
    }


def _get_environment_states(env: VecEnv | None) -> list[dict[str, Any]]:
    """States of the environments' ``np_random``; none if they have none or their processes have died."""
    try:
        generators = env.get_attr("np_random") if env is not None and env.has_attr("np_random") else []
        if all(isinstance(generator, np.random.Generator) for generator in generators):
            return [generator.bit_generator.state for generator in generators]
    except (EOFError, OSError):
        # Ctrl-C ends the workers of a SubprocVecEnv, too
        pass
    return []


def set_random_state(model: BaseAlgorithm, state: dict[str, Any]) -> None:
    """
    :param model: model
    :param state: output of :func:`get_random_state`
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(state["numpy"])
    th.set_rng_state(th.tensor(state["torch"], dtype=th.uint8))
    if th.cuda.is_available() and len(state["cuda"]) == th.cuda.device_count():
        th.cuda.set_rng_state_all([th.tensor(each, dtype=th.uint8) for each in state["cuda"]])
    model.action_space.np_random.bit_generator.state = state["action_space"]
    env = model.get_env()
    if env is None or not state["environments"]:
        return
    if len(state["environments"]) != env.num_envs:
        warnings.warn(
            f"The checkpoint is of {len(state['environments'])} environments, env has {env.num_envs}: their random states "
            "are not restored"
        )
        return
    # Loading has asked for a reset with the seed of the first run, which would repeat its first episodes
    env.unwrapped._reset_seeds()
    for index, of_env in enumerate(state["environments"]):
        generator = np.random.Generator(getattr(np.random, of_env["bit_generator"])())
        generator.bit_generator.state = of_env
        env.set_attr("np_random", generator, index)
