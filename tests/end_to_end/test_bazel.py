"""A real Bazel builds the example workspace on a real server process.

Every test that must not find the results of another has an instance of its own: instances
share the blobs and the executor, each has its own action cache.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.docker_engine import PYTHON, NoEngine, some_endpoint

from .bazel import Bazel, Outcome, open_bazel
from .server_process import ServerProcess, open_server_process

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.bazel, pytest.mark.slow]

SLOTS = 2
PAGES_PER_PROTOCOL = 12
TESTS = ["native/roman_test", "native/table_test", "pages/book_test", "text/whole_test"]
EXECUTING_INSTANCES = ["", "team/a", "minimal", "broken"]
CACHING_INSTANCES = ["cache"]

SERVER = f"""
[server]
listen = ["127.0.0.1:0"]

[blob_stores.main]
kind = "disk"
path = "cas"

[executors.local]
strategy = "local"
slots = {SLOTS}
properties = {{ OSFamily = "linux" }}
"""

INSTANCE = """
[action_caches."results of {name}"]
kind = "disk"
path = "results of {name}"

[instances."{name}"]
blob_store = "main"
action_cache = "results of {name}"
executors = {executors}
"""


def configuration() -> str:
    executing = [INSTANCE.format(name=name, executors='["local"]') for name in EXECUTING_INSTANCES]
    caching = [INSTANCE.format(name=name, executors="[]") for name in CACHING_INSTANCES]
    return "".join([SERVER, *executing, *caching])


@pytest.fixture(scope="module")
def program() -> str:
    found = shutil.which("bazel")
    if found is None:
        pytest.skip("there is no `bazel` on the PATH")
    return found


@pytest.fixture(scope="module")
def bazel(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bazel]:
    with open_bazel(program, tmp_path_factory.mktemp("bazel")) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with open_server_process(tmp_path_factory.mktemp("server"), configuration()) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _server_log_of_this_test(bazel: Bazel, server: ServerProcess) -> Iterator[None]:
    """Put what the server logged during a test beside the test's failure.

    It asks for `bazel` first: without one, no server is started for nothing.
    """
    seen = len(server.log.read_text())
    yield
    print(server.log.read_text()[seen:])


def remote(server: ServerProcess, instance: str = "") -> list[str]:
    return [
        "--config=remote",
        f"--remote_executor=grpc://{server.address}",
        f"--remote_instance_name={instance}",
    ]


@dataclass(frozen=True)
class FirstBuild:
    """The first remote build and test, and what the page compilers told about themselves."""

    outcome: Outcome
    test_logs: dict[str, str]
    statistics: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def first_build(bazel: Bazel, server: ServerProcess) -> FirstBuild:
    bazel.clean()
    outcome = bazel.run("test", "//...", *remote(server))
    assert outcome.exit_code == 0, outcome.console
    return FirstBuild(
        outcome=outcome,
        test_logs={test: bazel.test_log(test) for test in TESTS},
        statistics={protocol: read_statistics(bazel, protocol) for protocol in ("proto", "json")},
    )


def read_statistics(bazel: Bazel, protocol: str) -> list[dict[str, Any]]:
    files = bazel.built("pages").glob(f"*_{protocol}.statistics.json")
    return [json.loads(file.read_text()) for file in files]


def test_everything_is_built_and_tested_remotely(first_build: FirstBuild) -> None:
    assert first_build.outcome.runners() == {"remote"}
    mnemonics = {spawn.mnemonic for spawn in first_build.outcome.spawns}
    assert mnemonics == {"CompilePage", "CppCompile", "CppLink", "Genrule", "TestRunner"}
    assert f"{len(TESTS)} tests pass" in first_build.outcome.console


def test_test_logs_come_back(first_build: FirstBuild) -> None:
    assert "5 rows of the table hold" in first_build.test_logs["native/table_test"]
    assert "the book has 12 pages" in first_build.test_logs["pages/book_test"]
    assert "whole.txt is whole" in first_build.test_logs["text/whole_test"]


def test_after_clean_everything_comes_from_the_cache(
    bazel: Bazel, server: ServerProcess, first_build: FirstBuild
) -> None:
    bazel.clean()
    again = bazel.run("test", "//...", *remote(server))
    assert again.exit_code == 0, again.console
    assert again.runners() == {"remote cache hit"}
    assert len(again.spawns) == len(first_build.outcome.spawns)
    assert bazel.built("text/whole.txt").read_text().splitlines()[-1] == "1999"


@pytest.mark.parametrize("protocol", ["proto", "json"])
def test_one_worker_process_serves_many_actions(first_build: FirstBuild, protocol: str) -> None:
    statistics = first_build.statistics[protocol]
    assert len(statistics) == PAGES_PER_PROTOCOL
    assert {page["mode"] for page in statistics} == {"worker"}
    served = defaultdict(list)
    for page in statistics:
        served[page["process_id"]].append(page["requests_served"])
    # No more processes than can run at once, so one of them has served at least its share.
    assert len(served) <= SLOTS
    assert max(max(counts) for counts in served.values()) >= PAGES_PER_PROTOCOL // SLOTS
    # Every page is a request of its own.
    assert all(len(set(counts)) == len(counts) for counts in served.values())


@pytest.mark.parametrize("protocol", ["proto", "json"])
def test_work_requests_list_the_inputs(first_build: FirstBuild, protocol: str) -> None:
    for page in first_build.statistics[protocol]:
        assert len([path for path in page["inputs"] if path.endswith(".page")]) == 1
        assert any(path.endswith(".html-0.params") for path in page["inputs"])
        assert any(path.endswith("/compiler/markup.py") for path in page["inputs"])


def test_worker_actions_carry_their_properties(first_build: FirstBuild) -> None:
    pages = [spawn for spawn in first_build.outcome.spawns if spawn.mnemonic == "CompilePage"]
    assert len(pages) == 2 * PAGES_PER_PROTOCOL
    assert all(page.platform["persistentWorkerKey"] for page in pages)
    json_pages = [page for page in pages if page.outputs[0].endswith("_json.html")]
    assert len(json_pages) == PAGES_PER_PROTOCOL
    assert {page.platform["persistentWorkerProtocol"] for page in json_pages} == {"json"}


def test_a_change_rebuilds_only_what_depends_on_it(
    bazel: Bazel, server: ServerProcess, first_build: FirstBuild
) -> None:
    bazel.clean()
    page = bazel.workspace / "pages" / "worker.page"
    original = page.read_text()
    page.write_text(original + "\n== Since then\n\nEdited.\n")
    try:
        outcome = bazel.run("build", "//...", *remote(server))
    finally:
        page.write_text(original)
    assert outcome.exit_code == 0, outcome.console
    built = [spawn.mnemonic for spawn in outcome.spawns if spawn.runner == "remote"]
    assert sorted(built) == ["CompilePage", "CompilePage", "Genrule", "Genrule"]
    assert "<p>Edited.</p>" in bazel.built("pages/book.html").read_text()


def test_a_failing_action_shows_its_stderr(bazel: Bazel, server: ServerProcess) -> None:
    outcome = bazel.run("build", "//broken:failing", *remote(server, "broken"))
    assert outcome.exit_code == 1, outcome.console
    assert "this action fails on purpose" in outcome.console
    assert "(Exit 3)" in outcome.console


def test_a_failing_worker_action_shows_the_workers_output(
    bazel: Bazel, server: ServerProcess
) -> None:
    outcome = bazel.run("build", "//broken:page", *remote(server, "broken"))
    assert outcome.exit_code == 1, outcome.console
    assert "broken/broken.page:5: not an entry of a list: three" in outcome.console


def test_a_failing_test_shows_its_log(bazel: Bazel, server: ServerProcess) -> None:
    outcome = bazel.run("test", "//broken:failing_test", *remote(server, "broken"))
    assert outcome.exit_code == 3, outcome.console
    assert "FAILED in" in outcome.console
    assert "this test fails on purpose" in bazel.test_log("broken/failing_test")


def test_a_test_that_never_ends_times_out_with_its_log(bazel: Bazel, server: ServerProcess) -> None:
    arguments = ["--test_timeout=3", *remote(server, "broken")]
    outcome = bazel.run("test", "//broken:endless_test", *arguments)
    assert outcome.exit_code == 3, outcome.console
    assert "TIMEOUT in" in outcome.console
    assert "this test never ends" in bazel.test_log("broken/endless_test")


def test_a_build_can_leave_its_outputs_on_the_server(bazel: Bazel, server: ServerProcess) -> None:
    bazel.clean()
    arguments = ["--remote_download_minimal", *remote(server, "minimal")]
    outcome = bazel.run("build", "//...", *arguments)
    assert outcome.exit_code == 0, outcome.console
    assert outcome.runners() == {"remote"}
    assert not bazel.built("text/whole.txt").exists()


def test_an_instance_name_may_have_slashes(bazel: Bazel, server: ServerProcess) -> None:
    bazel.clean()
    outcome = bazel.run("build", "//text/...", *remote(server, "team/a"))
    assert outcome.exit_code == 0, outcome.console
    assert outcome.runners() == {"remote"}
    assert bazel.built("text/greeting.txt").read_text() == "Built, not downloaded.\n"


def test_an_unknown_instance_name_is_refused(bazel: Bazel, server: ServerProcess) -> None:
    outcome = bazel.run("build", "//text/...", *remote(server, "nobody"))
    assert outcome.exit_code != 0, outcome.console
    assert "nobody" in outcome.console


def test_local_builds_share_the_cache(bazel: Bazel, server: ServerProcess) -> None:
    arguments = [
        "--config=cache",
        f"--remote_cache=grpc://{server.address}",
        "--remote_instance_name=cache",
    ]
    bazel.clean()
    first = bazel.run("build", "//...", *arguments)
    assert first.exit_code == 0, first.console
    assert not any(runner.startswith("remote") for runner in first.runners())
    bazel.clean()
    second = bazel.run("build", "//...", *arguments)
    assert second.exit_code == 0, second.console
    assert second.runners() == {"remote cache hit"}


def test_the_example_needs_no_server(bazel: Bazel) -> None:
    """Bazel's own workers run the example's compiler, so stoker's may be compared to them."""
    bazel.clean()
    outcome = bazel.run("test", "//...")
    assert outcome.exit_code == 0, outcome.console
    assert "worker" in {spawn.runner for spawn in outcome.spawns if spawn.mnemonic == "CompilePage"}
    assert not any(runner.startswith("remote") for runner in outcome.runners())


