"""A pickle reader that runs nothing: it builds plain values, and stand-ins for the names it was given.

Pickle is a language for a stack machine. `Machine` follows it as far as data needs (protocols 2 to 5). A name that a
pickle asks for is looked up in a table of `Name`s, never imported; what is not in the table is refused. The length of
a pickle bounds the steps it may take and the bytes it may claim, so that a small record cannot ask for much.
"""

from __future__ import annotations

import pickletools
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_INTEGER = 16
LONGEST_NAME = 200
BYTES_PER_BYTE = 3
"""Bytes that may be claimed per byte of a pickle: a tensor is text (protocol 2), then a torch file, then a storage."""


class Refusal(Exception):  # noqa: N818  (the pickle is not at fault as a file, it asks for something)
    """A pickle asks for something that is not data; the message says for what."""


class Damage(Exception):  # noqa: N818
    """A pickle cannot be followed; the message says why."""


@dataclass
class Budget:
    """What a pickle, with all that is nested in it, may still use.

    Attributes:
        length: of the whole pickle in bytes; no dimension of an array may exceed it.
        steps: instructions.
        claims: bytes of nested files, storages and re-encoded text.
    """

    length: int
    steps: int
    claims: int

    @staticmethod
    def of(length: int, max_steps: int) -> Budget:
        """What `length` bytes may use: a step takes at least one of them."""
        return Budget(length, min(length, max_steps), BYTES_PER_BYTE * length)

    def claim(self, n_bytes: int) -> None:
        """Count bytes before they are allocated; raises Refusal for more than the pickle can account for."""
        self.claims -= n_bytes
        if n_bytes < 0 or self.claims < 0:
            raise Refusal(f"it claims more memory than its {self.length} bytes account for")


class StandIn:
    """What stands for an object of a foreign class: it only takes the state that the pickle gives it."""

    def set_state(self, state: Any) -> None:
        """Take the state; raises Refusal or Damage for one that is not as expected."""
        raise Refusal(f"it gives a state to a {type(self).__name__.strip('_')}")

    @property
    def value(self) -> Any:
        """What containers should hold in its place."""
        return self


Call = Callable[["Machine", tuple[Any, ...]], Any]


@dataclass(frozen=True, eq=False)
class Name:
    """A name that pickles may ask for.

    Attributes:
        text: module and name, such as `collections.OrderedDict`.
        call: computes what calling it stands for; None where a pickle has no reason to call it.
        new: makes the stand-in of an instance; None where there is none.
        tag: whatever else the reader of persistent ids needs to know of it.
    """

    text: str
    call: Call | None = None
    new: Callable[[], StandIn] | None = None
    tag: Any = None


