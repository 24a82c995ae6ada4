"""A study's database that is gone for a while: the worker waits or ends with an error, and no finished trial is lost."""

import os
import re
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tests import test_distributed_tuning
from tests.test_distributed_tuning import WORKER, wait_for

server = test_distributed_tuning.storage
DOCS = Path(__file__).parent.parent / "docs" / "zoo.md"


def lock(path):
    """:return: a connection to SQLite that lets no other one read or write until it commits"""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN EXCLUSIVE")
    return connection


def objective(trial, fault=lambda: None):
    value = trial.suggest_float("x", 0, 1)
    if trial.number == 1:
        fault()
    return value


def go_on(storage):
    """What the docs tell to do with the trial that was running."""
    recipe = re.search(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    namespace = {}
    exec(recipe.group(1), namespace)
    namespace["retry_unfinished"](storage, "s")
    study = optuna.load_study(storage=storage, study_name="s")
    study.optimize(objective, n_trials=2)
    trials = study.get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert trials[2].params == trials[1].params


def test_a_lock_that_is_waited_for(tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db?timeout=30"
    study = optuna.create_study(storage=storage, study_name="s")

    def lock_for_a_while():
        threading.Timer(1.0, lock(tmp_path / "study.db").commit).start()

    study.optimize(lambda trial: objective(trial, lock_for_a_while), n_trials=3)
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE"] * 3


def test_a_lock_that_lasts_too_long(tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db?timeout=0.1"
    study = optuna.create_study(storage=storage, study_name="s")
    locks = []
    # Optuna's own errors, whatever they are: the worker does not go on as if the trial had been stored
    with pytest.raises(Exception, match=r"."):
        study.optimize(lambda trial: objective(trial, lambda: locks.append(lock(tmp_path / "study.db"))), n_trials=3)
    locks[0].commit()
    go_on(storage)


@pytest.mark.parametrize("name", ["study.db", "study.log"])
def test_a_file_that_is_moved_away(name, tmp_path):
    path, elsewhere = tmp_path / name, tmp_path / "elsewhere"

    def make_storage():
        return f"sqlite:///{path}" if name.endswith("db") else JournalStorage(JournalFileBackend(str(path)))

    study = optuna.create_study(storage=make_storage(), study_name="s")
    with pytest.raises(Exception, match=r"."):
        study.optimize(lambda trial: objective(trial, lambda: path.rename(elsewhere)), n_trials=3)
    # Nothing has been begun anew in its place
    assert not path.exists()
    elsewhere.rename(path)
    go_on(make_storage())


def test_a_server_that_drops_its_connections(server):
    """As when PostgreSQL is started anew."""
    psycopg = pytest.importorskip("psycopg")
    study = optuna.create_study(storage=server, study_name="s")

    def drop():
        with psycopg.connect(server.replace("+psycopg", "")) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    with pytest.raises(Exception, match=r"."):
        study.optimize(lambda trial: objective(trial, drop), n_trials=3)
    go_on(server)


def test_a_worker_of_the_zoo_waits(tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db?timeout=120"
    study = optuna.create_study(storage=storage, study_name="s", direction="maximize")
    small = ["-params", "learning_starts:50", "batch_size:16", "buffer_size:500", "train_freq:50", "gradient_steps:1"]
    command = [sys.executable, *WORKER, "--storage", storage, "--n-trials", "1", "-n", "100", *small]
    with open(tmp_path / "output.txt", "w") as output:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        worker = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=output, stderr=output)
    try:
        wait_for(lambda: study.get_trials())
        # Longer than the five seconds of SQLite's own patience
        threading.Timer(7.0, lock(tmp_path / "study.db").commit).start()
        assert worker.wait(180) == 0, (tmp_path / "output.txt").read_text()
    finally:
        worker.kill()
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE"]
