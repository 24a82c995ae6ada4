"""Saving models so that they can be loaded without unpickling, and loading them that way."""

import io
import json
import math
import pathlib
import warnings
import zipfile
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.save_util import open_path, recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv, TrainFreq
from stable_baselines3.common.utils import check_for_correct_spaces, get_device, get_system_info
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy
from torch.overrides import TorchFunctionMode

from sb3_diffusion.common.arguments import FLAG, TEXT, Kind, either, is_integer, is_number, number, optional, whole
from sb3_diffusion.common.carried_settings import find_other_settings
from sb3_diffusion.saving.archive import UnsafeModelError, load_tensors, read_entries, show
from sb3_diffusion.saving.files import write_whole
from sb3_diffusion.saving.json_codec import (
    ACTIVATIONS,
    DENOISERS,
    EXTRACTORS,
    FLAT_SPACES,
    NOISES,
    OPTIMIZERS,
    NotPlain,
    decode,
    encode,
    expect,
    is_schedule,
    parse,
    register_classes,
)

SelfSafeLoadMixin = TypeVar("SelfSafeLoadMixin", bound="SafeLoadMixin")

PACKAGE = f"{__name__.partition('.')[0]}."
# Algorithms of this package by name, as they are defined
ALGORITHMS: dict[str, type["SafeLoadMixin"]] = {}

SETTINGS = "sb3_diffusion.json"
SYSTEM_INFO = "system_info.txt"
VARIABLES = "pytorch_variables"
FORMAT = 1

# Parts of the model whose state dicts have an entry
STATE_DICTS = (
    "policy",
    "policy.optimizer",
    "policy.diffusion_value.optimizer",
    "actor.optimizer",
    "critic.optimizer",
    "ent_coef_optimizer",
    "kl_coef_optimizer",
)
# "data" is Stable-Baselines3's own, with pickles, and not read
ENTRIES = {"data", "_stable_baselines3_version", SYSTEM_INFO, SETTINGS, *(f"{name}.pth" for name in (*STATE_DICTS, VARIABLES))}

# What follows from the other settings
DERIVED = {
    *("lr_schedule", "qf_lr_schedule", "log_ent_coef", "ent_coef_optimizer"),
    *("batch_norm_stats", "batch_norm_stats_target"),
}

# Far beyond use, and small enough that a model is built and acts at once
MAX_N_STEPS = 10_000
MAX_LAYERS = 64
MAX_QUANTILES = 10_000
MAX_TRANSITIONS = 10**7
MAX_CATEGORIES = 2**20
MAX_ENVS = 10**4

# A policy takes as many bytes as its entry, and some on the way
POLICY_SIZE_FACTOR, POLICY_SIZE_EXTRA = 2, 2**20


def one_of(classes: Mapping[str, type]) -> Kind:
    """
    :param classes: classes by name
    :return: any of them
    """
    return Kind(f"one of {', '.join(classes)}", lambda value: isinstance(value, type) and value in classes.values())


def subclass_of(base: type) -> Kind:
    """
    :param base: class
    :return: its subclasses, of which a file can name those that :mod:`.json_codec` knows
    """
    return Kind(f"a {base.__name__}", lambda value: isinstance(value, type) and issubclass(value, base))


def instance(*types: type) -> Kind:
    """
    :param types: types
    :return: objects of exactly one of them
    """
    return Kind(" or ".join(cls.__name__ for cls in types), lambda value: type(value) in types)


def table(**kinds: Kind) -> Kind:
    """
    :param kinds: kind of each value
    :return: dicts that have none but these keys
    """
    return Kind(
        f"a dict with the keys {', '.join(kinds)} and values of their kinds",
        lambda value: type(value) is dict and all(key in kinds and kinds[key].holds(item) for key, item in value.items()),
    )


def several(kind: Kind, most: int) -> Kind:
    """
    :param kind: kind of each item
    :param most: greatest number of items
    :return: lists and tuples of such items
    """
    return Kind(
        f"a list of at most {most} items, each {kind.text}",
        lambda value: type(value) in (list, tuple) and len(value) <= most and all(map(kind.holds, value)),
    )


