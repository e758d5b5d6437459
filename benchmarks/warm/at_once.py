"""What many runs hold in memory at the same moment."""

import json
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial

from benchmarks.harness import Bench, new_id, request_body, service, until
from benchmarks.kernel import Memory, descendants
from benchmarks.warm.peer import peer
from benchmarks.warm.ways import Job, command

RUNS = 16
HANG_LIMIT = 300.0  # seconds until all runs have reached the server that does not answer


async def memory_at_once(bench: Bench) -> dict[str, int]:
    """Bytes (PSS) of so many runs that wait for a database's first word, by way; without the executor itself."""
    return {name: await _held(bench, started) for name, started in STARTED.items()}


Started = Callable[[Bench, Job], AbstractAsyncContextManager[Callable[[], Sequence[int]]]]


async def _held(bench: Bench, started: Started) -> int:
    with _silent_server() as (port, waiting):
        config = {"host_port": f"127.0.0.1:{port}", "username": "u", "password": "p", "database": "d"}
        async with started(bench, Job("postgres", config)) as processes:
            await until(lambda: waiting() == RUNS, limit=HANG_LIMIT)
            return sum(Memory.of(pid).pss for pid in processes())


@asynccontextmanager
async def _bare(bench: Bench, job: Job) -> AsyncIterator[Callable[[], Sequence[int]]]:
    recipe = json.dumps(job.recipe).encode()
    runs: list[subprocess.Popen[bytes]] = []
    try:
        runs.extend(_begun(bench, job, recipe) for _ in range(RUNS))
        yield lambda: [run.pid for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.wait()


def _begun(bench: Bench, job: Job, recipe: bytes) -> "subprocess.Popen[bytes]":
    run = subprocess.Popen(
        command(bench, job),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=bench.base_env(),
        cwd=bench.folder,
    )
    if run.stdin is not None:
        run.stdin.write(recipe)
        run.stdin.close()
    return run


@asynccontextmanager
async def _warm(bench: Bench, job: Job) -> AsyncIterator[Callable[[], Sequence[int]]]:
    async with service(bench, DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS=RUNS) as running:
        for _ in range(RUNS):
            await bench.send_recipe(running.queue, job.recipe)
        # The process that they come from, and the runs, which have its command line.
        yield lambda: [pid for pid, line in running.children().items() if "warm_parent" in line]


@asynccontextmanager
async def _peer(bench: Bench, job: Job) -> AsyncIterator[Callable[[], Sequence[int]]]:
    async with peer(bench) as theirs:
        for _ in range(RUNS):
            await theirs.hand_over(request_body(new_id(), job.recipe))
        yield partial(descendants, theirs.pid)


STARTED = {"bare": _bare, "warm": _warm, "peer": _peer}


@contextmanager
def _silent_server() -> Iterator[tuple[int, Callable[[], int]]]:
    """A port that takes connections and says nothing, and how many it has taken."""
    with socket.create_server(("127.0.0.1", 0), backlog=RUNS) as server:
        server.setblocking(False)
        taken: list[socket.socket] = []
        try:
            yield server.getsockname()[1], partial(_accept, server, taken)
        finally:
            for connection in taken:
                connection.close()


def _accept(server: socket.socket, taken: list[socket.socket]) -> int:
    try:
        while True:
            taken.append(server.accept()[0])
    except BlockingIOError:
        return len(taken)
