# Runs the program on standard input under limits and writes one line, "passed" or why not, to standard output.
# Arguments: CPU seconds, bytes of memory. The program's own output goes nowhere.
import os, resource, sys

seconds, memory = int(sys.argv[1]), int(sys.argv[2])
program = sys.stdin.buffer.read().decode()
verdict = os.dup(1)
nowhere = os.open(os.devnull, os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(nowhere, stream)
sys.argv = ["answer"]

limits = {"CPU": seconds, "AS": memory, "DATA": memory, "FSIZE": 0, "CORE": 0, "NOFILE": 64, "NPROC": 0}
for name, most in limits.items():
    kind = getattr(resource, "RLIMIT_" + name, None)
    if kind is None:
        continue
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    try:
        resource.setrlimit(kind, (most, most))
    except (OSError, ValueError):
        pass  # Not every system knows every limit; the caller's clock stands above them all.

# Limits on processes do not bind root, so what an answer has no business with is refused by name as well.
REFUSED = ("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "os.kill",
           "os.killpg", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown",
           "os.truncate", "os.putenv", "os.utime", "shutil.", "subprocess.", "pty.", "socket.", "ctypes.", "signal.",
           "resource.", "syslog.", "ftplib.", "urllib.", "http.", "smtplib.", "webbrowser.", "tempfile.")


def watch(event, arguments):
    writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event.startswith(REFUSED):
        raise PermissionError("not allowed here: " + event)


sys.addaudithook(watch)
try:
    exec(compile(program, "answer.py", "exec"), {"__name__": "answer"})
    text = "passed"
except BaseException as error:
    line = error.__traceback__
    while line is not None and line.tb_next is not None:
        line = line.tb_next
    where = f" (line {line.tb_lineno})" if line is not None and line.tb_frame.f_code.co_filename == "answer.py" else ""
    try:
        text = f"{type(error).__name__}: {error}{where}"
    except BaseException:
        text = type(error).__name__
os.write(verdict, text.encode(errors="replace")[:400])
os._exit(0)
