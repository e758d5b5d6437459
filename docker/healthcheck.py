"""Whether the executor in this container is live: exit code 0, or 1 and why. For Docker's HEALTHCHECK."""

import http.client
import os
import sys
import time
from pathlib import Path

PORT = "9087"
TIMEOUT = 4.0  # seconds
WORK_DIR = "/tmp/datahub"  # noqa: S108 - the executor's default
HEARTBEAT = "worker_liveness_heartbeat"  # in the work folder; touched every five seconds
HEARTBEAT_LASTS = 60.0  # seconds


def fault(port: int) -> str:
    """What is wrong with the executor that serves `port`, or has no port (0); empty if nothing is."""
    if not port:
        return _heartbeat_fault()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/health/live")
        answer = connection.getresponse()
        words = answer.read().decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"port {port} does not answer: {error}"
    finally:
        connection.close()
    return "" if answer.status == http.client.OK else f"stuck: {words}"


def _heartbeat_fault() -> str:
    file = Path(_setting("DATAHUB_EXECUTOR_WORK_DIR") or WORK_DIR, HEARTBEAT)
    try:
        age = time.time() - file.stat().st_mtime
    except OSError as error:
        return f"{file}: {error.strerror}"
    return "" if age < HEARTBEAT_LASTS else f"{file} is {age:.0f} s old"


def _setting(name: str) -> str:
    """As the executor reads it: blanks and quotes may have come along."""
    return os.environ.get(name, "").strip().strip("\"'").strip()


if __name__ == "__main__":
    found = fault(int(_setting("DATAHUB_EXECUTOR_METRICS_PORT") or PORT))
    sys.stderr.write(found and f"{found}\n")
    sys.exit(1 if found else 0)
