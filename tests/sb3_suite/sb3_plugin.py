"""
Pytest plug-in: put DiffSAC in SAC's place and DiffPPO in PPO's before SB3's tests are collected, and name what they cannot
pass. With ``PEER_SUITE=DiffWPO`` in the environment DiffWPO is in SAC's place, and the tests of PPO are left out.
"""

import inspect
import os
import re

import pytest
import stable_baselines3

from sb3_diffusion import DiffPPO, DiffSAC, DiffWPO
from sb3_diffusion.diffppo.policies import ChainActorCriticPolicy

WPO = os.environ.get("PEER_SUITE") == "DiffWPO"
stable_baselines3.SAC = DiffWPO if WPO else DiffSAC
stable_baselines3.PPO = DiffPPO
# What the tests derive policies of their own from
stable_baselines3.common.policies.ActorCriticPolicy = ChainActorCriticPolicy

# gSDE draws the parameters of a Gaussian's noise; a diffusion policy has no such Gaussian, and refuses use_sde=True with
# a ValueError
GSDE: dict[str, str] = {
    "test_her.py::test_save_load[True-DiffSAC]": "saves and loads a model with use_sde=True",
    "test_run.py::test_offpolicy_multi_env[DiffSAC]": "trains SAC with use_sde=True in many environments",
    "test_save_load.py::test_save_load_policy[True-MlpPolicy-DiffSAC]": "saves and loads a gSDE policy",
    "test_save_load.py::test_save_load_policy[True-CnnPolicy-DiffSAC]": "saves and loads a gSDE policy for images",
    "test_sde.py::test_state_dependent_noise[True-False-DiffSAC]": "trains with gSDE noise",
    "test_sde.py::test_state_dependent_noise[True-True-DiffSAC]": "trains with gSDE noise during warm-up",
    "test_distributions.py::test_squashed_gaussian[DiffPPO]": "squashes gSDE's Gaussian",
    "test_save_load.py::test_save_load_policy[True-MlpPolicy-DiffPPO]": "saves and loads a gSDE policy",
    "test_save_load.py::test_save_load_policy[True-CnnPolicy-DiffPPO]": "saves and loads a gSDE policy for images",
    "test_sde.py::test_state_dependent_noise[False-False-DiffPPO]": "trains with gSDE noise",
    "test_sde.py::test_state_dependent_noise[False-True-DiffPPO]": "trains with gSDE noise",
    "test_sde.py::test_state_dependent_noise[True-False-DiffPPO]": "trains with gSDE noise",
    "test_sde.py::test_state_dependent_noise[True-True-DiffPPO]": "trains with gSDE noise",
    "test_spaces.py::test_sde_multi_dim": "trains SAC with gSDE on actions of two dimensions",
}

# SB3's warning has the class's name in it, and the test looks for "PPO"
NAMED = ["test_run.py::test_ppo_warnings"]


# Tests that have a class for a parameter have its name in theirs; of the others those whose text names one of ours
OTHERS = ("A2C", "DDPG", "DQN", "TD3")
OURS = re.compile(r"\bSAC\b" if WPO else r"\b(SAC|PPO)\b")


def is_ours(item: pytest.Item) -> bool:
    if "Diff" in item.name:
        return "DiffWPO" in item.name or not WPO
    return not any(name in item.name for name in OTHERS) and bool(OURS.search(inspect.getsource(item.function)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if not is_ours(item)])
    items[:] = filter(is_ours, items)
    for item in items:
        name = f"{item.path.name}::{item.name}".replace("DiffWPO", "DiffSAC")
        if name in GSDE:
            item.add_marker(pytest.mark.xfail(reason=f"gSDE: {GSDE[name]}", raises=ValueError, strict=True))
        elif name in NAMED:
            # Failed where pytest.warns sees no such warning
            refused = (AssertionError, pytest.fail.Exception)
            item.add_marker(pytest.mark.xfail(reason="the class's name", raises=refused, strict=True))
