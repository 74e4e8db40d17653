# Runs the tests. Standard input: the case, as JSON. Standard output: a socket to the answer's process. Standard error: one
# line, the case's nonce and the verdict. The answer's code never runs here; its function is called over the socket.
import builtins

os.closerange(3, 65536)
case = json.loads(sys.stdin.buffer.read())
peer, verdict = os.dup(1), os.dup(2)
away()
try:
    # Where no wall stands, at least no process of the same user reads the nonce here.
    import ctypes
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
except Exception:
    pass


class Failed(Exception):
    """An error of the answer's that is none of Python's own."""


def reply():
    message = receive(peer)
    if "error" not in message:
        return decode(message.get("value"))
    name, text, description = (str(part) for part in message["error"])
    kind = getattr(builtins, name, None)
    try:
        error = kind(text) if isinstance(kind, type) and issubclass(kind, Exception) else Failed(text)
    except Exception:
        error = Failed(text)
    error.description = description
    raise error


def candidate(*arguments, **named):
    send(peer, {"arguments": encode(arguments), "named": encode(named)})
    return reply()


try:
    send(peer, {"program": case["given"] + case["code"], "entry": case["entry"]})
    reply()
    scope = {"__name__": "tests"}
    exec(compile(case["given"], "given.py", "exec"), scope)
    scope[case["entry"]] = candidate
    exec(compile(case["test"], "tests.py", "exec"), scope)
    scope["check"](candidate)
    text = "passed"
except Gone:
    text = "gone"
except BrokenPipeError:
    text = "gone"
except BaseException as error:
    text = "failed " + (getattr(error, "description", None) or describe(error, "tests.py"))
line = (case["nonce"] + " " + text.replace("\n", " ")).encode(errors="replace")
os.write(verdict, line[:1000] + b"\n")
os._exit(0)
