from collections.abc import Mapping, Sequence
from itertools import combinations

import pytest

from executor.ingestion.venv_build import relax
from executor.ingestion.venv_spec import VenvError, VenvSpec, venv_family, venv_key, venv_spec

WHEEL = "https://wheels.example.com/acryl_datahub-1.2.3.dev1-py3-none-any.whl"


def spec(
    version: str | None = "1.2.3",
    plugin: str | None = "postgres",
    *,
    plugins: Sequence[str] = (),
    requirements: Sequence[str] = (),
    resolution: bool = True,
    environ: Mapping[str, str] | None = None,
) -> VenvSpec:
    return venv_spec(
        version=version,
        plugin=plugin,
        extra_plugins=plugins,
        extra_requirements=requirements,
        dependency_resolution_enabled=resolution,
        environ=environ or {},
    )


@pytest.mark.parametrize(
    ("given", "normalised"),
    [
        (None, "latest"),
        ("", "latest"),
        (" Latest ", "latest"),
        ("bundled", "bundled"),
        ("v1.5.0.15", "1.5.0.15"),
        ("1.7.0.17rc1", "1.7.0.17rc1"),
        (WHEEL, WHEEL),
    ],
)
def test_the_version_is_taken_in_each_of_its_forms(given: str | None, normalised: str) -> None:
    assert spec(given).version == normalised


@pytest.mark.parametrize(
    "version",
    [
        "==1.2.3", ">=1", "1.2.3 --index-url=https://evil.example", "-r/etc/passwd", "newest", "1.2.3\n2",
        "http://wheels.example.com/acryl_datahub-1.2.3-py3-none-any.whl",
        "file:///tmp/acryl_datahub-1.2.3-py3-none-any.whl",
        "/tmp/acryl_datahub-1.2.3-py3-none-any.whl",
        "https://wheels.example.com/acryl_datahub-1.2.3.tar.gz",
        "https://wheels.example.com/other-1.2.3-py3-none-any.whl",
        "https://wheels.example.com/${AWS_SECRET_ACCESS_KEY}/acryl_datahub-1.2.3-py3-none-any.whl",
        f"{WHEEL}?signature=abc", f"{WHEEL} ; x", f"{WHEEL}\nother", "https://[bad/acryl_datahub-1-py3-none-any.whl",
    ],
)  # fmt: skip
def test_a_version_that_is_none_is_refused(version: str) -> None:
    with pytest.raises(VenvError, match="version"):
        spec(version)


def test_credentials_in_a_wheels_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(VenvError, match="netrc") as refusal:
        spec("https://me:hunter22@wheels.example.com/acryl_datahub-1.2.3-py3-none-any.whl")
    assert "hunter22" not in str(refusal.value)


def test_without_dependency_resolution_only_bundled_runs() -> None:
    assert spec(None, resolution=False).version == "bundled"
    assert spec("bundled", resolution=False).version == "bundled"
    for version in ("latest", "1.2.3", WHEEL):
        with pytest.raises(VenvError, match="INGESTION_DEPENDENCY_RESOLUTION_ENABLED is false"):
            spec(version, resolution=False)


def test_the_cli_is_asked_for_with_the_plugins_as_extras() -> None:
    wanted = spec(plugin="snowflake", plugins=["dbt_cloud", "aws-secret-manager", "snowflake"])
    assert wanted.cli_requirement("1.2.3", plugins=True) == (
        "acryl-datahub[aws-secret-manager,dbt-cloud,snowflake]==1.2.3"
    )
    assert wanted.cli_requirement("1.2.3", plugins=False) == "acryl-datahub==1.2.3"
    assert spec().cli_requirement(WHEEL, plugins=True) == f"acryl-datahub[postgres] @ {WHEEL}"


@pytest.mark.parametrize("plugin", ["my_company.sources.Mainframe", "my_company.sources:Mainframe", None])
def test_a_source_that_is_no_plugin_of_the_cli_asks_for_no_extra(plugin: str | None) -> None:
    assert spec(plugin=plugin).cli_requirement("1.2.3", plugins=True) == "acryl-datahub==1.2.3"


@pytest.mark.parametrize(
    "plugin", ["", "-x", "a,b", "a]==0", "a b", "../etc", "a;b", "a\nb", "https://x", "a>=1"]
)
def test_a_plugin_that_is_no_name_of_an_extra_is_refused(plugin: str) -> None:
    with pytest.raises(VenvError, match=r"extra plugin 2 .* name of an extra"):
        spec(plugins=["dbt", plugin])
    with pytest.raises(VenvError, match=r"source type .* name of an extra"):
        spec(plugin=plugin)


@pytest.mark.parametrize(
    "requirement",
    [
        "pandas", "SQLAlchemy[asyncio]>=2,<3", "pywin32; sys_platform == 'win32'", "a @ https://example.com/a.zip",
        "mine @ git+https://git.example.com/team/mine.git@v1#subdirectory=python",
        "mine @ git+ssh://git@git.example.com/team/mine.git",
    ],
)  # fmt: skip
def test_extra_requirements_are_passed_on_as_they_are(requirement: str) -> None:
    wanted = spec(requirements=["first", f" {requirement} "])
    assert wanted.extra_requirements == wanted.expanded_requirements == ("first", requirement)
    assert wanted.secret_values == ()


