"""What the README and the docs show runs as it stands, with fewer steps."""

import re
from pathlib import Path

import pytest
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "docs/quickstart.md",
    "docs/reliability.md",
    "docs/diffsac.md",
    "docs/diffppo.md",
    "docs/diffwpo.md",
    "docs/multimodal.md",
]


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def few_steps(monkeypatch, tmp_path):
    """Train for at most 110 steps, in a folder of its own."""
    learn = OffPolicyAlgorithm.learn

    def learn_a_little(self, total_timesteps, *args, **kwargs):
        return learn(self, min(total_timesteps, 110), *args, **kwargs)

    setup_model = OnPolicyAlgorithm._setup_model

    def setup_small_model(self):
        self.n_steps = min(self.n_steps, 32)
        setup_model(self)

    learn_on_policy = OnPolicyAlgorithm.learn
    monkeypatch.setattr(OffPolicyAlgorithm, "learn", learn_a_little)
    monkeypatch.setattr(OnPolicyAlgorithm, "_setup_model", setup_small_model)
    monkeypatch.setattr(OnPolicyAlgorithm, "learn", lambda self, *_, **__: learn_on_policy(self, 110))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page, few_steps):
    namespace = {}
    for block in python_blocks(page):
        if "SAC(DiffusionSACPolicy" in block:
            # Stock SAC is an example of its own: the blocks that follow go on with DiffSAC
            exec(block, {})
        else:
            exec(block, namespace)


def test_there_is_something_to_run():
    assert len(python_blocks("README.md")) >= 1
    assert len(python_blocks("docs/quickstart.md")) >= 4
    assert len(python_blocks("docs/diffppo.md")) >= 3


def test_commands_and_files_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", readme, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    links = re.findall(r"\]\((?!http)([^)#]+)\)", readme)
    scripts = re.findall(r"python ((?:benchmarks|examples)/\w+\.py)", readme)
    for path in links + scripts:
        assert (ROOT / path).exists(), path
