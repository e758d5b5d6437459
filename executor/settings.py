"""Every setting of the service, once (contract, section 1)."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from executor.queue.name import QueueName

PROOF_SHARE = 1 / 6  # of a lease
LONGEST_PROOF = 20.0  # seconds, unless the clocks of a long lease may be further apart
LEAST_PROOF_SHARE = 0.04  # of a lease: twice what two clocks may be apart (docs/guarantees.md)
BEAT_SHARE = 0.4  # of a proof period: two beats, and time for their answers

_PREFIX = "DATAHUB_EXECUTOR_"
_REQUIRED: Any = ...
_TOKEN = re.compile(r"[!-~]+")  # what a header can carry, no blanks
_WORK_DIR = "/tmp/datahub"  # noqa: S108 - the contract's default; whoever makes it sees to its mode
_LONGEST_SHOWN = 20  # characters of a faulty number; nothing of a secret's length is ever shown


def _setting(must: str, *names: str, default: Any = _REQUIRED) -> Any:  # noqa: ANN401 - as pydantic's Field
    """A setting read from the first of `names` that is set; `must` completes "it must be …"."""
    return Field(default, validation_alias=AliasChoices(*names), description=must)


def _queue_name(value: object) -> object:
    return QueueName.parse(value) if isinstance(value, str) else value


def _names_listed(value: object) -> object:
    return (
        tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value
    )


def _gms_address(text: str) -> str:
    if "://" not in text:
        if not _is_acryl_cloud(re.split(r"[:/]", text, maxsplit=1)[0]):
            raise ValueError("it has no http:// or https://")
        text = f"https://{text}"
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("it is not a valid URL") from None
    if parts.scheme not in {"http", "https"} or not host or re.search(r"\s", text):
        raise ValueError("it is not a valid http:// or https:// URL")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("it may hold no user, password, query or fragment")
    scheme = "https" if _is_acryl_cloud(host) else parts.scheme
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _is_acryl_cloud(host: str) -> bool:
    return host.lower().endswith(".acryl.io")


def _secrets(text: SecretStr | None) -> SecretStr | None:
    if text is not None:
        secrets_of(text.get_secret_value())
    return text


def secrets_of(text: str) -> dict[str, str]:
    """Names and values of a JSON object; numbers, true and false are taken as their text. Raises ValueError."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    values = found.values() if isinstance(found, dict) else [None]
    if any(isinstance(value, dict | list | None) for value in values):
        raise ValueError("it is no JSON object of texts and numbers")
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items()}


def _token(token: SecretStr | None) -> SecretStr | None:
    if token is not None and not _TOKEN.fullmatch(token.get_secret_value()):
        raise ValueError("it holds a blank or a character that a header can't carry")
    return token


_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]


