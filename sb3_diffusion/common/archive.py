"""Reading the zip file of a model that nobody vouches for: entries as they stand, and tensors."""

import io
import math
import pickletools
import re
import reprlib
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, ClassVar

import torch as th

# Bytes of the pickle that describes the tensors of a .pth entry; one tensor takes about 150
MAX_PICKLE_SIZE = 4 * 2**20

# Of a local file header of a zip archive, without its name
HEADER_SIZE = 30

ENCRYPTED = 0x1

# What torch.save writes, below one folder; only the first three kinds are needed
TENSOR_ENTRY = re.compile(
    r"(?P<folder>[\w.-]+)/(?P<name>data\.pkl|byteorder|data/\d+|version|\.format_version|\.storage_alignment|\.data/serialization_id)"
)

# Bytes of an element
STORAGES = {
    f"torch {name}Storage": size
    for name, size in dict(Double=8, Float=4, Half=2, BFloat16=2, Long=8, Int=4, Short=2, Char=1, Byte=1, Bool=1).items()
}
ORDERED_DICT, REBUILD_TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"

show = reprlib.Repr()
show.maxstring = show.maxother = 100


class UnsafeModelError(ValueError):
    """A model file that safe loading refuses."""


def read_entries(file: IO[bytes], what: str, is_expected: Callable[[str], Any]) -> dict[str, bytes]:
    """
    :param file: zip archive
    :param what: what it is, for the error
    :param is_expected: whether an entry of this name may be there
    :return: contents of the entries by name, which together are no longer than the file
    :raises UnsafeModelError: if it is anything but an archive of plain, uncompressed entries of such names
    """
    try:
        with zipfile.ZipFile(file) as archive:
            check_entries(archive, what, is_expected)
            return {info.filename: archive.read(info) for info in archive.infolist()}
    except UnsafeModelError:
        raise
    except Exception as error:
        # What zipfile raises for a broken archive has no common class
        raise UnsafeModelError(f"{what} is not a complete zip archive: {type(error).__name__}: {error}") from error


def check_entries(archive: zipfile.ZipFile, what: str, is_expected: Callable[[str], Any]) -> None:
    """
    :param archive: zip archive
    :param what: what it is, for the error
    :param is_expected: whether an entry of this name may be there
    :raises UnsafeModelError: if an entry has another name, is there twice, is compressed or encrypted, is no plain file or
        shares bytes with another
    """
    end, names = 0, set()
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        name = info.orig_filename
        problem = None
        if name != info.filename or not is_expected(name):
            problem = "is none that a model file has"
        elif name in names:
            problem = "is there twice"
        elif info.flag_bits & ENCRYPTED:
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
        end = info.header_offset + HEADER_SIZE + len(name) + info.file_size
    if end > archive.start_dir:
        raise UnsafeModelError(f"{what}: its entries are longer than the file")


def load_tensors(content: bytes, what: str, device: th.device) -> dict[Any, Any]:
    """
    :param content: what ``torch.save`` has written
    :param what: what it is, for the error
    :param device: where to put the tensors
    :return: a state dict, or a dict of tensors by name
    :raises UnsafeModelError: if it is anything else than a state dict of plain, dense tensors
    """
    entries = read_entries(io.BytesIO(content), what, TENSOR_ENTRY.fullmatch)
    named = {}
    for name, entry in entries.items():
        match = TENSOR_ENTRY.fullmatch(name)
        assert match is not None
        named[match["name"]] = entry
    if len(named) != len(entries) or "data.pkl" not in named:
        raise UnsafeModelError(f"{what} is not what torch.save writes")
    sizes = {name.removeprefix("data/"): len(entry) for name, entry in named.items() if name.startswith("data/")}
    try:
        check_pickle(named["data.pkl"], sizes)
        return th.load(repack(named), map_location=device, weights_only=True)
    except UnsafeModelError as error:
        raise UnsafeModelError(f"{what}: {error}") from error
    except Exception as error:
        raise UnsafeModelError(f"{what} cannot be read: {type(error).__name__}: {str(error)[:200]}") from error


