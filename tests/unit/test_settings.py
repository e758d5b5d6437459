import io
import re
from pathlib import Path

import pytest

from executor.commands.settings import run
from executor.queue.name import QueueName
from executor.settings import (
    Settings,
    SettingsError,
    describe,
    load_settings,
    secrets_of,
    unknown_variables,
)

URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/datahub"
MINIMAL = {"DATAHUB_GMS_URL": "http://gms:8080", "DATAHUB_EXECUTOR_QUEUE": URL}
TOKEN = "eyJhbGciOiJIUzI1NiJ9.s3cret"


def load(**changes: str) -> Settings:
    return load_settings(MINIMAL | changes)


def faults(env: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(env)
    assert str(caught.value).splitlines() == caught.value.faults
    return caught.value.faults


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# --- defaults and names: the contract's section 1 ---


def test_two_settings_are_enough_and_the_others_have_the_contracts_defaults() -> None:
    settings = load()

    assert settings.gms_url == "http://gms:8080"
    assert settings.gms_token is None
    assert settings.queue == QueueName("datahub", url=URL, account="123456789012", region="eu-west-1")
    assert settings.pool_id == "remote"
    assert settings.max_workers == 4
    assert settings.signal_poll_interval == 2
    assert settings.visibility_timeout == 120
    assert settings.task_timeout == 86400
    assert settings.max_attempts == 3
    assert settings.drain_timeout == 100
    assert settings.work_dir == Path("/tmp/datahub")
    assert settings.bundled_venv_path == Path("/opt/datahub/venvs")
    assert settings.dependency_resolution_enabled is True
    assert settings.file_secret_basedir == Path("/mnt/secrets")
    assert settings.file_secret_maxlen == 1024 * 1024
    assert settings.warm_starts is True
    assert settings.warm_sources == ()
    assert settings.warm_memory == 1024
    assert settings.warm_idle_timeout == 900
    assert settings.metrics_port == 9087


def test_every_setting_is_read_from_its_own_variable() -> None:
    settings = load(
        DATAHUB_GMS_TOKEN=TOKEN,
        DATAHUB_EXECUTOR_POOL_ID="private",
        DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS="32",
        DATAHUB_EXECUTOR_INGESTION_SIGNAL_POLL_INTERVAL="0.5",
        DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT="43200",
        DATAHUB_EXECUTOR_MESSAGE_HOLD_LIMIT="43200",
        DATAHUB_EXECUTOR_TASK_TIMEOUT="60",
        DATAHUB_EXECUTOR_MAX_ATTEMPTS="1",
        DATAHUB_EXECUTOR_DRAIN_TIMEOUT="0",
        DATAHUB_EXECUTOR_WORK_DIR="/data/runs",
        DATAHUB_BUNDLED_VENV_PATH="/venvs",
        INGESTION_DEPENDENCY_RESOLUTION_ENABLED="False",
        DATAHUB_EXECUTOR_FILE_SECRET_BASEDIR="/secrets",
        DATAHUB_EXECUTOR_FILE_SECRET_MAXLEN="100",
        DATAHUB_EXECUTOR_WARM_STARTS="false",
        DATAHUB_EXECUTOR_WARM_SOURCES="postgres, snowflake,",
        DATAHUB_EXECUTOR_WARM_MEMORY="2048",
        DATAHUB_EXECUTOR_WARM_IDLE_TIMEOUT="60",
        DATAHUB_EXECUTOR_METRICS_PORT="0",
    )

    assert settings.gms_token is not None
    assert settings.gms_token.get_secret_value() == TOKEN
    assert settings.pool_id == "private"
    assert settings.max_workers == 32
    assert settings.signal_poll_interval == 0.5
    assert settings.visibility_timeout == 43200
    assert settings.message_hold_limit == 43200
    assert settings.task_timeout == 60
    assert settings.max_attempts == 1
    assert settings.drain_timeout == 0
    assert settings.work_dir == Path("/data/runs")
    assert settings.bundled_venv_path == Path("/venvs")
    assert settings.dependency_resolution_enabled is False
    assert settings.file_secret_basedir == Path("/secrets")
    assert settings.file_secret_maxlen == 100
    assert settings.warm_starts is False
    assert settings.warm_sources == ("postgres", "snowflake")
    assert settings.warm_memory == 2048
    assert settings.warm_idle_timeout == 60
    assert settings.metrics_port == 0


def test_a_message_is_hidden_for_a_whole_lease_at_least() -> None:
    with pytest.raises(SettingsError) as raised:
        load(DATAHUB_EXECUTOR_MESSAGE_HOLD_LIMIT="60")
    assert raised.value.faults == [
        "DATAHUB_EXECUTOR_MESSAGE_HOLD_LIMIT must be at least DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT, which is 120"
    ]


@pytest.mark.parametrize(
    ("lease", "hidden"), [(10, 8), (12, 10), (60, 50), (120, 100), (500, 480), (600, 576), (43200, 41472)]
)
def test_a_lease_is_a_hidden_message_and_a_time_to_look_for_the_owner(lease: int, hidden: int) -> None:
    settings = load(DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT=str(lease))
    assert settings.message_visibility == hidden
    assert settings.message_visibility + settings.proof_period == lease
    assert 2 * settings.beat_interval < settings.proof_period


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("DATAHUB_GMS_URL", ["DATAHUB_BASE_URL"]),
        ("DATAHUB_GMS_TOKEN", ["DATAHUB_ACCESS_TOKEN"]),
        ("DATAHUB_EXECUTOR_QUEUE", ["AWS_COMMAND_QUEUE_URL", "AWS_COMMAND_QUEUE_ARN"]),
        ("DATAHUB_EXECUTOR_POOL_ID", ["EXECUTOR_ID", "DATAHUB_EXECUTOR_WORKER_ID"]),
    ],
)
def test_an_older_name_is_read_and_our_own_wins(field: str, names: list[str]) -> None:
    value = {
        "DATAHUB_GMS_URL": "http://old:1",
        "DATAHUB_EXECUTOR_QUEUE": "https://sqs.eu-west-1.amazonaws.com/123456789012/old",
    }
    for name in names:
        others = {key: text for key, text in MINIMAL.items() if key != field}
        env = others | {name: value.get(field, "old")}
        settings = load_settings(env)
        assert {row[0]: row[2] for row in describe(settings, env)}[field] == name

        env |= {field: MINIMAL.get(field, "new")}
        settings = load_settings(env)
        assert {row[0]: row[2] for row in describe(settings, env)}[field] == field


