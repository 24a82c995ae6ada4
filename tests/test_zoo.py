import argparse
import importlib
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import optuna
import pytest
import yaml
from gymnasium.envs.classic_control import PendulumEnv
from rl_zoo3.callbacks import ParallelTrainCallback
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.logger import Logger

import sb3_diffusion
import sb3_diffusion_zoo_hook
from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffWPO
from sb3_diffusion.common.envs import ENVIRONMENTS
from sb3_diffusion.diffppo.temperature import TemperatureSchedule
from sb3_diffusion.zoo import ALGORITHMS, hyperparams_path, register
from sb3_diffusion.zoo.registration import has_entry

ROOT = Path(sb3_diffusion.__file__).parent.parent
ZOO_KEYS = {"n_timesteps", "n_envs", "normalize", "noise_type", "noise_std", "env_wrapper", "frame_stack"}
NO_HER = {"using_her_replay_buffer": False, "her_kwargs": {}}
SMALL = ["-params", "learning_starts:50", "batch_size:16", "policy_kwargs:dict(net_arch=[8])", "buffer_size:500"]
TRAIN = ["--algo", "diffsac", "--env", "Pendulum-v1", "-n", "100", "--eval-freq", "-1", *SMALL]


def python(*args, folder, check=True, **environment):
    """Run Python in another folder, where only an installed package is found."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    result = subprocess.run([sys.executable, *args], cwd=folder, env=env, capture_output=True, text=True)
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def zoo(command, *args, folder):
    """Run a command of the Zoo in this process and in another folder: a process of its own takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [command, *args])
        getattr(importlib.import_module(f"rl_zoo3.{command}"), command)()


def load(name):
    return yaml.safe_load(hyperparams_path(name).read_text())


def test_registered_in_this_process():
    register()
    for algo in ALGORITHMS:
        assert algo in ALGOS and algo in HYPERPARAMS_SAMPLER and algo in HYPERPARAMS_CONVERTER
    # Once, however often it is called
    assert not hasattr(ExperimentManager.__init__.__wrapped__, "__wrapped__")
    assert sys.meta_path.count(sb3_diffusion_zoo_hook.ZooFinder) == 1


@pytest.mark.parametrize("name", [*ALGORITHMS, "baselines/sac", "baselines/tqc", "baselines/ppo"])
def test_hyperparameters(name):
    blocks = load(name)
    algorithm = ALGOS[name.split("/")[-1]]
    known = set(inspect.signature(algorithm).parameters) | ZOO_KEYS
    for env_id, block in blocks.items():
        assert set(block) <= known
        assert float(block["n_timesteps"]) > 0
        if env_id != "default" and not env_id.startswith(("Fetch", "Panda")):  # of packages that are not required
            gym.spec(env_id)
    mujoco = {name for name in gym.registry if "envs.mujoco" in str(gym.spec(name).entry_point)}
    v5 = {name for name in mujoco if name.endswith("-v5")}
    assert v5 <= set(blocks)
    if name in ALGORITHMS:
        assert {"default", "Pendulum-v1", "LunarLanderContinuous-v3", "BipedalWalker-v3"} <= set(blocks)
        assert set(ENVIRONMENTS) <= set(blocks)
        assert {"CnnPolicy", "MultiInputPolicy"} <= {block["policy"] for block in blocks.values()}
        for env_id in v5:
            assert blocks[env_id] == blocks.get(env_id.replace("-v5", "-v4"))


def test_settings_of_diffsac():
    expected = load("diffsac")
    assert load("difftqc") == expected
    for block in expected.values():
        block.pop("divergence", None)  # DiffWPO has its own
    assert load("diffwpo") == expected


def small(value):
    """Settings of a block, smaller: the test is that the algorithm takes them."""
    sizes = dict(n_envs=1, n_steps=8, batch_size=8, buffer_size=100, learning_starts=50, gradient_steps=1)
    return {key: min(number, sizes[key]) if key in sizes else number for key, number in value.items()}


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_own_environments_train(algo, tmp_path):
    for env_id in ENVIRONMENTS:
        settings = small(load(algo)[env_id])
        kwargs = dict(n_timesteps=60, hyperparams=settings, eval_freq=-1, log_interval=-1)
        manager = ExperimentManager(argparse.Namespace(), algo, env_id, str(tmp_path), **kwargs)
        model, saved = manager.setup_experiment()
        manager.learn(model)
        assert model.num_timesteps >= 60
        assert model.diffusion_steps == saved["diffusion_steps"] == 8


