"""Pytest plug-in: put DiffSAC in SAC's place before SB3's tests are collected, and name what it cannot pass."""

import pytest
import stable_baselines3

from sb3_diffusion import DiffSAC

stable_baselines3.SAC = DiffSAC

# gSDE draws the parameters of a Gaussian's noise; a diffusion policy has no such Gaussian, and refuses use_sde=True with
# a ValueError
EXPECTED_FAILURES: dict[str, str] = {
    "test_her.py::test_save_load[True-DiffSAC]": "saves and loads a model with use_sde=True",
    "test_run.py::test_offpolicy_multi_env[DiffSAC]": "trains SAC with use_sde=True in many environments",
    "test_save_load.py::test_save_load_policy[True-MlpPolicy-DiffSAC]": "saves and loads a gSDE policy",
    "test_save_load.py::test_save_load_policy[True-CnnPolicy-DiffSAC]": "saves and loads a gSDE policy for images",
    "test_sde.py::test_state_dependent_noise[True-False-DiffSAC]": "trains with gSDE noise",
    "test_sde.py::test_state_dependent_noise[True-True-DiffSAC]": "trains with gSDE noise during warm-up",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = EXPECTED_FAILURES.get(f"{item.path.name}::{item.name}")
        if reason:
            item.add_marker(pytest.mark.xfail(reason=f"gSDE: {reason}", raises=ValueError, strict=True))