def is_episode(value: Any) -> bool:
    """
    :param value: anything that a file may hold
    :return: whether it is what ``Monitor`` says of an episode, beside which there may be whatever an environment adds
    """
    return type(value) is dict and is_number(value.get("r")) and is_number(value.get("l"))


def is_plain(value: Any) -> bool:
    """
    :param value: anything
    :return: whether it has a plain form
    """
    try:
        encode(value)
    except NotPlain:
        return False
    return True


def keep_plain(name: str, value: Any) -> Any:
    """
    What environments say of their episodes can be anything, and no training depends on it.

    :param name: name of an attribute
    :param value: its value
    :return: the same; of statistics of episodes what has a plain form
    """
    if name == "ep_info_buffer" and isinstance(value, deque):
        episodes = ({key: item for key, item in episode.items() if is_plain({key: item})} for episode in value)
        return deque(episodes, maxlen=value.maxlen)
    if name == "ep_success_buffer" and isinstance(value, deque):
        return deque(filter(is_plain, value), maxlen=value.maxlen)
    return value


def is_observation(value: Any) -> bool:
    """
    :param value: anything
    :return: whether it may be the observations of some environments
    """
    arrays = list(value.values()) if isinstance(value, dict) else [value]
    return all(isinstance(array, np.ndarray) and array.ndim > 0 for array in arrays)


def is_small_discrete(value: Any) -> bool:
    """
    :param value: anything
    :return: whether it is a space of categories that a chain can have as its ones and zeros
    """
    if type(value) is spaces.MultiBinary:
        return math.prod(value.shape) <= MAX_CATEGORIES // 2
    if type(value) is spaces.MultiDiscrete:
        return 0 < value.nvec.size <= MAX_CATEGORIES and value.nvec.size * int(value.nvec.max()) <= MAX_CATEGORIES
    return type(value) is spaces.Discrete and int(value.n) <= MAX_CATEGORIES


SCHEDULE = Kind("a number or a schedule", is_schedule)
WIDTHS = several(whole(1, 2**24), MAX_LAYERS)
OBSERVATION = optional(Kind("an array, or a dict of arrays", is_observation))
EPISODES = Kind("a deque of episodes", lambda value: type(value) is deque and all(map(is_episode, value)))
SUCCESSES = Kind("a deque", lambda value: type(value) is deque)
BOOLEANS = Kind("an array of booleans", lambda value: isinstance(value, np.ndarray) and value.dtype.kind == "b")
STRATEGY = either(TEXT, instance(GoalSelectionStrategy))
HYPERPARAMETER = either(number(0), optional(FLAG), several(number(0), 4))

POLICY_KWARGS = table(
    net_arch=optional(either(WIDTHS, table(pi=WIDTHS, qf=WIDTHS, vf=WIDTHS, denoiser=WIDTHS))),
    activation_fn=one_of(ACTIVATIONS),
    denoiser_activation_fn=one_of(ACTIVATIONS),
    features_extractor_class=optional(one_of(EXTRACTORS)),
    features_extractor_kwargs=optional(
        table(features_dim=whole(1, 2**24), cnn_output_dim=whole(1, 2**24), normalized_image=FLAG)
    ),
    optimizer_class=one_of(OPTIMIZERS),
    optimizer_kwargs=optional(
        Kind(
            "a dict of finite numbers, tuples of them, booleans and None",
            lambda value: type(value) is dict and all(map(HYPERPARAMETER.holds, value.values())),
        )
    ),
    n_critics=whole(1, MAX_LAYERS),
    n_quantiles=optional(whole(1, MAX_QUANTILES)),
    top_quantiles_to_drop_per_net=optional(whole(0, MAX_QUANTILES)),
    renorm_warmup_steps=optional(whole()),
    batch_norm_momentum=optional(number(0, 1)),
    batch_norm_eps=optional(number(0)),
    **dict.fromkeys(("log_std_init", "clip_mean"), number()),
    **dict.fromkeys(("use_sde", "use_expln", "full_std", "squash_output", "ortho_init", "normalize_images"), FLAG),
    **dict.fromkeys(("share_features_extractor", "learn_std", "encode_once", "compile_chain", "state_value"), FLAG),
    actor_batch_norm=optional(FLAG),
    kernel=optional(TEXT),
    denoiser_class=optional(one_of(DENOISERS)),
    denoiser_kwargs=optional(table(width=whole(1, 2**24), n_layers=whole(0, MAX_LAYERS), activation_fn=one_of(ACTIVATIONS))),
)