def test_graphs_train(tmp_path):
    for env_id, denoiser in (("MaxCut-v0", "GraphDenoiser"), ("TSP-v0", "TourDenoiser")):
        settings = {**small(load("diffppo")[env_id]), "diffusion_steps": 2}
        kwargs = dict(n_timesteps=16, hyperparams=settings, eval_freq=-1, log_interval=-1)
        manager = ExperimentManager(argparse.Namespace(), "diffppo", env_id, str(tmp_path), **kwargs)
        model, _ = manager.setup_experiment()
        manager.learn(model)
        assert type(model.policy.score_network.denoiser).__name__ == denoiser


def test_a_users_file_may_have_the_full_id(tmp_path):
    (tmp_path / "full.yml").write_text("# sb3_diffusion:TSP-v0\nsb3_diffusion:MultiGoal-v0:\n  policy: MlpPolicy\n")
    assert has_entry(str(tmp_path / "full.yml"), "sb3_diffusion:MultiGoal-v0")
    assert not has_entry(str(tmp_path / "full.yml"), "sb3_diffusion:TSP-v0")
    assert not has_entry(None, "sb3_diffusion:MultiGoal-v0") and not has_entry("my.module", "sb3_diffusion:MultiGoal-v0")


def test_a_comment_is_no_entry_and_a_module_may_have_one(tmp_path, monkeypatch):
    (tmp_path / "user.yml").write_text("MultiGoal-v0:\n  # also for sb3_diffusion:MultiGoal-v0\n  n_timesteps: 10\n")
    (tmp_path / "users_module.py").write_text("hyperparams = {'sb3_diffusion:MultiGoal-v0': {}}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert not has_entry(str(tmp_path / "user.yml"), "sb3_diffusion:MultiGoal-v0")
    assert has_entry(str(tmp_path / "users_module.py"), "sb3_diffusion:MultiGoal-v0")
    assert has_entry("users_module", "sb3_diffusion:MultiGoal-v0")


@pytest.mark.parametrize("algorithm", [DiffTQC, DiffCrossQ, DiffSAC])
def test_parallel_training_copies_a_model_by_its_class(algorithm):
    model = algorithm("MlpPolicy", "Pendulum-v1", learning_starts=10, diffusion_steps=3, policy_kwargs=dict(net_arch=[8]))
    model.set_logger(Logger(None, []))
    callback = ParallelTrainCallback(gradient_steps=1)
    callback.init_callback(model)
    assert type(callback._model) is algorithm


def test_environments_by_their_full_id(tmp_path):
    """The Zoo looks for the id in Gymnasium's registry, then for its hyperparameters in the file, also a user's own."""
    env = ["--env", "sb3_diffusion:MultiGoal-v0"]
    (tmp_path / "my.yml").write_text("MultiGoal-v0:\n  policy: MlpPolicy\n  n_timesteps: 60\n  tau: 0.123\n")
    train = [arg for arg in TRAIN if arg not in ("--env", "Pendulum-v1")]
    zoo("train", *train, *env, "-conf", "my.yml", "-f", "own", folder=tmp_path)
    assert "0.123" in (tmp_path / "own" / "diffsac" / "MultiGoal-v0_1" / "MultiGoal-v0" / "config.yml").read_text()
    python("-m", "rl_zoo3.train", *train, *env, folder=tmp_path)
    assert "auto_30" in (tmp_path / "logs" / "diffsac" / "MultiGoal-v0_1" / "MultiGoal-v0" / "config.yml").read_text()
    zoo("enjoy", "--algo", "diffsac", *env, "-f", "logs", "--no-render", "-n", "10", folder=tmp_path)


def test_all_schedules_are_parsed(tmp_path):
    schedules = {"learning_rate": "lin_3e-4", "qf_learning_rate": "lin_1e-3", "clip_range_first_step": "lin_0.1", "x": 1}
    parsed = ExperimentManager._preprocess_schedules(dict(schedules))
    assert [parsed[name](0.5) for name in list(schedules)[:3]] == pytest.approx([1.5e-4, 5e-4, 0.05])
    assert ExperimentManager._preprocess_schedules({"qf_learning_rate": 0.1})["qf_learning_rate"](0.5) == 0.1
    assert ExperimentManager._preprocess_schedules({"qf_learning_rate": None}) == {"qf_learning_rate": None}
    # A model that was trained with such a schedule is saved and loaded without pickles
    model = DiffSAC("MlpPolicy", "Pendulum-v1", qf_learning_rate=parsed["qf_learning_rate"], policy_kwargs=dict(net_arch=[8]))
    model.save(tmp_path / "model")
    assert DiffSAC.load(tmp_path / "model", safe=True).qf_lr_schedule(0.5) == pytest.approx(5e-4)


@pytest.mark.parametrize("name", ["sac", "tqc"])
def test_baselines_have_the_same_settings(name):
    ours = {key: value.default for key, value in inspect.signature(DiffSAC).parameters.items()}
    ours["policy_kwargs"] = "dict(net_arch=[256, 256])"
    for env_id, block in load(f"baselines/{name}").items():
        expected = {**ours, **load("diffsac")[env_id]}
        assert block == {key: expected[key] for key in block}


def test_baselines_have_the_settings_of_diffppo():
    ours = {key: value.default for key, value in inspect.signature(DiffPPO).parameters.items()}
    for env_id, block in load("baselines/ppo").items():
        if env_id != "InvertedPendulum-v5":  # solved in less, see there
            expected = {**ours, **load("diffppo")[env_id]}
            assert block == {key: expected[key] for key in block}


def test_unknown_hyperparameters():
    with pytest.raises(ValueError, match="'nothing': choose one of baselines/ppo"):
        hyperparams_path("nothing")


@pytest.mark.parametrize("algorithm, n_knobs", [(DiffSAC, 8), (DiffWPO, 10), (DiffTQC, 9), (DiffCrossQ, 9)])
def test_sampler_and_converter_agree(algorithm, n_knobs):
    name = algorithm.__name__.lower()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    temperatures = set()
    for _ in range(20):
        trial = study.ask()
        kwargs = HYPERPARAMS_SAMPLER[name](trial, 1, 1, NO_HER)
        assert kwargs == HYPERPARAMS_CONVERTER[name](trial.params)
        assert len(trial.params) <= n_knobs
        kwargs["policy_kwargs"]["net_arch"] = [8]
        model = algorithm("MlpPolicy", "Pendulum-v1", **kwargs, buffer_size=10)
        temperatures.add(str(model.ent_coef).startswith("auto"))
        if str(model.ent_coef).startswith("auto"):
            assert model.target_entropy == pytest.approx(-trial.params["target_entropy_scale"])
    assert temperatures == {True, False}


def test_sampler_of_diffppo():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    ends = set()
    for _ in range(20):
        trial = study.ask()
        kwargs = HYPERPARAMS_SAMPLER["diffppo"](trial, 1, 1, NO_HER)
        assert kwargs == HYPERPARAMS_CONVERTER["diffppo"](trial.params)
        assert len(trial.params) <= 8
        kwargs["policy_kwargs"]["net_arch"] = [8]
        ends.add(TemperatureSchedule(DiffPPO("MlpPolicy", "Pendulum-v1", **kwargs).ent_coef)(0.0))
    assert ends == {0.0, 0.001, 0.01}


def test_sampler_with_hindsight_experience_replay():
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    kwargs = HYPERPARAMS_SAMPLER["diffsac"](trial, 1, 1, {"using_her_replay_buffer": True, "her_kwargs": {}})
    assert set(kwargs["replay_buffer_kwargs"]) == {"n_sampled_goal", "goal_selection_strategy"}
    assert kwargs == HYPERPARAMS_CONVERTER["diffsac"](trial.params)


class NanPendulum(PendulumEnv):
    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, np.nan, *rest


def test_nan_prunes_the_trial(tmp_path):
    gym.register("NanPendulum-v0", NanPendulum, max_episode_steps=50)
    try:
        manager = ExperimentManager(
            argparse.Namespace(), "diffsac", "NanPendulum-v0", str(tmp_path), n_timesteps=100, optimize_hyperparameters=True
        )
        manager.setup_experiment()
        with pytest.raises(optuna.TrialPruned):
            manager.objective(optuna.create_study().ask())
    finally:
        del gym.registry["NanPendulum-v0"]


def test_diffppo_trains_acts_and_is_tuned(tmp_path):
    small = ["-params", "n_steps:32", "batch_size:32", "ent_coef:'lin_0.1'", "policy_kwargs:dict(net_arch=[8])", "n_envs:1"]
    command = ["--algo", "diffppo", "--env", "InvertedPendulum-v5"]
    train = [*command, "-n", "64", "--eval-freq", "-1"]
    zoo("train", *train, *small, folder=tmp_path)
    zoo("enjoy", *command, "-f", "logs", "--no-render", "-n", "10", folder=tmp_path)
    optimize = ["-optimize", "--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots"]
    zoo("train", *train, *optimize, "--storage", "sqlite:///study.db", "--study-name", "s", "-f", "tuning", folder=tmp_path)
    trials = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="s").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2