class Settings(BaseSettings):
    """The effective settings, frozen. Built by `load_settings`, which says every fault at once."""

    model_config = SettingsConfigDict(frozen=True, hide_input_in_errors=True)

    gms_address: Annotated[str, AfterValidator(_gms_address)] = _setting(
        "DataHub's address, such as https://datahub.example.com", "DATAHUB_GMS_URL", "DATAHUB_BASE_URL"
    )
    gms_token: Annotated[SecretStr | None, AfterValidator(_token)] = _setting(
        "a DataHub access token, alone", "DATAHUB_GMS_TOKEN", "DATAHUB_ACCESS_TOKEN", default=None
    )
    queue: Annotated[QueueName, BeforeValidator(_queue_name)] = _setting(
        "the SQS queue's URL, ARN or name",
        "DATAHUB_EXECUTOR_QUEUE",
        "AWS_COMMAND_QUEUE_URL",
        "AWS_COMMAND_QUEUE_ARN",
    )
    environment_region: Annotated[str | None, Field(pattern=r"^[a-z0-9-]+$")] = _setting(
        "an AWS region, such as eu-central-1", "AWS_REGION", "AWS_DEFAULT_REGION", default=None
    )
    pool_id: str = _setting(
        "an executor id",
        "DATAHUB_EXECUTOR_POOL_ID",
        "EXECUTOR_ID",
        "DATAHUB_EXECUTOR_WORKER_ID",
        default="remote",
    )
    max_workers: Annotated[int, Field(ge=1)] = _setting(
        "a whole number of runs, at least 1", "DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS", default=4
    )
    signal_poll_interval: _Seconds = _setting(
        "a number of seconds above 0", "DATAHUB_EXECUTOR_INGESTION_SIGNAL_POLL_INTERVAL", default=2.0
    )
    visibility_timeout: Annotated[int, Field(ge=10, le=43200)] = _setting(
        "a whole number of seconds from 10 to 43200", "DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT", default=120
    )
    message_hold_limit: Annotated[int, Field(ge=20, le=43200)] = _setting(
        "a whole number of seconds from 20 to 43200", "DATAHUB_EXECUTOR_MESSAGE_HOLD_LIMIT", default=43200
    )
    task_timeout: _Seconds = _setting(
        "a number of seconds above 0", "DATAHUB_EXECUTOR_TASK_TIMEOUT", default=86400.0
    )
    max_attempts: Annotated[int, Field(ge=1)] = _setting(
        "a whole number of attempts, at least 1", "DATAHUB_EXECUTOR_MAX_ATTEMPTS", default=3
    )
    drain_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = _setting(
        "a number of seconds, 0 or more", "DATAHUB_EXECUTOR_DRAIN_TIMEOUT", default=100.0
    )
    work_dir: _AbsolutePath = _setting("a folder", "DATAHUB_EXECUTOR_WORK_DIR", default=Path(_WORK_DIR))
    bundled_venv_path: _AbsolutePath = _setting(
        "a folder", "DATAHUB_BUNDLED_VENV_PATH", default=Path("/opt/datahub/venvs")
    )
    dependency_resolution_enabled: bool = _setting(
        "true or false", "INGESTION_DEPENDENCY_RESOLUTION_ENABLED", default=True
    )
    file_secret_basedir: _AbsolutePath = _setting(
        "a folder", "DATAHUB_EXECUTOR_FILE_SECRET_BASEDIR", default=Path("/mnt/secrets")
    )
    file_secret_maxlen: Annotated[int, Field(ge=1)] = _setting(
        "a whole number of bytes, at least 1", "DATAHUB_EXECUTOR_FILE_SECRET_MAXLEN", default=1024 * 1024
    )
    secrets: Annotated[SecretStr | None, AfterValidator(_secrets)] = _setting(
        'secrets of recipes as a JSON object, {"NAME": "value", …}', "DATAHUB_EXECUTOR_SECRETS", default=None
    )
    warm_starts: bool = _setting("true or false", "DATAHUB_EXECUTOR_WARM_STARTS", default=True)
    warm_sources: Annotated[tuple[str, ...], BeforeValidator(_names_listed)] = _setting(
        "source types of bundled venvs, such as postgres,snowflake",
        "DATAHUB_EXECUTOR_WARM_SOURCES",
        default=(),
    )
    warm_memory: Annotated[int, Field(ge=1)] = _setting(
        "a whole number of megabytes, at least 1", "DATAHUB_EXECUTOR_WARM_MEMORY", default=1024
    )
    warm_idle_timeout: _Seconds = _setting(
        "a number of seconds above 0", "DATAHUB_EXECUTOR_WARM_IDLE_TIMEOUT", default=900.0
    )
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = _setting(
        "a port from 1 to 65535, or 0 for off", "DATAHUB_EXECUTOR_METRICS_PORT", default=9087
    )

    @property
    def proof_period(self) -> float:
        """Seconds of a lease in which the one who would take it over looks for its owner's sign of life."""
        return self.visibility_timeout - self.message_visibility

    @property
    def message_visibility(self) -> int:
        """Seconds that the queue hides a message from one extension to the next: the rest of the lease."""
        longest = max(LONGEST_PROOF, self.visibility_timeout * LEAST_PROOF_SHARE)
        return int(self.visibility_timeout - min(longest, self.visibility_timeout * PROOF_SHARE))

    @property
    def beat_interval(self) -> float:
        """Seconds between two signs of life of a run's owner: two fall into each proof period."""
        return self.proof_period * BEAT_SHARE

    @property
    def gms_url(self) -> str:
        """DataHub's base URL, no slash at its end; /api/graphql and /openapi/v3/… are right under it."""
        for suffix in ("/api/gms", "/gms"):
            if self.gms_address.endswith(suffix):
                return self.gms_address.removesuffix(suffix)
        return self.gms_address

    @property
    def aws_region(self) -> str | None:
        """The queue's own region, else the environment's; None leaves it to the AWS profile."""
        return self.queue.region or self.environment_region

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read nothing behind `load_settings`' back: the environment is its parameter."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


