"""Runs as data: what was killed goes on, nothing is lost, nothing is there twice."""

import json
import multiprocessing
import os
import signal
import threading
import time

import pytest
from filelock import FileLock

from sb3_diffusion.analysis import runner
from sb3_diffusion.analysis.evaluation import EvaluationPoints
from sb3_diffusion.analysis.results import read_details, read_results
from sb3_diffusion.analysis.runner import Run, execute, run_all, so_far, unfinished, work_folder
from sb3_diffusion.saving.checkpoints import find_checkpoints, get_steps

SMALL = dict(policy_kwargs=dict(net_arch=[8]), learning_starts=20, batch_size=8)


def make_run(seed=0, steps=90, algorithm="stable_baselines3:SAC", settings=SMALL, **kwargs):
    return Run("small", algorithm, "Pendulum-v1", steps, seed, settings, **{"eval_every": 30, "eval_episodes": 1, **kwargs})


def wait_for_checkpoint(runs, path, steps):
    """
    :return: the first run that has a checkpoint at these steps or later
    """
    while True:
        for run in runs:
            if any(
                get_steps(checkpoint) >= steps for checkpoint in find_checkpoints(work_folder(path) / run.key / "checkpoints")
            ):
                return run
        time.sleep(0.01)


def check_complete(runs, path):
    """Each evaluation is there once, and the files hold all that a result should have."""
    results, details = read_results(path), read_details(path)
    for run in runs:
        rows = results[results["seed"] == run.seed]
        assert rows["step"].tolist() == list(range(run.eval_every, run.steps + 1, run.eval_every))
        assert rows["cpu_seconds"].is_monotonic_increasing
        assert details[run.key]["run"] == run.as_json()
        assert set(details[run.key]["made_with"]) == {"commit", "versions", "processor"}
    assert len(results) == sum(run.steps // run.eval_every for run in runs)
    assert not work_folder(path).exists()


def test_a_killed_process_goes_on(tmp_path):
    run, path = make_run(steps=600, eval_every=50), tmp_path / "campaign.csv"

    def kill():
        wait_for_checkpoint([run], path, 100)
        (process,) = multiprocessing.active_children()
        os.kill(process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RuntimeError, match=r"Not ended: Pendulum-v1 small 0 \(exit code -9\). The same command goes on"):
        run_all([run], path, jobs=1)
    killer.join()
    before = unfinished([run], path)[run.key]["points"]
    assert 2 <= len(before) < 12 and so_far([run], path)["step"].tolist() == [point["step"] for point in before]
    run_all([run], path)
    check_complete([run], path)
    (resumed_at,) = read_details(path)[run.key]["resumed_at"]
    assert resumed_at >= 100
    kept = [point["return"] for point in before if point["step"] <= resumed_at]
    assert read_results(path)["return"].tolist()[: len(kept)] == pytest.approx(kept)


def name_node(model):
    import ray

    return {"node": ray.get_runtime_context().get_node_id()}


def test_a_machine_of_a_ray_cluster_is_lost(tmp_path):
    """Two runs on two machines with one processor each. One is killed in the middle of its run, which the other takes up."""
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    from ray.cluster_utils import Cluster

    path, lengths = tmp_path / "campaign.csv", dict(steps=600, eval_every=50)
    runs = [make_run(seed, measure="tests.test_runner:name_node", **lengths) for seed in range(2)]
    memory = dict(object_store_memory=80_000_000)
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, include_dashboard=False, **memory))
    killed = []

    def kill():
        run = wait_for_checkpoint(runs, path, 100)
        node = unfinished([run], path)[run.key]["points"][-1]["node"]
        cluster.remove_node(next(worker for worker in workers if worker.node_id == node), allow_graceful=False)
        killed.append(run.seed)

    try:
        workers = [cluster.add_node(num_cpus=1, **memory) for _ in range(2)]
        killer = threading.Thread(target=kill)
        killer.start()
        run_all(runs, path, ray_address=cluster.address)
        killer.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    check_complete(runs, path)
    assert read_results(path).groupby("seed")["node"].nunique()[killed].tolist() == [2]
    assert [len(read_details(path)[run.key]["resumed_at"]) for run in runs] == [int(run.seed in killed) for run in runs]