@pytest.mark.parametrize(("algo", "env"), [("diffsac", "Pendulum-v1"), ("diffwpo", "MultiGoal-v0")])
def test_train_enjoy_and_go_on(tmp_path, algo, env):
    """This package's environments are known, too, without --gym-packages."""
    train = [{"diffsac": algo, "Pendulum-v1": env}.get(arg, arg) for arg in TRAIN]
    python("-m", "rl_zoo3.train", *train, folder=tmp_path)
    run = tmp_path / "logs" / algo / f"{env}_1"
    assert (run / f"{env}.zip").exists()
    assert (run / env / "config.yml").exists()
    enjoy = ["--algo", algo, "--env", env, "-f", "logs", "--no-render", "-n", "10"]
    zoo("enjoy", *enjoy, folder=tmp_path)
    zoo("train", *train, "-i", str(run / f"{env}.zip"), folder=tmp_path)


def test_a_users_own_file_wins(tmp_path):
    (tmp_path / "my.yml").write_text("default:\n  policy: MlpPolicy\n  n_timesteps: 60\n  tau: 0.123\n")
    zoo("train", *TRAIN, "-conf", "my.yml", folder=tmp_path)
    saved = (tmp_path / "logs" / "diffsac" / "Pendulum-v1_1" / "Pendulum-v1" / "config.yml").read_text()
    assert "0.123" in saved


