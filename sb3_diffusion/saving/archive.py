"""Reading the zip file of a model that nobody vouches for: entries as they stand, and tensors."""

import io
import pickletools
import re
import reprlib
import stat
import zipfile
from collections.abc import Callable
from typing import IO, Any

import torch as th

# Bytes of the pickle that describes the tensors of a .pth entry; one tensor takes about 150
_MAX_PICKLE_SIZE = 4 * 2**20

# Of a local file header of a zip archive, without its name
_HEADER_SIZE = 30

_ENCRYPTED = 0x1

# What torch.save writes, below one folder; only the first three kinds are needed
_TENSOR_ENTRY = re.compile(
    r"(?P<folder>[\w.-]+)/(?P<name>data\.pkl|byteorder|data/\d+|version|\.format_version|\.storage_alignment|\.data/serialization_id)"
)

# Operations and names of the pickle of a state dict
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_OPERATIONS = {
    *_NUMBERS,
    *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BINUNICODE", "GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
    *("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS"),
    *("SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
}
_STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_NAMES = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", *(f"torch {name}Storage" for name in _STORAGES)}

show = reprlib.Repr()
show.maxstring = show.maxother = 100


class UnsafeModelError(ValueError):
    """A model file that safe loading refuses."""


def read_entries(file: IO[bytes], what: str, is_expected: Callable[[str], Any]) -> dict[str, bytes]:
    """
    :param file: zip archive
    :param what: name of the content, for the error
    :param is_expected: whether an entry of this name may be there
    :return: contents of the entries by name, which together are no longer than the file
    :raises UnsafeModelError: if it is anything but an archive of plain, uncompressed entries of such names
    """
    try:
        with zipfile.ZipFile(file) as archive:
            _check_entries(archive, what, is_expected)
            return {info.filename: archive.read(info) for info in archive.infolist()}
    except UnsafeModelError:
        raise
    except Exception as error:
        # What zipfile raises for a broken archive has no common class
        raise UnsafeModelError(f"{what} is not a complete zip archive: {type(error).__name__}: {error}") from error


def _check_entries(archive: zipfile.ZipFile, what: str, is_expected: Callable[[str], Any]) -> None:
    """
    Raise ``UnsafeModelError`` if an entry has another name, is there twice, is compressed or encrypted, is no plain file or
    shares bytes with another.
    """
    end, names = 0, set()
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        name = info.orig_filename
        problem = None
        if name != info.filename or not is_expected(name):
            problem = "is none that a model file has"
        elif name in names:
            problem = "is there twice"
        elif info.flag_bits & _ENCRYPTED:
            problem = "is encrypted"
        elif info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            problem = "is compressed, which models never are"
        elif stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            problem = "is not a plain file"
        elif info.header_offset < end:
            problem = "shares bytes with another"
        if problem:
            raise UnsafeModelError(f"{what}: the entry {show.repr(name)} {problem}")
        names.add(name)
        end = info.header_offset + _HEADER_SIZE + len(name) + info.file_size
    if end > archive.start_dir:
        raise UnsafeModelError(f"{what}: its entries are longer than the file")


def load_tensors(content: bytes, what: str, device: th.device) -> dict[Any, Any]:
    """
    :param content: bytes that ``torch.save`` has written
    :param what: name of the content, for the error
    :param device: where to put the tensors
    :return: a state dict, or a dict of tensors by name
    :raises UnsafeModelError: if it is anything else. ``weights_only`` builds nothing but tensors and plain values, and none of
        the archive's entries is longer than the archive
    """
    entries = read_entries(io.BytesIO(content), what, _TENSOR_ENTRY.fullmatch)
    try:
        check_pickle(next((entry for name, entry in entries.items() if name.endswith("/data.pkl")), b""))
        # Packed anew, so that PyTorch's own reader of archives sees the entries that were checked
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, entry in entries.items():
                archive.writestr(name, entry)
        packed.seek(0)
        tensors = th.load(packed, map_location=device, weights_only=True)
    except Exception as error:
        raise UnsafeModelError(f"{what} cannot be read: {type(error).__name__}: {str(error)[:200]}") from error
    # PyTorch keeps the versions of the modules in an attribute
    if not isinstance(tensors, dict) or getattr(tensors, "__dict__", {}).keys() - {"_metadata"}:
        raise UnsafeModelError(f"{what} is not a plain dict")
    return tensors


def check_pickle(data: bytes) -> None:
    """
    ``torch.load(weights_only=True)`` runs no code, but a crafted pickle can make it take all memory or never end. A state dict
    needs few operations and names, and of what it has seen before it repeats texts, names and tuples of numbers alone.

    :param data: the pickle of a state dict
    :raises UnsafeModelError: if it has any other operation, name or repetition
    """
    if len(data) > _MAX_PICKLE_SIZE:
        raise UnsafeModelError(f"the description of its tensors has {len(data)} bytes, more than {_MAX_PICKLE_SIZE}")
    seen: list[str] = []
    small: set[Any] = set()
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name not in _OPERATIONS:
            raise UnsafeModelError(f"it has the operation {name}, which no state dict needs")
        if name == "GLOBAL" and argument not in _NAMES:
            raise UnsafeModelError(f"it asks for {show.repr(argument)}, which no state dict needs")
        if name in ("BINPUT", "LONG_BINPUT"):
            last = seen[-1]
            numbers = int(last[-1]) if last in ("TUPLE1", "TUPLE2", "TUPLE3") else 0
            if last in ("GLOBAL", "BINUNICODE") or (numbers and set(seen[-1 - numbers : -1]) <= _NUMBERS):
                small.add(argument)
        if name in ("BINGET", "LONG_BINGET") and argument not in small:
            raise UnsafeModelError("an object is there more than once")
        seen = [*seen[-3:], name]
