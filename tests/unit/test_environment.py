"""What of the environment counts as secret, and what makes one start differ from another."""

import pytest

from executor.ingestion.environment import difference, sensitive_values, shared_environment


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI"),
        ("DATAHUB_GMS_TOKEN", "eyJhbGciOi"),
        ("DB_PASSWORD", "hunter"),
        ("GITHUB_PAT", "ghp_abcdef"),
        ("DATAHUB_DB_PASS", "hunter"),
        ("DATAHUB_ENCRYPTION_KEY", "0123456789"),
        ("DATAHUB_KEY_PASSPHRASE", "open sesame"),
        ("TOKEN_URL", "https://user:pa55word@host/"),
    ],
)
def test_a_variable_whose_name_says_secret_is_masked(name: str, value: str) -> None:
    assert sensitive_values({name: value, "PATH": "/usr/bin"}) == [value]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"),
        ("GOOGLE_APPLICATION_CREDENTIALS_FILE", "/etc/google.json"),
        ("PRIVATE_KEY_PATH", "/etc/key.pem"),
        ("SECRET_ARN", "arn:aws:secretsmanager:eu-central-1:1:secret:x"),
        ("DB_SECRET_NAME", "production"),
        ("OAUTH_TOKEN_URL", "https://login.example.com/token"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("DB_PASSWORD", ""),
    ],
)
def test_what_only_leads_to_a_secret_or_is_an_ordinary_word_is_not(name: str, value: str) -> None:
    assert sensitive_values({name: value}) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATAHUB_GMS_TOKEN", "t"),
        ("DB_PASSWORD", "x"),
        ("DATAHUB_DB_PASS", "x"),
        ("DATAHUB_ENCRYPTION_KEY", "x"),
        ("DATAHUB_KEY_PASSPHRASE", "x"),
        ("HTTPS_PROXY", "http://user:pw@proxy:3128"),
        ("TMPDIR", "/work/runs/r1/tmp"),
        ("INGESTION_ARTIFACT_DIR", "/work/artifacts/r1"),
    ],
)
def test_secrets_and_what_is_a_runs_own_are_not_for_all_runs(name: str, value: str) -> None:
    env = {"PATH": "/opt/python@3.11/bin:/usr/bin", "LD_PRELOAD": "libjemalloc.so.2"}
    assert shared_environment({**env, name: value}, {name}) == env


def test_all_runs_share_what_counts_and_no_more() -> None:
    env = {"TZ": "UTC", "CI": "true", "EDITOR": "vi", "DATAHUB_SALT": "x", "SSL_CERT_FILE": "/etc/ca.pem"}
    shared = shared_environment(env, {"CI", "NEVER_SET"})
    assert shared.keys() == {"TZ", "CI", "SSL_CERT_FILE"}
    preloaded = {**env, "LD_PRELOAD": "faults.so"}
    assert shared_environment(preloaded, {"CI"}) == preloaded
    assert difference({**preloaded, "EDITOR": "ed"}, preloaded, ()) == "EDITOR"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"SNOWFLAKE_ROLE": "reader"}, None),
        ({"LOOKED_AT": "2"}, "LOOKED_AT"),
        ({"PYTHONHASHSEED": "0"}, "PYTHONHASHSEED"),
        ({"LC_ALL": "de_DE.UTF-8", "LOOKED_AT": "2"}, "LC_ALL"),
        ({"DATAHUB_DEBUG": "true"}, "DATAHUB_DEBUG"),
        ({"PATHOLOGY": "x", "TERMS": "y"}, None),
    ],
)
def test_a_start_differs_by_what_is_read_before_it_is_told_what_to_do(
    changed: dict[str, str], named: str | None
) -> None:
    given = {"PATH": "/usr/bin", "LOOKED_AT": "1", "DATAHUB_DEBUG": "false"}
    assert difference(given | changed, given, {"LOOKED_AT", "NEVER_SET"}) == named
    assert difference({name: value for name, value in given.items() if name != "PATH"}, given, ()) == "PATH"