def test_optimize_then_train_a_trial(tmp_path):
    study = ["--storage", "sqlite:///study.db", "--study-name", "s"]
    optimize = [*study, "-optimize", "--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "-f", "tuning"]
    zoo("train", *TRAIN, *optimize, "--no-optim-plots", folder=tmp_path)
    trials = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="s").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2
    zoo("train", *TRAIN, *study, "--trial-id", "1", folder=tmp_path)
    saved = (tmp_path / "logs" / "diffsac" / "Pendulum-v1_1" / "Pendulum-v1" / "config.yml").read_text()
    assert f"- {trials[1].params['diffusion_steps']}" in saved


def test_hook_can_be_switched_off(tmp_path):
    script = "import sys, sb3_diffusion, rl_zoo3.utils; print('diffsac' in rl_zoo3.utils.ALGOS)"
    assert python("-c", script, folder=tmp_path).stdout.split()[-1] == "True"
    off = {"SB3_DIFFUSION_NO_HOOK": "1"}
    assert python("-c", script, folder=tmp_path, **off).stdout.split()[-1] == "False"
    explicit = script.replace("print", "import sb3_diffusion.zoo; sb3_diffusion.zoo.register(); print")
    assert python("-c", explicit, folder=tmp_path, **off).stdout.split()[-1] == "True"


def test_an_import_of_gymnasium_stays_cheap(tmp_path):
    script = "import sys, gymnasium; print('torch' in sys.modules, 'sb3_diffusion' in sys.modules)"
    assert python("-c", script, folder=tmp_path).stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    "fault",
    [
        "import sb3_diffusion.zoo; del sb3_diffusion.zoo.patch_module",
        "import sb3_diffusion_zoo_hook as h; h.PatchingLoader = None",
    ],
)
def test_an_error_in_the_hook_leaves_the_zoo_working(tmp_path, fault):
    script = f"{fault}\nimport rl_zoo3.train\nprint('sac' in rl_zoo3.utils.ALGOS)"
    result = python("-W", "ignore", "-c", script, folder=tmp_path)
    assert result.stdout.split()[-1] == "True"
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("sb3_diffusion: RL Zoo will not know its algorithms: ")


