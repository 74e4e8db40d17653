# What the judge's Python and the answer's Python have in common: messages over one socket, and the values in them.
# A value crosses as one of Python's own types, so what an answer returns has no methods of the answer's.
import json, os, sys
from decimal import Decimal
from fractions import Fraction

MOST = 64 << 20  # bytes of a message


class Gone(BaseException):
    """The other side ended. No Exception, so that no test catches it."""


def send(fd, message):
    data = json.dumps(message).encode()
    data = len(data).to_bytes(8, "big") + data
    while data:
        data = data[os.write(fd, data):]


def exactly(fd, count):
    parts = []
    while count:
        try:
            part = os.read(fd, min(count, 1 << 20))
        except ConnectionError:
            part = b""
        if not part:
            raise Gone
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def receive(fd):
    count = int.from_bytes(exactly(fd, 8), "big")
    if count > MOST:
        raise ValueError("the value is too large")
    return json.loads(exactly(fd, count))


def encode(value):
    if value is None or isinstance(value, (bool, float)) or type(value) is str:
        return value if not isinstance(value, float) else float(value)
    if isinstance(value, int):
        return int(value) if -(1 << 63) <= value < 1 << 63 else ["int", hex(value)]
    if isinstance(value, str):
        return str(value)
    for name, kind in KINDS.items():
        if isinstance(value, kind):
            return [name, [encode(item) for item in value]]
    if isinstance(value, dict):
        return ["dict", [[encode(key), encode(item)] for key, item in value.items()]]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", value.hex()]
    if isinstance(value, range):
        return ["range", [value.start, value.stop, value.step]]
    if isinstance(value, (complex, Decimal, Fraction)):
        return [type(value).__name__.lower(), str(value)]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return encode(value.item())  # numpy's scalars
    if hasattr(value, "__next__"):
        return ["iterator", [encode(item) for item in value]]
    raise TypeError(f"a value of type {type(value).__name__} can not be compared")


KINDS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "keys": type({}.keys())}


def decode(value):
    if not isinstance(value, list):
        if isinstance(value, dict):
            raise ValueError("this is no value")
        return value
    kind, content = value
    if kind in KINDS:
        items = [decode(item) for item in content]
        return dict.fromkeys(items).keys() if kind == "keys" else KINDS[kind](items)
    if kind == "iterator":
        return iter([decode(item) for item in content])
    if kind == "dict":
        return {decode(key): decode(item) for key, item in content}
    if kind == "range":
        return range(*content)
    return {"int": lambda text: int(text, 16), "bytes": bytes.fromhex, "complex": complex, "decimal": Decimal,
            "fraction": Fraction}[kind](content)


def line_in(error, name):
    """The deepest line of the traceback that lies in the program of this name, as words."""
    step, line = error.__traceback__, None
    while step is not None:
        if step.tb_frame.f_code.co_filename == name:
            line = step.tb_lineno
        step = step.tb_next
    return "" if line is None else f" (line {line})"


def describe(error, name):
    try:
        text = f"{type(error).__name__}: {error}{line_in(error, name)}"
    except BaseException:
        text = type(error).__name__
    return text[:400]


def away():
    """Nothing that a program prints or reads goes anywhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