@pytest.mark.parametrize(
    "requirement",
    [
        "", "-r other.txt", "--index-url https://evil.example/simple", "-e .", "-", "pandas --hash=sha256:00",
        "pandas\n--index-url https://evil.example/simple", "pandas\r-e .", "pandas # a comment", "a b",
        "./package", "/srv/package", "../package.whl", "package.whl", "package.tar.gz", "https://example.com/a.whl",
        "a @ file:///srv/a.whl", "a @ ./a.whl", "a @ /srv/a.whl", "a @ http://example.com/a.whl",
        "a @ git+file:///srv/a", "a @ git+http://example.com/a.git", "git+https://example.com/a.git",
        "a @ https:///a.whl", "a @ https://example.com/a.whl --no-deps",
    ],
)  # fmt: skip
def test_what_is_no_requirement_is_refused_by_its_position(requirement: str) -> None:
    with pytest.raises(VenvError, match=r"extra requirement 2 .*must be a requirement such as"):
        spec(requirements=["pandas", requirement])


PRIVATE = "mine @ https://reader:${INDEX_TOKEN}@packages.example.com/mine-1.0-py3-none-any.whl"


def test_a_template_is_filled_in_and_its_value_is_shown_nowhere() -> None:
    wanted = spec(requirements=[PRIVATE], environ={"INDEX_TOKEN": "s3cr3t-value"})
    assert wanted.expanded_requirements == (PRIVATE.replace("${INDEX_TOKEN}", "s3cr3t-value"),)
    assert wanted.extra_requirements == (PRIVATE,)
    assert "s3cr3t-value" in wanted.secret_values
    assert "s3cr3t-value" not in repr(wanted)
    assert wanted.mask("got s3cr3t-value!") == "got ****!"


def test_credentials_written_into_a_requirement_are_masked() -> None:
    wanted = spec(
        requirements=["mine @ git+https://hunt%20er2@git.example.com/mine.git", "a @ https://u:pässwort@h/a"]
    )
    assert wanted.extra_requirements == (
        "mine @ git+https://****@git.example.com/mine.git",
        "a @ https://****@h/a",
    )
    assert {"hunt%20er2", "hunt er2", "pässwort"} <= set(wanted.secret_values)


def test_credentials_of_the_indexes_are_masked() -> None:
    wanted = spec(
        environ={
            "UV_EXTRA_INDEX_URL": "https://me:index-pass@a.example/simple https://token-of-b@b.example/simple",
            "UV_INDEX_CORP_PASSWORD": "corp-pass",
            "HTTPS_PROXY": "http://me:proxy-pass@proxy.example:3128",
            "DATAHUB_GMS_TOKEN": "not uv's business",
        }
    )
    assert set(wanted.secret_values) == {"index-pass", "token-of-b", "corp-pass", "proxy-pass"}
    assert "DATAHUB_GMS_TOKEN" not in dict(wanted.environment)


def test_a_template_without_a_value_is_named() -> None:
    with pytest.raises(VenvError, match=r"extra requirement 1 .* uses \$\{INDEX_TOKEN\}, which is not set"):
        spec(requirements=[PRIVATE])


@pytest.mark.parametrize(
    "value", ["x\n--index-url https://evil.example", "--index-url=https://evil.example", "a b"]
)
def test_a_value_cannot_smuggle_an_option_in(value: str) -> None:
    with pytest.raises(VenvError, match="extra requirement 1") as refusal:
        spec(requirements=["${PACKAGE}"], environ={"PACKAGE": value})
    assert "evil" not in str(refusal.value)


def test_a_secret_in_a_query_is_refused_since_it_would_stay_on_the_disk() -> None:
    with pytest.raises(VenvError, match="query"):
        spec(requirements=["a @ https://example.com/a.whl?token=${T0KEN}"], environ={"T0KEN": "value"})


def key(wanted: VenvSpec, version: str = "1.2.3", python: str = "3.11", **environ: str) -> str:
    return venv_key(wanted, version, python, environ)


def test_equal_inputs_have_one_key_however_they_are_written() -> None:
    one = spec(plugin="snowflake", plugins=["dbt", "Aws_Secret_Manager"])
    other = spec(plugin="snowflake", plugins=["aws-secret-manager", "dbt", "dbt"])
    assert key(one) == key(other)
    assert key(one, UV_HTTP_TIMEOUT="5") == key(one, UV_HTTP_TIMEOUT="9")


def test_whatever_goes_into_a_venv_changes_its_key() -> None:
    keys = [
        key(spec()),
        key(spec(), "1.2.4"),
        key(spec(), python="3.12"),
        key(spec(plugin="mysql")),
        key(spec(plugins=["dbt"])),
        key(spec(requirements=["a", "b"])),
        key(spec(requirements=["b", "a"])),
        key(spec(requirements=[PRIVATE], environ={"INDEX_TOKEN": "one-token"})),
        key(spec(requirements=[PRIVATE], environ={"INDEX_TOKEN": "other-token"})),
        key(spec(), UV_EXTRA_INDEX_URL="https://packages.example.com/simple"),
    ]
    assert not [pair for pair in combinations(keys, 2) if pair[0] == pair[1]]


def test_venvs_of_one_family_differ_in_the_version_only() -> None:
    assert venv_family(spec("1.2.3"), "3.11", {}) == venv_family(spec("latest"), "3.11", {})
    assert venv_family(spec(), "3.11", {}) != venv_family(spec(plugin="mysql"), "3.11", {})


def test_only_pins_that_the_index_lacks_are_left_out_of_the_constraints() -> None:
    constraints = [
        "# generated",
        "certifi==2026.1.1 ; python_full_version < '3.14'",
        "    # via requests",
        "zope-interface==7.0",
        "urllib3==2.0",
    ]
    printed = [
        "error: No solution found when resolving dependencies",
        "  cause: Because there is no version of certifi==2026.1.1 and x depends on certifi, and because there",
        "         is no version of Zope.Interface==7.0, we can conclude that …",
        "         And because there is no version of urllib3==1.0",
    ]
    kept, dropped = relax(constraints, printed)
    assert dropped == ["certifi==2026.1.1", "zope-interface==7.0"]
    assert kept == ["# generated", "    # via requests", "urllib3==2.0"]
