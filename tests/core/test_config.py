"""TOML to configuration: what is accepted, and what each mistake is told as."""

from __future__ import annotations

import tomllib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from stoker.config import Configuration, check_document, effective_document, read_toml
from stoker.digest import DIGEST_FUNCTION_NAMES
from stoker.errors import ConfigurationError
from stoker.machine import usable_memory_bytes, usable_processors, usable_slots
from stoker.plugins import Catalogue, Kind, load_catalogue
from stoker.resources import Capacity, Share
from stoker.spi import BlobStore, Context, Provider, Settings
from stoker.storage.memory import MemoryBlobStore
from stoker.workers.settings import WorkerRule

FULL = """
[server]
listen = ["127.0.0.1:0", "[::1]:8980", "unix:stoker.socket"]
[log]
level = "debug"
[scheduler]
max_queued = 6
[log_streams]
max_streams = 5
[history]
max_runs = 4
[blob_stores.main]
kind = "memory"
max_bytes = 1000
[blob_stores.mirror]
kind = "read-only"
of = "main"
[action_caches.main]
kind = "memory"
[executors.fast]
strategy = "local"
slots = 3
properties = { OSFamily = "linux", ISA = ["x86-64", "arm-a64"] }
[executors.fast.workers]
idle_seconds = 1.5
[[executors.fast.workers.rules]]
mnemonics = ["Javac", "*Turbine"]
protocol = "json"
max_requests = 100
[[executors.fast.workers.rules]]
use = "never"
[instances."team/a"]
blob_store = "main"
action_cache = "main"
executors = ["fast"]
[instances.""]
blob_store = "mirror"
action_cache = "main"
"""


def check(toml: str) -> Configuration:
    return check_document(tomllib.loads(toml), Path("/folder"), load_catalogue())


def problems(toml: str) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as info:
        check(toml)
    return info.value.problems


def test_a_full_document() -> None:
    configuration = check(FULL)
    assert set(configuration.instances) == {"team/a", ""}
    executor = configuration.executors["fast"]
    assert (executor.slots, executor.workers.idle_seconds) == (3, 1.5)
    assert executor.workers.rules == (
        WorkerRule(mnemonics=("Javac", "*Turbine"), protocol="json", max_requests=100),
        WorkerRule(use="never"),
    )
    assert executor.properties["ISA"] == ("x86-64", "arm-a64")
    order = [str(name) for name in configuration.services]
    assert order.index("[blob_stores.main]") < order.index("[blob_stores.mirror]")
    # What needs no settings needs no table.
    assert {"[strategies.local]", "[sandboxes.none]", "[worker_protocols.json]"} <= set(order)


def test_what_an_executor_has() -> None:
    toml = """
[executors.x]
strategy = "local"
slots = 8
cpus = 4
memory_bytes = "16GiB"
limits = { default_memory_bytes = "500MB", max_processes = 7, enforce_cpus = true }
"""
    executor = check(MAIN + toml).executors["x"]
    assert executor.capacity == Capacity(Share(4000, 16 * 2**30), Share(500, 500_000_000))
    assert (executor.limits.max_processes, executor.limits.enforce_cpus) == (7, True)
    default = check(MAIN + '[executors.x]\nstrategy = "local"').executors["x"]
    assert default.cpus == usable_processors()
    assert default.memory_bytes == usable_memory_bytes()
    assert default.slots == usable_slots()


def test_every_digest_function_can_be_named() -> None:
    defaults = check(MAIN).instances[""]
    assert set(defaults.digest_functions) == set(DIGEST_FUNCTION_NAMES)


def test_the_effective_document_means_the_same() -> None:
    configuration = check(FULL)
    again = check(tomli_w.dumps(effective_document(configuration)))
    assert again == configuration


MAIN = """
[blob_stores.main]
kind = "memory"
[action_caches.main]
kind = "memory"
[instances.""]
blob_store = "main"
action_cache = "main"
"""

