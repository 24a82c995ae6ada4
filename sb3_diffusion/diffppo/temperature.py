"""Schedules of the temperature ``ent_coef``: variational annealing (DMERL, arXiv 2512.02019)."""

import math
from collections.abc import Callable
from typing import Any

from stable_baselines3.common.type_aliases import Schedule

from sb3_diffusion.saving.json_codec import expect, is_schedule, register_schedule

SHAPES: dict[str, Callable[[float, float, float], float]] = {
    "lin": lambda start, end, progress: end + (start - end) * progress,
    "exp": lambda start, end, progress: start**progress * end ** (1 - progress),
    "cos": lambda start, end, progress: end + (start - end) * 0.5 * (1 - math.cos(math.pi * progress)),
}


class TemperatureSchedule:
    """
    Temperature as a function of the remaining progress, 1 at the start of training and 0 at its end.

    :param ent_coef: a number of at least 0; a function of the remaining progress; or ``"<shape>_<start>"`` or
        ``"<shape>_<start>_<end>"``, the shape being ``lin``, ``exp`` (whose ends must be positive) or ``cos`` and the end 0
        unless given
    :raises ValueError: for anything else
    """

    def __init__(self, ent_coef: float | str | Schedule):
        self.ent_coef = ent_coef
        ends: list[str]
        self.shape, self.start, self.end = "lin", 0.0, 0.0
        if callable(ent_coef):
            return
        try:
            if isinstance(ent_coef, str) and ent_coef.partition("_")[0] in SHAPES:
                self.shape, *ends = ent_coef.split("_")
                self.start, self.end = map(float, ends if len(ends) == 2 else [*ends, "0"])
            else:
                self.start = self.end = float(ent_coef)
        except (TypeError, ValueError):
            self.start = math.nan
        lowest = min(self.start, self.end)
        if not all(map(math.isfinite, (self.start, self.end))) or lowest < 0 or (self.shape == "exp" and lowest == 0):
            raise ValueError(
                f"ent_coef={ent_coef!r}: choose a number of at least 0, a function of the remaining progress, or a schedule "
                "like 'lin_0.05', 'cos_0.05_0.001' or 'exp_0.05_0.001' (start and end, for 'exp' both positive)"
            )

    def __call__(self, progress_remaining: float) -> float:
        """
        :param progress_remaining: remaining progress, from 1 to 0
        :return: temperature alpha
        :raises ValueError: if the user's own function gives a number that is negative or not finite
        """
        if not callable(self.ent_coef):
            # A rollout that goes beyond the end of training leaves less than nothing
            return SHAPES[self.shape](self.start, self.end, max(progress_remaining, 0.0))
        value = float(self.ent_coef(max(progress_remaining, 0.0)))
        if not 0 <= value < math.inf:
            raise ValueError(f"ent_coef({progress_remaining})={value}: a temperature must be finite and at least 0")
        return value


def make_temperature_schedule(ent_coef: Any) -> TemperatureSchedule:
    """
    :param ent_coef: any value from a file
    :return: the schedule
    :raises UnsafeModelError: if it is neither a number, a text nor a schedule
    """
    known = isinstance(ent_coef, str) or is_schedule(ent_coef)
    expect(known, "TemperatureSchedule of what is neither a number nor a schedule")
    return TemperatureSchedule(ent_coef)


register_schedule(TemperatureSchedule, make_temperature_schedule, "ent_coef")
