import math

import pytest

from sb3_diffusion.diffppo.temperature import TemperatureSchedule


@pytest.mark.parametrize(
    ("ent_coef", "start", "half", "end"),
    [
        (0.1, 0.1, 0.1, 0.1),
        ("0.1", 0.1, 0.1, 0.1),
        (0, 0.0, 0.0, 0.0),
        ("lin_0.05", 0.05, 0.025, 0.0),
        ("lin_0.05_0.01", 0.05, 0.03, 0.01),
        ("exp_0.1_0.001", 0.1, 0.01, 0.001),
        ("cos_0.2", 0.2, 0.1, 0.0),
        ("cos_0.2_0.1", 0.2, 0.15, 0.1),
        (lambda progress: progress**2, 1.0, 0.25, 0.0),
    ],
)
def test_values(ent_coef, start, half, end):
    schedule = TemperatureSchedule(ent_coef)
    assert [schedule(progress) for progress in (1.0, 0.5, 0.0)] == pytest.approx([start, half, end])


def test_cosine_stays_hot_at_first():
    assert TemperatureSchedule("cos_1")(0.75) == pytest.approx(0.5 * (1 + math.cos(0.25 * math.pi)))


@pytest.mark.parametrize(
    "ent_coef",
    [
        "auto",
        "lin",
        "lin_",
        "lin_a",
        "lin_-0.1",
        "exp_0.05",
        "exp_0.05_0",
        "cos_1_2_3",
        "log_0.1",
        "",
        -0.1,
        math.nan,
        math.inf,
        None,
    ],
)
def test_bad_values(ent_coef):
    with pytest.raises(ValueError, match=r"ent_coef=.*choose a number of at least 0"):
        TemperatureSchedule(ent_coef)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_bad_value_of_a_function(value):
    with pytest.raises(ValueError, match="a temperature must be finite and at least 0"):
        TemperatureSchedule(lambda progress: value)(0.5)
