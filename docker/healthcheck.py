"""Whether the executor in this container is live: exit code 0, or 1 and why. For Docker's HEALTHCHECK."""

import http.client
import os
import sys
import time
from pathlib import Path

PORT = "9087"
TIMEOUT = 4.0  # seconds
HEARTBEAT = Path("/tmp/worker_liveness_heartbeat")  # noqa: S108 - the executor touches it every five seconds
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
    try:
        age = time.time() - HEARTBEAT.stat().st_mtime
    except OSError as error:
        return f"{HEARTBEAT}: {error.strerror}"
    return "" if age < HEARTBEAT_LASTS else f"{HEARTBEAT} is {age:.0f} s old"


if __name__ == "__main__":
    found = fault(int(os.environ.get("DATAHUB_EXECUTOR_METRICS_PORT") or PORT))
    sys.stderr.write(found and f"{found}\n")
    sys.exit(1 if found else 0)