def test_an_empty_variable_counts_as_not_set() -> None:
    settings = load(
        DATAHUB_EXECUTOR_POOL_ID="",
        EXECUTOR_ID="older",
        DATAHUB_GMS_TOKEN=" ",
        DATAHUB_EXECUTOR_METRICS_PORT='""',
    )

    assert settings.pool_id == "older"
    assert settings.gms_token is None
    assert settings.warm_starts is True
    assert settings.warm_sources == ()
    assert settings.warm_memory == 1024
    assert settings.warm_idle_timeout == 900
    assert settings.metrics_port == 9087


def test_blanks_and_quotes_around_a_pasted_value_are_left_out() -> None:
    settings = load(DATAHUB_GMS_TOKEN=f' "{TOKEN}"\n', DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS="'8' ")

    assert settings.gms_token is not None
    assert settings.gms_token.get_secret_value() == TOKEN
    assert settings.max_workers == 8


def test_secrets_of_recipes_are_a_json_object_of_texts_and_numbers() -> None:
    settings = load(DATAHUB_EXECUTOR_SECRETS='{"PASSWORD": "a b", "PORT": 5432, "TLS": true, "EMPTY": ""}')

    assert settings.secrets is not None
    assert secrets_of(settings.secrets.get_secret_value()) == {
        "PASSWORD": "a b",
        "PORT": "5432",
        "TLS": "true",
        "EMPTY": "",
    }


@pytest.mark.parametrize(
    "text", [TOKEN, f'["{TOKEN}"]', f'{{"A": ["{TOKEN}"]}}', f'{{"{TOKEN}": null}}', "5"]
)
def test_secrets_in_another_form_are_a_fault_and_not_shown(text: str) -> None:
    [fault] = faults(MINIMAL | {"DATAHUB_EXECUTOR_SECRETS": text})

    assert fault.startswith("DATAHUB_EXECUTOR_SECRETS must be secrets of recipes as a JSON object")
    assert TOKEN not in fault


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().max_workers = 5  # type: ignore[misc]