def test_hook_beside_another_that_asks_all_finders(tmp_path):
    (tmp_path / "other.py").write_text(
        "import sys\n"
        "class Other:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if not name.startswith('rl_zoo3'): return None\n"
        "        specs = (f.find_spec(name, path, target) for f in sys.meta_path if f is not Other)\n"
        "        return next((spec for spec in specs if spec is not None), None)\n"
        "sys.meta_path.insert(0, Other)\n"
    )
    script = "import other, sb3_diffusion, rl_zoo3.utils; print('diffsac' in rl_zoo3.utils.ALGOS)"
    assert python("-c", script, folder=tmp_path).stdout.split()[-1] == "True"


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_subprocesses_know_the_algorithms(tmp_path, start_method):
    (tmp_path / "main.py").write_text(
        "import multiprocessing\n"
        "def known():\n"
        "    import rl_zoo3.utils\n"
        "    return 'diffsac' in rl_zoo3.utils.ALGOS\n"
        "if __name__ == '__main__':\n"
        f"    with multiprocessing.get_context('{start_method}').Pool(1) as pool:\n"
        "        print(pool.apply(known))\n"
    )
    assert python("main.py", folder=tmp_path).stdout.split()[-1] == "True"


def test_the_zoos_own_algorithms_are_untouched(tmp_path):
    train = ["-m", "rl_zoo3.train", "--algo", "sac", "--env", "Pendulum-v1", "-n", "300", "--seed", "1", *SMALL]
    episodes = []
    for folder, environment in (("with", {}), ("without", {"SB3_DIFFUSION_NO_HOOK": "1"})):
        python(*train, "-f", folder, folder=tmp_path, **environment)
        monitor = (tmp_path / folder / "sac" / "Pendulum-v1_1" / "0.monitor.csv").read_text().splitlines()[2:]
        episodes.append([line.split(",")[0] for line in monitor])
    assert len(episodes[0]) == 1 and episodes[0] == episodes[1]


def interpreters():
    """Each supported Python on this machine, on the PATH or installed by pyenv."""
    for version in ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15"):
        installed = sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python"))
        found = str(installed[-1]) if installed else shutil.which(f"python{version}")
        if found:
            yield pytest.param(found, id=version)


@pytest.mark.parametrize("interpreter", list(interpreters()))
def test_hook_in_every_python(interpreter, tmp_path):
    """The hook itself, started by its .pth file, between a stub of the Zoo and one of this package."""
    for path in ROOT.glob("sb3_diffusion_zoo_hook.*"):
        shutil.copy(path, tmp_path)
    for package in ("rl_zoo3", "sb3_diffusion", "sb3_diffusion/zoo"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "rl_zoo3" / "utils.py").write_text("ALGOS = {'sac': 1}")
    (tmp_path / "sb3_diffusion" / "zoo" / "__init__.py").write_text("def patch_module(module): module.ALGOS['diffsac'] = 2")
    script = f"import site; site.addsitedir({str(tmp_path)!r}); import rl_zoo3.utils as u; print(u.ALGOS, u.__spec__.loader)"
    result = subprocess.run([interpreter, "-I", "-c", script], capture_output=True, text=True)
    assert result.stdout.startswith("{'sac': 1, 'diffsac': 2} <_frozen_importlib_external.SourceFileLoader"), result.stderr
    assert result.stderr == ""


def test_path_of_a_file_on_the_command_line(tmp_path):
    printed = python("-m", "sb3_diffusion.zoo", "baselines/sac", folder=tmp_path).stdout.strip()
    assert Path(printed).name == "sac.yml" and Path(printed).exists()


def test_the_docs_show_the_whole_hook():
    line = (ROOT / "sb3_diffusion_zoo_hook.pth").read_text()
    assert f"```text\n{line}```" in (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    assert (ROOT / "sb3_diffusion_zoo_hook.start").read_text() == "sb3_diffusion_zoo_hook:install\n"