# Every attribute of Stable-Baselines3's own that a file may set
ATTRIBUTES: dict[str, Kind] = dict(
    policy_kwargs=POLICY_KWARGS,
    observation_space=instance(*FLAT_SPACES, spaces.Dict),
    action_space=either(
        instance(spaces.Box), Kind(f"a discrete space of at most {MAX_CATEGORIES} categories", is_small_discrete)
    ),
    seed=optional(whole(0, 2**32 - 1)),
    action_noise=optional(instance(*NOISES)),
    learning_rate=SCHEDULE,
    tensorboard_log=optional(instance(str)),
    ep_info_buffer=optional(EPISODES),
    ep_success_buffer=optional(SUCCESSES),
    _last_episode_starts=optional(BOOLEANS),
    _current_progress_remaining=number(),
    n_envs=whole(1, MAX_ENVS),
    start_time=number(0),
    sde_sample_freq=whole(-1),
    **dict.fromkeys(("_last_obs", "_last_original_obs"), OBSERVATION),
    **dict.fromkeys(("num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_episode_num", "_n_updates"), whole()),
    **dict.fromkeys(("verbose", "learning_starts"), whole()),
    _stats_window_size=whole(1),
    # Off-policy
    buffer_size=whole(1, MAX_TRANSITIONS),
    replay_buffer_class=optional(subclass_of(ReplayBuffer)),
    replay_buffer_kwargs=table(
        n_steps=whole(1, MAX_N_STEPS),
        gamma=number(0, 1),
        handle_timeout_termination=FLAG,
        n_sampled_goal=whole(1),
        goal_selection_strategy=STRATEGY,
        copy_info_dict=FLAG,
    ),
    train_freq=either(whole(1), instance(TrainFreq)),
    gradient_steps=whole(-1),
    target_entropy=number(),
    target_update_interval=whole(1),
    **dict.fromkeys(("use_sde", "use_sde_at_warmup", "optimize_memory_usage", "normalize_advantage"), FLAG),
    # On-policy
    rollout_buffer_class=optional(subclass_of(RolloutBuffer)),
    rollout_buffer_kwargs=table(),
    clip_range=SCHEDULE,
    clip_range_vf=optional(SCHEDULE),
    **dict.fromkeys(("vf_coef", "max_grad_norm"), number(0)),
    target_kl=optional(number(0)),
    n_epochs=whole(1),
    # Both
    ent_coef=either(TEXT, SCHEDULE),
    **dict.fromkeys(("batch_size", "n_steps"), whole(1, MAX_TRANSITIONS)),
    **dict.fromkeys(("tau", "gamma", "gae_lambda"), number(0, 1)),
)