def repack(entries: dict[str, bytes]) -> IO[bytes]:
    """
    PyTorch reads zip archives with a library of its own. It gets one made here, so that it cannot see anything else in it
    than what has been checked.

    :param entries: entries of a .pth archive by their names in its folder
    :return: the archive
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, entry in {"version": b"3\n", **entries}.items():
            if not name.startswith("."):
                archive.writestr(f"archive/{name}", entry)
    file.seek(0)
    return file


@dataclass(frozen=True)
class Global:
    """A name that a pickle would import."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A storage of so many elements."""

    numel: int


class Tensor:
    """A tensor within its storage."""


def check_pickle(data: bytes, sizes: dict[str, int]) -> None:
    """
    Follow a pickle without unpickling it: nothing is imported, called or allocated. ``torch.load(weights_only=True)`` runs no
    code either, but a crafted pickle can make it take all memory or never end.

    :param data: the pickle of a state dict
    :param sizes: bytes of each storage by its key
    :raises UnsafeModelError: if it has anything but dicts and lists of plain values and of dense tensors within their storages
    """
    if len(data) > MAX_PICKLE_SIZE:
        raise UnsafeModelError(f"the description of its tensors has {len(data)} bytes, more than {MAX_PICKLE_SIZE}")
    stack = PickleStack(sizes)
    for opcode, argument, _ in pickletools.genops(data):
        stack.follow(opcode.name, argument)
    if stack.outer or len(stack.items) != 1 or type(stack.items[0]) is not dict:
        raise UnsafeModelError("it is not a dict")


