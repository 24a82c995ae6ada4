"""Saving models so that they can be loaded without unpickling, and loading them that way."""

import dis
import inspect
import io
import json
import pathlib
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import open_path, recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces, get_device, get_system_info
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_diffusion.common.arguments import Kind, subclass_of
from sb3_diffusion.common.carried_settings import find_other_settings
from sb3_diffusion.saving.archive import UnsafeModelError, load_tensors, read_entries, show
from sb3_diffusion.saving.attributes import ADDED, ATTRIBUTES, keep_plain, policy_kwargs_kind
from sb3_diffusion.saving.files import write_whole
from sb3_diffusion.saving.json_codec import (
    NotPlain,
    decode,
    encode,
    expect,
    parse,
    register_classes,
)
from sb3_diffusion.saving.tensors import AllocationLimit, check_optimizer, check_tensors

SelfSafeLoadMixin = TypeVar("SelfSafeLoadMixin", bound="SafeLoadMixin")

PACKAGE = f"{__name__.partition('.')[0]}."
# Algorithms of this package by name, as they are defined
ALGORITHMS: dict[str, type["SafeLoadMixin"]] = {}

SETTINGS = "sb3_diffusion.json"
_SYSTEM_INFO = "system_info.txt"
_VARIABLES = "pytorch_variables"
_FORMAT = 3

# "data" is Stable-Baselines3's own, with pickles, and not read
_ENTRIES = {"data", "_stable_baselines3_version", _SYSTEM_INFO, SETTINGS}

# What follows from the other settings
_DERIVED = {
    *("lr_schedule", "qf_lr_schedule", "log_ent_coef", "ent_coef_optimizer"),
    *("batch_norm_stats", "batch_norm_stats_target"),
}

# A policy takes as many bytes as its entry, and some on the way
POLICY_SIZE_FACTOR, POLICY_SIZE_EXTRA = 2, 2**20
MAX_HER_TRANSITIONS = 10**7


class SafeLoadMixin(BaseAlgorithm):
    """An algorithm whose models can be loaded without unpickling. Files may set the attributes that it declares."""

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
    def family(cls) -> list[str]:
        """
        :return: its name, and of a user's subclass also those of its bases up to the first one of this package
        """
        names: list[str] = []
        for base in cls.__mro__:
            if base.__module__.startswith(PACKAGE):
                return [*names, base.__name__]
            # A user's class may have the name of one of this package
            if base.__name__ not in ALGORITHMS:
                names.append(base.__name__)
        return names

    @classmethod
    def may_load(cls, family: list[str]) -> bool:
        """
        :param family: :meth:`family` of the class that saved a file
        :return: whether this class loads it: it is the same class, one of its bases, or extends it
        """
        own = cls.family()
        return family[-1] == own[-1] and (own[0] in family or family[0] in own)

    @classmethod
    def attribute_kinds(cls) -> dict[str, Kind]:
        """
        :return: kinds of the attributes of a file, by name
        """
        policy = cls.policy_aliases["MlpPolicy"]
        own = {"policy_class": subclass_of(policy), "policy_kwargs": policy_kwargs_kind(policy)}
        return {**cls.arguments, **cls.attributes, **ATTRIBUTES, **own}

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
            settings = _read_model(path)
            return _load_model(cls, settings, env, device, custom_objects, print_system_info, force_reset, kwargs)
        _check_class(cls, path)
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)


