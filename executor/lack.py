"""What the system said no to, in words that name the way out where it is a lack of something. Pure."""

import errno

SPACE = "free space on the executor's disk (DATAHUB_EXECUTOR_WORK_DIR), or give it a larger one"
FILES = "give the executor a higher limit on open files (nofile), or let fewer runs go at a time"
PROCESSES = "give the executor a higher limit on processes (pids, nproc), or let fewer runs go at a time"
MEMORY = "give the task more memory, or let fewer runs go at a time"

_WAYS_OUT = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EMFILE: FILES,
    errno.ENFILE: FILES,
    errno.EAGAIN: PROCESSES,  # what fork(2) says
    errno.ENOMEM: MEMORY,
}


def reason(error: OSError, otherwise: str | None = None) -> str:
    """Why, and the way out: that of what is lacking, or `otherwise`."""
    why = error.strerror or str(error)
    way_out = _WAYS_OUT.get(error.errno or 0, otherwise)
    return f"{why}: {way_out}" if way_out else why


def behind(error: BaseException) -> str | None:
    """The lack that a failed connection goes back to, in words: libraries say only that they could not connect."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
            return reason(seen)
        seen = seen.__cause__ or seen.__context__
    return None
