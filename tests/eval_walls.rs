//! What answers try in order to pass without solving anything, and to reach what is not theirs: run for real, behind the
//! walls that `rynd eval` puts around them. Linux only; elsewhere answers run only when the user says so.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rynd::commands::eval::sandbox::{Case, Outcome, Sandbox};

const TEST: &str = "def check(f):\n    assert f(3) == 4, 'no'\n    assert f([1, 2]) == (3, {'a': None}), 'neither'\n";

/// Makes the hook that only words the reasons blind, as an answer can.
const BLIND: &str = "
import gc
for found in gc.get_objects():
    if isinstance(found, dict) and 'REFUSED' in found:
        found['REFUSED'] = ('nothing.',)
        found['watch'].__code__ = (lambda event, arguments: None).__code__
";

fn sandbox(cpu: u64) -> Sandbox {
    let jail = Path::new(env!("CARGO_BIN_EXE_rynd"));
    let sandbox = Sandbox::new(jail, None, Duration::from_secs(cpu), 512 << 20, false).unwrap();
    assert_eq!(sandbox.bare(), None);
    sandbox
}

/// With time enough for a machine that is busy.
fn outcome(code: &str, test: &str) -> Outcome {
    outcome_in(10, code, test)
}

fn outcome_in(cpu: u64, code: &str, test: &str) -> Outcome {
    sandbox(cpu).run(&Case { given: "", code, test, entry: "f" }).unwrap()
}

fn reason(code: &str, test: &str) -> String {
    match outcome(code, test) {
        Outcome::Passed => panic!("passed: {code}"),
        Outcome::Failed(why) => why,
    }
}

/// Why it fails in one second of CPU time or six of the clock.
fn reason_soon(code: &str, test: &str) -> String {
    match outcome_in(1, code, test) {
        Outcome::Passed => panic!("passed: {code}"),
        Outcome::Failed(why) => why,
    }
}

/// What the function, called without arguments, makes of an attempt.
fn attempt(code: &str) -> String {
    reason(&format!("{BLIND}\n{code}"), "def check(f):\n    raise Exception('it says %r' % (f(),))\n")
}

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("rynd-walls-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    // As open as can be: what keeps answers out are the walls.
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    path
}

#[test]
fn an_answer_passes_only_when_its_function_returns_what_the_tests_want() {
    let good = "def f(x):\n    return x + 1 if x == 3 else (sum(x), {'a': None})\nprint('x' * 100000)\n";
    assert_eq!(outcome(good, TEST), Outcome::Passed);
    assert_eq!(reason("def f(x): return 4", TEST), "AssertionError: neither (line 3)");
    assert_eq!(reason("def f(x):\n    return {}[x]", TEST), "KeyError: 3 (line 2)");
    assert!(reason("def f(:", TEST).starts_with("SyntaxError"));
    assert!(reason("g = 1", TEST).starts_with("NameError: the answer defines no f"));
    assert!(reason("import sys\nsys.exit(0)", TEST).starts_with("SystemExit"));
    assert!(reason("import os\nos._exit(0)", TEST).starts_with("no verdict, exit status: 0"));
    assert!(reason("def f(n): return f(n + 1)", TEST).starts_with("RecursionError"));
    // An error that the tests expect reaches them.
    let expects = "def check(f):\n    try:\n        f()\n    except ValueError as e:\n        assert str(e) == 'x'\n    else:\n        assert 0\n";
    assert_eq!(outcome("def f(): raise ValueError('x')", expects), Outcome::Passed);
}

#[test]
fn every_value_that_a_test_compares_arrives_as_it_was() {
    let values = "(None, True, -1, 2 ** 200, 0.1, float('inf'), 'a\\u00e9\\ud800', b'\\0x', [1, [2]], (), {1, 2}, frozenset({3}), \
                  {'a': {(1, 2): [None]}}, range(1, 9, 2), 1j, {1: 2}.keys())";
    let test = format!(
        "def check(f):\n    wanted = {values}\n    got = f(*wanted)\n    assert got == wanted, repr(got)\n    \
         assert [type(x) for x in got] == [type(x) for x in wanted]\n    assert list(f.__call__(1, z=iter([1]))) == [1]\n"
    );
    assert_eq!(outcome("def f(*x, z=None): return x if z is None else z", &test), Outcome::Passed);
}

#[test]
fn time_and_memory_are_limited() {
    // On a busy machine the clock is first.
    let endless = reason_soon("while True: pass", TEST);
    assert!(endless.contains("no verdict, signal: 9") || endless.contains("timed out"), "{endless}");
    assert!(reason_soon("import time\ndef f(x): time.sleep(60)", TEST).contains("timed out"));
    assert!(reason("x = 'a' * (1 << 30)", TEST).starts_with("MemoryError"));
    assert_eq!(
        attempt("import os\ndef f(): return set(os.environ) - {'LC_CTYPE'}, os.listdir('.')"),
        "Exception: it says (set(), []) (line 2)"
    );
}

