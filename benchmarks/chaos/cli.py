"""The program that runs in place of the CLI, and swears to what it saw.

It holds a lock on a file of its request from its begin to its end; a daemon of its own (two forks, a session of its
own) holds the same lock for as long as it lives. Who can't get the lock notes that two are at work on the request.
Times are CLOCK_MONOTONIC's, one for the whole machine.
"""

import sys
from pathlib import Path

PLUGIN = "chaos"
MARKER = "CHAOS_EXECUTOR"  # the variable by which everything that an executor started is known
DAEMON_LIFE = 120.0  # seconds, should nobody end it

_PROGRAM = """#!{python} -SE
import fcntl, json, os, signal, sys, time

def note(what):
    whose, now = os.environ[{marker!r}], time.monotonic()
    line = {{"what": what, "exec_id": exec_id, "executor": whose, "pid": pid, "at": now}}
    os.write(notes, json.dumps(line).encode() + b"\\n")

def stopped(*_):
    note("stopped")
    os._exit(143)

recipe = json.loads(json.loads(sys.stdin.read())["__recipe_yaml__"])
exec_id, config, pid = recipe["run_id"], recipe["source"]["config"], os.getpid()
notes = os.open({notes!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
lock = os.open(os.path.join({locks!r}, exec_id), os.O_RDWR | os.O_CREAT)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    note("twice")
note("began")
if config["daemon"] and os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nothing, descriptor)
        time.sleep({daemon_life})
    os._exit(0)
signal.signal(signal.SIGTERM, stopped)
ends = time.monotonic() + config["seconds"]
while (left := ends - time.monotonic()) > 0:
    print(f"{{left:.1f}} s to go", flush=True)
    time.sleep(min(left, 1))
with open(sys.argv[sys.argv.index("--report-to") + 1], "w") as report:
    json.dump({{"source": {{"report": {{"events_produced": 1}}}}}}, report)
note("ended")
"""


def make_cli(venvs: Path, notes: Path, locks: Path) -> None:
    """Make the bundled venv of the source type PLUGIN; `notes` is its file, `locks` its folder."""
    venv = venvs / f"{PLUGIN}-bundled"
    packages = venv / "lib" / "python3.11" / "site-packages" / "acryl_datahub-1.7.0.17.dist-info"
    packages.mkdir(parents=True)
    (venv / "bin").mkdir()
    (venv / "bin" / "python").symlink_to(sys.executable)
    command = venv / "bin" / "datahub"
    command.write_text(
        _PROGRAM.format(
            python=sys.executable, marker=MARKER, notes=str(notes), locks=str(locks), daemon_life=DAEMON_LIFE
        )
    )
    command.chmod(0o755)
