"""The settings of a model as plain JSON, and back: numbers, text, arrays, spaces, and classes and objects of a fixed list."""

import base64
import json
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from torch import nn

from sb3_diffusion.common.arguments import MAX_INTEGER, is_integer, is_number
from sb3_diffusion.common.graph_denoiser import GraphDenoiser
from sb3_diffusion.common.tour_denoiser import TourDenoiser
from sb3_diffusion.saving.archive import UnsafeModelError, show

_MAX_DEPTH = 16
_MAX_DIMENSIONS = 8

# Bytes of the JSON, and signs of it that may each become an object many times as long
_MAX_JSON_SIZE = 64 * 2**20
_MAX_JSON_ITEMS = 300_000

ACTIVATIONS = {
    f"torch.nn.{name}": getattr(nn, name)
    for name in (
        *("CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "LogSigmoid"),
        *("Mish", "PReLU", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink", "Softsign", "Tanh"),
        "Tanhshrink",
    )
}
OPTIMIZERS = {
    f"torch.optim.{name}": getattr(th.optim, name)
    for name in ("ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
} | {"stable_baselines3.RMSpropTFLike": RMSpropTFLike}
EXTRACTORS = {f"stable_baselines3.{cls.__name__}": cls for cls in (CombinedExtractor, FlattenExtractor, NatureCNN)}
_REPLAY_BUFFERS = {
    f"stable_baselines3.{cls.__name__}": cls for cls in (DictReplayBuffer, HerReplayBuffer, NStepReplayBuffer, ReplayBuffer)
}
DENOISERS = {"sb3_diffusion.GraphDenoiser": GraphDenoiser, "sb3_diffusion.TourDenoiser": TourDenoiser}
_DTYPES = {f"numpy.{name}": getattr(np, name) for name in ("float32", "float64")}

# Everything that may be named, and so can be in a file without running code of the file's choice
CLASSES: dict[str, type] = {
    **ACTIVATIONS,
    **OPTIMIZERS,
    **EXTRACTORS,
    **_REPLAY_BUFFERS,
    **DENOISERS,
    **_DTYPES,
}
_CLASS_NAMES = {cls: name for name, cls in CLASSES.items()}


def register_classes(*classes: type) -> None:
    """
    :param classes: classes of this package that files may name from now on
    """
    for cls in classes:
        name = f"sb3_diffusion.{cls.__name__}"
        CLASSES[name], _CLASS_NAMES[cls] = cls, name


class NotPlain(TypeError):
    """A value has no plain form."""


class _Form(NamedTuple):
    """How objects of a type are written down."""

    type_name: str
    attributes: dict[str, str]
    make: Callable[..., Any]


def expect(condition: bool, problem: str) -> None:
    """
    :param condition: condition that a valid file meets
    :param problem: text of the error
    :raises UnsafeModelError: if it does not hold
    """
    if not condition:
        raise UnsafeModelError(problem)


def _is_array(value: Any, kinds: str) -> bool:
    """Whether a value is an array of one of these kinds of dtype."""
    return isinstance(value, np.ndarray) and value.dtype.kind in kinds


def is_schedule(value: Any) -> bool:
    """
    :param value: anything
    :return: whether it is a number or one of the schedules that can be written down
    """
    return is_number(value) or type(value) in SCHEDULES or type_name(type(value)) == _ZOO_SCHEDULE


def type_name(cls: type) -> str:
    """Name of a type with its module."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _make_with_numbers(cls: type) -> Callable[..., Any]:
    """Let the constructor of a class take numbers alone."""

    def make(**arguments: Any) -> Any:
        expect(all(map(is_number, arguments.values())), f"{cls.__name__} has an argument that is not a finite number")
        return cls(**arguments)

    return make


# Constructors of objects from a file's content, which may be anything


def _make_float_schedule(value_schedule: Any) -> FloatSchedule:
    expect(is_schedule(value_schedule), "FloatSchedule of what is neither a number nor a schedule")
    return FloatSchedule(value_schedule)


def _make_zoo_schedule(initial_value: Any) -> Any:
    # RL Zoo takes long to import, and only models that it has trained need it
    from rl_zoo3.utils import SimpleLinearSchedule

    return _make_with_numbers(SimpleLinearSchedule)(initial_value=initial_value)


def _make_train_freq(frequency: Any, unit: Any) -> TrainFreq:
    expect(is_integer(frequency, 1) and isinstance(unit, TrainFrequencyUnit), "TrainFreq without a frequency or a unit")
    return TrainFreq(frequency, unit)


def _make_box(low: Any, high: Any) -> spaces.Box:
    good = _is_array(low, "biuf") and _is_array(high, "biuf") and low.shape == high.shape and low.dtype == high.dtype
    expect(good and low.size > 0, "Box without bounds")
    expect(not (np.isnan(low).any() or np.isnan(high).any()), "Box whose bounds are NaN")
    return spaces.Box(low, high, dtype=low.dtype.type)


def _make_discrete(n: Any, start: Any) -> spaces.Discrete:
    expect(is_integer(n, 1, 2**31) and is_integer(start, -(2**31), 2**31), "Discrete without a number of values")
    return spaces.Discrete(int(n), start=int(start))


def _make_multi_discrete(nvec: Any, start: Any) -> spaces.MultiDiscrete:
    good = _is_array(nvec, "iu") and _is_array(start, "iu") and nvec.shape == start.shape and nvec.size > 0
    expect(good and bool(((nvec > 0) & (nvec <= 2**31)).all()), "MultiDiscrete without numbers of values")
    return spaces.MultiDiscrete(nvec, dtype=nvec.dtype.type, start=start)


def _make_multi_binary(n: Any) -> spaces.MultiBinary:
    shape = n if isinstance(n, tuple) else (n,)
    good = 0 < len(shape) <= 8 and all(is_integer(size, 1, 2**31) for size in shape)
    expect(good and math.prod(shape) <= 2**31, "MultiBinary without a shape")
    return spaces.MultiBinary(n)


def _make_dict_space(spaces_: Any) -> spaces.Dict:
    good = isinstance(spaces_, dict) and 0 < len(spaces_) <= 1000
    expect(good and all(type(space) in FLAT_SPACES for space in spaces_.values()), "Dict of what are not plain spaces")
    return spaces.Dict(OrderedDict(spaces_))


def _is_noise_array(value: Any) -> bool:
    return _is_array(value, "f") and value.ndim <= 2 and bool(np.isfinite(value).all())


def _make_normal_noise(mean: Any, sigma: Any, dtype: Any) -> NormalActionNoise:
    good = all(_is_noise_array(np.asarray(value, dtype=np.float64)) for value in (mean, sigma))
    good = good and bool(np.all(np.asarray(sigma) >= 0))
    expect(good and dtype in _DTYPES.values(), "NormalActionNoise without mean, sigma or dtype")
    return NormalActionNoise(mean, sigma, dtype)


def _make_ou_noise(noise_prev: Any, mean: Any, initial_noise: Any, dtype: Any, **numbers: Any) -> OrnsteinUhlenbeckActionNoise:
    good = _is_noise_array(mean) and _is_noise_array(noise_prev) and (initial_noise is None or _is_noise_array(initial_noise))
    good = good and all(_is_noise_array(value) or is_number(value) for value in numbers.values()) and dtype in _DTYPES.values()
    expect(good, "OrnsteinUhlenbeckActionNoise without mean, sigma or dtype")
    noise = OrnsteinUhlenbeckActionNoise(mean, initial_noise=initial_noise, dtype=dtype, **numbers)
    noise.noise_prev = noise_prev
    return noise


def _make_vectorized_noise(base_noise: Any, noises: Any) -> VectorizedActionNoise:
    good = isinstance(base_noise, ActionNoise) and isinstance(noises, list) and len(noises) > 0
    expect(good and all(type(noise) is type(base_noise) for noise in noises), "VectorizedActionNoise without noises")
    # The constructor resets the noises that it is given
    noise = VectorizedActionNoise(base_noise, 1)
    noise.n_envs, noise._noises = len(noises), noises
    return noise


_ZOO_SCHEDULE = "rl_zoo3.utils.SimpleLinearSchedule"
SCHEDULES: list[type] = [FloatSchedule, ConstantSchedule, LinearSchedule]
FLAT_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
NOISES = (NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise)


def form(cls: type, make: Callable[..., Any], *names: str, **attributes: str) -> _Form:
    """
    :param cls: type of the objects
    :param make: makes one
    :param names: keyword arguments that are attributes of the same name
    :param attributes: attributes of the others
    :return: how they are written down
    """
    return _Form(type_name(cls), {**{name: name for name in names}, **attributes}, make)


FORMS: dict[str, _Form] = {
    "FloatSchedule": form(FloatSchedule, _make_float_schedule, "value_schedule"),
    "ConstantSchedule": form(ConstantSchedule, _make_with_numbers(ConstantSchedule), "val"),
    "LinearSchedule": form(LinearSchedule, _make_with_numbers(LinearSchedule), "start", "end", "end_fraction"),
    "SimpleLinearSchedule": _Form(_ZOO_SCHEDULE, {"initial_value": "initial_value"}, _make_zoo_schedule),
    "TrainFreq": form(TrainFreq, _make_train_freq, "frequency", "unit"),
    "TrainFrequencyUnit": form(TrainFrequencyUnit, TrainFrequencyUnit, "value"),
    "GoalSelectionStrategy": form(GoalSelectionStrategy, GoalSelectionStrategy, "value"),
    "Box": form(spaces.Box, _make_box, "low", "high"),
    "Discrete": form(spaces.Discrete, _make_discrete, "n", "start"),
    "MultiDiscrete": form(spaces.MultiDiscrete, _make_multi_discrete, "nvec", "start"),
    "MultiBinary": form(spaces.MultiBinary, _make_multi_binary, "n"),
    "Dict": form(spaces.Dict, _make_dict_space, spaces_="spaces"),
    "NormalActionNoise": form(NormalActionNoise, _make_normal_noise, mean="_mu", sigma="_sigma", dtype="_dtype"),
    "OrnsteinUhlenbeckActionNoise": form(
        OrnsteinUhlenbeckActionNoise,
        _make_ou_noise,
        *("noise_prev", "initial_noise"),
        **dict(mean="_mu", sigma="_sigma", theta="_theta", dt="_dt", dtype="_dtype"),
    ),
    "VectorizedActionNoise": form(VectorizedActionNoise, _make_vectorized_noise, "base_noise", "noises"),
}
_FORM_NAMES = {of_type.type_name: name for name, of_type in FORMS.items()}


def register_schedule(cls: type, make: Callable[..., Any], *names: str) -> None:
    """
    :param cls: class of schedules that files may hold from now on
    :param make: makes one from a file's content, which may be anything
    :param names: its keyword arguments, which are attributes of the same name
    """
    SCHEDULES.append(cls)
    FORMS[cls.__name__] = form(cls, make, *names)
    _FORM_NAMES[type_name(cls)] = cls.__name__


def encode(value: Any, depth: int = 0) -> Any:
    """
    :param value: a setting
    :param depth: in how many others it is
    :return: its plain form: itself, a list, or ``{<tag>: <content>}``
    :raises NotPlain: if it has none
    """
    if depth > _MAX_DEPTH:
        raise NotPlain("something nested too deeply")
    name = type_name(type(value))
    if isinstance(value, np.str_):
        return str(value)
    if value is None or type(value) in (bool, str) or (type(value) is int and abs(value) < MAX_INTEGER):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if type(value) in (list, tuple, deque):
        items = [encode(item, depth + 1) for item in value]
        if isinstance(value, deque):
            return {"deque": [value.maxlen, items]}
        return items if isinstance(value, list) else {"tuple": items}
    if type(value) in (dict, OrderedDict):
        return {type(value).__name__: {_encode_key(key): _encode_item(key, item, depth) for key, item in value.items()}}
    if isinstance(value, (np.ndarray, np.generic)) and _has_plain_type(value.dtype.str) and value.ndim <= _MAX_DIMENSIONS:
        shape = list(value.shape) if isinstance(value, np.ndarray) else None
        return {"array": [value.dtype.str, shape, base64.b64encode(value.tobytes()).decode()]}
    if isinstance(value, type) and value in _CLASS_NAMES:
        return {"class": _CLASS_NAMES[value]}
    if name in _FORM_NAMES:
        attributes = FORMS[_FORM_NAMES[name]].attributes
        content = {key: encode(getattr(value, attribute), depth + 1) for key, attribute in attributes.items()}
        return {"object": [_FORM_NAMES[name], content]}
    raise NotPlain(f"the class {type_name(value)}" if isinstance(value, type) else f"an object of type {name}")


def _encode_key(key: Any) -> str:
    """Refuse a key of a dict that is no text."""
    if type(key) is not str:
        raise NotPlain(f"a dict with a key of type {type_name(type(key))}")
    return key


def _encode_item(key: str, item: Any, depth: int) -> Any:
    """Encode the item of a dict; an error names its key."""
    try:
        return encode(item, depth + 1)
    except NotPlain as error:
        raise NotPlain(f"a dict whose {key!r} is {error}") from error


def decode(value: Any, depth: int = 0) -> Any:
    """
    :param value: plain form, as :func:`parse` returns it
    :param depth: in how many others it is
    :return: the setting
    :raises UnsafeModelError: if it is not a plain form
    """
    expect(depth <= _MAX_DEPTH, "it is nested too deeply")
    if isinstance(value, list):
        return [decode(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    expect(len(value) == 1, "it has an object without exactly one tag")
    ((tag, content),) = value.items()
    if tag in ("dict", "OrderedDict"):
        expect(isinstance(content, dict), "it has a dict that is none")
        items = {key: decode(item, depth + 1) for key, item in content.items()}
        return items if tag == "dict" else OrderedDict(items)
    if tag == "float":
        expect(content in ("nan", "inf", "-inf"), "it has a number that is none")
        return float(content)
    if tag == "tuple":
        expect(isinstance(content, list), "it has a tuple that is none")
        return tuple(decode(content, depth))
    if tag == "class":
        expect(
            isinstance(content, str) and content in CLASSES,
            f"it asks for the class {show.repr(content)}, which is not on the list",
        )
        return CLASSES[content]
    expect(isinstance(content, list), "it has an object that is none")
    if tag == "array":
        return _decode_array(*content)
    if tag == "deque":
        maxlen, items = content
        expect((maxlen is None or is_integer(maxlen)) and isinstance(items, list), "it has a deque that is none")
        return deque(decode(items, depth), maxlen)
    expect(tag == "object", f"it has the tag {show.repr(tag)}, which is not on the list")
    name, arguments = content
    expect(isinstance(name, str) and name in FORMS, f"it asks for the type {show.repr(name)}, which is not on the list")
    of_type = FORMS[name]
    expect(isinstance(arguments, dict) and set(arguments) == set(of_type.attributes), f"it has a {name} without its arguments")
    return of_type.make(**{key: decode(argument, depth + 1) for key, argument in arguments.items()})


def _has_plain_type(dtype: Any) -> bool:
    """Whether a text is a NumPy dtype of numbers of at most 64 bits."""
    return isinstance(dtype, str) and len(dtype) == 3 and dtype[0] in "<>|" and dtype[1] in "biuf"


def _decode_array(dtype: Any, shape: Any, text: Any) -> Any:
    """Decode an array, or a number of NumPy's."""
    expect(_has_plain_type(dtype), "it has an array of no type")
    sizes = [] if shape is None else shape
    expect(
        isinstance(sizes, list) and len(sizes) <= _MAX_DIMENSIONS and all(map(is_integer, sizes)),
        "it has an array without a shape",
    )
    expect(isinstance(text, str), "it has an array without entries")
    data = base64.b64decode(text, validate=True)
    of_type = np.dtype(dtype)
    expect(len(data) == math.prod(sizes) * of_type.itemsize, "it has an array of another size than its shape")
    array = np.frombuffer(bytearray(data), of_type).reshape(sizes)
    return array[()] if shape is None else array


def parse(data: bytes) -> Any:
    """
    :param data: JSON
    :return: its value: dicts, lists, finite numbers, integers of 64 bits, text, True, False and None
    :raises UnsafeModelError: for anything else, a key that is there twice, or too much of it
    """
    expect(len(data) <= _MAX_JSON_SIZE, f"it has {len(data)} bytes, more than {_MAX_JSON_SIZE}")
    expect(sum(map(data.count, (b",", b"[", b"{"))) <= _MAX_JSON_ITEMS, f"it has more than {_MAX_JSON_ITEMS} items")
    try:
        return json.loads(
            data.decode(),
            object_pairs_hook=_parse_object,
            parse_constant=_parse_constant,
            parse_int=_parse_int,
            parse_float=_parse_float,
        )
    except UnsafeModelError:
        raise
    except (ValueError, RecursionError) as error:
        raise UnsafeModelError(f"it is not JSON: {type(error).__name__}: {error}") from error


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    expect(len({key for key, _ in pairs}) == len(pairs), "it has a key twice")
    return dict(pairs)


def _parse_constant(text: str) -> Any:
    raise UnsafeModelError(f"it has the number {text}")


def _parse_int(text: str) -> int:
    expect(len(text) <= 20 and abs(int(text)) < MAX_INTEGER, "it has an integer of more than 64 bits")
    return int(text)


def _parse_float(text: str) -> float:
    number = float(text)
    expect(math.isfinite(number), "it has a number that is too large")
    return number
