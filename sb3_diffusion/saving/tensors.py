"""Whether the tensors of a file are those of the model that its settings describe."""

import math
from collections.abc import Mapping
from typing import Any

import torch as th
from torch.overrides import TorchFunctionMode

from sb3_diffusion.common.arguments import is_integer, is_number
from sb3_diffusion.saving.archive import UnsafeModelError, show
from sb3_diffusion.saving.json_codec import expect


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


def check_tensors(what: str, values: Any, expected: Mapping[str, th.Tensor]) -> None:
    """
    :param what: name of the content, for the error
    :param values: tensors by name, from the file
    :param expected: those of the model
    :raises UnsafeModelError: if there are others, or of other shapes or types, or with NaN or infinite entries
    """
    expect(isinstance(values, dict), f"{what} is not a dict")
    if different := sorted(map(str, values.keys() ^ expected.keys())):
        raise UnsafeModelError(f"{what} and the model differ in {show.repr(different)}")
    for name, tensor in expected.items():
        _check_tensor(f"{what}: {name}", values[name], tensor)


def _check_tensor(what: str, value: Any, expected: th.Tensor) -> None:
    """Raise ``UnsafeModelError`` if shape or type differ, or an entry is NaN or infinite."""
    dense = type(value) is th.Tensor and value.layout is th.strided and not value.is_meta and not value.is_quantized
    expect(dense and value.untyped_storage().nbytes() >= value.nbytes, f"{what} is not a plain tensor")
    found, wanted = ((tuple(tensor.shape), tensor.dtype) for tensor in (value, expected))
    expect(found == wanted, f"{what} has shape and type {found}, the model's {wanted}")
    expect(bool(th.isfinite(value).all()), f"{what} has NaN or infinite entries")


def check_optimizer(what: str, state: Any, optimizer: th.optim.Optimizer) -> None:
    """
    :param what: name of the content, for the error
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
    kept = _kept_state(optimizer)
    for index, entries in states.items():
        expect(is_integer(index, 0, len(params) - 1), f"{what} has a state of a parameter that is not there")
        expect(isinstance(entries, dict) and entries.keys() == kept.keys(), f"{what} does not keep {', '.join(kept)}")
        for name, value in entries.items():
            expected = kept[name]
            if isinstance(expected, th.Tensor):
                # One number, or one for each entry of the parameter
                _check_tensor(
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


def _kept_state(optimizer: th.optim.Optimizer) -> dict[str, Any]:
    """State that an optimizer keeps of one parameter, here of shape (1,)."""
    group = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    param = th.nn.Parameter(th.zeros(1))
    probe = type(optimizer)([param], lr=0.0)  # type: ignore[call-arg]
    probe.param_groups[0].update(group)
    param.grad = th.zeros(1)
    probe.step()
    return dict(probe.state[param])