class SettingsError(ValueError):
    """A configuration that the service cannot start with; `faults` has one line for each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def load_settings(env: Mapping[str, str]) -> Settings:
    """Read the settings. Raises SettingsError with all faults, a line each, none showing a secret."""
    origins = (_origin(field, env) for field in Settings.model_fields)
    given = {name: _clean(env[name]) for name in origins if name is not None}
    faults = []
    settings = None
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        for details in error.errors(include_url=False, include_input=False):
            name = str(details["loc"][0])
            faults.append(_fault(name, given.get(name), details.get("ctx", {}).get("error")))
    if settings is not None and settings.message_hold_limit < settings.visibility_timeout:
        name, lease = _names("message_hold_limit")[0], _names("visibility_timeout")[0]
        faults.append(f"{name} must be at least {lease}, which is {settings.visibility_timeout}")
    faults += _region_faults(env)
    if faults or settings is None:
        raise SettingsError(faults)
    return settings


def describe(settings: Settings, env: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """The effective settings: name, value (`****` for a secret), the variable it comes from or `default`."""
    rows = []
    for field in Settings.model_fields:
        value, origin = getattr(settings, field), _origin(field, env)
        if field == "environment_region":
            value = settings.aws_region
            origin = _origin("queue", env) if settings.queue.region else origin
        rows.append((_names(field)[0], _shown(value), origin or "default"))
    return rows


def unknown_variables(env: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """Variables that look like settings and are none, each with the name that was probably meant."""
    known = {_distinct(name): name for field in Settings.model_fields for name in _names(field)}
    unknown = sorted(name for name in env if name.startswith(_PREFIX) and name not in known.values())
    if not unknown:
        return []
    import difflib  # here, as a start without typos needs none of it

    close = ((name, difflib.get_close_matches(_distinct(name), known, n=1)) for name in unknown)
    return [(name, known[matches[0]] if matches else None) for name, matches in close]


def _distinct(name: str) -> str:
    """A variable's name without its prefix, which alone would make any two names alike."""
    return name.removeprefix(_PREFIX).removeprefix("DATAHUB_")


def _names(field: str) -> list[str]:
    """The variables of a setting, the first one ours."""
    alias = Settings.model_fields[field].validation_alias
    return [str(name) for name in alias.choices] if isinstance(alias, AliasChoices) else []


def _origin(field: str, env: Mapping[str, str]) -> str | None:
    """The variable that a setting comes from: the first that is set and not empty."""
    return next((name for name in _names(field) if _clean(env.get(name, ""))), None)


def _clean(text: str) -> str:
    """Without the blanks and quotes that come along when a value is pasted."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return text


def _fault(name: str, text: str | None, reason: object) -> str:
    """One line: the variable, what it must be, and why it is not."""
    field = next(field for field in Settings.model_fields if name in _names(field))
    must = Settings.model_fields[field].description
    if text is None:
        return f"{name} is not set: it must be {must}"
    if reason is not None:
        return f"{name} must be {must}: {reason}"
    return f"{name} must be {must}" + (f", is {text!r}" if len(text) <= _LONGEST_SHOWN else "")


def _region_faults(env: Mapping[str, str]) -> list[str]:
    """SQS can't be reached without a region; a profile may bring one, which botocore finds out."""
    origin = _origin("queue", env)
    if origin is None or _origin("environment_region", env) or _may_have_profile(env):
        return []
    try:
        named = QueueName.parse(_clean(env[origin])).region
    except ValueError:  # a fault of its own already
        return []
    return [] if named else [f"AWS_REGION is not set: it must be an AWS region, as {origin} names none"]


def _may_have_profile(env: Mapping[str, str]) -> bool:
    if env.get("AWS_PROFILE") or env.get("AWS_DEFAULT_PROFILE"):
        return True
    file = env.get("AWS_CONFIG_FILE") or (f"{env['HOME']}/.aws/config" if env.get("HOME") else "")
    return bool(file) and Path(file).is_file()


def _shown(value: object) -> str:
    match value:
        case None:
            return "none"
        case SecretStr():
            return "****"
        case bool():
            return str(value).lower()
        case tuple():
            return ",".join(value) or "none"
        case float() if value.is_integer():
            return str(int(value))
        case _:
            return str(value)
