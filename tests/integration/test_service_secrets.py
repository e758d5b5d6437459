"""Secrets: found in order, given to the run alone, and seen nowhere else."""

import base64
import json
import logging
from pathlib import Path
from urllib.parse import quote

import pytest

from executor.local.page_api import Secret
from tests.integration.service import PATIENT, Site

PASSWORD = "pa$$ w0rd/ü+9"
KEY = "-----BEGIN KEY-----\nMIIEabcdefgh\nijklmnop1234\n-----END KEY-----\n"
TELL = 'note("secrets", secrets)\n'
FORMS = """
import base64, urllib.parse
value, key = secrets["PASSWORD"], secrets["KEY"]
print("plain", value, flush=True)
print("json", json.dumps({"password": value, "key": key}))
print("json twice", json.dumps(json.dumps([value, key])))
print("repr", repr(value), repr(key))
print("url", urllib.parse.quote(value, safe=""))
print("base64", base64.b64encode(value.encode()).decode())
print(key)
sys.stdout.flush()
for byte in value.encode():
    os.write(1, bytes([byte]))
    time.sleep(0.002)
print("\\nlast line", flush=True)
report({"source": {"config": value}, "lines": key.splitlines(), "text": json.dumps({"key": key})})
note("started", [exec_id, time.time()])
wait_for("go")
"""


@pytest.fixture
def secret_files(site: Site) -> Path:
    folder = Path(site.env["DATAHUB_EXECUTOR_FILE_SECRET_BASEDIR"])
    folder.mkdir()
    return folder


def leaks(text: str) -> list[str]:
    """What of the secrets a text shows, in any form."""
    forms = [PASSWORD, json.dumps(PASSWORD)[1:-1], quote(PASSWORD, safe=""), "MIIEabcdefgh", "ijklmnop1234"]
    forms += [base64.b64encode(PASSWORD.encode()).decode(), json.dumps(KEY)[1:-1]]
    return [form for form in forms if form in text]


async def test_files_go_before_the_environment_and_that_before_datahub(
    site: Site, secret_files: Path
) -> None:
    for name in ("IN_ALL", "IN_FILE"):
        (secret_files / name).write_text("from the file\n")
    for name in ("IN_ALL", "IN_BOTH", "IN_DATAHUB"):
        site.datahub.secrets[name] = Secret("from datahub")
    site.fake_cli("fake", TELL)
    names = ("IN_ALL", "IN_FILE", "IN_BOTH", "OF_REQUEST", "IN_DATAHUB")
    async with site.service(IN_ALL="from the environment", IN_BOTH="from the environment"):
        await site.submit(
            "r1",
            config={name: f"${{{name}}}" for name in names} | {"with_default": "${NOWHERE:-default}"},
            extra_env_vars='{"OF_REQUEST": "from the request"}',
        )
        assert (await site.settled("r1")).status == "SUCCESS"
    [given] = site.clis.notes("secrets")
    assert given == {
        "IN_ALL": "from the file",
        "IN_FILE": "from the file",
        "IN_BOTH": "from the environment",
        "OF_REQUEST": "from the request",
        "IN_DATAHUB": "from datahub",
    }


async def test_secrets_that_were_handed_over_together_reach_the_recipe_that_names_them_and_no_environment(
    site: Site,
) -> None:
    own = json.dumps({"DB_PASSWORD": PASSWORD, "DB_PORT": 5432, "OTHER": "somebody else's"})
    site.fake_cli("fake", TELL + 'note("names", sorted(os.environ))\n')
    async with site.service(DATAHUB_EXECUTOR_SECRETS=own, DB_PASSWORD="of the environment"):
        await site.submit("r1", config={"password": "${DB_PASSWORD}", "port": "${DB_PORT}"})
        assert (await site.settled("r1")).status == "SUCCESS"
        await site.submit("r2", config={"all": "${DATAHUB_EXECUTOR_SECRETS}"})
        ended = await site.settled("r2")
    assert site.clis.notes("secrets") == [{"DB_PASSWORD": PASSWORD, "DB_PORT": "5432"}]
    [names] = site.clis.notes("names")
    assert not {"DATAHUB_EXECUTOR_SECRETS", "DB_PORT", "OTHER"} & set(names)
    assert ended.status == "FAILURE"
    assert "found nowhere: DATAHUB_EXECUTOR_SECRETS. Looked in" in ended.value["report"]


async def test_an_unknown_secret_fails_the_run_before_it_starts_and_is_named(site: Site) -> None:
    site.fake_cli("fake", TELL)
    async with site.service():
        await site.submit("r1", config={"password": "${NO_SUCH_SECRET}", "user": "${NOR_THIS_ONE}"})
        ended = await site.settled("r1")
        await site.until_counts(0, 0)
    first = ended.value["report"].splitlines()[0]
    assert ended.status == "FAILURE"
    assert "NOR_THIS_ONE, NO_SUCH_SECRET" in first
    assert "DataHub's secrets" in first
    assert site.clis.notes("secrets") == []