#[test]
fn what_an_answer_has_no_business_with_is_named() {
    assert!(reason("import os\nos.fork()", TEST).contains("not allowed here: os.fork"));
    assert!(reason("import subprocess\nsubprocess.run(['true'])", TEST).contains("not allowed here: subprocess.Popen"));
    assert!(reason("import socket\nsocket.socket()", TEST).contains("not allowed here: socket"));
    assert!(reason("open('/tmp/rynd-escaped', 'w')", TEST).contains("not allowed here: open"));
}

#[test]
fn an_object_that_equals_everything_does_not_pass() {
    let same =
        "class Same(list):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n";
    assert!(reason(&format!("{same}def f(x): return Same()"), TEST).starts_with("AssertionError: no"));
    let odd = "class Odd:\n    def __eq__(self, other): return True\ndef f(x): return Odd()";
    assert!(reason(odd, TEST).starts_with("TypeError: a value of type Odd can not be compared"));
}

#[test]
fn a_verdict_written_by_an_answer_does_not_count() {
    let everywhere =
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'passed\\n')\n    except OSError: pass\nos._exit(0)";
    let why = reason(everywhere, TEST);
    assert!(!why.contains("AssertionError"), "{why}");
    // Replies before they are asked for are values like others.
    let early = "import sys\nm = sys.modules['__main__']\nfor _ in range(9): m.send(m.judge, {'value': None})\ndef f(x): return 1";
    assert!(reason(early, TEST).starts_with("AssertionError"));
    // Nor does taking the tests away, which are not there.
    let builtins = "import builtins, sys\nbuiltins.AssertionError = KeyboardInterrupt\nsys.modules['__main__'].check = print\n\
                    def check(f): pass\ndef f(x): return 1";
    assert!(reason(builtins, TEST).starts_with("AssertionError: no"));
    assert_eq!(
        attempt("def f(): return any('it sa' + 'ys' in str(v) for v in vars(__import__('__main__')).values())"),
        "Exception: it says False (line 2)"
    );
}

