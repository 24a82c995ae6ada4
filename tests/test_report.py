"""Tables and statistics of campaigns."""

import re
import sys

import numpy as np
import pandas as pd
import pytest

from benchmarks import campaign, report
from benchmarks.command_line import RESULTS
from benchmarks.report import REFERENCE, aggregate, complete, equal_cost, figure, improvement, tables
from sb3_diffusion.analysis.results import add_results, read_details, read_results, write_details
from sb3_diffusion.analysis.runner import Run, missing
from sb3_diffusion.analysis.sweep import add_cost


def make_result(name, env, seed, scores, every=10_000):
    run = Run(name, "stable_baselines3:SAC", env, every * len(scores), seed, {"learning_starts": 0}, eval_every=every)
    points = [{"step": every * (i + 1), "return": REFERENCE[env] * score} for i, score in enumerate(scores)]
    points = [{**point, "stochastic_return": point["return"], "cpu_seconds": 1.0} for point in points]
    return run, {"run": run.as_json(), "made_with": {}, "resumed_at": [], "points": points}


@pytest.fixture
def path(tmp_path):
    """Two variants on two tasks: scores of ``good`` are above those of ``poor`` at every step, which costs half as much."""
    path = tmp_path / "campaign.csv"
    for name, offset in (("good", 0.5), ("poor", 0.0)):
        for env in ("Hopper-v5", "Ant-v5"):
            results = [make_result(name, env, seed, [offset + 0.1 * (i + seed) for i in range(4)]) for seed in range(3)]
            add_results(path, {run.key: result for run, result in results})
    for env in ("Hopper-v5", "Ant-v5"):
        write_details(path, {**read_details(path), f"{env} seconds per step": {"seconds": {"good": 2.0, "poor": 1.0}}})
    return path


def test_table(path):
    run, unfinished = make_result("good", "Hopper-v5", 3, [0.5, 0.9])
    results = pd.concat(
        [read_results(path), pd.DataFrame([{"env": run.env, "name": run.name, "seed": 3, **unfinished["points"][0]}])]
    )
    lines = tables(results).splitlines()
    header = "|  | seeds | 10,000 | 20,000 | 30,000 | 40,000 | each seed at the end | sampled actions |"
    assert lines[0] == "Hopper-v5" and lines[2] == header and "Ant-v5" in lines
    # Scores 0.8, 0.9, 1.0 of 2764
    assert lines[4].split(" | ")[5:] == ["2488 ± 276 (3)", "2211, 2488, 2764, -", "2488 |"]
    assert tables(results.iloc[:0]) == "Nothing has been measured yet"


