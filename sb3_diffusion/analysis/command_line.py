"""Types of command-line arguments, and errors of one line."""

import argparse
import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
from matplotlib.backend_bases import FigureCanvasBase


def json_object(text: str) -> dict[str, Any]:
    """
    :param text: JSON
    :return: its value
    :raises ArgumentTypeError: if it is not an object
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object, such as '{{\"gamma\": 0.9}}'")
    return value


def whole_number(least: int) -> Callable[[str], int]:
    """
    :param least: least value that is allowed
    :return: a parser's type: integers of at least that
    """

    def read(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value}: choose {least} or more")
        return value

    read.__name__ = "integer"  # what argparse calls a value that is none
    return read


def positive_number(text: str) -> float:
    """
    :param text: a number
    :return: the number
    :raises ArgumentTypeError: if it is not positive and finite
    """
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: choose a positive and finite number")
    return value


def environment(text: str) -> str:
    """
    :param text: id of an environment
    :return: the same
    :raises ArgumentTypeError: if Gymnasium does not know it
    """
    try:
        if ":" in text:
            importlib.import_module(text.partition(":")[0])
        gym.spec(text.rpartition(":")[2])
    except (gym.error.Error, ImportError) as error:
        raise argparse.ArgumentTypeError(" ".join(str(error).split())) from error
    return text


def seed_number(text: str) -> int:
    """
    :param text: a seed
    :return: the seed
    :raises ArgumentTypeError: if NumPy does not take it
    """
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text}: choose a seed from 0 to {2**32 - 1}")
    return value


def picture(text: str) -> Path:
    """
    :param text: path of a picture
    :return: the path
    :raises ArgumentTypeError: if Matplotlib knows no such format, or no file can be there
    """
    path, known = new_file(text), FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in known:
        raise argparse.ArgumentTypeError(f"{text}: choose a file that ends in .{', .'.join(sorted(known))}")
    return path


def new_file(text: str) -> Path:
    """
    :param text: path of a file to write, which may be there, and whose folder is made if it is missing
    :return: the path
    :raises ArgumentTypeError: if no file can be there
    """
    path = Path(text)
    blocked = [parent for parent in path.parents if parent.exists() and not parent.is_dir()]
    if path.is_dir() or blocked:
        what = "is a folder" if path.is_dir() else f"is in {blocked[0]}, which is no folder"
        raise argparse.ArgumentTypeError(f"{text} {what}: choose a file")
    return path


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """
    End with one line and code 2 where a command's arguments do not go together, as argparse does.

    :param program: name of the program
    """
    try:
        yield
    except (ValueError, TypeError, AssertionError, OSError) as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error