CONTAINERS = """
[server]
listen = ["127.0.0.1:0"]
drain_seconds = 1.0

[blob_stores.main]
kind = "disk"
path = "cas"

[action_caches.main]
kind = "disk"
path = "results"

[strategies.boxes]
kind = "docker"
endpoint = "{endpoint}"
pull = "never"

[executors.boxes]
strategy = "boxes"
slots = 2
properties = {{ container-image = "*", dockerReuse = "*" }}

[instances.""]
blob_store = "main"
action_cache = "main"
executors = ["boxes"]
"""

PLATFORM = """
platform(
    name = "boxes",
    parents = ["@local_config_platform//:host"],
    exec_properties = {{"container-image": "{image}", "dockerReuse": "True"}},
)
"""

# What gcc compiles would need an image with gcc.
TARGETS_FOR_CONTAINERS = ["//text:all", "//pages:all"]


@pytest.fixture
def server_of_containers() -> Iterator[ServerProcess]:
    # Not in pytest's own folder, which no other user may enter.
    with tempfile.TemporaryDirectory(prefix="stoker-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        try:
            with some_endpoint() as endpoint:
                toml = CONTAINERS.format(endpoint=endpoint)
                with open_server_process(Path(folder), toml) as opened:
                    yield opened
        except NoEngine as error:
            pytest.skip(f"no container engine: {error}")


def test_everything_runs_in_containers_and_pages_on_workers_in_them(  # ISO-02, PWK-03
    bazel: Bazel, server_of_containers: ServerProcess
) -> None:
    bazel.clean()
    image = f"docker://{PYTHON}"
    # Properties of a platform, unlike those of the command line, hold beside those of a target.
    (bazel.workspace / "boxes").mkdir()
    (bazel.workspace / "boxes" / "BUILD").write_text(PLATFORM.format(image=image))
    outcome = bazel.run(
        "build",
        *TARGETS_FOR_CONTAINERS,
        "--output_groups=+statistics",
        *remote(server_of_containers),
        "--host_platform=//boxes",
        "--extra_execution_platforms=//boxes",
    )
    assert outcome.exit_code == 0, outcome.console + server_of_containers.log.read_text()
    assert outcome.runners() == {"remote"}
    assert {spawn.platform["container-image"] for spawn in outcome.spawns} == {image}
    assert bazel.built("text/whole.txt").read_text().splitlines()[-1] == "1999"
    for protocol in ("proto", "json"):
        pages = read_statistics(bazel, protocol)
        assert {page["mode"] for page in pages} == {"worker"}
        assert max(page["requests_served"] for page in pages) >= PAGES_PER_PROTOCOL // SLOTS