class PickleStack:
    """
    The stack of the pickle machine, for the few operations that a state dict takes.

    :param sizes: bytes of each storage by its key
    """

    VALUES: ClassVar[set[str]] = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
    CONSTANTS: ClassVar[dict[str, Any]] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
    CONTAINERS: ClassVar[dict[str, type]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
    # How many of the last items an operation takes; None for all since the mark
    TAKEN: ClassVar[dict[str, int | None]] = {
        **dict(TUPLE1=1, TUPLE2=2, TUPLE3=3, SETITEM=2, APPEND=1, BINPERSID=1, REDUCE=2, BUILD=1),
        **dict.fromkeys(("TUPLE", "SETITEMS", "APPENDS")),
    }

    def __init__(self, sizes: dict[str, int]):
        self.sizes = sizes
        self.items: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def follow(self, name: str, argument: Any) -> None:
        """
        :param name: name of an operation
        :param argument: its argument, if it has one
        :raises UnsafeModelError: if a state dict does not take it
        """
        if name in self.VALUES:
            self.items.append(argument)
        elif name in self.CONSTANTS:
            self.items.append(self.CONSTANTS[name])
        elif name in self.CONTAINERS:
            self.items.append(self.CONTAINERS[name]())
        elif name in self.TAKEN:
            self.apply(name, self.take(self.TAKEN[name]))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.items[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.items.append(self.get_repeated(argument))
        elif name == "MARK":
            self.outer.append(self.items)
            self.items = []
        elif name == "GLOBAL":
            if argument not in (ORDERED_DICT, REBUILD_TENSOR, *STORAGES):
                raise UnsafeModelError(f"it asks for {show.repr(argument)}, which no state dict needs")
            self.items.append(Global(argument))
        elif name == "PROTO":
            self.expect(argument == 2, "is a pickle of another protocol than torch.save's")
        elif name != "STOP":
            raise UnsafeModelError(f"it has the operation {name}, which no state dict needs")

    def take(self, count: int | None) -> list[Any]:
        """
        :param count: how many items; None for all since the mark
        :return: the last items, which are taken off
        """
        if count is None:
            taken, self.items = self.items, self.outer.pop()
            return taken
        if len(self.items) < count:
            raise UnsafeModelError("its description ends too early")
        taken = self.items[-count:]
        del self.items[-count:]
        return taken

    def get_repeated(self, key: int) -> Any:
        """
        :param key: of an object that was seen before
        :return: the object, which must be a small one: a list of lists of the same lists would never end
        """
        value = self.memo[key]
        small = isinstance(value, (str, Global)) or (
            isinstance(value, tuple) and len(value) <= 8 and all(isinstance(part, (int, float)) for part in value)
        )
        if not small:
            raise UnsafeModelError(f"an object of type {type(value).__name__} is there more than once")
        return value

    def apply(self, name: str, taken: list[Any]) -> None:
        """
        :param name: name of an operation
        :param taken: the items it takes
        """
        if name.startswith("TUPLE"):
            self.items.append(tuple(taken))
        elif name == "BINPERSID":
            self.items.append(self.make_storage(taken[0]))
        elif name == "REDUCE":
            self.items.append(self.make_object(*taken))
        elif name.startswith("APPEND"):
            self.expect(type(self.items[-1]) is list, "appends to what is not a list")
            self.items[-1].extend(taken)
        elif name == "BUILD":
            # PyTorch keeps the versions of the modules there
            state = taken[0]
            self.expect(type(self.items[-1]) is dict, "sets attributes of what is not a dict")
            self.expect(type(state) is dict and set(state) <= {"_metadata"}, "sets attributes other than _metadata")
        else:
            self.expect(type(self.items[-1]) is dict, "sets items of what is not a dict")
            self.expect(all(type(key) in (str, int) for key in taken[::2]), "has keys that are not strings or integers")
            self.items[-1].update(zip(taken[::2], taken[1::2], strict=True))

    def make_storage(self, pid: Any) -> Storage:
        """
        :param pid: ``("storage", <type>, <key>, <location>, <number of elements>)``
        :return: the storage, which is as long as its entry
        """
        self.expect(type(pid) is tuple and len(pid) == 5 and pid[0] == "storage", "refers to what is not a storage")
        _, kind, key, location, numel = pid
        self.expect(type(kind) is Global and kind.name in STORAGES, "has a storage of an unknown type")
        self.expect(type(key) is str and type(location) is str and type(numel) is int, "has a storage without a name or size")
        self.expect(self.sizes.get(key) == numel * STORAGES[kind.name], "has a storage of another size than its entry")
        return Storage(numel)

    def make_object(self, function: Any, args: Any) -> Any:
        """
        :param function: what the pickle calls
        :param args: with which arguments
        :return: an empty dict or a tensor
        """
        self.expect(type(function) is Global and type(args) is tuple, "calls what is not a function")
        if function.name == ORDERED_DICT:
            self.expect(args == (), "fills an OrderedDict in one go")
            return {}
        self.expect(function.name == REBUILD_TENSOR and len(args) in (6, 7), "calls what is not a function")
        storage, offset, size, stride, requires_grad, hooks = args[:6]
        self.expect(type(storage) is Storage and type(requires_grad) is bool, "has a tensor without a storage")
        self.expect(hooks == {} and args[6:] in ((), (None,)), "has a tensor with hooks or metadata")
        self.expect(
            type(size) is tuple and type(stride) is tuple and len(size) == len(stride) <= 8, "has a tensor without a shape"
        )
        self.expect(all(type(n) is int and n >= 0 for n in (offset, *size, *stride)), "has a tensor without a shape")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        inside = 0 in size or (last < storage.numel and math.prod(size) <= storage.numel)
        self.expect(inside, "has a tensor that is larger than its storage")
        return Tensor()

    @staticmethod
    def expect(condition: bool, problem: str) -> None:
        """
        :param condition: what holds for a state dict
        :param problem: what the description does if it does not hold
        :raises UnsafeModelError: if it does not hold
        """
        if not condition:
            raise UnsafeModelError(f"its description {problem}")