class Machine:
    """Follows the pickles of one buffer, one after another.

    names: the table of names. persistent: makes the object of a persistent id; None where there are none. `at` is where
    the next pickle starts.
    """

    def __init__(
        self,
        content: bytes,
        budget: Budget,
        names: Mapping[str, Name],
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.content, self.budget, self.names, self.persistent = content, budget, names, persistent
        self.at = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value of the next pickle; raises Refusal or Damage."""
        self.stack, self.below, self.memo = [], [], {}
        try:
            return self._run()
        except (struct.error, IndexError, KeyError):
            place = min(self.at, len(self.content))
            raise Damage(f"the pickle is cut off or its stack is wrong at byte {place}") from None
        except UnicodeError:
            raise Damage(f"text before byte {self.at} is not in its encoding") from None

    def _run(self) -> Any:
        content = self.content
        for step in range(self.budget.steps):
            code = content[self.at]
            self.at += 1
            action = _ACTIONS.get(code)
            if action is None:
                if code == _STOP:
                    self.budget.steps -= step + 1
                    return self.stack.pop()
                if code not in _CODE_NAMES:
                    raise Damage(f"byte {self.at - 1} should be an instruction of pickle")
                raise Refusal(f"it uses the instruction {_CODE_NAMES[code]}, which data does not need")
            action(self)
        raise Refusal(f"it takes more steps than its {self.budget.length} bytes account for")

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        end = self.at + size
        if end > len(self.content):
            raise Damage(f"the pickle ends within a value of {size} bytes at byte {self.at}")
        value = self.content[self.at : end]
        self.at = end
        return value

    def pop_mark(self) -> list[Any]:
        """What was pushed since the last mark."""
        items = self.stack
        self.stack = self.below.pop()
        return items

    def find(self, module: Any, name: Any) -> Name:
        """The entry of the table; raises Refusal for a name that is not in it."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise Damage("a name is not text")
        found = self.names.get(f"{module}.{name}")
        if found is None:
            raise Refusal(f"it asks for {shown(f'{module}.{name}')}")
        return found


def shown(text: str) -> str:
    """Text from a pickle as a message may show it: short and without control characters."""
    return text if re.fullmatch(r"[\w.]{1,80}", text, re.ASCII) else ascii(text[:80])


def _constant(value: Any) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        machine.stack.append(value)

    return push


def _number(layout: str) -> Callable[[Machine], None]:
    unpack, size = struct.Struct(layout).unpack_from, struct.calcsize(layout)

    def push(machine: Machine) -> None:
        machine.stack.append(unpack(machine.content, machine.at)[0])
        machine.at += size

    return push


def _sized(layout: str, convert: Callable[[bytes], Any]) -> Callable[[Machine], None]:
    """Pushes a value that follows its own length."""
    unpack, size = struct.Struct(layout).unpack_from, struct.calcsize(layout)

    def push(machine: Machine) -> None:
        length = unpack(machine.content, machine.at)[0]
        machine.at += size
        machine.stack.append(convert(machine.take(length)))

    return push


def _integer(content: bytes) -> int:
    if len(content) > LONGEST_INTEGER:
        raise Refusal(f"it holds an integer of {len(content)} bytes")
    return int.from_bytes(content, "little", signed=True)


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")


def _itself(content: bytes) -> bytes:
    return content


def _protocol(machine: Machine) -> None:
    version = machine.take(1)[0]
    if not 2 <= version <= 5:
        raise Damage(f"it is written in pickle protocol {version}; 2 to 5 are read")


def _frame(machine: Machine) -> None:
    machine.at += 8  # only says how much follows until the next one


def _mark(machine: Machine) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _pop(machine: Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def _pop_mark(machine: Machine) -> None:
    machine.pop_mark()


def _new_list(machine: Machine) -> None:
    machine.stack.append([])


def _new_dict(machine: Machine) -> None:
    machine.stack.append({})


def _append(machine: Machine) -> None:
    _extend(machine, [machine.stack.pop()])


def _appends(machine: Machine) -> None:
    _extend(machine, machine.pop_mark())


def _extend(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if type(target) is not list:
        raise Damage(f"it appends to a {type(target).__name__}")
    target += items


def _set_item(machine: Machine) -> None:
    value = machine.stack.pop()
    _update(machine, [machine.stack.pop(), value])


def _set_items(machine: Machine) -> None:
    _update(machine, machine.pop_mark())


def _update(machine: Machine, items: list[Any]) -> None:
    """Only text is a key: the hash of others could take for ever, or collide by design."""
    target, keys = machine.stack[-1], items[::2]
    if type(target) is not dict or len(items) % 2 or not all(type(key) is str for key in keys):
        raise Damage("it fills something that is not a map from text to values")
    target.update(zip(keys, items[1::2], strict=True))


def _tuple(machine: Machine) -> None:
    items = tuple(machine.pop_mark())
    machine.stack.append(items)


def _tuple_of(length: int) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        stack = machine.stack
        if len(stack) < length:
            raise IndexError
        items = tuple(stack[-length:])
        del stack[-length:]
        stack.append(items)

    return push


def _put(layout: str) -> Callable[[Machine], None]:
    unpack, size = struct.Struct(layout).unpack_from, struct.calcsize(layout)

    def put(machine: Machine) -> None:
        machine.memo[unpack(machine.content, machine.at)[0]] = machine.stack[-1]
        machine.at += size

    return put


def _memoize(machine: Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _get(layout: str) -> Callable[[Machine], None]:
    unpack, size = struct.Struct(layout).unpack_from, struct.calcsize(layout)

    def push(machine: Machine) -> None:
        value = machine.memo[unpack(machine.content, machine.at)[0]]
        machine.at += size
        machine.stack.append(value.value if isinstance(value, StandIn) else value)

    return push


def _global(machine: Machine) -> None:
    words = []
    for _ in range(2):
        end = machine.content.find(b"\n", machine.at, machine.at + LONGEST_NAME)
        if end < 0:
            raise Damage(f"there is no name at byte {machine.at}")
        words.append(_text(machine.content[machine.at : end]))
        machine.at = end + 1
    machine.stack.append(machine.find(*words))


def _stack_global(machine: Machine) -> None:
    name = machine.stack.pop()
    machine.stack.append(machine.find(machine.stack.pop(), name))


def _reduce(machine: Machine) -> None:
    arguments, name = machine.stack.pop(), machine.stack.pop()
    if not isinstance(name, Name) or type(arguments) is not tuple:
        raise Refusal("it calls something that is not a name")
    if name.call is None:
        raise Refusal(f"it calls {name.text}, which data does not need")
    machine.stack.append(name.call(machine, arguments))


def _new_object(machine: Machine) -> None:
    arguments, name = machine.stack.pop(), machine.stack.pop()
    if not isinstance(name, Name) or name.new is None or type(arguments) is not tuple or arguments:
        raise Refusal("it makes an object that is not data")
    machine.stack.append(name.new())


def _build(machine: Machine) -> None:
    state = machine.stack.pop()
    target = machine.stack[-1]
    if not isinstance(target, StandIn):
        raise Refusal(f"it gives a state to a {type(target).__name__}")
    target.set_state(state)
    machine.stack[-1] = target.value


def _persistent(machine: Machine) -> None:
    if machine.persistent is None:
        raise Refusal("it refers to an object outside of it")
    machine.stack.append(machine.persistent(machine.stack.pop()))


_BY_NAME: dict[str, Callable[[Machine], None]] = {
    "PROTO": _protocol,
    "FRAME": _frame,
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "BININT": _number("<i"),
    "BININT1": _number("<B"),
    "BININT2": _number("<H"),
    "BINFLOAT": _number(">d"),
    "LONG1": _sized("<B", _integer),
    "LONG4": _sized("<I", _integer),
    "SHORT_BINBYTES": _sized("<B", _itself),
    "BINBYTES": _sized("<I", _itself),
    "BINBYTES8": _sized("<Q", _itself),
    "BYTEARRAY8": _sized("<Q", _itself),
    "SHORT_BINUNICODE": _sized("<B", _text),
    "BINUNICODE": _sized("<I", _text),
    "BINUNICODE8": _sized("<Q", _text),
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": _pop_mark,
    "EMPTY_LIST": _new_list,
    "APPEND": _append,
    "APPENDS": _appends,
    "EMPTY_DICT": _new_dict,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "EMPTY_TUPLE": _constant(()),
    "TUPLE": _tuple,
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "BINPUT": _put("<B"),
    "LONG_BINPUT": _put("<I"),
    "MEMOIZE": _memoize,
    "BINGET": _get("<B"),
    "LONG_BINGET": _get("<I"),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _new_object,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
_CODE_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_ACTIONS = {code: _BY_NAME[name] for code, name in _CODE_NAMES.items() if name in _BY_NAME}
_STOP = ord(".")
