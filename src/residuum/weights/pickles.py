"""Pickles without running what came with them: what one would do, read from its opcodes, and arrays out of numpy's."""

import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Iterator
from typing import IO, Any

import torch
from torch import Tensor

from residuum.errors import WeightsError

MOST_OPERATIONS = 1_000_000  # a checkpoint of a thousand layers with its optimizer has 100,000
DEEPEST = 100  # containers within containers
_MARKED = frozenset(op.name for op in pickletools.opcodes if pickletools.markobject in op.stack_before)
_NAMED = frozenset({"MARK", "GLOBAL", "GET", "BINGET", "LONG_BINGET", "EXT1", "EXT2", "EXT4"})
_ATOMS = frozenset(
    op.name for op in pickletools.opcodes if not op.stack_before and len(op.stack_after) == 1 and op.name not in _NAMED
)
_GROWS = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})
_MAKES = frozenset({
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "DICT", "FROZENSET", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST",
    "BINPERSID",
})  # fmt: skip


def named_in(stream: IO[bytes]) -> set[str]:
    """The classes and functions that the next pickle of a stream names, `module.name`; nothing of it is run.

    The stream is left at the pickle's end. Raises `WeightsError` for one that nests or does more than weights need, so
    that what reads it afterwards meets no bomb, and `ValueError` for bytes that are no pickle.
    """
    found: set[str] = set()
    # Of each value on the stack: how deep it nests, how large it is where what it repeats is counted each time, and
    # the text that it is. A hash looks at all of that size.
    stack: list[tuple[int, int, str]] = []
    marks: list[int] = []
    memo: dict[int, tuple[int, int, str]] = {}
    for count, (op, arg, _) in enumerate(pickletools.genops(stream)):
        name = op.name
        if count > MOST_OPERATIONS:
            raise WeightsError("has more parts than any weights")
        if name in _ATOMS:
            stack.append((0, 1, arg if isinstance(arg, str) and len(arg) <= 200 else ""))
            continue
        if name == "MARK":
            marks.append(len(stack))
            continue
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            slot = len(memo) if name == "MEMOIZE" else int(arg or 0)
            if not 0 <= slot <= 2 * MOST_OPERATIONS or not stack:
                raise ValueError("a place for a value that cannot be")
            memo[slot] = stack[-1]
            continue
        if name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(arg or 0)])
            continue
        if name == "DUP":
            stack.append(stack[-1])
            continue
        if name == "POP" and marks and marks[-1] == len(stack):
            marks.pop()
            continue
        start = marks.pop() if name in _MARKED else len(stack)
        start -= sum(1 for s in op.stack_before if s not in (pickletools.markobject, pickletools.stackslice))
        start += name == "OBJ"  # what it calls lies above the mark
        if start < 0:
            raise ValueError("more is taken than was there")
        taken = stack[start:]
        del stack[start:]
        if name in ("GLOBAL", "INST"):
            found.add(str(arg).replace(" ", ".", 1))
        elif name == "STACK_GLOBAL":
            found.add(".".join(text for _, _, text in taken))
        elif name in ("EXT1", "EXT2", "EXT4"):
            found.add("copyreg.extension")
        if op.stack_after:
            stack.extend([_made(name, arg, taken)] * len(op.stack_after))
    return found


def _made(name: str, arg: object, taken: list[tuple[int, int, str]]) -> tuple[int, int, str]:
    """Depth, size and text of what an opcode leaves on the stack; raises `WeightsError` for a bomb."""
    if name in _GROWS:  # what is first grows, and is never hashed
        deep = max(taken[0][0], 1 + max((depth for depth, _, _ in taken[1:]), default=-1))
        size = 1
    elif name in _MAKES and taken:
        deep = 1 + max(depth for depth, _, _ in taken)
        size = 1 + sum(size for _, size, _ in taken)
    else:
        return 0, 1, arg if isinstance(arg, str) and len(arg) <= 200 else ""
    if deep > DEEPEST or size > MOST_OPERATIONS:
        raise WeightsError("nests deeper than any weights")
    return deep, size, ""


