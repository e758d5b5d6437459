"""What a run finds in its environment, and what of it nobody may read in a log. Pure."""

import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

# Names that hold a secret by all custom; what is found under them is masked wherever it shows.
_SENSITIVE = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|PRIVATE|(?:API|ACCESS|ENCRYPTION|SIGNING)_?KEY|_(?:PAT|PASS|PWD)$",
    re.IGNORECASE,
)
# ... unless the name goes on to say that it only leads to the secret, or names its owner.
_HARMLESS = re.compile(r"(?:_ID|_FILE|_PATH|_ARN|_NAME)$", re.IGNORECASE)
_PLAIN_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^@]*", re.IGNORECASE)  # without user and password
_MIN_SECRET = 6  # characters; a shorter value of a variable is a word such as `test`, found everywhere
# The scratch folder goes with the run; the other one would give the venv's Python our standard library.
_NOT_INHERITED = ("TMPDIR", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")
_CREDENTIALS = re.compile(r"://[^/\s]*@")
_OF_ONE_RUN = ("TMPDIR", "INGESTION_ARTIFACT_DIR")
# What Python and the libraries below it read before a line of the CLI is run, so that nobody sees them do it; and
# what the CLI itself is known to read when it is imported.
_READ_AT_START = re.compile(
    r"(?:LD_|LC_|LANG|PYTHON|MALLOC_|GLIBC_|GCONV_|OPENSSL_|SSL_CERT_|GNUTLS_|LDAP|OMP_|KMP_|OPENBLAS_|MKL_|GOTO_"
    r"|GRPC_|RUST|TOKIO_|RAYON_|ARROW_|JE_|ORACLE_|NLS_|ODBC|TNS_|KRB5|JAVA_|JVM_)|(?:TZ|HOME|PATH|USER|LOGNAME|TERM|VIRTUAL_ENV)$"
    r"|DATAHUB_(?:DEBUG|TELEMETRY_ENABLED)$"
)
_SETTINGS_OF_THE_EXECUTOR = ("EXECUTOR_TASK_MEMORY_LIMIT", "EXECUTOR_TASK_WEIGHT")


def sensitive_values(env: Mapping[str, str]) -> list[str]:
    """The values of variables whose name says that they are secret, if they are long enough to be."""
    return [value for name, value in env.items() if len(value) >= _MIN_SECRET and _is_secret(name, value)]


def _is_secret(name: str, value: str) -> bool:
    if not _SENSITIVE.search(name) or _HARMLESS.search(name):
        return False
    return not (name.upper().endswith("_URL") and _PLAIN_URL.fullmatch(value))


def run_environment(
    base: Mapping[str, str],
    extra: Mapping[str, str],
    *,
    venv: Path,
    gms_address: str,
    gms_token: str | None,
    artifacts: Path,
    scratch: Path,
    debug: bool,
) -> dict[str, str]:
    """The variables of a run: the executor's own, those that the request adds, then ours (contract, section 5)."""
    env = {name: value for name, value in base.items() if name not in _NOT_INHERITED}
    env["DATAHUB_GMS_URL"] = gms_address
    if gms_token is not None:
        env["DATAHUB_GMS_TOKEN"] = gms_token
    env.update({name: value for name, value in extra.items() if name not in _SETTINGS_OF_THE_EXECUTOR})
    env.setdefault("TMPDIR", str(scratch))
    return env | {
        "PATH": f"{venv / 'bin'}:{env.get('PATH', '/usr/local/bin:/usr/bin:/bin')}",
        "VIRTUAL_ENV": str(venv),
        "INGESTION_ARTIFACT_DIR": str(artifacts),
        "DATAHUB_DEBUG": "true" if debug else "false",
        "DATAHUB_ENABLE_SECRET_MASKING": "true",
        "PYTHONUNBUFFERED": "1",  # the page shows the log as it grows
    }


def shared_environment(env: Mapping[str, str], looked_at: Container[str]) -> dict[str, str]:
    """What of the environment of all runs is given to what they are forked from: what counts, and no secret.

    `looked_at` are variables that were seen to count.
    """
    everything = _loads_anything(env)
    return {
        name: value
        for name, value in env.items()
        if (everything or name in looked_at or _READ_AT_START.match(name)) and _is_shared(name, value)
    }


def difference(env: Mapping[str, str], given: Mapping[str, str], looked_at: Iterable[str]) -> str | None:
    """The first variable by which a start with `env` would not be the one that was `given` others."""
    everything = _loads_anything(env)
    names = {
        name
        for name, value in {**given, **env}.items()
        if _READ_AT_START.match(name) or (everything and _is_shared(name, value))
    }
    return next((name for name in sorted(names.union(looked_at)) if env.get(name) != given.get(name)), None)


def _is_shared(name: str, value: str) -> bool:
    """Whether it is no run's own, and no secret."""
    return not (name in _OF_ONE_RUN or _is_secret(name, value) or _CREDENTIALS.search(value))


def _loads_anything(env: Mapping[str, str]) -> bool:
    """Whether libraries come first that nobody knows: any variable may count for them."""
    return any(name in env for name in ("LD_PRELOAD", "LD_AUDIT"))
