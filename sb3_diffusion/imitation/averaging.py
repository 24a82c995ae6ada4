"""The exponential moving average of a network's weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch as th
from torch import nn


class WeightAverage:
    """
    Exponential moving average of weights. The first update takes them as they are.

    PyTorch's ``AveragedModel`` copies the network and goes through its modules at every update, which takes as long as the
    gradient of a small network.

    :param parameters: weights
    :param decay: decay per update; 0 for the weights themselves
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float):
        self.parameters: list[th.Tensor] = list(parameters)
        self.decay = decay
        self.average: list[th.Tensor] = []

    @th.no_grad()
    def update(self) -> None:
        """Take the present weights into the average."""
        if self.decay == 0:
            return
        if self.average:
            th._foreach_lerp_(self.average, self.parameters, 1 - self.decay)
        else:
            self.average = [param.detach().clone() for param in self.parameters]

    @th.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their average."""
        for param, average in zip(self.parameters, self.average, strict=False):
            weight = param.detach().clone()
            param.copy_(average)
            average.copy_(weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it, the network has the averaged weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