def test_aggregate(path, tmp_path, monkeypatch):
    pytest.importorskip("rliable", reason="the extra benchmarks is not installed")
    monkeypatch.setattr(report, "REPETITIONS", 200)
    results = read_results(path)
    header, _, good, poor = aggregate(results, path, tmp_path / "aggregate.png").splitlines()
    assert header.endswith("| IQM at 20,000 | IQM at 40,000 | IQM at the CPU seconds of good | P(good is better) |")
    # The middle half of 0.8, 0.8, 0.9, 0.9, 1.0, 1.0: one is cut at each end
    assert good.startswith("| good | 2 | 3 | 0.70 [") and re.search(r"\| 0.90 \[0\.8\d, 0\.9\d\] \|", good)
    assert "| 0.40 [" in poor and poor.endswith("|  | 1.00 [1.00, 1.00] |")
    assert (tmp_path / "aggregate.png").stat().st_size > 0
    figure(results, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_improvement_is_the_share_of_pairs(monkeypatch):
    pytest.importorskip("rliable", reason="the extra benchmarks is not installed")
    monkeypatch.setattr(report, "REPETITIONS", 200)
    first, second = np.array([[1.0], [3.0], [5.0]]), np.array([[0.0], [4.0]])
    (point, low, high) = improvement({"first": first, "second": second})["second"]
    assert point == pytest.approx(4 / 6) and low <= point <= high


def test_equal_cost(path):
    """Half the seconds of ``good``'s whole run are the whole run of ``poor``, which has nothing to show for more."""
    variants = {name: add_cost(rows, path) for name, rows in complete(read_results(path)).items()}
    scores = equal_cost(variants, np.array([0.25, 0.375, 0.5, 1.0]))
    assert scores["good"].shape == (3, 2, 4)
    np.testing.assert_allclose(scores["good"][0, 0], [0.5, 0.55, 0.6, 0.8])
    np.testing.assert_allclose(scores["poor"][0, 0], [0.1, 0.2, 0.3, np.nan])


def test_only_what_is_complete_counts(path):
    run, result = make_result("good", "Hopper-v5", 7, [0.1, 0.2, 0.3, 0.4])
    add_results(path, {run.key: result})
    results = read_results(path)
    assert set(complete(results)["good"]["seed"]) == {0, 1, 2}
    run, result = make_result("other", "Walker2d-v5", 0, [0.1, 0.2, 0.3, 0.4])
    add_results(path, {run.key: result})
    with pytest.raises(ValueError, match="no task in common"):
        complete(read_results(path))


def test_the_campaign_in_its_order():
    runs = campaign.make_runs()
    assert len({run.key for run in runs}) == len(runs) == 5 * (5 + 5 + 3 + 3 + 3 + 3) + 3 * 4 + 2
    assert [run.env for run in runs[:10:2]] == list(campaign.TASKS) and {run.name for run in runs[:10]} == {
        "DiffCrossQ",
        "CrossQ",
    }
    assert [run.seed for run in runs[:-14]] == sorted(run.seed for run in runs[:-14])
    assert {run.name for run in runs[-14:]} == {"DiffCrossQ-slow", "CrossQ-1024"}
    few = campaign.make_runs(envs=["Ant-v5"], algos=["SAC", "TQC"], seeds=[1])
    assert [(run.name, run.env, run.seed, run.steps) for run in few] == [
        ("SAC", "Ant-v5", 1, 100_000),
        ("TQC", "Ant-v5", 1, 100_000),
    ]
    for run in campaign.make_runs(steps=10, eval_every=10, envs=["HalfCheetah-v5"], seeds=[0]):
        model = run.make_model()
        assert model.learning_starts == 5000 and model.replay_buffer.buffer_size == 10, run.name


def test_commands_of_the_campaign(path, monkeypatch, capsys, tmp_path):
    def call(*words):
        monkeypatch.setattr(
            sys, "argv", ["campaign", *words, "--envs", "Ant-v5", "--algos", "SAC", "--out", str(tmp_path / "other.csv")]
        )
        campaign.main()
        return capsys.readouterr().out

    assert call("--list").count("Ant-v5 SAC ") == 3
    assert call("--status").splitlines()[-1] == "0 of 3 runs are done, 0 have begun"
    (run,) = campaign.make_runs(envs=["Ant-v5"], algos=["SAC"], seeds=[1])
    points = [{"step": 100_000, "return": 700.0, "stochastic_return": 600.0, "cpu_seconds": 1.0}]
    add_results(tmp_path / "other.csv", {run.key: {"run": run.as_json(), "made_with": {}, "resumed_at": [], "points": points}})
    assert "Ant-v5 SAC 1: done" in call("--status")
    assert "| SAC | 1 | 700 | 700 | 600 |" in call("--table")


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.csv")), ids=lambda path: path.stem)
def test_every_result_says_what_made_it(path):
    """Each run of a campaign's table is described beside it, so that it can be made again, and is not there twice."""
    results, details = read_results(path), read_details(path)
    runs = [Run(**{**entry["run"], "logged": tuple(entry["run"]["logged"])}) for entry in details.values() if "run" in entry]
    assert missing(runs, path) == [] and len(results[["env", "name", "seed"]].drop_duplicates()) == len(runs)
    assert not results.duplicated(["env", "name", "seed", "step"]).any()