async def test_a_token_without_the_privilege_for_secrets_is_told_which_one(site: Site) -> None:
    site.datahub.may_manage_secrets = False
    site.fake_cli("fake", TELL)
    async with site.service():
        await site.submit("r1", config={"password": "${PASSWORD}"})
        ended = await site.settled("r1")
    assert ended.status == "FAILURE"
    assert "privilege to manage secrets" in ended.value["report"].splitlines()[0]


async def test_no_form_of_a_secret_is_in_log_report_or_structured_report(
    site: Site, secret_files: Path
) -> None:
    (secret_files / "PASSWORD").write_text(PASSWORD)
    (secret_files / "KEY").write_text(KEY)
    site.fake_cli("fake", FORMS)
    async with site.service():
        await site.submit("r1", config={"password": "${PASSWORD}", "key": "${KEY}"})
        await site.clis.noted("started")
        logging.getLogger("some.library").warning("trouble with %s and %s", PASSWORD, KEY.strip())
        await site.until(lambda: site.shown("r1", "last line"))
        site.clis.let("go")
        ended = await site.settled("r1")
    for record in site.datahub.store.history("r1"):
        assert leaks(json.dumps(record.value, ensure_ascii=False)) == []
        assert leaks(record.value["report"]) == []
    structured = json.loads(ended.value["structuredReport"]["serializedValue"])
    assert structured["source"] == {"config": "****"}
    assert leaks(json.dumps(structured, ensure_ascii=False)) == []
    lines = ended.value["report"].split("== Log ==\n")[1].splitlines()
    assert lines[0] == "plain ****"
    assert lines[-2:] == ["****", "last line"], "a value that came byte by byte"
    [library] = site.events("library_message")
    assert library["message"] == "trouble with **** and ****"
    assert leaks(site.log.getvalue()) == []


async def test_secrets_reach_neither_arguments_nor_environment_nor_disk(
    site: Site, secret_files: Path
) -> None:
    (secret_files / "PASSWORD").write_text("file-secret-1234")
    site.datahub.secrets["API"] = Secret("datahub-secret-5678")
    script = 'note("seen", [open(f"/proc/self/{n}", "rb").read().decode() for n in ("cmdline", "environ")])\n'
    site.fake_cli("fake", script + PATIENT)
    async with site.service():
        await site.submit("r1", config={"password": "${PASSWORD}", "api": "${API}"})
        await site.clis.noted("started")
        on_disk = [path.read_bytes() for path in site.work_dir.rglob("*") if path.is_file()]
        site.clis.let("go")
        assert (await site.settled("r1")).status == "SUCCESS"
    [[cmdline, environ]] = site.clis.notes("seen")
    on_disk += [path.read_bytes() for path in site.work_dir.rglob("*") if path.is_file()]
    for value in ("file-secret-1234", "datahub-secret-5678"):
        assert value not in cmdline + environ
        assert not any(value.encode() in content for content in on_disk)


async def test_a_run_gets_its_own_secrets_only(site: Site, secret_files: Path) -> None:
    (secret_files / "FIRST").write_text("secret-of-the-first")
    (secret_files / "SECOND").write_text("secret-of-the-second")
    script = 'note("seen", [exec_id, given.decode(), dict(os.environ), os.listdir(os.getcwd())])\n'
    site.fake_cli("fake", script + PATIENT)
    async with site.service():
        await site.submit("one", config={"password": "${FIRST}"})
        await site.submit("two", config={"password": "${SECOND}"})
        await site.clis.noted("started", 2)
        site.clis.let("go")
        await site.settled("one")
        await site.settled("two")
    seen = {exec_id: json.dumps(rest) for exec_id, *rest in site.clis.notes("seen")}
    assert "secret-of-the-first" in seen["one"]
    assert "secret-of-the-second" not in seen["one"]
    assert "secret-of-the-first" not in seen["two"]


async def test_what_was_a_secret_of_a_run_is_masked_in_our_log_only_while_it_lasts(
    site: Site, secret_files: Path
) -> None:
    (secret_files / "WORD").write_text("harmless-word")
    site.fake_cli("fake", PATIENT)
    library = logging.getLogger("some.library")
    async with site.service():
        await site.submit("r1", config={"word": "${WORD}"})
        await site.clis.noted("started")
        library.warning("a harmless-word")
        site.clis.let("go")
        await site.settled("r1")
        library.warning("a harmless-word")
    assert [event["message"] for event in site.events("library_message")] == ["a ****", "a harmless-word"]