@pytest.mark.parametrize(
    "algorithm, settings",
    [
        ("stable_baselines3:SAC", SMALL),
        ("stable_baselines3:SAC", {**SMALL, "policy": "sb3_diffusion:DiffusionSACPolicy"}),
        ("stable_baselines3:PPO", {"n_steps": 8, "batch_size": 8}),
        ("sb3_contrib:TQC", SMALL),
        ("benchmarks.algorithms:NativeCrossQ", SMALL),
        ("benchmarks.algorithms:NativeCrossQ", {**SMALL, "replay_buffer_class": "benchmarks.algorithms:RecentReplayBuffer"}),
        ("benchmarks.algorithms:ClippedDiffSAC", {**SMALL, "critic_type": "crossq-mean", "diffusion_steps": 2}),
        ("sb3_diffusion:DiffCrossQ", SMALL),
        ("sb3_diffusion:DiffPPO", {"n_steps": 8, "batch_size": 8}),
    ],
)
def test_every_algorithm_goes_on(algorithm, settings, tmp_path, monkeypatch):
    run, path = make_run(algorithm=algorithm, settings=settings), tmp_path / "campaign.csv"
    evaluate = EvaluationPoints._evaluate

    def fail_late(self):
        evaluate(self)
        if len(self.points) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(EvaluationPoints, "_evaluate", fail_late)
    with pytest.raises(KeyboardInterrupt):
        run_all([run], path)
    monkeypatch.setattr(EvaluationPoints, "_evaluate", evaluate)
    steps = run_all([run], path)["step"].tolist()
    (resumed_at,) = read_details(path)[run.key]["resumed_at"]
    # PPO evaluates at the end of the rollout in which the step falls
    assert [step // 30 for step in steps] == [1, 2, 3] and resumed_at == steps[0]


def test_evaluations_start_where_they_would_have(tmp_path, monkeypatch):
    """With a policy that does not learn an interruption changes no deterministic return."""
    run = make_run(settings={**SMALL, "learning_rate": 0.0})
    unbroken = run_all([run], tmp_path / "unbroken.csv")
    monkeypatch.setattr(runner, "is_done", lambda result: True)
    model, work = run.make_model(), work_folder(tmp_path / "broken.csv")
    execute(run, work)
    monkeypatch.undo()
    folder = work / run.key
    evaluation = EvaluationPoints(run.env, 30, 1)
    model.learn(60, [evaluation, runner.CheckpointCallback(30, folder / "checkpoints", keep=1)])
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**result, "points": evaluation.points}))
    broken = run_all([run], tmp_path / "broken.csv")
    assert broken["return"].tolist() == pytest.approx(unbroken["return"].tolist())
    assert read_details(tmp_path / "broken.csv")[run.key]["resumed_at"] == [60]


def test_a_run_that_is_there_is_not_run_again(tmp_path, monkeypatch):
    path = tmp_path / "campaign.csv"
    first = run_all([make_run(0)], path)
    monkeypatch.setattr(Run, "make_model", lambda self: pytest.fail("trained again"))
    assert run_all([make_run(0)], path).equals(first)
    with pytest.raises(ValueError, match=r"small 0 in .*csv has other settings: steps=90, not 120\. Choose another file"):
        run_all([make_run(0, 120)], path)
    with pytest.raises(ValueError, match=r"settings=.*'batch_size': 8.*, not .*'batch_size': 9"):
        run_all([make_run(settings={**SMALL, "batch_size": 9})], path)


def test_one_campaign_one_command(tmp_path):
    path = tmp_path / "campaign.csv"
    work_folder(path).mkdir()
    with FileLock(work_folder(path) / "lock"), pytest.raises(RuntimeError, match="Another process is at"):
        run_all([make_run()], path)


def test_runs_that_cannot_be():
    with pytest.raises(ValueError, match="steps=100 must be a multiple of eval_every=30"):
        make_run(steps=100)
    with pytest.raises(ValueError, match="Give a class or function as 'module:name'"):
        make_run(settings={"replay_buffer_class": Run})
    with pytest.raises(AttributeError, match="NoSuch"):
        execute(make_run(algorithm="stable_baselines3:NoSuch"), "nowhere")


def test_what_is_logged_and_measured(tmp_path):
    run = make_run(algorithm="sb3_diffusion:DiffSAC", logged=["train/ent_coef"], measure="tests.test_runner:count_updates")
    results = run_all([run], tmp_path / "campaign.csv")
    assert results["updates"].tolist() == [10, 40, 70]
    assert results["train/ent_coef"].between(0.9, 1).all() and results["train/ent_coef"].is_monotonic_decreasing


def count_updates(model):
    return {"updates": model._n_updates}