RULES = MAIN + '[executors.x]\nstrategy="local"\n[[executors.x.workers.rules]]\n'


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        # unknown keys and tables
        (MAIN + "[server]\nlissten = []", "[server] has no key 'lissten': did you mean 'listen'?"),
        (MAIN + "[serverr]", "there is no table [serverr]: did you mean 'server'?"),
        (
            MAIN.replace('kind = "memory"', 'kind = "memory"\nmax_byte = 1', 1),
            "[blob_stores.main] has no key 'max_byte': did you mean 'max_bytes'?",
        ),
        (
            MAIN + '[executors.x]\nstrategy="local"\nworkers={idle=1}',
            "[executors.x.workers] has no key 'idle'",
        ),
        # tables in arrays
        (
            RULES + 'mnemonic = ["A"]',
            "[executors.x.workers.rules[0]] has no key 'mnemonic': did you mean 'mnemonics'?",
        ),
        (
            RULES + 'mnemonics = ["A"]\n[[executors.x.workers.rules]]\nmax_workers_per_key = 0',
            "[executors.x.workers.rules[1]] max_workers_per_key: expected an integer >= 1, got 0",
        ),
        (RULES + 'mnemonics = "A"', "rules[0]] mnemonics: expected an array, got 'A'"),
        (RULES + 'mnemonics = ["A", 1]', "rules[0]] mnemonics[1]: expected a string"),
        # what no request can hold, and no command line
        (
            RULES + "verbosity = 2147483648",
            "rules[0]] verbosity: expected an integer <= 2147483647",
        ),
        (RULES + 'extra_flags = ["-v", "a\\u0000b"]', "rules[0]] extra_flags[1]: expected"),
        (RULES + 'use = "often"', "rules[0]] use: invalid enum value 'often'"),
        (
            RULES.replace("[[", "[").replace("]]", "]"),
            (
                "[executors.x.workers.rules] must be an array of tables, as "
                "[[executors.x.workers.rules]]"
            ),
        ),
        (
            MAIN + '[executors.x]\nstrategy="local"\nworkers={rules=[3]}',
            "[executors.x.workers.rules[0]] must be a table, not an integer",
        ),
        (
            RULES + 'use = "never"\n[[executors.x.workers.rules]]\nmnemonics = ["A"]',
            "[executors.x.workers.rules[1]] never counts: rules[0] fits all that it fits",
        ),
        (
            RULES.replace('"local"', '"local"\nworker_protocols=["proto"]') + 'protocol = "json"',
            (
                "[executors.x.workers.rules[0]] protocol: 'json' is not among the "
                "worker_protocols of "
                "[executors.x]: there are 'proto'"
            ),
        ),
        # wrong types
        (MAIN + "[server]\nlisten = 8980", "[server] listen: expected an array, got 8980"),
        (MAIN + "[server]\nlisten = [8980]", "[server] listen[0]: expected a string, got [8980]"),
        (MAIN + '[log]\nlevel = "loud"', "[log] level: invalid enum value 'loud'"),
        (
            MAIN + '[executors.x]\nstrategy="local"\nslots=0',
            "[executors.x] slots: expected an integer >= 1",
        ),
        (MAIN + "[server]\ninsecure = 1", "[server] insecure: expected true or false, got 1"),
        ("server = 3" + MAIN, "[server] must be a table, not an integer"),
        ("executors = 3" + MAIN, "[executors] must hold tables, as [executors.NAME]"),
        ("executors = [5]" + MAIN, "[executors] must hold tables, as [executors.NAME]"),
        (MAIN + "[scheduler]\nabandoned_after_seconds = -1.0", "expected a number >= 0"),
        (MAIN + "[scheduler]\nabandoned_after_seconds = nan", "expected a finite number, got nan"),
        (MAIN + "[strategies]\nx = 1", "[strategies.x] must be a table, not an integer"),
        (MAIN + "[blob_stores.x]\nkind = 5", "needs the key 'kind' (a string), got 5"),
        (MAIN + '[server]\ntls_client_ca = ""', "tls_client_ca: expected a string of length >= 1"),
        (MAIN + '[executors."../up"]\nstrategy="local"', "name is also a folder's"),
        (MAIN + '[executors.""]\nstrategy="local"', "name is also a folder's"),
        (
            MAIN + '[executors.x]\nstrategy="local"\nlimits={default_timeout_seconds=1e9}',
            "default_timeout_seconds is above maximum_timeout_seconds",
        ),
        # scheduling
        (MAIN + "[scheduler]\nageing_seconds = -1.0", "ageing_seconds: expected a number >= 0"),
        (
            MAIN + '[scheduler.properties]\nPool = "equal"',
            "[scheduler] properties[...]: ",
        ),
        (
            MAIN + '[scheduler.properties]\ncpus = "exact"',
            "[scheduler.properties] 'cpus' asks for processors or memory, and is always consumed",
        ),
        (
            MAIN
            + '[scheduler.properties]\ngpus = "consumed"\n'
            + '[executors.x]\nstrategy="local"\nproperties={gpus="some"}',
            "properties: gpus is 'consumed' by [scheduler.properties] and needs a number such",
        ),
        # resources
        (
            MAIN + '[executors.x]\nstrategy="local"\nmemory_bytes="plenty"',
            "memory_bytes: expected a number of bytes, or a text such as '16GiB', got 'plenty'",
        ),
        (
            MAIN + '[executors.x]\nstrategy="local"\nmemory_bytes=0',
            "[executors.x] memory_bytes: expected an integer >= 1",
        ),
        (
            MAIN + '[executors.x]\nstrategy="local"\nslots="2"',
            "[executors.x] slots: expected an integer, got '2'",
        ),
        (
            MAIN + '[executors.x]\nstrategy="local"\ncpus=0.0',
            "[executors.x] cpus: expected a number >= 0.001",
        ),
        (
            MAIN + '[executors.x]\nstrategy="local"\nmemory_bytes="1GiB"\n'
            'limits={default_memory_bytes="2GiB"}',
            "[executors.x.limits] default_memory_bytes is above the executor's memory_bytes, 10737",
        ),
        (
            MAIN + '[executors.x]\nstrategy="local"\nproperties={cpus="4"}',
            "[executors.x] properties: 'cpus' asks for an amount and is not matched as a value",
        ),
        (MAIN + f'[server]\nlisten=["127.0.0.1:{"9" * 5000}"]', "neither host:port nor unix"),
        (MAIN + '[server]\nlisten=["127.0.0.1:٣٣"]', "neither host:port nor unix"),
        # what is needed
        (MAIN + "[executors.x]", "[executors.x] needs the key 'strategy' (expected a string)"),
        (MAIN + "[blob_stores.x]", "[blob_stores.x] needs the key 'kind' (a string)"),
        ('[blob_stores.x]\nkind="memory"', "there is no [instances.NAME]"),
        # kinds
        (
            MAIN.replace('"memory"', '"dsk"', 1),
            (
                "[blob_stores.main] kind: no blob store of kind 'dsk' is installed: "
                "did you mean 'disk'?"
            ),
        ),
        (MAIN.replace('"memory"', '"s4"', 1), "no blob store of kind 's4' is installed: there are"),
        (MAIN + '[executors.x]\nstrategy="dcker"', "no execution strategy of kind 'dcker'"),
        # references
        (
            MAIN.replace('blob_store = "main"', 'blob_store = "mian"'),
            "[instances.\"\"] blob_store: there is no [blob_stores.mian]: did you mean 'main'?",
        ),
        (
            MAIN + '[blob_stores.r]\nkind="read-only"\nof="q"',
            "[blob_stores.r] of: there is no [blob_stores.q]",
        ),
        (
            MAIN + '[executors.x]\nstrategy="local"\nworker_protocols=["proto", "jsn"]',
            "[executors.x] worker_protocols: there is no [worker_protocols.jsn]",
        ),
        (
            RULES + 'protocol = "jsn"',
            "[executors.x] workers.rules[0].protocol: there is no [worker_protocols.jsn]",
        ),
        (
            MAIN.replace('action_cache = "main"', 'action_cache = "main"\nexecutors = ["x"]'),
            '[instances.""] executors: there is no [executors.x]: there are none',
        ),
        # circles
        (
            MAIN
            + '[blob_stores.a]\nkind="read-only"\nof="b"\n'
            + '[blob_stores.b]\nkind="read-only"\nof="a"',
            "these name each other in a circle: [blob_stores.",
        ),
        # addresses
        (MAIN + '[server]\nlisten=["0.0.0.0:1"]', "is open to other machines without TLS"),
        (MAIN + '[server]\nlisten=["build.example:1"]', "say insecure = true"),
        (MAIN + '[server]\nlisten=["8980"]', "is neither host:port nor unix:/path"),
        (MAIN + '[server]\nlisten=["127.0.0.1:99999"]', "is neither host:port nor unix:/path"),
        (MAIN + "[server]\nlisten=[]", "give at least one address"),
        (MAIN + '[server]\ntls_key="k"', "tls_certificate and tls_key go together"),
        (MAIN + '[server]\ntls_client_ca="k"', "tls_client_ca needs tls_certificate"),
        # instances
        (
            MAIN + 'digest_functions = ["sha257"]',
            "digest_functions[0]: invalid enum value 'sha257'",
        ),
        (MAIN + "digest_functions = []", "digest_functions: give at least one"),
        (MAIN + "max_blob_bytes = -1", "max_blob_bytes: expected an integer >= 0"),
        (MAIN.replace('""', '"a/blobs"'), "has the reserved segment 'blobs'"),  # GEN-20
        (MAIN.replace('""', '"a//b"'), "has a slash too many"),
    ],
)
def test_every_mistake_is_told(toml: str, said: str) -> None:
    told = problems(toml)
    assert len(told) == 1
    assert said in told[0]


