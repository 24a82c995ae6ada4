"""Files that are there as a whole or not at all."""

import os
from pathlib import Path


def write_whole(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """
    Write under another name and rename, so that an error, a full disk for one, or a kill leaves an older file as it was.

    :param path: path of the file, whose folder is made if it is missing
    :param content: what the file will hold
    :raises OSError: if it cannot be written
    """
    path = Path(os.path.realpath(path))  # what a symbolic link points to, not the link, is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
