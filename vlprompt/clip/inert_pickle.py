"""Reads a pickle as data: what it would create, without looking up, calling or importing anything.

Checkpoints are pickles, and unpickling one runs whatever functions it names. Here its opcodes are decoded by
``pickletools``, the disassembler of the standard library, and executed on a stack of plain values: a global becomes its
name, and a call a record of the function's name and arguments. So there is no list of allowed functions that could have
a gap: a file cannot access any object of the interpreter, whichever opcodes it uses, including ``copyreg`` extensions.
``pickle.Unpickler`` with a restricted ``find_class`` would still act on the file's objects (``__setstate__``, hashes of
deep tuples, huge memo indices), and ``torch.load(weights_only=True)`` refuses every file with an unknown object.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

MAPPINGS = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict")
KEYS = (str, int, float, bytes, type(None))  # types of dictionary keys whose hash runs no code and is fast


class Inert:
    """A record of a global, a call or a persistent reference in a pickle.

    Attributes:
        name: name of the global, such as ``torch._utils._rebuild_tensor_v2``; empty for a persistent reference.
        arguments: arguments of the call, or the reference; None for a global that is not called.
        state: state that would be set on the result.
    """

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: Any = None):
        self.name, self.arguments, self.state = name, arguments, None


def read_pickle(file: BinaryIO) -> tuple[Any, list[Any]]:
    """Read one pickle from the position of ``file`` to the pickle's end.

    Returns:
        Its content, as plain values and ``Inert`` records; and its persistent references.

    Raises:
        ValueError: it is not a pickle, it is truncated, or its opcodes are invalid.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(file):
            machine.step(opcode, argument)
        return machine.stack.pop(), machine.references
    except (IndexError, KeyError, AttributeError, TypeError) as error:
        raise ValueError("its opcodes make no sense") from error


class _Machine:
    """The state of unpickling: the stack, the stacks below marks, and the memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[Any, Any] = {}
        self.references: list[Any] = []

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Execute one opcode."""
        name = opcode.name
        if name in PUSHED:
            self.stack.append(PUSHED[name]())
        elif name in MADE:
            count, make = MADE[name]
            taken = self.until_mark() if count is None else [self.stack.pop() for _ in range(count)][::-1]
            self.stack.append(make(*taken))
        elif name in ACTIONS:
            ACTIONS[name](self, argument)
        elif name in NAMED:
            self.stack.append(Inert(NAMED[name].format(str(argument).replace(" ", "."))))
        elif opcode.arg is not None and not opcode.stack_before and opcode.stack_after:
            self.stack.append(argument)  # numbers, texts and bytes
        elif name not in ("PROTO", "FRAME", "STOP", "READONLY_BUFFER"):
            raise ValueError(f"its opcode {name} is not known")

    def until_mark(self) -> list[Any]:
        """Pop everything above the last mark."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def put(self, key: Any) -> None:
        self.memo[len(self.memo) if key is None else key] = self.stack[-1]

    def get(self, key: Any) -> None:
        self.stack.append(self.memo[key])

    def instance(self, name: str) -> None:
        arguments = tuple(self.until_mark())
        self.stack.append(Inert(name.replace(" ", "."), arguments))

    def refer(self, _: Any) -> None:
        self.references.append(self.stack[-1])
        self.stack[-1] = Inert("", self.stack[-1])

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].state = state

    def append(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(_pairs(*values))


def _pairs(*values: Any) -> dict[Any, Any]:
    return {key: value for key, value in zip(values[::2], values[1::2], strict=True) if isinstance(key, KEYS)}


def _call(made: Any, arguments: Any = (), _: Any = None) -> Any:
    """The record of a call; only the creation of plain mappings is carried out."""
    if not isinstance(made, Inert):
        raise ValueError("it calls what is no name")
    if made.name in MAPPINGS:
        pairs = arguments[-1] if arguments and isinstance(arguments[-1], list) else []
        return _pairs(*(part for pair in pairs for part in pair))
    return Inert(made.name, arguments)


def _named(module: Any, name: Any) -> Inert:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise ValueError("it names something by what is no text")
    return Inert(f"{module}.{name}")


# opcode -> what it pushes
PUSHED: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
    "NEXT_BUFFER": lambda: Inert("buffer", ()),
}
# opcode -> number of values that it pops (None: all above the mark), and a function from these to its result
MADE: dict[str, tuple[int | None, Callable[..., Any]]] = {
    "LIST": (None, lambda *values: list(values)),
    "TUPLE": (None, lambda *values: values),
    "FROZENSET": (None, lambda *values: list(values)),
    "DICT": (None, _pairs),
    "TUPLE1": (1, lambda *values: values),
    "TUPLE2": (2, lambda *values: values),
    "TUPLE3": (3, lambda *values: values),
    "STACK_GLOBAL": (2, _named),
    "REDUCE": (2, _call),
    "NEWOBJ": (2, _call),
    "NEWOBJ_EX": (3, _call),
    "OBJ": (None, lambda made, *arguments: _call(made, arguments)),
}
# opcode -> format of the name of a record
NAMED = {"GLOBAL": "{}", "PERSID": "persistent id {}", **dict.fromkeys(("EXT1", "EXT2", "EXT4"), "extension {}")}
ACTIONS: dict[str, Callable[[_Machine, Any], object]] = {
    "MARK": _Machine.mark,
    "POP": lambda machine, _: machine.stack.pop() if machine.stack else machine.until_mark(),
    "POP_MARK": lambda machine, _: machine.until_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "INST": _Machine.instance,
    "BINPERSID": _Machine.refer,
    "BUILD": _Machine.build,
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.until_mark()),
    "ADDITEMS": lambda machine, _: machine.append(machine.until_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(), machine.stack.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.until_mark()),
}
