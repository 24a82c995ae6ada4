"""Files that are there as a whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_whole(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """
    Write under another name and rename, so that an error, a full disk for one, or a kill leaves an older file as it was.

    :param path: path of the file, whose folder is made if it is missing
    :param content: content of the file
    :raises OSError: if it cannot be written
    """
    path = Path(os.path.realpath(path))  # what a symbolic link points to, not the link, is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two processes may write the same file
    try:
        write_file(unfinished, lambda file: file.write(content))
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """
    :param path: path of a new file
    :param write: writes its content; on return it is on the disk
    """
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """
    :param folder: folder whose entries are to be on the disk
    """
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
