"""The DataHub stand-in as a process that notes every stored result: `python -m benchmarks.chaos.datahub PORT FILE`.

The token is DATAHUB_GMS_TOKEN's.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import anyio

from executor.local.datahub import stand_in
from executor.local.rules import RESULT_ASPECT
from executor.local.store import REQUEST_URN_PREFIX, Record, Store, Write


class NotingStore(Store):
    """A store whose results are noted in a file as they are stored, a JSON line each."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def apply(self, writes: Sequence[Write]) -> list[Record]:
        """Store, then note. Raises RefusedError."""
        records = super().apply(writes)
        for record in records:
            if record.aspect == RESULT_ASPECT:
                note = {
                    "exec_id": record.urn.removeprefix(REQUEST_URN_PREFIX),
                    "status": record.status,
                    "version": record.version,
                    "at": time.monotonic(),
                }
                os.write(self._file, json.dumps(note).encode() + b"\n")
        return records


async def serve(port: int, file: Path) -> None:
    """Run until SIGTERM or SIGINT."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with stand_in(port, token=os.environ["DATAHUB_GMS_TOKEN"], store=NotingStore(file)):
            async for _ in signals:
                return


if __name__ == "__main__":
    anyio.run(serve, int(sys.argv[1]), Path(sys.argv[2]), backend_options={"use_uvloop": True})
