# Runs the answer's code and calls its function for the judge. Standard input: a socket to the judge. Whatever happens here,
# the judge sees only values.
os.closerange(3, 65536)
judge = os.dup(0)
away()
sys.argv = ["answer"]

# Only words: what an answer has no business with is named in the reason why it failed. The walls stand outside.
REFUSED = ("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "os.kill",
           "os.killpg", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown",
           "os.truncate", "os.putenv", "os.utime", "shutil.", "subprocess.", "pty.", "socket.", "ctypes.", "signal.",
           "resource.", "syslog.", "ftplib.", "urllib.", "http.", "smtplib.", "webbrowser.", "tempfile.")


def watch(event, arguments):
    writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    if writes or event.startswith(REFUSED):
        raise PermissionError("not allowed here: " + event)


def failure(error):
    try:
        text = str(error)[:400]
    except BaseException:
        text = ""
    return {"error": [type(error).__name__, text, describe(error, "answer.py")]}


message = receive(judge)
sys.addaudithook(watch)
scope = {"__name__": "answer"}
try:
    exec(compile(message["program"], "answer.py", "exec"), scope)
    if message["entry"] not in scope:
        raise NameError(f"the answer defines no {message['entry']}")
    send(judge, {"value": None})
except BaseException as error:
    send(judge, failure(error))
while True:
    call = receive(judge)
    try:
        value = encode(scope[message["entry"]](*decode(call["arguments"]), **decode(call["named"])))
        send(judge, {"value": value})
    except BaseException as error:
        send(judge, failure(error))