# --- addresses ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://gms:8080/", "http://gms:8080"),
        ("http://frontend:9002/api/gms", "http://frontend:9002"),
        ("http://frontend:9002/api/gms/", "http://frontend:9002"),
        ("https://datahub.example.com/gms", "https://datahub.example.com"),
        ("https://example.com/datahub/api/gms/", "https://example.com/datahub"),
        ("https://example.com/api", "https://example.com/api"),
        ("acme.acryl.io", "https://acme.acryl.io"),
        ("acme.acryl.io/gms", "https://acme.acryl.io"),
        ("https://acme.acryl.io/gms/", "https://acme.acryl.io"),
        ("http://acme.acryl.io/gms", "https://acme.acryl.io"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_datahubs_address_is_taken_in_every_usual_form(text: str, expected: str) -> None:
    assert load(DATAHUB_GMS_URL=text).gms_url == expected


@pytest.mark.parametrize(
    "text",
    [
        "gms:8080",
        "ftp://gms",
        "http://",
        "http://gms:port",
        f"http://user:{TOKEN}@gms",
        f"http://gms?t={TOKEN}",
        "http://[::",
    ],
)
def test_an_address_that_cannot_be_called_is_a_fault_and_not_repeated(text: str) -> None:
    [fault] = faults(MINIMAL | {"DATAHUB_GMS_URL": text})

    assert fault.startswith("DATAHUB_GMS_URL must be DataHub's address, such as https://")
    assert TOKEN not in fault


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("datahub", QueueName("datahub")),
        ("datahub.fifo", QueueName("datahub.fifo")),
        (
            "arn:aws:sqs:us-east-1:123456789012:datahub",
            QueueName("datahub", account="123456789012", region="us-east-1"),
        ),
        (
            "arn:aws-cn:sqs:cn-north-1:123456789012:datahub.fifo",
            QueueName("datahub.fifo", account="123456789012", region="cn-north-1"),
        ),
        (
            "arn:aws-us-gov:sqs:us-gov-west-1:123456789012:datahub",
            QueueName("datahub", account="123456789012", region="us-gov-west-1"),
        ),
    ],
)
def test_a_queue_is_named_plainly_or_by_its_arn(text: str, expected: QueueName) -> None:
    assert QueueName.parse(text) == expected


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("https://sqs.us-east-1.amazonaws.com", "us-east-1"),
        ("https://sqs-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("https://sqs.cn-northwest-1.amazonaws.com.cn", "cn-northwest-1"),
        ("https://sqs.eu-central-1.api.aws", "eu-central-1"),
        ("https://vpce-0ab1-x2y.sqs.ap-southeast-2.vpce.amazonaws.com", "ap-southeast-2"),
        ("https://eu-west-1.queue.amazonaws.com", "eu-west-1"),
        ("https://cn-north-1.queue.amazonaws.com.cn", "cn-north-1"),
        ("https://queue.amazonaws.com", "us-east-1"),
        ("http://sqs.us-east-1.localhost.localstack.cloud:4566", "us-east-1"),
        ("http://us-west-2.queue.localhost.localstack.cloud:4566", "us-west-2"),
        ("http://localhost:4566/queue/eu-north-1", "eu-north-1"),
        ("http://127.0.0.1:4566", None),
        ("http://my-queue-1.internal:9324", None),
    ],
)
def test_a_queues_url_names_its_region_and_account(host: str, region: str | None) -> None:
    url = f"{host}/000000000000/datahub.fifo"

    queue = QueueName.parse(url)

    assert queue == QueueName("datahub.fifo", url=url, account="000000000000", region=region)
    assert queue.fifo


def test_a_url_without_an_account_is_fine_for_a_local_server() -> None:
    url = "http://localhost:9324/queue/datahub"

    assert QueueName.parse(url) == QueueName("datahub", url=url)
    assert not QueueName.parse(url).fifo


@pytest.mark.parametrize(
    "text",
    [
        "my queue",
        "a" * 81,
        "queue.fifo.fifo",
        "arn:aws:sns:us-east-1:123456789012:topic",
        "arn:aws:sqs:us-east-1:12345:queue",
        "arn:aws:sqs:us-east-1:123456789012:queue/x",
        "https://sqs.us-east-1.amazonaws.com/",
        "https://sqs.us-east-1.amazonaws.com/123456789012/a b",
        "https://sqs.us-east-1.amazonaws.com/datahub-ingestion",
        "https://sqs.us-east-1.amazonaws.com/12345/datahub-ingestion",
        "https://sqs.cn-north-1.amazonaws.com.cn/datahub-ingestion",
        "sqs://us-east-1/queue",
        f"https://user:{TOKEN}@sqs.us-east-1.amazonaws.com/123456789012/q",
        "https://[/123456789012/q",
    ],
)
def test_a_queue_that_cannot_be_one_is_a_fault_under_the_name_it_was_given(text: str) -> None:
    [fault] = faults(
        {"DATAHUB_GMS_URL": "http://gms", "AWS_COMMAND_QUEUE_URL": text, "AWS_REGION": "us-east-1"}
    )

    assert fault.startswith("AWS_COMMAND_QUEUE_URL must be the SQS queue's URL, ARN or name: ")
    assert TOKEN not in fault


