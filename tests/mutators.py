"""Inputs that are nearly right, made of others: what tests/fuzzing.py's targets are given.

Bytes flipped at random rarely get past a parser. These change what the parser makes of them: a
field of a message, a word of a text.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

_WORD = re.compile(r"\w+|\s+|.", re.DOTALL)
_SIZES = (0, 1, 2, 3, 4, 7, 8, 64, 1000, 2**24, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1)
_NUMBERS = (0.0, 1.0, -1.0, 0.5, 2.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"))
_MOST_CHANGES = 4

#: Changes bytes; None where it cannot.
Mutate = Callable[[bytes, random.Random], bytes | None]


def of_words(pool: list[bytes]) -> Mutate:
    """Leaves out, repeats, moves and changes words; others come from the pool."""
    known = sorted({word for each in pool for word in _words(each)})

    def mutate(data: bytes, chance: random.Random) -> bytes | None:
        words = _words(data)
        for _ in range(chance.randint(1, _MOST_CHANGES)):
            at, length = chance.randint(0, len(words)), chance.choice((1, 1, 1, 2, 5, 20))
            match chance.randrange(7):
                case 0:
                    del words[at : at + length]
                case 1:
                    words[at:at] = words[at : at + length]
                case 2:
                    to = chance.randint(0, len(words))
                    words[to:to] = words[at : at + length]
                case 3:
                    words[at : at + 1] = [str(chance.choice((1, -1)) * chance.choice(_SIZES))]
                case 4 if pool:
                    other = _words(chance.choice(pool))
                    begin = chance.randint(0, len(other))
                    words[at : at + length] = other[begin : begin + chance.choice((1, 5, 20))]
                case 5:
                    words[at:at] = [chance.choice(string.punctuation)]
                case _ if known:
                    words[at : at + 1] = [chance.choice(known)]
        return "".join(words).encode(errors="replace")

    return mutate


def _words(data: bytes) -> list[str]:
    return _WORD.findall(data.decode(errors="replace"))


def of_models(pool: list[bytes]) -> Mutate:
    """Changes fields of ONNX models."""
    import onnx

    from gradwire.onnx.domains import DOMAINS
    from gradwire.signatures import SIGNATURES

    operators = sorted({*SIGNATURES, *(name for each in DOMAINS.values() for name in each)})
    operators += sorted({each.name for each in onnx.defs.get_all_schemas()})
    attributes = {name for each in onnx.defs.get_all_schemas() for name in each.attributes}
    return _of_messages(
        onnx.ModelProto,
        pool,
        {"op_type": operators, "domain": ["", *DOMAINS], "AttributeProto.name": sorted(attributes)},
    )


def of_requests(pool: list[bytes]) -> Mutate:
    """Changes fields of EvaluateRequests, and of the graphs in them."""
    from gradwire.signatures import SIGNATURES
    from gradwire.v1 import graph_pb2, service_pb2

    attributes = {each.name for it in SIGNATURES.values() for each in it.attributes}
    strings = {"operator": sorted(SIGNATURES), "Attribute.name": sorted(attributes)}
    kind = service_pb2.EvaluateRequest
    requests = [message for data in pool if (message := _parsed(kind, data)) is not None]
    graphs = [message.graph.graph for message in requests]
    change_request = _of_messages(kind, pool, strings)
    change_graph = _of_messages(graph_pb2.Graph, graphs, strings)

    def mutate(data: bytes, chance: random.Random) -> bytes | None:
        if chance.random() < 0.3:
            return change_request(data, chance)
        message = _parsed(kind, data)
        graph = None if message is None else change_graph(message.graph.graph, chance)
        if graph is None:
            return None
        message.graph.graph = graph
        return message.SerializeToString()

    return mutate


def _of_messages(kind: type[Message], pool: list[bytes], strings: dict[str, list[str]]) -> Mutate:
    """Changes fields of messages of a kind; `strings` has what fields of some names may hold."""
    others = [message for data in pool if (message := _parsed(kind, data)) is not None]

    def mutate(data: bytes, chance: random.Random) -> bytes | None:
        message = _parsed(kind, data)
        if message is None:
            return None
        for _ in range(chance.randint(1, _MOST_CHANGES)):
            source = chance.choice(others) if others and chance.random() < 0.3 else message
            with suppress(UnicodeDecodeError):  # of a text that is none, which stays
                _change(chance.choice(_messages(message)), _messages(source), strings, chance)
        return message.SerializeToString()

    return mutate


def _parsed(kind: type[Message], data: bytes) -> Message | None:
    try:
        return kind.FromString(data)
    except DecodeError:
        return None


def _messages(message: Message) -> list[Message]:
    """A message and all in it."""
    found, waiting = [], [message]
    while waiting:
        each = waiting.pop()
        found.append(each)
        for field, value in each.ListFields():
            if field.message_type is not None:
                waiting.extend(value if _is_repeated(field) else [value])
    return found


def _change(
    message: Message, others: list[Message], strings: dict[str, list[str]], chance: random.Random
) -> None:
    """Changes one field; what it takes comes from fields of its kind in other messages."""
    present = [field for field, _ in message.ListFields()]
    fields = present if present and chance.random() < 0.8 else [*message.DESCRIPTOR.fields]
    if not fields:
        return
    field = chance.choice(fields)
    if chance.random() < 0.1:
        message.ClearField(field.name)
        return
    like = [*_values_like(field, others)]
    if not _is_repeated(field):
        if field.message_type is None:
            setattr(
                message,
                field.name,
                _value(field, getattr(message, field.name), like, strings, chance),
            )
        elif like:
            getattr(message, field.name).CopyFrom(_copy(chance.choice(like)))
        else:
            getattr(message, field.name).SetInParent()
        return
    items = getattr(message, field.name)
    held = [*items]
    at = chance.randrange(len(held)) if held else 0
    match chance.randrange(5):
        case 0 if held:
            del held[at]
        case 1 if held:
            held.insert(chance.randint(0, len(held)), held[at])
        case 2 if held:
            other = chance.randrange(len(held))
            held[at], held[other] = held[other], held[at]
        case _ if field.message_type is not None:
            if not like:
                items.add()
                return
            held[at : at + chance.randint(0, 1)] = [chance.choice(like)]
        case _:
            before = held[at] if held else field.default_value
            new = _value(field, before or (0 if field.cpp_type < 7 else b""), like, strings, chance)
            held[at : at + chance.randint(0, 1)] = [new]
    if field.message_type is not None:  # copied, for they lie in what is cleared
        held = [*map(_copy, held)]
    message.ClearField(field.name)
    items = getattr(message, field.name)
    items.extend(held)


def _copy(message: Message) -> Message:
    """The same apart from what holds it, which a message may be copied into."""
    return type(message).FromString(message.SerializeToString())


def _values_like(field: FieldDescriptor, messages: list[Message]) -> Iterator[Any]:
    """Values of fields of that kind and name; of any name, of messages and texts."""
    is_alike = field.message_type is not None or field.type == FieldDescriptor.TYPE_STRING
    for message in messages:
        for each, value in message.ListFields():
            is_kind = each.type == field.type and each.message_type == field.message_type
            if is_kind and (is_alike or each.name == field.name):
                yield from value if _is_repeated(each) else [value]


def _value(
    field: FieldDescriptor,
    before: Any,
    like: list[Any],
    strings: dict[str, list[str]],
    chance: random.Random,
) -> Any:
    """Another value of a field that is no message."""
    if like and chance.random() < 0.3:
        return chance.choice(like)
    kind = FieldDescriptor
    match field.cpp_type:
        case kind.CPPTYPE_BOOL:
            return not before
        case kind.CPPTYPE_ENUM:
            return chance.choice(field.enum_type.values).number
        case kind.CPPTYPE_STRING if field.type == kind.TYPE_BYTES:
            return _bytes(bytes(before or b""), chance)
        case kind.CPPTYPE_STRING:
            known = strings.get(f"{field.containing_type.name}.{field.name}")
            known = known or strings.get(field.name) or like or ["", "x", "0"]
            return chance.choice(known)
        case kind.CPPTYPE_FLOAT | kind.CPPTYPE_DOUBLE:
            return chance.choice((*_NUMBERS, -float(before or 0), chance.gauss()))
    number = chance.choice((before + 1, before - 1, -before, *_SIZES[:8], chance.choice(_SIZES)))
    if chance.random() < 0.2:
        number = -number
    bits = 32 if field.cpp_type in (kind.CPPTYPE_INT32, kind.CPPTYPE_UINT32) else 64
    if field.cpp_type in (kind.CPPTYPE_UINT32, kind.CPPTYPE_UINT64):
        return number % 2**bits
    return (number + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


def _bytes(data: bytes, chance: random.Random) -> bytes:
    """Other bytes, seldom of another length."""
    at, length = chance.randint(0, len(data)), chance.choice((1, 4, 8))
    match chance.randrange(4):
        case 0:
            return data[:at] + data[at + length :]
        case 1:
            return data[:at] + data[at : at + length] + data[at:]
        case _:
            return data[:at] + chance.randbytes(length) + data[at + length :]


def _is_repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)