class Array:
    """A numpy array as a pickle tells it: type, shape and bytes. Nothing of numpy runs."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def tensor(self) -> Tensor | None:
        """The array, or None where it is of no kind that weights have, or not whole."""
        match self.state:
            case (int(), tuple(shape), ArrayType() as kind, fortran, bytes() | bytearray() | str() as content):
                raw = content.encode("latin1", "replace") if isinstance(content, str) else content  # of Python 2
                return _tensor(shape, kind, bool(fortran), raw)
        return None


class ArrayType:
    """A numpy dtype as a pickle tells it."""

    def __init__(self, code: object = "", *_: Any) -> None:
        self.code, self.order = str(code), ""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1]) if isinstance(state, tuple) and len(state) > 1 else ""


class Scalar:
    """A numpy scalar, which no weights are: a metric that a script noted."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class _FromBuffer(Array):
    """An array of pickle protocol 5: (bytes, type, shape, order)."""

    def __init__(self, *args: Any) -> None:
        match args:
            case (content, kind, tuple(shape), order):
                self.state = (1, shape, kind, order == "F", content)
            case _:
                self.state = ()


_TYPES = {
    "f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "i1": torch.int8, "i2": torch.int16,
    "i4": torch.int32, "i8": torch.int64, "u1": torch.uint8, "b1": torch.bool,
}  # fmt: skip


def _tensor(shape: tuple[Any, ...], kind: ArrayType, fortran: bool, content: bytes | bytearray) -> Tensor | None:
    code = kind.code.lstrip("<>=|")
    dtype = _TYPES.get(code)
    big = ">" in (kind.order, kind.code[:1])
    if dtype is None or len(shape) > 16 or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        return None
    size = 1
    for n in shape:
        size *= n
    if size * dtype.itemsize != len(content):
        return None
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(bytearray(content), dtype=dtype)
    if big and dtype.itemsize > 1:
        flat = flat.view(torch.uint8).view(-1, dtype.itemsize).flip(1).contiguous().view(-1).view(dtype)
    return flat.view(shape[::-1]).permute(*range(len(shape))[::-1]).contiguous() if fortran else flat.view(shape)


def stand_ins() -> dict[str, Any]:
    """What takes the place of numpy's classes and functions, by the names under which pickles know them.

    Made anew for each file, so that nothing that a file does to one of them outlives it.
    """

    def kind(base: type) -> type:
        return type(base.__name__, (base,), {})

    array, scalar, dtype = kind(Array), kind(Scalar), kind(ArrayType)
    found = {"numpy.ndarray": array, "numpy.dtype": dtype, "_codecs.encode": _encode}
    for core in ("numpy.core", "numpy._core"):
        found |= {
            f"{core}.multiarray._reconstruct": array,
            f"{core}.multiarray.scalar": scalar,
            f"{core}.numeric._frombuffer": kind(_FromBuffer),
        }
    return found


class _Encode:
    """`_codecs.encode` for what Python 2 and protocol 2 use it: bytes written as latin-1."""

    def __call__(self, text: object, encoding: object = "latin1", *_: object) -> bytes:
        return text.encode("latin1") if isinstance(text, str) else b""

    def __setstate__(self, state: object) -> None: ...


_encode = _Encode()


class _ArrayReader(pickle.Unpickler):
    """Knows arrays, dicts and lists, and calls nothing else."""

    known: dict[str, Any]

    def find_class(self, module: str, name: str, /) -> Any:
        return self.known[f"{module}.{name}"]

    def persistent_load(self, pid: object, /) -> Any:
        raise pickle.UnpicklingError("a reference to something outside the file")


def read_arrays(stream: IO[bytes]) -> object:
    """The content of a pickle of numpy arrays, which `named_in` has been through; arrays are `Array`."""
    reader = _ArrayReader(stream, encoding="latin1")
    reader.known = stand_ins() | {"collections.OrderedDict": OrderedDict}
    return reader.load()


def array_names() -> Iterator[str]:
    """The names that `read_arrays` knows."""
    yield from stand_ins()
    yield "collections.OrderedDict"
