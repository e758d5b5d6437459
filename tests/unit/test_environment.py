"""What of the environment counts as secret."""

import pytest

from executor.ingestion.environment import sensitive_values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI"),
        ("DATAHUB_GMS_TOKEN", "eyJhbGciOi"),
        ("DB_PASSWORD", "hunter"),
        ("GITHUB_PAT", "ghp_abcdef"),
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