def test_the_queues_region_goes_before_the_environments() -> None:
    assert load(AWS_REGION="us-east-1").aws_region == "eu-west-1"
    assert load(AWS_REGION="us-east-1", DATAHUB_EXECUTOR_QUEUE="datahub").aws_region == "us-east-1"
    assert load(AWS_DEFAULT_REGION="us-east-2", DATAHUB_EXECUTOR_QUEUE="datahub").aws_region == "us-east-2"


def test_a_queue_without_a_region_is_a_fault_unless_a_profile_may_bring_one() -> None:
    assert faults(MINIMAL | {"DATAHUB_EXECUTOR_QUEUE": "datahub"}) == [
        "AWS_REGION is not set: it must be an AWS region, as DATAHUB_EXECUTOR_QUEUE names none"
    ]
    assert load(DATAHUB_EXECUTOR_QUEUE="datahub", AWS_PROFILE="private").aws_region is None
    assert load(DATAHUB_EXECUTOR_QUEUE="datahub", AWS_CONFIG_FILE=__file__).aws_region is None


# --- faults ---


def test_all_faults_are_said_at_once_a_line_each() -> None:
    env = {
        "DATAHUB_ACCESS_TOKEN": f"Bearer {TOKEN}",
        "AWS_COMMAND_QUEUE_ARN": "datahub",
        "DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS": "0",
        "DATAHUB_EXECUTOR_INGESTION_SIGNAL_POLL_INTERVAL": "nan",
        "DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT": "5",
        "DATAHUB_EXECUTOR_TASK_TIMEOUT": "1 day",
        "DATAHUB_EXECUTOR_MAX_ATTEMPTS": "1.5",
        "DATAHUB_EXECUTOR_DRAIN_TIMEOUT": "-1",
        "INGESTION_DEPENDENCY_RESOLUTION_ENABLED": "perhaps",
        "DATAHUB_EXECUTOR_FILE_SECRET_MAXLEN": TOKEN,
        "DATAHUB_EXECUTOR_WARM_MEMORY": "0",
        "DATAHUB_EXECUTOR_METRICS_PORT": "65536",
    }

    assert faults(env) == [
        "DATAHUB_GMS_URL is not set: it must be DataHub's address, such as https://datahub.example.com",
        (
            "DATAHUB_ACCESS_TOKEN must be a DataHub access token, alone: it holds a blank or a character "
            "that a header can't carry"
        ),
        "DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS must be a whole number of runs, at least 1, is '0'",
        "DATAHUB_EXECUTOR_INGESTION_SIGNAL_POLL_INTERVAL must be a number of seconds above 0, is 'nan'",
        "DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT must be a whole number of seconds from 10 to 43200, is '5'",
        "DATAHUB_EXECUTOR_TASK_TIMEOUT must be a number of seconds above 0, is '1 day'",
        "DATAHUB_EXECUTOR_MAX_ATTEMPTS must be a whole number of attempts, at least 1, is '1.5'",
        "DATAHUB_EXECUTOR_DRAIN_TIMEOUT must be a number of seconds, 0 or more, is '-1'",
        "INGESTION_DEPENDENCY_RESOLUTION_ENABLED must be true or false, is 'perhaps'",
        "DATAHUB_EXECUTOR_FILE_SECRET_MAXLEN must be a whole number of bytes, at least 1",
        "DATAHUB_EXECUTOR_WARM_MEMORY must be a whole number of megabytes, at least 1, is '0'",
        "DATAHUB_EXECUTOR_METRICS_PORT must be a port from 1 to 65535, or 0 for off, is '65536'",
        "AWS_REGION is not set: it must be an AWS region, as AWS_COMMAND_QUEUE_ARN names none",
    ]


def test_an_empty_environment_misses_two_settings() -> None:
    assert [fault.split()[0] for fault in faults({})] == ["DATAHUB_GMS_URL", "DATAHUB_EXECUTOR_QUEUE"]


def test_a_misspelt_variable_is_found_with_the_name_that_was_meant() -> None:
    env = MINIMAL | {
        "DATAHUB_EXECUTOR_MAX_WORKERS": "4",
        "DATAHUB_EXECUTOR_XYZ": "1",
        "DATAHUB_EXECUTOR_TOKEN": "1",
        "DATAHUB_EXECUTOR_WORKER_ID": "known",
        "EXECUTOR_UNRELATED": "1",
    }

    assert unknown_variables(env) == [
        ("DATAHUB_EXECUTOR_MAX_WORKERS", "DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS"),
        ("DATAHUB_EXECUTOR_TOKEN", "DATAHUB_GMS_TOKEN"),
        ("DATAHUB_EXECUTOR_XYZ", None),
    ]