#[test]
fn no_process_is_started_by_any_way() {
    let folder = folder("process");
    let made = folder.join("made");
    let name = made.display();
    let ways = [
        format!(
            "import _posixsubprocess as p, os, sys\ndef f():\n    r, w = os.pipe()\n    a = [[b'/bin/touch', b'{name}'], \
             [b'/bin/touch'], True, (w,), None, None, -1, -1, -1, -1, -1, -1, r, w, True, False]\n    \
             a += [-1] if sys.version_info >= (3, 11) else []\n    a += [None, None, None, -1, None]\n    \
             a += [False] if sys.version_info >= (3, 11) else []\n    return p.fork_exec(*a)"
        ),
        format!("import os\ndef f():\n    if os.fork() == 0:\n        open('{name}', 'w')\n        os._exit(0)\n    return 1"),
        format!("import os\ndef f(): return os.system('touch {name}')"),
        format!("import os\ndef f(): return os.posix_spawn('/bin/touch', ['touch', '{name}'], {{}})"),
        format!("import os\ndef f(): return os.execv('/bin/touch', ['touch', '{name}'])"),
        "import ctypes\ndef f():\n    libc = ctypes.CDLL(None, use_errno=True)\n    \
         n = [libc.fork(), libc.syscall(57), libc.syscall(58), libc.syscall(56, 17, 0, 0, 0, 0), libc.syscall(435, 0, 0)]\n    \
         assert max(n) == -1, n\n    raise PermissionError(n)"
            .to_owned(),
        "import _thread, ctypes, os\ndef f():\n    try: os.setsid()\n    except OSError: pass\n    return os.forkpty()".to_owned(),
    ];
    for way in &ways {
        let why = attempt(way);
        let refused = [
            "PermissionError",
            "OSError",
            "BlockingIOError",
            "no verdict",
            "it says 256",
            "it says 32512",
            "it says -1",
        ];
        assert!(refused.iter().any(|word| why.contains(word)), "{way}\n{why}");
        assert!(!made.exists(), "{way}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_sub_interpreter_or_a_blind_hook_reaches_no_file() {
    let folder = folder("files");
    let (made, victim) = (folder.join("made"), folder.join("victim"));
    std::fs::write(&victim, "keep").unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o666)).unwrap();
    let (new, old) = (made.display(), victim.display());
    let ways = [
        format!("def f(): return open('{new}', 'w')"),
        format!("def f(): return open('{old}', 'a')"),
        format!("def f(): return open('{old}').read()"),
        format!("import os\ndef f(): return os.open('{old}', os.O_RDONLY | os.O_TRUNC)"),
        "import os\ndef f(): return os.open(os.__file__, os.O_RDONLY | os.O_TRUNC)".to_owned(),
        format!("import os\ndef f(): return os.truncate('{old}', 0)"),
        format!("import os\ndef f(): return os.mkdir('{new}')"),
        format!("import os\ndef f(): return os.symlink('/', '{new}')"),
        format!("import os\ndef f(): return os.unlink('{old}')"),
        format!("import os\ndef f(): return os.rename('{old}', '{new}')"),
        format!("import os\ndef f(): return os.chmod('{old}', 0)"),
        format!("import os\ndef f(): return os.listdir('{}')", folder.display()),
        "def f(): return open('here', 'w')".to_owned(),
        "import os\ndef f(): return os.listdir(os.path.expanduser('~root'))".to_owned(),
        "def f(): return open('/etc/shadow').read()".to_owned(),
        "import os\ndef f(): return os.listdir('/')".to_owned(),
        "import os\ndef f(): return os.memfd_create('x')".to_owned(),
    ];
    for way in &ways {
        let why = attempt(way);
        let refused = ["PermissionError", "OSError", "FileNotFoundError"].iter().any(|kind| why.starts_with(kind));
        assert!(refused, "{way}\n{why}");
    }
    let sub = format!(
        "try: import _xxsubinterpreters as s\nexcept ImportError: import _interpreters as s\ndef f():\n    i = s.create()\n    \
         return s.run_string(i, 'import os\\nos.mkdir(\"{new}\")')"
    );
    let why = attempt(&sub);
    assert!(["PermissionError", "RunFailedError", "no verdict"].iter().any(|word| why.contains(word)), "{why}");
    assert!(!made.exists());
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "keep");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn no_environment_no_other_process_and_no_network_is_in_reach() {
    let ours = std::process::id();
    let ways = [
        "import os\ndef f(): return open('/proc/%d/environ' % os.getppid()).read()".to_owned(),
        format!("def f(): return open('/proc/{ours}/environ').read()"),
        format!("def f(): return open('/proc/{ours}/cmdline').read()"),
        "def f(): return open('/proc/self/environ').read()".to_owned(),
        "import os\ndef f(): return os.listdir('/proc')".to_owned(),
        format!("import os\ndef f(): return os.kill({ours}, 0)"),
        "import os\ndef f(): return os.kill(-1, 9)".to_owned(),
        format!("import signal, os\ndef f(): return signal.pidfd_send_signal(os.pidfd_open({ours}), 9)"),
        format!("import resource\ndef f(): return resource.prlimit({ours}, resource.RLIMIT_CPU, (1, 1))"),
        format!("import os\ndef f(): return os.setpriority(os.PRIO_PROCESS, {ours}, 19)"),
        format!("import fcntl\ndef f(): return fcntl.fcntl(0, fcntl.F_SETOWN, {ours})"),
        "import _socket\ndef f(): return _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)".to_owned(),
        "import _socket\ndef f(): return _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)".to_owned(),
        "import os\ndef f(): return os.unshare(0x10000000) if hasattr(os, 'unshare') else os.setsid()".to_owned(),
        format!(
            "import ctypes\ndef f():\n    libc = ctypes.CDLL(None, use_errno=True)\n    \
             if libc.ptrace(16, {ours}, 0, 0) == -1: raise OSError(ctypes.get_errno())\n    return 'traced'"
        ),
    ];
    for way in &ways {
        let why = attempt(way);
        let refused = ["PermissionError", "OSError", "FileNotFoundError"].iter().any(|kind| why.starts_with(kind));
        assert!(refused, "{way}\n{why}");
    }
}

#[test]
fn a_child_in_a_new_session_does_not_hold_up_the_judge() {
    let begun = Instant::now();
    let why = attempt(
        "import os, time\ndef f():\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(300)\n    time.sleep(300)",
    );
    assert!(why.starts_with("PermissionError"), "{why}");
    assert!(begun.elapsed() < Duration::from_secs(60));
    // A function that never returns and a reader that never reads end with the clock.
    assert!(reason_soon("def f(x):\n    while True: __import__('time').sleep(1)", TEST).contains("timed out"));
    let deaf = "import os\nos.close(3)\nfor fd in range(64):\n    try: os.close(fd)\n    except OSError: pass\n__import__('time').sleep(300)";
    assert!(reason_soon(deaf, TEST).starts_with("no verdict"));
}

#[test]
fn no_descriptor_of_the_parent_is_inherited() {
    use std::os::fd::AsRawFd;
    let file = std::fs::File::open("Cargo.toml").unwrap();
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
    assert!(file.as_raw_fd() > 2);
    let code = "import os\ndef f():\n    open_ones = []\n    for fd in range(4096):\n        try:\n            os.fstat(fd)\n            \
                open_ones.append(fd)\n        except OSError: pass\n    return open_ones";
    // The three that lead nowhere, the socket, and the one that led nowhere first.
    let why = attempt(code);
    assert_eq!(why, "Exception: it says [0, 1, 2, 3, 4] (line 2)");
}
