"""
Results of a campaign, as two files. ``<name>.csv`` is tidy: a row for each evaluation of each run. ``<name>.json`` beside it
gives the settings and versions of each run, line by line.
"""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from sb3_diffusion.saving.files import write_whole

_KEYS = ["env", "name", "seed"]


def provenance() -> dict[str, Any]:
    """
    :return: origin of a result: the commit of this package's sources, if they are in a git checkout, the versions of
        what it depends on, and the processor
    """
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    packages = ("sb3-diffusion", "stable-baselines3", "sb3-contrib", "torch", "gymnasium", "mujoco", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"commit": commit, "versions": versions, "processor": platform.processor() or platform.machine()}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """
    :param path: where it goes, complete or not at all
    :param content: content
    """
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def read_details(path: str | Path) -> dict[str, Any]:
    """
    :param path: CSV file of a campaign
    :return: content of the JSON file beside it, by the key of the run; empty if it is missing
    """
    path = Path(path).with_suffix(".json")
    return json.loads(path.read_text()) if path.exists() else {}


def write_details(path: str | Path, details: dict[str, Any]) -> None:
    """
    :param path: CSV file of a campaign
    :param details: goes into the JSON file beside it, a line for each key
    """
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in details.items())
    write_whole(Path(path).with_suffix(".json"), f"{{\n{lines}\n}}\n".encode())


def read_results(path: str | Path) -> pd.DataFrame:
    """
    :param path: CSV file of a campaign
    :return: a row for each evaluation: ``env``, ``name`` of the variant, ``seed``, ``step``, ``return`` and so on; without
        rows if the file is missing
    :raises ValueError: if the file has something else
    """
    if not Path(path).exists():
        return pd.DataFrame(columns=[*_KEYS, "step"])
    try:
        results = pd.read_csv(path, dtype={"env": str, "name": str})
    except ValueError as error:
        raise ValueError(f"{path} is no table of results: {error}") from error
    if missing := [name for name in (*_KEYS, "step") if name not in results.columns]:
        raise ValueError(f"{path} is no table of results, it has no column {', '.join(missing)}: choose another file")
    return results


def keys(results: pd.DataFrame) -> pd.Series:
    """
    :param results: a row for each evaluation
    :return: the key of each row's run, see :attr:`.Run.key`
    """
    return results["env"] + " " + results["name"] + " " + results["seed"].astype(str)


def as_rows(result: dict[str, Any]) -> pd.DataFrame:
    """
    :param result: output of :func:`.execute`
    :return: a row for each evaluation
    """
    run = result["run"]
    return pd.DataFrame(
        [{"env": run["env"].split(":")[-1], "name": run["name"], "seed": run["seed"], **point} for point in result["points"]]
    )


def add_results(path: str | Path, results: dict[str, dict[str, Any]]) -> None:
    """
    Add runs to the files of a campaign, the JSON file first: a run is done when it is in the CSV file.

    :param path: CSV file of the campaign
    :param results: outputs of :func:`.execute`, by the key of the run
    """
    described = {key: {name: value for name, value in each.items() if name != "points"} for key, each in results.items()}
    write_details(path, {**read_details(path), **described})
    frames = [frame for frame in (read_results(path), *map(as_rows, results.values())) if len(frame)]
    write_whole(path, pd.concat(frames).to_csv(index=False, float_format="%.9g").encode())


def select(results: pd.DataFrame, **columns: Iterable[Any] | None) -> pd.DataFrame:
    """
    :param results: a row for each evaluation
    :param columns: values to keep, by column; all if None
    :return: the rows that have one of the values in each column
    """
    for column, values in columns.items():
        if values is not None:
            results = results[results[column].isin(list(values))]
    return results


def curves(results: pd.DataFrame, key: str = "return") -> pd.DataFrame:
    """
    :param results: a row for each evaluation, of one environment
    :param key: column of the evaluations
    :return: a row for each run, indexed by ``name`` and ``seed`` in the order of the file, a column for each step
    """
    table = results.pivot(index=["name", "seed"], columns="step", values=key)
    return table.loc[results[["name", "seed"]].drop_duplicates().apply(tuple, axis=1)]


def markdown(rows: list[dict[str, Any]]) -> str:
    """
    :param rows: rows with the same keys
    :return: Markdown table
    """
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(map(str, row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
