"""Unpickling without running anything: a few harmless names are known, whatever else stands there becomes inert.

A pickle is a program: it names functions and classes, and has them called. Here a name is only ever a `Name`; a call of
one of `_KNOWN` is answered by the function beside it, which checks its arguments, and any other call, class or state by
an `Inert` that records it. No attribute of any object is looked up or set by the pickle's wish. What it can cost is
bounded as well (see `Unpickler`): a few bytes of it can ask for gigabytes, for hours, or for an overflow of the stack.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
"""storage classes of torch -> dtype of their elements; those of quantized tensors are left out"""


_MOST_STEPS = 3_000_000
"""opcodes of one file"""
_MOST_TEXT = 128 << 20
"""bytes of the opcodes and what they carry: names, texts, numbers"""
_MOST_COPIED = 1_000_000
"""entries of containers copied by calls, and calls"""
_MOST_TUPLE_KEYS = 300
"""keys that are tuples of numbers: whoever writes them can make their hashes collide"""
_MOST_ARGUMENTS = 64
MOST_DIMENSIONS = 64
MOST_PARTS = 16
LARGEST = 1 << 48
_HASHED_AS_THEMSELVES = 1 << 60


class Name(NamedTuple):
    """A function or class that a pickle names."""

    module: str
    name: str


class Inert:
    """What stands for an object of a class that is not known: what the pickle said of it, and no behaviour."""

    __slots__ = ("args", "entries", "items", "name", "state")

    def __init__(self, name: Any, args: tuple[Any, ...]) -> None:
        self.name, self.args = name, args
        self.state: Any = None
        self.items: list[Any] = []
        self.entries: dict[Any, Any] = {}

    def attributes(self) -> dict[str, Any]:
        """The attributes that the pickle gave, slots included."""
        if isinstance(self.state, dict):
            return self.state
        parts = self.state[:MOST_PARTS] if isinstance(self.state, tuple) else ()
        return {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}


class Storage(NamedTuple):
    """Bytes of tensors, and the dtype of the elements that offsets count."""

    content: torch.UntypedStorage
    dtype: torch.dtype


def as_tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Any:
    """The view of a storage; `Inert` for storages of unknown kind. Raises `UnpicklingError` outside its bounds."""
    if not isinstance(storage, Storage):
        return Inert("tensor", (storage, offset, size, stride))
    if len(size) != len(stride) or len(size) > MOST_DIMENSIONS:
        raise pickle.UnpicklingError(f"a tensor of {len(size)} sizes and {len(stride)} strides")
    if not all(type(n) is int and 0 <= n <= LARGEST for n in (offset, *size, *stride)):
        raise pickle.UnpicklingError("a tensor of negative or immense size, stride or offset")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    width = storage.dtype.itemsize
    if 0 not in size and (last + 1) * width > storage.content.nbytes():
        raise pickle.UnpicklingError(f"a tensor ends at byte {(last + 1) * width} of {storage.content.nbytes()}")
    return torch.empty(0, dtype=storage.dtype).set_(storage.content, offset, tuple(size), tuple(stride))


def _tensor_v2(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    return as_tensor(storage, offset, size, stride)


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any) -> Any:
    known = isinstance(storage, Storage) and isinstance(dtype, torch.dtype)
    return as_tensor(storage._replace(dtype=dtype) if known else None, offset, size, stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _from_type(function: Any, _type: Any, args: Any, _state: Any) -> Any:
    return call(function, args)


def _scalar(dtype: Any, content: Any = None) -> Any:
    # dtype: an Inert of numpy.dtype("f8", ...), its byte order in its state.
    spelled = dtype.args[0] if isinstance(dtype, Inert) and dtype.args else None
    if isinstance(spelled, str) and isinstance(content, bytes) and re.fullmatch(r"[biufc]\d{1,2}", spelled):
        order = dtype.state[1] if isinstance(dtype.state, tuple) and dtype.state[1:2] in (("<",), (">",)) else ""
        return np.frombuffer(content, np.dtype(order + spelled))[0]
    return Inert("numpy scalar", (dtype, content))


def _bytes(text: Any, encoding: Any = "latin1") -> Any:
    return text.encode("latin1") if encoding in ("latin1", "latin-1") else Inert("bytes", (text, encoding))


def _container(kind: type) -> Callable[..., Any]:
    def build(content: Any = ()) -> Any:
        if not isinstance(content, (list, tuple, dict, set, frozenset)):
            return Inert(kind.__name__, (content,))
        if issubclass(kind, dict) and not isinstance(content, dict):  # pairs
            content = [(key, value) for key, value in content]
            _check_keys(key for key, _ in content)
        elif kind in (set, frozenset):
            _check_keys(content)
        return kind(content)

    return build


def _default_dict(*_: Any) -> dict[Any, Any]:
    return {}


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): as_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("torch", "Size"): _container(tuple),
    ("collections", "OrderedDict"): _container(OrderedDict),
    ("collections", "defaultdict"): _default_dict,
    ("collections", "Counter"): _container(dict),
    ("_codecs", "encode"): _bytes,
    **{("numpy" + core + ".multiarray", "scalar"): _scalar for core in (".core", "._core")},
    **{
        (builtins, kind.__name__): _container(kind)
        for builtins in ("builtins", "__builtin__")
        for kind in (dict, list, tuple, set, frozenset)
    },
}


def call(function: Any, args: Any) -> Any:
    """What a call gives: of a known name its object, else `Inert`."""
    if not isinstance(args, tuple):
        raise pickle.UnpicklingError(f"a call with a {type(args).__name__} of arguments")
    known = _KNOWN.get(function) if isinstance(function, Name) else None
    if known is not None and len(args) <= _MOST_ARGUMENTS:
        try:
            return known(*args)
        except (TypeError, ValueError, IndexError, RuntimeError, OverflowError) as error:
            raise pickle.UnpicklingError(f"{function.name} of {len(args)} arguments ({error})") from None
    return Inert(function, args)


def _check_keys(keys: Iterable[Any]) -> int:
    """How many of the keys are tuples with numbers. Raises `UnpicklingError` for keys that may cost more than they say.

    A tuple hashes what it holds anew each time, to any depth; large numbers can be made to collide.
    """
    tuples = 0
    for key in keys:
        parts = key if type(key) is tuple else (key,)
        if len(parts) > _MOST_ARGUMENTS or not all(map(_is_plain, parts)):
            raise pickle.UnpicklingError(f"a key that is a {type(key).__name__}, too large or nested")
        if parts is key and not all(isinstance(part, (str, bytes, Name)) for part in parts):
            tuples += 1
    if tuples > _MOST_TUPLE_KEYS:
        raise pickle.UnpicklingError(f"more than {_MOST_TUPLE_KEYS} keys that are tuples of numbers")
    return tuples


def _is_plain(key: Any) -> bool:
    if isinstance(key, (int, np.integer)):
        return abs(int(key)) < _HASHED_AS_THEMSELVES
    return key is None or isinstance(key, (str, bytes, float, Name, Inert, torch.dtype, Tensor))


class _Bounded(dict[int, Callable[..., None]]):
    """Opcodes to their methods, looked up at most `_MOST_STEPS` times."""

    left = _MOST_STEPS

    def __getitem__(self, opcode: int) -> Callable[..., None]:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError(f"more than {_MOST_STEPS:,} steps")
        return super().__getitem__(opcode)


_Library: Any = pickle._Unpickler  # the one written in Python, whose opcodes can be replaced


class Unpickler(_Library):
    """The interpreter of Python's library with every opcode replaced that calls, looks up or changes an object.

    Bounded: the opcodes, the bytes that they carry, the entries and texts that calls copy, the keys of mappings and
    sets. It loads once.
    """

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(_Library.dispatch)

    def __init__(self, file: Any, storage: Callable[[Any], Any] | None = None) -> None:
        super().__init__(file, encoding="latin1")  # pickles of Python 2
        self._storage = storage
        self._text, self._copied, self._encoded, self._tuple_keys = _MOST_TEXT, _MOST_COPIED, _MOST_TEXT, 0
        self._read, self._line = file.read, file.readline
        self._file_read, self._file_readline = self._bounded_read, self._bounded_line
        self.dispatch = _Bounded(type(self).dispatch)  # type: ignore[misc]

    def _bounded_read(self, count: int) -> bytes:
        content = self._counted(self._read(min(count, self._text + 1)))
        if len(content) < count:
            raise EOFError("it ends early")
        return content

    def _bounded_line(self) -> bytes:
        return self._counted(self._line(self._text + 1))

    def _counted(self, content: bytes) -> bytes:
        self._text -= len(content)
        if self._text < 0:
            raise pickle.UnpicklingError(f"more than {_MOST_TEXT:,} bytes beside its tensors")
        return content

    def _call(self, function: Any, args: Any) -> Any:
        first = args[0] if isinstance(args, tuple) and args else None
        self._copied -= 1 + (len(first) if isinstance(first, (list, tuple, dict, set, frozenset)) else 0)
        self._encoded -= len(first) if isinstance(first, str) else 0
        if self._copied < 0 or self._encoded < 0:
            raise pickle.UnpicklingError("calls that copy the same over and over")
        return call(function, args)

    def load_bytearray8(self) -> None:
        (count,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(min(count, _MOST_TEXT + 1))))  # the library's makes room before it reads

    def load_put(self) -> None:
        place = int(self.readline()[:-1])
        if not 0 <= place < 1 << 32:
            raise pickle.UnpicklingError("a negative or immense place")
        self.memo[place] = self.stack[-1]

    def load_buffer(self) -> None:
        raise pickle.UnpicklingError("a buffer outside the file")

    def find_class(self, module: str, name: str) -> Any:
        dtype = vars(torch).get(name) if module == "torch" else None
        return dtype if isinstance(dtype, torch.dtype) else Name(module, name)

    def persistent_load(self, pid: Any) -> Any:
        if self._storage is None:
            raise pickle.UnpicklingError("a persistent id where none can be")
        return self._storage(pid)

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f"extension code {code}")

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.append(self._call(klass, tuple(args)))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def load_newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        keywords, args = self.stack.pop(), self.stack.pop()
        self.stack[-1] = Inert(self.stack[-1], (args, keywords))

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].state = state
        # Of known objects it is decoration: the _metadata of a state_dict, attributes of a tensor.

    def _extend(self, items: list[Any]) -> None:
        held = self.stack[-1]
        target = held.items if isinstance(held, Inert) else held
        if type(target) is list:
            target.extend(items)
        elif type(target) is set:
            self._check_keys(items)
            target.update(items)
        else:
            raise pickle.UnpicklingError(f"items added to a {type(held).__name__}")

    def load_append(self) -> None:
        self._extend([self.stack.pop()])

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    def load_additems(self) -> None:
        self._extend(self.pop_mark())

    def _update(self, items: list[Any]) -> None:
        held = self.stack[-1]
        target = held.entries if isinstance(held, Inert) else held
        if type(target) not in (dict, OrderedDict):
            raise pickle.UnpicklingError(f"entries added to a {type(held).__name__}")
        self._check_keys(items[::2])
        target.update(zip(items[::2], items[1::2], strict=True))

    def _check_keys(self, keys: Iterable[Any]) -> None:
        self._tuple_keys += _check_keys(keys)
        if self._tuple_keys > _MOST_TUPLE_KEYS:
            raise pickle.UnpicklingError(f"more than {_MOST_TUPLE_KEYS} keys that are tuples of numbers")

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self._check_keys(items)
        self.append(frozenset(items))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def load_setitems(self) -> None:
        self._update(self.pop_mark())

    for _opcode, _method in (
        (pickle.REDUCE, load_reduce),
        (pickle.NEWOBJ, load_newobj),
        (pickle.NEWOBJ_EX, load_newobj_ex),
        (pickle.BUILD, load_build),
        (pickle.APPEND, load_append),
        (pickle.APPENDS, load_appends),
        (pickle.ADDITEMS, load_additems),
        (pickle.SETITEM, load_setitem),
        (pickle.SETITEMS, load_setitems),
        (pickle.FROZENSET, load_frozenset),
        (pickle.PUT, load_put),
        (pickle.BYTEARRAY8, load_bytearray8),
        (pickle.NEXT_BUFFER, load_buffer),
        (pickle.READONLY_BUFFER, load_buffer),
    ):
        dispatch[_opcode[0]] = _method
