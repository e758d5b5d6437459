"""How runs go and end, and what the person who started one reads afterwards."""

import itertools
import json
import os
import signal

import pytest

from tests.integration.service import BOTH_STARTS, PATIENT, QUICK, WARM_START, Site
from tests.integration.trees import children

ENDED = 'note("ended", [exec_id, time.time()])\n'
LIMIT = {"EXECUTOR_TASK_MEMORY_LIMIT": "300000"}  # kilobytes


@BOTH_STARTS
@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        ("print('done')", "SUCCESS", "The run ended successfully (exit code 0)."),
        ("sys.exit(1)", "FAILURE", "The run ended with failures (exit code 1)."),
        ("sys.exit(2)", "FAILURE", "The CLI did not accept how it was called (exit code 2)"),
        ("sys.exit(77)", "FAILURE", "The run ended with exit code 77."),
        ("os.kill(os.getpid(), signal.SIGTERM)", "FAILURE", "signal 15, SIGTERM"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "FAILURE", "The run was killed by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "FAILURE", "signal 11, SIGSEGV"),
    ],
)
async def test_how_the_process_ended_is_put_in_words(
    site: Site, script: str, status: str, words: str
) -> None:
    site.fake_cli("fake", script)
    async with site.service():
        await site.submit("r1")
        ended = await site.settled("r1")
        await site.until_counts(0, 0)
    assert ended.status == status
    assert words in ended.value["report"].splitlines()[0]


@BOTH_STARTS
async def test_a_program_that_can_not_be_started_is_said_with_its_reason(site: Site) -> None:
    site.fake_cli("fake", "#!/no/such/interpreter\n", raw=True)
    async with site.service():
        await site.submit("r1")
        ended = await site.settled("r1")
    assert ended.status == "FAILURE"
    assert "could not start" in ended.value["report"].splitlines()[0]
    assert "interpreter" in ended.value["report"].splitlines()[0]


