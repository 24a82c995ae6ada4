"""Two workers of RL Zoo share one study through PostgreSQL, and one of them is killed."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

ROOT = Path(__file__).parent.parent
WORKER = ["-m", "rl_zoo3.train", "--algo", "diffsac", "--env", "Pendulum-v1", "-optimize", "--no-optim-plots"]
WORKER += ["--n-evaluations", "1", "--eval-episodes", "1", "--pruner", "none", "--study-name", "s"]


def postgresql(program):
    """Path of one of PostgreSQL's programs, which Debian keeps off the PATH; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return shutil.which(program) or (str(found[-1]) if found else None)


@pytest.fixture
def storage():
    """A server of its own on a free port."""
    pytest.importorskip("psycopg", reason="needs psycopg[binary]")
    if postgresql("initdb") is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt install postgresql)")
    # The server refuses to run as root
    user = "postgres" if os.getuid() == 0 else None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tempfile.mkdtemp()
    if user:
        shutil.chown(folder, user)

    def run(*command):
        # pg_ctl leaves a server behind that would hold pipes open
        subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    data = f"{folder}/data"
    run(postgresql("initdb"), "--pgdata", data, "--username", "zoo", "--auth", "trust")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    run(postgresql("pg_ctl"), "--pgdata", data, "--options", options, "--wait", "start")
    try:
        yield f"postgresql+psycopg://zoo@127.0.0.1:{port}/postgres"
    finally:
        run(postgresql("pg_ctl"), "--pgdata", data, "--mode", "immediate", "stop")
        shutil.rmtree(folder)


def start_worker(folder, storage, seed, n_trials, n_timesteps):
    small = ["-params", "learning_starts:50", "batch_size:16", "buffer_size:500", "train_freq:50", "gradient_steps:1"]
    command = [*WORKER, "--storage", storage, "--seed", str(seed), "--n-trials", str(n_trials), "-n", str(n_timesteps), *small]
    with open(folder / f"worker{seed}.txt", "w") as output:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, *command], cwd=folder, env=env, stdout=output, stderr=output)


def wait_for(condition, seconds=180):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.2)


def test_no_trial_is_lost_when_a_worker_is_killed(storage, tmp_path):
    study = optuna.create_study(storage=storage, study_name="s", direction="maximize")

    def numbers(state):
        return {trial.number for trial in study.get_trials(deepcopy=False, states=(state,))}

    # This worker's trials have no end
    doomed = start_worker(tmp_path, storage, seed=1, n_trials=1, n_timesteps=10_000_000)
    wait_for(lambda: numbers(TrialState.RUNNING))
    worker = start_worker(tmp_path, storage, seed=2, n_trials=2, n_timesteps=100)
    wait_for(lambda: numbers(TrialState.COMPLETE))
    doomed.send_signal(signal.SIGKILL)
    doomed.wait()
    assert worker.wait(180) == 0, (tmp_path / "worker2.txt").read_text()
    assert numbers(TrialState.COMPLETE) == {1, 2} and numbers(TrialState.RUNNING) == {0}

    # What the docs tell to do with the trial that the killed worker left
    recipe = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    namespace = {}
    exec(recipe.group(1), namespace)
    namespace["retry_unfinished"](storage, "s")
    third = start_worker(tmp_path, storage, seed=3, n_trials=1, n_timesteps=100)
    assert third.wait(180) == 0, (tmp_path / "worker3.txt").read_text()
    trials = study.get_trials()
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert trials[3].params == trials[0].params