# --- datahub-executor settings ---


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_the_command_shows_each_setting_its_value_and_where_it_came_from(stream: type[io.StringIO]) -> None:
    env = MINIMAL | {
        "DATAHUB_ACCESS_TOKEN": TOKEN,
        "AWS_REGION": "us-east-1",
        "EXECUTOR_ID": "[red]",
        "DATAHUB_EXECUTOR_WARM_SOURCES": "postgres,mysql",
    }
    out, err = stream(), io.StringIO()

    assert run(env, out=out, err=err) == 0

    text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    lines = [line.split() for line in text.splitlines()]
    assert ["DATAHUB_GMS_TOKEN", "****", "DATAHUB_ACCESS_TOKEN"] in lines
    assert ["AWS_REGION", "eu-west-1", "DATAHUB_EXECUTOR_QUEUE"] in lines
    assert ["DATAHUB_EXECUTOR_POOL_ID", "[red]", "EXECUTOR_ID"] in lines
    assert ["DATAHUB_EXECUTOR_TASK_TIMEOUT", "86400", "default"] in lines
    assert ["DATAHUB_EXECUTOR_WARM_SOURCES", "postgres,mysql", "DATAHUB_EXECUTOR_WARM_SOURCES"] in lines
    assert TOKEN not in text
    assert err.getvalue() == ""


def table(env: dict[str, str]) -> tuple[int, dict[str, str], str]:
    """Exit code, what stands behind each setting's name, and standard error."""
    out, err = io.StringIO(), io.StringIO()
    code = run(env, out=out, err=err)
    rows = (line.split(maxsplit=1) for line in out.getvalue().splitlines())
    return code, {name: " ".join(rest.split()) for name, rest in rows}, err.getvalue()


def test_the_command_says_the_faults_on_standard_error_and_shows_what_is_fine() -> None:
    code, rows, err = table({"DATAHUB_EXECUTOR_POLL_ID": "x", "DATAHUB_EXECUTOR_MAX_ATTEMPTS": "7"})

    assert code == 2
    assert [line.split()[0] for line in err.splitlines()] == [
        "DATAHUB_EXECUTOR_POLL_ID",
        "DATAHUB_GMS_URL",
        "DATAHUB_EXECUTOR_QUEUE",
    ]
    assert rows["DATAHUB_GMS_URL"] == "✗ not set DATAHUB_GMS_URL"
    assert rows["DATAHUB_EXECUTOR_QUEUE"] == "✗ not set DATAHUB_EXECUTOR_QUEUE"
    assert rows["AWS_REGION"] == "none default"
    assert rows["DATAHUB_EXECUTOR_MAX_ATTEMPTS"] == "7 DATAHUB_EXECUTOR_MAX_ATTEMPTS"
    assert len(rows) == len(Settings.model_fields) + 1


@pytest.mark.parametrize(
    ("env", "name", "row"),
    [
        (MINIMAL | {"EXECUTOR_ID": "a", "DATAHUB_ACCESS_TOKEN": "a b"}, "DATAHUB_GMS_TOKEN", "✗ faulty"),
        (
            MINIMAL | {"DATAHUB_EXECUTOR_QUEUE": "a/b", "AWS_REGION": "x"},
            "DATAHUB_EXECUTOR_QUEUE",
            "✗ faulty",
        ),
        (MINIMAL | {"DATAHUB_EXECUTOR_QUEUE": "a"}, "AWS_REGION", "✗ not set"),
        (MINIMAL | {"DATAHUB_EXECUTOR_TASK_TIMEOUT": "0"}, "DATAHUB_EXECUTOR_TASK_TIMEOUT", "✗ faulty"),
        (
            MINIMAL
            | {"DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT": "5", "DATAHUB_EXECUTOR_MESSAGE_HOLD_LIMIT": "60"},
            "DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT",
            "✗ faulty",
        ),
    ],
)
def test_each_faulty_setting_is_marked(env: dict[str, str], name: str, row: str) -> None:
    code, rows, err = table(env)
    assert code == 2
    [(marked, text)] = [(name, text) for name, text in rows.items() if "✗" in text]
    assert marked == name
    assert text.startswith(row)
    assert len(err.splitlines()) == 1


def test_the_queue_is_shown_as_it_was_written() -> None:
    arn = "arn:aws:sqs:eu-west-1:000000000000:ingest"
    code, rows, _ = table(MINIMAL | {"DATAHUB_EXECUTOR_QUEUE": f' "{arn}"'})
    assert (code, rows["DATAHUB_EXECUTOR_QUEUE"]) == (0, f"{arn} DATAHUB_EXECUTOR_QUEUE")
