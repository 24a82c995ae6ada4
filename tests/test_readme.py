"""What the README and the docs show runs as it stands, with fewer steps."""

import argparse
import importlib.metadata
import inspect
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

import sb3_diffusion
from sb3_diffusion import DiffPPO, DiffSAC, DiffWPO

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md")))]
# Commands that are neither this project's nor a Python package's
SYSTEM = {"cd", "createdb", "export", "git", "source"}


def text_of(path):
    return (ROOT / path).read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), flags=re.DOTALL)


def python_blocks(page):
    return blocks(page, "python")


def commands(page):
    """
    :return: the commands of a page's bash blocks, split into words, and those that stand in ``$(...)`` within one
    """
    result = []
    for line in "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
        line = re.sub(r"^until (.*); do (.*); done$", r"\1", line)
        result += [shlex.split(line, comments=True), *map(shlex.split, re.findall(r"\$\((.*?)\)", line))]
    return [words for words in result if words]


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


@pytest.fixture
def few_logged_steps(few_steps, monkeypatch):
    """A run too short for the end of an episode leaves a line in its log all the same."""
    learn = OffPolicyAlgorithm.learn

    def learn_and_log(self, *args, **kwargs):
        learn(self, *args, **kwargs)
        self.dump_logs()
        return self

    monkeypatch.setattr(OffPolicyAlgorithm, "learn", learn_and_log)


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)])
def test_python_blocks_run(page, few_logged_steps):
    namespace = {}
    for block in python_blocks(page):
        exec(block, namespace)


def test_there_is_something_to_run():
    assert len(python_blocks("README.md")) >= 1
    assert len(python_blocks("docs/quickstart.md")) >= 4
    assert len(python_blocks("docs/diffppo.md")) >= 3
    assert sum(len(commands(page)) for page in PAGES) >= 30


class ParsedError(Exception):
    """The command line has been understood; what follows would run."""


@pytest.fixture
def parse_only(monkeypatch):
    """Programs stop as soon as they have read their command line, by their own parser."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        parse_args(self, args, namespace)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)


def check_pip(words):
    """
    :param words: the arguments of ``pip install``
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("-c", "--constraint", default="constraints.txt")
    parser.add_argument("-e", "--editable", action="append", default=[])
    parser.add_argument("--extra-index-url")
    parser.add_argument("requirements", nargs="*")
    args, unknown = parser.parse_known_args(words)
    assert not unknown
    assert (ROOT / args.constraint).is_file()
    for requirement in args.requirements + args.editable:
        if requirement.startswith("."):
            for extra in re.findall(r"\w+", requirement):
                assert re.search(rf"^{extra} = \[", text_of("pyproject.toml"), flags=re.MULTILINE), requirement
        else:
            Requirement(requirement)


def run_python(words, monkeypatch):
    """
    :param words: what follows ``python``: a script or ``-m`` and a module, and its arguments
    """
    module = words[0] == "-m"
    target, *arguments = words[module:]
    monkeypatch.setattr(sys, "argv", [target, *arguments])
    if module:
        monkeypatch.syspath_prepend(ROOT)
        runpy.run_module(target, run_name="__main__", alter_sys=False)
    else:
        monkeypatch.syspath_prepend(ROOT / Path(target).parent)
        runpy.run_path(str(ROOT / target), run_name="__main__")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(
    "words", {shlex.join(words): words for page in PAGES for words in commands(page)}.values(), ids=" ".join
)
def test_commands(words, few_steps, parse_only, monkeypatch):
    while re.fullmatch(r"\w+=.*", words[0]):  # variables of the environment
        words = words[1:]
    program, *arguments = words
    if program == "make":
        assert all(re.search(rf"^{target}:", text_of("Makefile"), flags=re.MULTILINE) for target in arguments)
    elif program == "pip":
        assert arguments[0] == "install"
        check_pip(arguments[1:])
    elif program == "python":
        with pytest.raises(ParsedError):
            run_python(arguments, monkeypatch)
    elif program not in SYSTEM:
        (entry,) = importlib.metadata.entry_points(group="console_scripts", name=program)
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(ParsedError):
            entry.load()()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_a_wrong_command_is_found(parse_only, monkeypatch, capsys):
    for words in (
        "-m benchmarks.report --colour",
        "-m sb3_diffusion.analysis k_sweep --stepz 3",
        "-m rl_zoo3.train --algo no",
    ):
        with pytest.raises(SystemExit):
            run_python(words.split(), monkeypatch)
    assert "invalid choice: 'no'" in capsys.readouterr().err


def test_links_of_the_readme():
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", text_of("README.md")):
        assert (ROOT / path).exists(), path


def test_tests_that_the_docs_name():
    named = {match for page in PAGES for match in re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", text_of(page))}
    assert named
    for path, test in named:
        assert f"def {test}" in text_of(path), (path, test)


@pytest.mark.parametrize("algorithm, parent", [(DiffSAC, SAC), (DiffPPO, PPO), (DiffWPO, DiffSAC)])
def test_own_keywords_are_listed(algorithm, parent):
    theirs, ours = (inspect.signature(cls.__init__).parameters for cls in (parent, algorithm))
    page = text_of(f"docs/{algorithm.__name__.lower()}.md")
    listed = {name for row in re.findall(r"^\| (`.*?) \|", page, flags=re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert listed >= {name for name in ours if name not in theirs or ours[name].default != theirs[name].default}


def test_logger_keys_are_explained():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "sb3_diffusion").rglob("*.py"))
    keys = set(re.findall(r"\"(diffusion/\w+)", sources))
    assert {"diffusion/entropy_bound", "diffusion/effective_sample_size", "diffusion/kl_step_"} <= keys
    page = text_of("docs/diagnostics.md")
    assert {key for key in keys if f"`{key}" not in page} == set()


def test_public_names_are_in_the_api_reference():
    page = text_of("docs/api.rst")
    for name in set(sb3_diffusion.__all__) - {"__version__", "envs"}:
        entry = rf"auto(?:class|function|exception):: [\w.]*\.{name}$|members:[^:]*\b{name}\b"
        assert re.search(entry, page, flags=re.MULTILINE), name