@BOTH_STARTS
async def test_a_missing_bundled_venv_and_a_bad_recipe_name_the_way_out(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    async with site.service():
        await site.submit("r1", plugin="elsewhere")
        await site.submit("r2", recipe="[not a recipe")
        no_venv, no_recipe = await site.settled("r1"), await site.settled("r2")
    assert "no bundled venv for elsewhere" in no_venv.value["report"].splitlines()[0]
    assert "Bundled in" in no_venv.value["report"]
    assert "not valid YAML" in no_recipe.value["report"].splitlines()[0]


@BOTH_STARTS
async def test_the_report_is_laid_out_as_the_contract_has_it(site: Site) -> None:
    site.fake_cli(
        "fake", 'print("reading tables")\nreport({"source": {"type": "fake", "report": {"events": 3}}})\n'
    )
    async with site.service():
        await site.submit("r1")
        ended = await site.settled("r1")
    summary, rest = ended.value["report"].split("\n== Structured report ==\n")
    structured, log = rest.split("\n== Log ==\n")
    facts = dict(line.split(":", 1) for line in summary.splitlines()[2:] if ":" in line)
    assert {name: value.strip() for name, value in facts.items()}.items() >= {
        ("Task", "RUN_INGEST"),
        ("Source", "fake"),
        ("CLI", "1.7.0.17"),
        ("Attempt", "1"),
    }
    assert facts["Executor"].strip().startswith("remote on ")
    assert {"Started", "Duration", "Used"} <= facts.keys()
    assert json.loads(structured) == {"source": {"type": "fake", "report": {"events": 3}}}
    assert log.strip() == "reading tables"
    stored = ended.value["structuredReport"]
    assert (stored["type"], stored["contentType"]) == ("RUN_INGEST", "application/json")
    assert json.loads(stored["serializedValue"]) == json.loads(structured)
    assert ended.value["startTimeMs"] <= ended.epoch * 1000
    assert ended.value["durationMs"] >= 0


@BOTH_STARTS
async def test_a_report_file_that_is_no_json_does_not_spoil_the_run(site: Site) -> None:
    site.fake_cli("fake", 'open(report_file, "w").write("{ broken")\n')
    async with site.service():
        await site.submit("r1")
        ended = await site.settled("r1")
    assert ended.status == "SUCCESS"
    assert "structuredReport" not in ended.value


@BOTH_STARTS
async def test_what_a_run_is_given_is_what_its_request_asked_for(site: Site) -> None:
    site.clis.may_start_cold = True  # the one that is debugged
    site.fake_cli(
        "fake",
        'note("run", [sys.argv[1:], dict(os.environ), recipe, os.getcwd()])\n'
        'open(os.path.join(os.environ["INGESTION_ARTIFACT_DIR"], "kept"), "w").close()\n'
        'open("scratch", "w").close()\n',
    )
    async with site.service():
        await site.submit(
            "debugged",
            name="TEST_CONNECTION",
            debug_mode="true",
            extra_env_vars='{"COLOUR": "blue", "DATAHUB_GMS_TOKEN": "theirs", "EXECUTOR_TASK_WEIGHT": "0.5"}',
        )
        tested = await site.settled("debugged")
        await site.submit("plain")
        await site.settled("plain")
    runs = {recipe["run_id"]: (argv, env) for argv, env, recipe, _ in site.clis.notes("run")}
    argv, env = runs["debugged"]
    assert argv[:5] == ["--debug", "ingest", "run", "-c", "-"]
    assert argv[-1] == "--test-source-connection"
    assert env.items() >= {"COLOUR": "blue", "DATAHUB_DEBUG": "true", "DATAHUB_GMS_TOKEN": "theirs"}.items()
    assert env["DATAHUB_GMS_URL"] == site.datahub.url
    assert "EXECUTOR_TASK_WEIGHT" not in env
    assert tested.value["report"].count("TEST_CONNECTION") == 1
    argv, env = runs["plain"]
    assert argv[:4] == ["ingest", "run", "-c", "-"]
    assert argv[-2] == "--report-to"
    assert env["DATAHUB_DEBUG"] == "false"
    assert env["DATAHUB_GMS_TOKEN"] == "t"
    assert "COLOUR" not in env


@BOTH_STARTS
async def test_the_run_folder_goes_and_artifacts_stay_if_there_are_any(site: Site) -> None:
    keep = 'open(os.path.join(os.environ["INGESTION_ARTIFACT_DIR"], "kept"), "w").close()\n'
    site.fake_cli("fake", 'open("scratch", "w").close()\nif recipe["source"]["config"]: ' + keep)
    async with site.service():
        await site.submit("left-something", config={"keep": "yes"})
        await site.submit("left-nothing")
        await site.settled("left-something")
        await site.settled("left-nothing")
        await site.until(lambda: not site.run_folders())
    artifacts = site.work_dir / "artifacts"
    assert [str(path.relative_to(artifacts)) for path in artifacts.rglob("*")] == [
        "left-something",
        "left-something/kept",
    ]


@BOTH_STARTS
async def test_long_lines_and_invalid_utf8_are_survived(site: Site) -> None:
    site.fake_cli(
        "fake",
        'sys.stdout.buffer.write(b"caf\\xe9 \\xff\\xfe\\n" + b"x" * 500_000 + b"\\nthe last line\\n")\n',
    )
    async with site.service():
        await site.submit("r1")
        ended = await site.settled("r1")
    assert ended.status == "SUCCESS"
    log = ended.value["report"].split("== Log ==\n")[1]
    assert log.startswith("caf\ufffd \ufffd\ufffd\n")
    assert "more bytes of this line cut]" in log
    assert log.endswith("the last line\n")
    assert len(log) < 20_000


@BOTH_STARTS
async def test_of_a_large_log_the_newest_lines_are_kept_and_the_cut_is_said(site: Site) -> None:
    site.fake_cli("fake", 'sys.stdout.write("".join(f"line {n:08}\\n" for n in range(400_000)))\n')
    async with site.service():
        await site.submit("r1")
        ended = await site.settled("r1")
    log = ended.value["report"].split("== Log ==\n")[1]
    assert log.startswith("[… ")
    assert "earlier lines" in log.splitlines()[0]
    assert log.endswith("line 00399999\n")


@BOTH_STARTS
async def test_a_grandchild_that_holds_the_pipe_does_not_hold_the_run(site: Site) -> None:
    script = """
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
note("pid", child.pid)
print("gone", flush=True)
"""
    site.fake_cli("fake", script)
    async with site.service():
        await site.submit("r1")
        ended = await site.settled("r1")
        [pid] = site.clis.notes("pid")
        assert not site.alive(pid)
    assert ended.status == "SUCCESS"
    assert ended.value["report"].endswith("gone\n")


@BOTH_STARTS
async def test_a_run_over_its_time_is_ended_with_its_tree(site: Site) -> None:
    script = """
note("pid", os.getpid())
note("pid", subprocess.Popen(["sleep", "600"]).pid)
print("it goes on", flush=True)
time.sleep(600)
"""
    site.fake_cli("fake", script)
    async with site.service(DATAHUB_EXECUTOR_TASK_TIMEOUT="0.5"):
        await site.submit("r1")
        ended = await site.settled("r1")
        assert not any(site.alive(pid) for pid in site.clis.notes("pid"))
    assert ended.status == "FAILURE"
    first = ended.value["report"].splitlines()[0]
    assert "ended after 0.5 s" in first
    assert "DATAHUB_EXECUTOR_TASK_TIMEOUT" in first


@WARM_START
async def test_a_cancelled_tree_that_ignores_sigterm_is_killed_and_keeps_its_last_words(site: Site) -> None:
    script = """
def stubborn(*_):
    print("not yet", flush=True)

signal.signal(signal.SIGTERM, stubborn)
child = subprocess.Popen([sys.executable, "-SEc", "import signal, time; signal.signal(15, signal.SIG_IGN); "
                          "print('ignoring', flush=True); time.sleep(600)"])
note("pid", os.getpid())
note("pid", child.pid)
while True:
    time.sleep(600)
"""
    site.fake_cli("fake", script)
    async with site.service():
        await site.submit("r1")
        await site.clis.noted("pid", 2)
        await site.until(lambda: "ignoring" in site.datahub.store.history("r1")[-1].value["report"])
        site.kill("r1")
        ended = await site.settled("r1")
        assert not any(site.alive(pid) for pid in site.clis.notes("pid"))
    assert ended.status == "CANCELLED"
    assert ended.value["report"].startswith("The run was cancelled on request.")
    assert "not yet" in ended.value["report"]


@BOTH_STARTS
async def test_a_run_that_died_of_its_memory_limit_says_so(site: Site) -> None:
    site.fake_cli("fake", "bytearray(600_000_000)\n")
    async with site.service():
        await site.submit("r1", extra_env_vars=json.dumps(LIMIT))
        ended = await site.settled("r1")
        await site.submit("r2")
        without = await site.settled("r2")
    first = ended.value["report"].splitlines()[0]
    assert ended.status == "FAILURE"
    assert "memory limit of 300,000 kilobytes" in first
    assert "EXECUTOR_TASK_MEMORY_LIMIT" in first
    assert without.status == "SUCCESS"


@BOTH_STARTS
@pytest.mark.parametrize("variable", ["EXECUTOR_TASK_MEMORY_LIMIT", "EXECUTOR_TASK_WEIGHT"])
async def test_a_senseless_limit_fails_the_request_and_is_named(site: Site, variable: str) -> None:
    site.fake_cli("fake", QUICK)
    async with site.service():
        await site.submit("r1", extra_env_vars=json.dumps({variable: "much"}))
        ended = await site.settled("r1")
    assert ended.status == "FAILURE"
    assert variable in ended.value["report"].splitlines()[0]
    assert site.clis.notes("started") == []


@BOTH_STARTS
async def test_weights_bound_what_runs_at_a_time_and_a_heavy_run_is_not_starved(site: Site) -> None:
    site.fake_cli("fake", 'note("started", [exec_id, time.time()])\ntime.sleep(0.15)\n' + ENDED)
    async with site.service(DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS="4"):
        for number in range(4):
            await site.submit(f"before-{number}")
        await site.submit("heavy", extra_env_vars='{"EXECUTOR_TASK_WEIGHT": "1.0"}')
        for number in range(4):
            await site.submit(f"after-{number}")
        await site.until(lambda: len(site.clis.notes("ended")) == 9)
        await site.until_counts(0, 0)
    started, ended = dict(site.clis.notes("started")), dict(site.clis.notes("ended"))
    times = sorted([(at, 1) for at in started.values()] + [(at, -1) for at in ended.values()])
    assert max(itertools.accumulate(change for _, change in times)) <= 4
    overlapping = [
        other
        for other in started
        if other != "heavy" and started[other] < ended["heavy"] and ended[other] > started["heavy"]
    ]
    assert overlapping == []
    assert sum(started[other] > started["heavy"] for other in started) >= 3, "those sent after it waited"


@BOTH_STARTS
async def test_no_more_is_received_than_can_start(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service(DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS="2"):
        for number in range(5):
            await site.submit(f"r{number}")
        await site.clis.noted("started", 2)
        assert await site.counts() == (3, 2)
        site.clis.let("go")
        for number in range(5):
            await site.settled(f"r{number}")


@WARM_START
async def test_a_run_whose_warm_parent_hangs_or_died_is_started_from_the_disk(site: Site) -> None:
    site.clis.may_start_cold = True
    site.fake_cli("fake", 'note("run", [exec_id, os.getppid(), sys.argv[0]])')
    async with site.service():
        await site.submit("warm")
        await site.settled("warm")
        [parent] = children("warm_parent.py")
        os.kill(parent, signal.SIGSTOP)
        await site.submit("cold")
        await site.settled("cold")
        await site.submit("warm-again")
        await site.settled("warm-again")
        [another] = children("warm_parent.py")
        assert another != parent
    assert children("warm_parent.py") == []
    assert [event["reason"] for event in site.events("runs_start_cold")] == ["its parent did not answer"]
    notes = site.clis.notes("run")
    assert [note[0] for note in notes] == ["warm", "cold", "warm-again"]
    assert {tuple(note[1:]) for note in notes} == {(os.getpid(), notes[0][2])}, "they can't tell"