def test_all_mistakes_are_told_at_once() -> None:
    told = problems('[server]\nlisen=[]\n[log]\nlevel=3\n[blob_stores.x]\nkind="memry"')
    assert len(told) == 4


def test_a_kind_that_is_not_installed_names_its_package() -> None:
    nothing = Catalogue(
        {table: {} for table in ("blob_stores", "action_caches", "strategies")}
        | {"sandboxes": {}, "worker_protocols": {}}
    )
    document = tomllib.loads(MAIN.replace("memory", "disk"))
    with pytest.raises(ConfigurationError) as info:
        check_document(document, Path(), nothing)
    assert info.value.problems[0] == (
        "[blob_stores.main] kind: no blob store of kind 'disk' is installed; "
        "the package stoker-storage-disk supplies it"
    )


def test_an_open_address_needs_tls_or_the_word() -> None:
    listen = '[server]\nlisten = ["0.0.0.0:1"]\n'
    assert check(MAIN + listen + "insecure = true").server.insecure
    check(MAIN + listen + 'tls_certificate = "c"\ntls_key = "k"')


def test_an_executor_has_one_blob_store() -> None:
    other = FULL.replace('blob_store = "mirror"', 'blob_store = "mirror"\nexecutors = ["fast"]')
    assert "with different blob stores" in problems(other)[0]


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    file = tmp_path / "stoker.toml"
    with pytest.raises(ConfigurationError, match=r"cannot read .*stoker\.toml"):
        read_toml(file)
    file.write_text("[blob_stores.a]\n[blob_stores.a]\n")
    with pytest.raises(ConfigurationError, match=r"stoker\.toml is not TOML: .*line 2"):
        read_toml(file)