def _check_class(algorithm: type[SafeLoadMixin], path: str | pathlib.Path | io.BufferedIOBase) -> None:
    """
    Before anything is unpickled. Without it a model of another class would fail in obscure ways, or not at all.

    A user's subclass may be loaded by its parent.
    """
    file = open_path(path, "r", verbose=0, suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            settings = json.loads(archive.read(SETTINGS)) if SETTINGS in archive.namelist() else {}
            family = [str(name) for name in (settings["algorithm"], *settings["bases"])] if settings else []
    except (zipfile.BadZipFile, ValueError, TypeError, KeyError):
        return  # SB3 says what is wrong with it
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()
        else:
            file.seek(0)
    if not (family and algorithm.may_load(family)):
        what = f"a {show.repr(family[0])}" if family else "no model of this package"
        raise ValueError(f"{show.repr(str(path))} is {what}, not a {algorithm.__name__}: load it with the class that saved it")


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
        if name in _DERIVED:
            continue
        try:
            if name not in kinds and not _may_be_added(name, value):
                raise NotPlain("an attribute of the user's own that is not text, numbers or arrays")
            attributes[name] = encode(keep_plain(name, value))
        except NotPlain as error:
            not_stored[name] = str(error)
    name, *bases = algorithm.family()
    settings = dict(format=_FORMAT, algorithm=name, bases=bases, attributes=attributes, not_stored=not_stored)
    return json.dumps(settings, allow_nan=False)


def _may_be_added(name: str, value: Any) -> bool:
    """Whether an attribute may be one of the user's own, which no algorithm of this package or of Stable-Baselines3 has."""
    # Python itself asks objects for names like __deepcopy__
    is_free = name not in _reserved_names() and not name.startswith("__")
    return name.isidentifier() and len(name) <= 100 and is_free and ADDED.holds(value)


@cache
def _reserved_names() -> set[str]:
    """
    :return: attributes that an algorithm has, declares or sets anywhere: one algorithm's are asked for on others, too
    """
    names: set[str] = set()
    for algorithm in ALGORITHMS.values():
        names |= {*dir(algorithm), *algorithm.attribute_kinds()}
        for cls in algorithm.__mro__:
            names |= inspect.get_annotations(cls).keys()
            functions = [value for value in map(inspect.unwrap, vars(cls).values()) if inspect.isfunction(value)]
            steps = [step for function in functions for step in dis.get_instructions(function)]
            names |= {step.argval for step in steps if step.opname == "STORE_ATTR"}
    return names


class _ModelFile(NamedTuple):
    """A model file, whose pickles are not in it."""

    what: str
    entries: dict[str, bytes]
    family: list[str]
    attributes: dict[str, Any]
    not_stored: dict[str, str]


def _is_entry(name: str) -> bool:
    """Whether a model file may have this entry: a subclass may have state dicts of its own."""
    return name in _ENTRIES or re.fullmatch(r"[A-Za-z]\w{0,50}(\.[A-Za-z]\w{0,50}){0,4}\.pth", name, re.ASCII) is not None


def _read_model(path: str | pathlib.Path | io.BufferedIOBase) -> _ModelFile:
    """Read the entries of a file, and decode the settings among them."""
    what = f"the model file {show.repr(str(path))}" if isinstance(path, (str, pathlib.Path)) else "the model file"
    file = open_path(path, "r", verbose=0, suffix="zip")
    try:
        entries = read_entries(file, what, _is_entry)
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()
    if SETTINGS not in entries:
        raise UnsafeModelError(
            f"{what} has no entry {SETTINGS!r}: it was not saved by this package, but by another one, whose class loads it, "
            "or by a version without safe loading. If you trust that one, load it without safe=True and save it again"
        )
    try:
        settings = parse(entries[SETTINGS])
        keys = {"format", "algorithm", "bases", "attributes", "not_stored"}
        expect(isinstance(settings, dict) and "format" in settings, "it has no format")
        known = type(settings["format"]) is int and settings["format"] == _FORMAT
        expect(known, f"its format is {show.repr(settings['format'])}, this version reads {_FORMAT}")
        expect(set(settings) == keys, f"it does not have the keys {', '.join(sorted(keys))}")
        expect(isinstance(settings["bases"], list), "its bases are not a list")
        family = [settings["algorithm"], *settings["bases"]]
        expect(all(isinstance(name, str) for name in family), "its algorithm or a base is not a name")
        # A class of this package has none that a file needs to know of
        expect(not ALGORITHMS.keys() & set(family[:-1]), "its algorithm has the name of another")
        expect(isinstance(settings["attributes"], dict), "its attributes are not a dict")
        not_stored = settings["not_stored"]
        expect(isinstance(not_stored, dict), "what it did not store is not a dict")
        expect(all(isinstance(text, str) for text in not_stored.values()), "what it did not store is not text")
    except UnsafeModelError as error:
        raise UnsafeModelError(f"{what}: {SETTINGS}: {error}") from error
    return _ModelFile(what, entries, family, settings["attributes"], not_stored)


def _read_attributes(
    algorithm: type[SafeLoadMixin], file: _ModelFile, given: Iterable[str], has_env: bool = False
) -> dict[str, Any]:
    """Decode those attributes that the caller does not give, and check their kinds."""
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
        try:
            data[name] = decode(value)
            if name not in kinds:
                expect(
                    _may_be_added(name, data[name]),
                    f"an attribute which no {algorithm.__name__} has, nor may get from a file",
                )
                continue
            expect(kinds[name].holds(data[name]), f"it is {show.repr(data[name])}, and must be {kinds[name].text}")
        except Exception as error:
            # What has the form of a setting may still be refused by its class
            problem = str(error) if isinstance(error, UnsafeModelError) else f"{type(error).__name__}: {error}"
            raise UnsafeModelError(f"{file.what}: {name[:100]}: {problem[:500]}; or give {name[:100]}=... yourself") from error
    return data


def _load_model(
    algorithm: type[SelfSafeLoadMixin],
    file: _ModelFile,
    env: GymEnv | None,
    device: th.device | str,
    custom_objects: dict[str, Any] | None,
    print_system_info: bool,
    force_reset: bool,
    kwargs: dict[str, Any],
) -> SelfSafeLoadMixin:
    """Load as SB3's ``load`` does, with a check before each step. The arguments are those of :meth:`SafeLoadMixin.load`."""
    if print_system_info:
        _print_info(file)
    if not algorithm.may_load(file.family):
        raise UnsafeModelError(f"{file.what} is of a {show.repr(file.family[0])}, not of a {algorithm.__name__}")
    given = {name: item for name, item in (custom_objects or {}).items() if name in {**file.attributes, **file.not_stored}}
    given.update(kwargs)
    # Given policy_kwargs must equal the stored ones; those that could not be stored are taken from the caller
    stored = "policy_kwargs" in file.attributes
    data = _read_attributes(algorithm, file, given.keys() - {"policy_kwargs"} if stored else given, has_env=env is not None)
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
    _restore(model, file)
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
    :param kwargs: extra arguments to change the model when loading, and those that the file could not store
    :return: the model
    :raises UnsafeModelError: for a file that is broken, crafted, or has what only unpickling could read
    """
    file = _read_model(path)
    name, base = file.family[0], file.family[-1]
    if base not in ALGORITHMS:
        raise UnsafeModelError(f"{file.what} is of a {show.repr(name)}: this reads {', '.join(sorted(ALGORITHMS))}")
    if name != base:
        warnings.warn(f"{file.what} is of a {show.repr(name)}, and loaded as the {base} that it extends")
    return _load_model(ALGORITHMS[base], file, env, device, custom_objects, print_system_info, force_reset, kwargs)


def _print_info(file: _ModelFile) -> None:
    """
    :param file: the file
    """
    print("== CURRENT SYSTEM INFO ==")
    get_system_info()
    print("== SAVED MODEL SYSTEM INFO ==")
    # A terminal obeys control characters
    text = file.entries.get(_SYSTEM_INFO, b"")[:10_000].decode(errors="replace")
    print("".join(sign for sign in text if sign.isprintable() or sign == "\n"))


def _restore(model: BaseAlgorithm, file: _ModelFile) -> None:
    """Build the networks and optimizers, and fill them from the file."""
    tensors = {}
    for entry, content in file.entries.items():
        if entry.endswith(".pth"):
            tensors[entry.removesuffix(".pth")] = load_tensors(content, f"{file.what}: {entry}", get_device(model.device))
    policy_size = len(file.entries.get("policy.pth", b""))
    element_size = th.get_default_dtype().itemsize
    if issubclass(getattr(model, "replay_buffer_class", None) or ReplayBuffer, HerReplayBuffer):
        # It makes an object for each transition at once
        size = model.buffer_size  # type: ignore[attr-defined]
        if size > MAX_HER_TRANSITIONS:
            raise UnsafeModelError(f"{file.what}: buffer_size={size}, and a HerReplayBuffer has at most {MAX_HER_TRANSITIONS}")
    try:
        with AllocationLimit((POLICY_SIZE_FACTOR * policy_size + POLICY_SIZE_EXTRA) // element_size):
            model._setup_model()
    except Exception as error:
        # Whatever the constructors of networks, optimizers and buffers say to settings that do not go together
        problem = str(error) if isinstance(error, UnsafeModelError) else f"{type(error).__name__}: {error}"
        raise UnsafeModelError(f"{file.what}: no model can be built from its settings: {problem[:500]}") from error
    state_dicts, variables = model._get_torch_save_params()
    expected = {*state_dicts, _VARIABLES}
    if tensors.keys() != expected:
        found, wanted = ", ".join(sorted(tensors)), ", ".join(sorted(expected))
        raise UnsafeModelError(f"{file.what} has tensors of {found}; this model needs those of {wanted}")
    try:
        values = tensors.pop(_VARIABLES)
        check_tensors(_VARIABLES, values, {name: recursive_getattr(model, name) for name in variables})
        if errors := find_other_settings(model.policy, tensors["policy"]):
            raise ValueError(errors[0])
        for name, state in tensors.items():
            target = recursive_getattr(model, name)
            if isinstance(target, th.optim.Optimizer):
                check_optimizer(name, state, target)
            else:
                check_tensors(name, state, target.state_dict())
    except Exception as error:
        # Crafted containers and tensors may fail in any way
        raise UnsafeModelError(f"{file.what}: {str(error)[:500]}") from error
    # As plain dicts: an OrderedDict may have attributes that PyTorch reads
    plain: dict[str, Any] = {name: dict(state) for name, state in tensors.items()}
    model.set_parameters(plain, exact_match=True, device=model.device)
    with th.no_grad():
        for name, value in values.items():
            recursive_getattr(model, name).copy_(value)
