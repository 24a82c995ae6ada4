"""
Pytest plug-in: put DiffTQC in TQC's place, DiffCrossQ in CrossQ's and DiffPPO in TRPO's before sb3-contrib's tests are
collected, and name what they cannot pass. With ``PEER_SUITE=DiffWPO`` in the environment it is DiffSAC in TQC's place and
DiffWPO in CrossQ's, and the tests of TRPO are left out.
"""

import inspect
import os
import re
from typing import Any

import pytest
import sb3_contrib

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffWPO


def without(algorithm: type, *foreign: str) -> Any:
    """
    :param algorithm: one of our algorithms
    :param foreign: keywords of the algorithm in whose place it stands, which are about a method that it does not have
    :return: the same, which ignores them
    """

    def __init__(self: Any, *args: Any, policy_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        own, own_policy = (
            {name: value for name, value in (given or {}).items() if name not in foreign} for given in (kwargs, policy_kwargs)
        )
        algorithm.__init__(self, *args, policy_kwargs=own_policy or None, **own)  # type: ignore[misc]

    return type(algorithm.__name__, (algorithm,), {"__init__": __init__})


FOREIGN = {"TQC": ["n_quantiles"], "CrossQ": ["renorm_warmup_steps"], "TRPO": ["cg_max_steps", "sub_sampling_factor"]}
PLACES = {"TQC": DiffTQC, "CrossQ": DiffCrossQ, "TRPO": without(DiffPPO, *FOREIGN["TRPO"])}
if os.environ.get("PEER_SUITE") == "DiffWPO":
    PLACES = {"TQC": without(DiffSAC, *FOREIGN["TQC"]), "CrossQ": without(DiffWPO, *FOREIGN["CrossQ"])}
for place, algorithm in PLACES.items():
    setattr(sb3_contrib, place, algorithm)

# gSDE draws the parameters of a Gaussian's noise; a diffusion policy has no such Gaussian, and refuses use_sde=True with
# a ValueError
GSDE = {
    "test_run.py::test_sde[TQC]": "trains with gSDE noise",
    "test_run.py::test_sde[CrossQ]": "trains with gSDE noise",
    "test_run.py::test_trpo_params": "trains with gSDE noise",
}

# The steps of these tests are not enough for the likeliest action at each observation
SHORT = ["test_identity.py::test_discrete[env1-TRPO]", "test_identity.py::test_discrete[env2-TRPO]"]

# Tests that have a class for a parameter have its name in theirs; of the others those whose text makes one of ours
OTHERS = ("ARS", "QRDQN", "MaskablePPO", "RecurrentPPO")
OURS = re.compile(rf"\b({'|'.join(PLACES)})\(")


def is_ours(item: pytest.Item) -> bool:
    if "Diff" in item.name:
        return True
    return not any(name in item.name for name in OTHERS) and bool(OURS.search(inspect.getsource(item.function)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if not is_ours(item)])
    items[:] = filter(is_ours, items)
    for item in items:
        name = f"{item.path.name}::{item.name}"
        for place, algorithm in PLACES.items():
            name = name.replace(algorithm.__name__, place)
        if name in GSDE:
            item.add_marker(pytest.mark.xfail(reason=f"gSDE: {GSDE[name]}", raises=ValueError, strict=True))
        elif name in SHORT:
            item.add_marker(pytest.mark.xfail(reason="the steps are not enough", raises=AssertionError, strict=False))