def test_what_cannot_be_a_path() -> None:
    configuration = check(MAIN)
    for text in ("~no-such-user/x", "a\0b"):
        with pytest.raises(ConfigurationError, match="cannot be a path"):
            configuration.path(text)
    assert configuration.path("a") == Path("/folder/a")


def test_a_file_that_is_nested_too_deeply(tmp_path: Path) -> None:
    file = tmp_path / "deep.toml"
    file.write_text(f"a = {'[' * 5000}{']' * 5000}")
    with pytest.raises(ConfigurationError, match="nested too deeply"):
        read_toml(file)


class NeedySettings(Settings, frozen=True):
    """For a kind that cannot go without a table."""

    path: str


@asynccontextmanager
async def open_needy(_: NeedySettings, __: Context) -> AsyncIterator[BlobStore]:
    yield MemoryBlobStore()


def test_a_kind_with_required_settings_needs_its_table() -> None:
    installed = {
        table: dict(load_catalogue().kinds(table))
        for table in ("blob_stores", "action_caches", "strategies", "sandboxes", "worker_protocols")
    }
    provider: Provider[BlobStore] = Provider(NeedySettings, open_needy)
    installed["blob_stores"]["needy"] = Kind("needy", "blob_stores", provider, "acme", "1")
    document: Mapping[str, Any] = tomllib.loads(
        MAIN.replace('blob_store = "main"', 'blob_store = "needy"')
    )
    with pytest.raises(ConfigurationError, match=r"there is no \[blob_stores.needy\]"):
        check_document(document, Path(), Catalogue(installed))