class SafeLoadMixin(BaseAlgorithm):
    """An algorithm whose models can be loaded without unpickling. What a file may say of it is what it declares."""

    # What its own arguments may be, and other attributes that belong to a trained model
    arguments: ClassVar[dict[str, Kind]] = {}
    attributes: ClassVar[dict[str, Kind]] = {}
    # Classes beside its policies that a file may name
    plain_classes: ClassVar[tuple[type, ...]] = ()

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        register_classes(*cls.plain_classes, *cls.__dict__.get("policy_aliases", {}).values())
        # A user's subclass may be loaded by its parent
        if not abstract and cls.__module__.startswith(PACKAGE):
            ALGORITHMS[cls.__name__] = cls

    @classmethod
    def attribute_kinds(cls) -> dict[str, Kind]:
        """
        :return: what each attribute in a file may be
        """
        policy_class = subclass_of(cls.policy_aliases["MlpPolicy"])
        return {**cls.arguments, **cls.attributes, **ATTRIBUTES, "policy_class": policy_class}

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file: Stable-Baselines3's, and one entry more
        with the settings as plain JSON, for ``load(..., safe=True)``.

        :param path: path to the file where the rl agent should be saved
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        """
        buffer = io.BytesIO()
        super().save(buffer, exclude, include)
        with zipfile.ZipFile(buffer, "a") as archive:
            saved = {name: self.__dict__[name] for name in json.loads(archive.read("data"))}
            archive.writestr(SETTINGS, write_settings(type(self), saved))
        if not isinstance(path, (str, pathlib.Path)):
            open_path(path, "w", verbose=0).write(buffer.getbuffer())
            return
        path = pathlib.Path(path)
        if path.suffix == "":
            path = path.with_name(path.name + ".zip")
        write_whole(path, buffer.getbuffer())

    @classmethod
    def load(
        cls: type[SelfSafeLoadMixin],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        safe: bool = False,
        **kwargs: Any,
    ) -> SelfSafeLoadMixin:
        """
        Load the model from a zip-file.
        Warning: ``load`` re-creates the model from scratch, it does not update it in-place!
        For an in-place load use ``set_parameters`` instead.

        :param path: path to the file (or a file-like) where to
            load the agent from
        :param env: the new environment to run the loaded model on
            (can be None if you only need prediction from a trained model) has priority over any saved environment
        :param device: Device on which the code should run.
        :param custom_objects: Dictionary of objects to replace
            upon loading. If a variable is present in this dictionary as a
            key, it will not be deserialized and the corresponding item
            will be used instead.
        :param print_system_info: Whether to print system info from the saved model
            and the current system info (useful to debug loading issues)
        :param force_reset: Force call to ``reset()`` before training
            to avoid unexpected behavior.
        :param safe: load without unpickling anything, and refuse a file that is not in order. Without it a file from a
            stranger can run code
        :param kwargs: extra arguments to change the model when loading
        :return: new model instance with loaded parameters
        :raises UnsafeModelError: with ``safe``, for a file that is broken, crafted, or has what only unpickling could read
        :raises ValueError: for the model of another class
        """
        if safe:
            settings = read_model(path)
            return load_model(cls, settings, env, device, custom_objects, print_system_info, force_reset, kwargs)
        check_class(cls.__name__, path)
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)


def check_class(name: str, path: str | pathlib.Path | io.BufferedIOBase) -> None:
    """
    Before anything is unpickled. Without it a model of another class would fail in obscure ways, or not at all.

    A user's subclass may be loaded by its parent.

    :param name: name of the class that is to be loaded
    :param path: path to the file (or a file-like)
    :raises ValueError: if the file is of no class of this package, or of another one
    """
    file = open_path(path, "r", verbose=0, suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.namelist()
            found = json.loads(archive.read(SETTINGS)).get("algorithm") if SETTINGS in entries else None
    except (zipfile.BadZipFile, ValueError, AttributeError):
        return  # SB3 says what is wrong with it
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()
        else:
            file.seek(0)
    if found is None or (found != name and found in ALGORITHMS):
        what = "no model of this package" if found is None else f"a {show.repr(found)}"
        raise ValueError(f"{show.repr(str(path))} is {what}, not a {name}: load it with the class that saved it")


def write_settings(algorithm: type[SafeLoadMixin], data: Mapping[str, Any]) -> str:
    """
    :param algorithm: class of the model
    :param data: the attributes that are saved
    :return: JSON of them, and of those that have no plain form the names and types
    """
    attributes: dict[str, Any] = {}
    not_stored: dict[str, str] = {}
    kinds = algorithm.attribute_kinds()
    for name, value in data.items():
        if name in DERIVED:
            continue
        try:
            if name not in kinds:
                raise NotPlain("an attribute that the algorithm does not have")
            attributes[name] = encode(keep_plain(name, value))
        except NotPlain as error:
            not_stored[name] = str(error)
    settings = {"format": FORMAT, "algorithm": algorithm.__name__, "attributes": attributes, "not_stored": not_stored}
    return json.dumps(settings, allow_nan=False)


class ModelFile(NamedTuple):
    """
    A model file, whose pickles are not in it.

    :param what: what it is, for errors
    :param entries: entries of the archive
    :param algorithm: name of the model's class
    :param attributes: settings in plain form
    :param not_stored: types of the settings that have none
    """

    what: str
    entries: dict[str, bytes]
    algorithm: str
    attributes: dict[str, Any]
    not_stored: dict[str, str]


def read_model(path: str | pathlib.Path | io.BufferedIOBase) -> ModelFile:
    """
    :param path: path to the file (or a file-like)
    :return: the file, of whose entries the settings have been read
    :raises UnsafeModelError: if it is not the file of a model or has no plain settings
    """
    what = f"the model file {show.repr(str(path))}" if isinstance(path, (str, pathlib.Path)) else "the model file"
    file = open_path(path, "r", verbose=0, suffix="zip")
    try:
        entries = read_entries(file, what, ENTRIES.__contains__)
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()
    if SETTINGS not in entries:
        raise UnsafeModelError(
            f"{what} has no entry {SETTINGS!r}: it was not saved by this package, or by a version without safe loading. If "
            "you trust it, load it without safe=True and save it again"
        )
    try:
        settings = parse(entries[SETTINGS])
        keys = {"format", "algorithm", "attributes", "not_stored"}
        expect(isinstance(settings, dict) and "format" in settings, "it has no format")
        known = type(settings["format"]) is int and settings["format"] == FORMAT
        expect(known, f"its format is {show.repr(settings['format'])}, this version reads {FORMAT}")
        expect(set(settings) == keys, f"it does not have the keys {', '.join(sorted(keys))}")
        expect(isinstance(settings["algorithm"], str), "its algorithm is not a name")
        expect(isinstance(settings["attributes"], dict), "its attributes are not a dict")
        not_stored = settings["not_stored"]
        expect(isinstance(not_stored, dict), "what it did not store is not a dict")
        expect(all(isinstance(text, str) for text in not_stored.values()), "what it did not store is not text")
    except UnsafeModelError as error:
        raise UnsafeModelError(f"{what}: {SETTINGS}: {error}") from error
    return ModelFile(what, entries, settings["algorithm"], settings["attributes"], not_stored)


def read_attributes(
    algorithm: type[SafeLoadMixin], file: ModelFile, given: Iterable[str], has_env: bool = False
) -> dict[str, Any]:
    """
    :param algorithm: class of the model
    :param file: the file
    :param given: names of attributes that the caller gives
    :param has_env: whether the caller gives an environment
    :return: the other attributes
    :raises UnsafeModelError: if one is unknown, not stored or not what it can be
    """
    given = set(given)
    for name, text in file.not_stored.items():
        if name not in given and name != "device" and not (name == "env" and has_env):
            keyword = name[:50] if name.isidentifier() else "<name>"
            raise UnsafeModelError(
                f"{file.what}: {show.repr(name)} is {show.repr(text)}, which only unpickling could restore: give it as a "
                f"keyword ({keyword}=...), or load without safe=True if you trust the file"
            )
    kinds, data = algorithm.attribute_kinds(), {}
    for name, value in file.attributes.items():
        if name in given:
            continue
        if name not in kinds:
            raise UnsafeModelError(f"{file.what} has the attribute {show.repr(name)}, which no {algorithm.__name__} has")
        try:
            data[name] = decode(value)
            expect(kinds[name].holds(data[name]), f"it is {show.repr(data[name])}, and must be {kinds[name].text}")
        except Exception as error:
            # What has the form of a setting may still be refused by its class
            problem = str(error) if isinstance(error, UnsafeModelError) else f"{type(error).__name__}: {error}"
            raise UnsafeModelError(f"{file.what}: {name}: {problem[:500]}; or give {name}=... yourself") from error
    return data


class AllocationLimit(TorchFunctionMode):
    """
    Stops the construction of networks that are larger than the file could fill, before they take memory.

    :param max_numel: number of elements that new tensors may have together
    """

    SIZED = (th.empty, th.zeros, th.ones, th.full)

    def __init__(self, max_numel: int):
        super().__init__()
        self.left = max_numel

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.SIZED and args:
            self.left -= math.prod(args[0] if isinstance(args[0], (tuple, list)) else filter(is_integer, args))
            expect(self.left >= 0, "its settings ask for larger networks than it has weights for")
        return func(*args, **(kwargs or {}))


def load_model(
    algorithm: type[SelfSafeLoadMixin],
    file: ModelFile,
    env: GymEnv | None,
    device: th.device | str,
    custom_objects: dict[str, Any] | None,
    print_system_info: bool,
    force_reset: bool,
    kwargs: dict[str, Any],
) -> SelfSafeLoadMixin:
    """
    What SB3's ``load`` does, with a check before each step. The arguments are those of :meth:`SafeLoadMixin.load`.

    :param algorithm: class of the model
    :param file: the file
    :return: the model
    :raises UnsafeModelError: if the file is not that of such a model, whole and in order
    :raises ValueError: if the environment or ``policy_kwargs`` given are not the model's
    """
    if print_system_info:
        print_info(file)
    if file.algorithm != algorithm.__name__:
        raise UnsafeModelError(f"{file.what} is of a {show.repr(file.algorithm)}, not of a {algorithm.__name__}")
    given = {name: item for name, item in (custom_objects or {}).items() if name in {**file.attributes, **file.not_stored}}
    given.update(kwargs)
    # What is given must be what is stored; only what is not stored is taken from the caller
    stored = "policy_kwargs" in file.attributes
    data = read_attributes(algorithm, file, given.keys() - {"policy_kwargs"} if stored else given, has_env=env is not None)
    if stored and "policy_kwargs" in kwargs and kwargs["policy_kwargs"] != data["policy_kwargs"]:
        raise ValueError(
            "The specified policy kwargs do not equal the stored policy kwargs. "
            f"Stored kwargs: {data['policy_kwargs']}, specified kwargs: {kwargs['policy_kwargs']}"
        )
    if data.get("tensorboard_log") is not None:
        warnings.warn(
            f"tensorboard_log={show.repr(data['tensorboard_log'])} is where learn() would write, and is not taken over from "
            "the file: give tensorboard_log=... to log"
        )
        data["tensorboard_log"] = None
    data.update(given)
    missing = {"policy_class", "policy_kwargs", "observation_space", "action_space", "verbose"} - data.keys()
    if missing:
        raise UnsafeModelError(f"{file.what} has no {', '.join(sorted(missing))}")

    if env is not None:
        env = algorithm._wrap_env(env, data["verbose"])
        check_for_correct_spaces(env, data["observation_space"], data["action_space"])
        # Discard `_last_obs`, this will force the env to reset before training, see SB3's GH issue #597
        if force_reset:
            data["_last_obs"] = None
        # `n_envs` must be updated, see SB3's GH issue #1018
        data["n_envs"] = env.num_envs
    model = algorithm(policy=data["policy_class"], env=env, device=device, _init_setup_model=False)  # type: ignore[call-arg]
    model.__dict__.update(data)
    restore(model, file)
    return model


def load_safe(
    path: str | pathlib.Path | io.BufferedIOBase,
    env: GymEnv | None = None,
    device: th.device | str = "auto",
    custom_objects: dict[str, Any] | None = None,
    print_system_info: bool = False,
    force_reset: bool = True,
    **kwargs: Any,
) -> SafeLoadMixin:
    """
    Load a model of any of this package's algorithms, whichever it is, without unpickling anything.

    :param path: path to the file (or a file-like) where to load the agent from
    :param env: the new environment to run the loaded model on (can be None if you only need prediction from a trained model)
    :param device: Device on which the code should run.
    :param custom_objects: settings to replace upon loading, if the file has them
    :param print_system_info: Whether to print system info from the saved model and the current system info
    :param force_reset: Force call to ``reset()`` before training to avoid unexpected behavior.
    :param kwargs: extra arguments to change the model when loading; what the file could not store is given here
    :return: the model
    :raises UnsafeModelError: for a file that is broken, crafted, or has what only unpickling could read
    """
    file = read_model(path)
    if file.algorithm not in ALGORITHMS:
        raise UnsafeModelError(f"{file.what} is of a {show.repr(file.algorithm)}: this reads {', '.join(sorted(ALGORITHMS))}")
    return load_model(ALGORITHMS[file.algorithm], file, env, device, custom_objects, print_system_info, force_reset, kwargs)


def print_info(file: ModelFile) -> None:
    """
    :param file: the file
    """
    print("== CURRENT SYSTEM INFO ==")
    get_system_info()
    print("== SAVED MODEL SYSTEM INFO ==")
    # A terminal obeys what is not printable
    text = file.entries.get(SYSTEM_INFO, b"")[:10_000].decode(errors="replace")
    print("".join(sign for sign in text if sign.isprintable() or sign == "\n"))


def restore(model: BaseAlgorithm, file: ModelFile) -> None:
    """
    Build the networks and optimizers, and fill them from the file.

    :param model: model whose attributes are set
    :param file: the file
    :raises UnsafeModelError: if its settings cannot be built, or its tensors do not fit what they say
    """
    tensors = {}
    for name in (*STATE_DICTS, VARIABLES):
        if f"{name}.pth" in file.entries:
            tensors[name] = load_tensors(file.entries[f"{name}.pth"], f"{file.what}: {name}.pth", get_device(model.device))
    policy_size = len(file.entries.get("policy.pth", b""))
    element_size = th.get_default_dtype().itemsize
    try:
        with AllocationLimit((POLICY_SIZE_FACTOR * policy_size + POLICY_SIZE_EXTRA) // element_size):
            model._setup_model()
    except Exception as error:
        # Whatever the constructors of networks, optimizers and buffers say to settings that do not go together
        problem = str(error) if isinstance(error, UnsafeModelError) else f"{type(error).__name__}: {error}"
        raise UnsafeModelError(f"{file.what}: no model can be built from its settings: {problem[:500]}") from error
    state_dicts, variables = model._get_torch_save_params()
    expected = {*state_dicts, VARIABLES}
    if tensors.keys() != expected:
        found, wanted = ", ".join(sorted(tensors)), ", ".join(sorted(expected))
        raise UnsafeModelError(f"{file.what} has tensors of {found}; this model needs those of {wanted}")
    try:
        values = tensors.pop(VARIABLES)
        check_tensors(VARIABLES, values, {name: recursive_getattr(model, name) for name in variables})
        for name, state in tensors.items():
            target = recursive_getattr(model, name)
            if isinstance(target, th.optim.Optimizer):
                check_optimizer(name, state, target)
            else:
                check_tensors(name, state, target.state_dict())
    except Exception as error:
        # Crafted containers and tensors may fail in any way
        raise UnsafeModelError(f"{file.what}: {str(error)[:500]}") from error
    if errors := find_other_settings(model.policy, getattr(tensors["policy"], "_metadata", None)):
        raise UnsafeModelError(f"{file.what}: {errors[0]}")
    # As plain dicts: an OrderedDict may have attributes that PyTorch reads
    plain: dict[str, Any] = {name: dict(state) for name, state in tensors.items()}
    model.set_parameters(plain, exact_match=True, device=model.device)
    with th.no_grad():
        for name, value in values.items():
            recursive_getattr(model, name).copy_(value)


def check_tensors(what: str, values: Any, expected: Mapping[str, th.Tensor]) -> None:
    """
    :param what: what they are, for the error
    :param values: tensors by name, from the file
    :param expected: those of the model
    :raises UnsafeModelError: if there are others, or of other shapes or types, or with NaN or infinite entries
    """
    expect(isinstance(values, dict), f"{what} is not a dict")
    if different := sorted(map(str, values.keys() ^ expected.keys())):
        raise UnsafeModelError(f"{what} and the model differ in {show.repr(different)}")
    for name, tensor in expected.items():
        check_tensor(f"{what}: {name}", values[name], tensor)


def check_tensor(what: str, value: Any, expected: th.Tensor) -> None:
    """
    :param what: what it is, for the error
    :param value: tensor, from the file
    :param expected: that of the model
    :raises UnsafeModelError: if shape or type differ, or an entry is NaN or infinite
    """
    dense = type(value) is th.Tensor and value.layout is th.strided and not value.is_meta and not value.is_quantized
    expect(dense and value.untyped_storage().nbytes() >= value.nbytes, f"{what} is not a plain tensor")
    found, wanted = ((tuple(tensor.shape), tensor.dtype) for tensor in (value, expected))
    expect(found == wanted, f"{what} has shape and type {found}, the model's {wanted}")
    expect(bool(th.isfinite(value).all()), f"{what} has NaN or infinite entries")


def check_optimizer(what: str, state: Any, optimizer: th.optim.Optimizer) -> None:
    """
    :param what: what it is, for the error
    :param state: state dict, from the file
    :param optimizer: the model's
    :raises UnsafeModelError: if it is not a state that this optimizer can go on from
    """
    expect(isinstance(state, dict) and state.keys() == {"state", "param_groups"}, f"{what} is not an optimizer's state dict")
    groups, states = state["param_groups"], state["state"]
    expect(isinstance(groups, list) and isinstance(states, dict), f"{what} is not an optimizer's state dict")
    own = optimizer.state_dict()["param_groups"]
    expect(len(groups) == len(own), f"{what} has {len(groups)} groups of parameters, the model's {len(own)}")
    for group, own_group in zip(groups, own, strict=True):
        expect(isinstance(group, dict) and group.keys() <= own_group.keys(), f"{what} has unknown hyper-parameters")
        for name, own_value in own_group.items():
            # Another version of PyTorch may have fewer
            value = group.setdefault(name, own_value)
            expect(fits(value, own_value, name), f"{what}: {name} is {show.repr(value)}, the model's {own_value!r}")
    params = [param for group in optimizer.param_groups for param in group["params"]]
    kept = kept_state(optimizer)
    for index, entries in states.items():
        expect(is_integer(index, 0, len(params) - 1), f"{what} has a state of a parameter that is not there")
        expect(isinstance(entries, dict) and entries.keys() == kept.keys(), f"{what} does not keep {', '.join(kept)}")
        for name, value in entries.items():
            expected = kept[name]
            if isinstance(expected, th.Tensor):
                # One number, or one for each entry of the parameter
                check_tensor(
                    f"{what}: {name}", value, expected if expected.ndim == 0 else expected.expand(params[index].shape)
                )
            else:
                expect(value is None or is_number(value), f"{what}: {name} is not a number")


def fits(value: Any, own: Any, name: str) -> bool:
    """
    :param value: hyper-parameter of an optimizer, from the file
    :param own: that of the model
    :param name: its name
    :return: whether it may take its place: switches must be the same, numbers may have changed in training
    """
    if name == "params" or own is None or isinstance(own, (bool, str)):
        return type(value) is type(own) and value == own
    if isinstance(own, (tuple, list)):
        alike = type(value) in (tuple, list) and len(value) == len(own)
        return alike and all(is_number(item) and item >= 0 for item in value)
    return is_number(value) and value >= 0


def kept_state(optimizer: th.optim.Optimizer) -> dict[str, Any]:
    """
    :param optimizer: optimizer
    :return: what it keeps of a parameter, here of one of shape (1,)
    """
    group = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    param = th.nn.Parameter(th.zeros(1))
    probe = type(optimizer)([param], lr=0.0)  # type: ignore[call-arg]
    probe.param_groups[0].update(group)
    param.grad = th.zeros(1)
    probe.step()
    return dict(probe.state[param])
