"""Outputs, as real commands leave them."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from stoker.action import Outcome
from stoker.digest import SHA256, Digest
from stoker.errors import FailedPrecondition, StokerError
from stoker.execution.output_limits import OutputBudget
from stoker.execution.outputs import collect_outputs
from stoker.execution.uploads import Uploads
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import BlobStore
from stoker.storage.memory import MemoryBlobStore
from stoker.storage.verifying import VerifyingBlobStore

Rig = Any
Cas = Any

FORMATS = reapi.Command.OutputDirectoryFormat


def digest_of(data: bytes) -> reapi.Digest:
    return SHA256.digest(data).to_proto()


async def read_tree(cas: Cas, output: reapi.OutputDirectory) -> reapi.Tree:
    return reapi.Tree.FromString(await cas.get(output.tree_digest))


def listing(tree: reapi.Tree) -> dict[str, object]:
    """Paths in `tree`: a digest's hash, a link's target, None for a directory."""
    by_digest = {SHA256.digest(m.SerializeToString()): m for m in (tree.root, *tree.children)}
    found: dict[str, object] = {}

    def visit(prefix: str, directory: reapi.Directory) -> None:
        found.update({prefix + node.name: node.digest.hash for node in directory.files})
        found.update({prefix + node.name: node.target for node in directory.symlinks})
        for node in directory.directories:
            found[prefix + node.name] = None
            visit(f"{prefix}{node.name}/", by_digest[SHA256.parse(node.digest)])

    visit("", tree.root)
    return found


async def error_of(rig: Rig, script: str, **fields: Any) -> StokerError:
    outcome: Outcome = await rig.run(await rig.cas.shell(script, **fields))
    assert outcome.error is not None
    return outcome.error


async def test_each_kind_goes_to_its_field(rig: Rig) -> None:
    # OUT-01, OUT-02, RUN-06
    result = await rig.shell(
        "echo hi > out/f; printf '#!' > x; chmod +x x; ln -s f out/l;"
        "mkdir out/d; echo hi > out/d/g",
        output_paths=["out/f", "out/d", "out/l", "out/absent", "no/where/at/all", "x"],
        output_files=["ignored"],
    )
    assert [(f.path, f.digest, f.is_executable) for f in result.output_files] == [
        ("out/f", digest_of(b"hi\n"), False),
        ("x", digest_of(b"#!"), True),
    ]
    assert [(link.path, link.target) for link in result.output_symlinks] == [("out/l", "f")]
    # OUT-05
    assert list(result.output_file_symlinks) == list(result.output_symlinks)
    (directory,) = result.output_directories
    assert directory.path == "out/d"
    assert listing(await read_tree(rig.cas, directory)) == {"g": digest_of(b"hi\n").hash}
    assert await rig.cas.get(result.output_files[0].digest) == b"hi\n"


async def test_legacy_fields(rig: Rig) -> None:
    # OUT-03, OUT-04
    result = await rig.shell(
        "echo hi > f; mkdir d; ln -s f lf; ln -s d ld; ln -s none nf; ln -s none nd",
        output_files=["f", "lf", "nf", "absent"],
        output_directories=["d", "ld", "nd", "missing"],
    )
    assert [file.path for file in result.output_files] == ["f"]
    assert [directory.path for directory in result.output_directories] == ["d"]
    assert {link.path: link.target for link in result.output_file_symlinks} == {
        "lf": "f",
        "nf": "none",
    }
    assert {link.path: link.target for link in result.output_directory_symlinks} == {
        "ld": "d",
        "nd": "none",
    }
    assert not result.output_symlinks


@pytest.mark.parametrize(
    ("script", "fields", "message"),
    [
        ("mkdir x", {"output_files": ["x"]}, "output file 'x' is a directory"),
        ("touch x", {"output_directories": ["x"]}, "output directory 'x' is a file"),
        ("mkdir d; ln -s d x", {"output_files": ["x"]}, "'x' is a symbolic link to a directory"),
        ("touch f; ln -s f x", {"output_directories": ["x"]}, "'x' is a symbolic link to a file"),
        # OUT-19
        ("mkfifo x", {"output_paths": ["x"]}, "output 'x' is neither"),
        # OUT-21
        (r"mkdir d; touch d/$(printf 'a\377')", {"output_paths": ["d"]}, "not UTF-8"),
        (r"ln -s $(printf 'a\377') x", {"output_paths": ["x"]}, "not UTF-8"),
        ("rmdir x; ln -s /etc x", {"output_paths": ["x/hostname"]}, "link out of the input root"),
        (
            "rmdir x; ln -s ../../.. x",
            {"output_paths": ["x/actions"]},
            "link out of the input root",
        ),
    ],
)
async def test_what_cannot_be_an_output(
    rig: Rig, script: str, fields: dict[str, Any], message: str
) -> None:
    outcome = await rig.run(await rig.cas.shell(f"echo told; {script}", **fields))
    assert isinstance(outcome.error, FailedPrecondition)
    assert message in str(outcome.error)
    assert outcome.result is not None, "what the command printed helps to understand"
    assert await rig.cas.get(outcome.result.stdout_digest) == b"told\n"
    assert rig.leftovers() == []


async def test_links_to_directories_dangling_absolute_and_upward(rig: Rig) -> None:
    # OUT-05, OUT-06, OUT-07
    result = await rig.shell(
        "mkdir d; ln -s d to-d; ln -s none dangling; ln -s /usr/lib absolute; ln -s ../.. up",
        output_paths=["to-d", "dangling", "absolute", "up"],
    )
    assert {link.path: link.target for link in result.output_symlinks} == {
        "to-d": "d",
        "dangling": "none",
        "absolute": "/usr/lib",
        "up": "../..",
    }
    assert [link.path for link in result.output_directory_symlinks] == ["to-d"]
    assert {link.path for link in result.output_file_symlinks} == {"dangling", "absolute", "up"}


async def test_outputs_behind_a_link_inside_of_the_root(rig: Rig) -> None:
    result = await rig.shell(
        "mkdir real; echo hi > real/f; rmdir out; ln -s $PWD/real out", output_paths=["out/f"]
    )
    assert [(file.path, file.digest) for file in result.output_files] == [
        ("out/f", digest_of(b"hi\n"))
    ]


async def test_paths_are_relative_to_the_working_directory_and_returned_verbatim(rig: Rig) -> None:
    # RUN-07, RUN-08
    paths = ["f", "../up/g", "./sub//h", "../w/k"]
    result = await rig.shell(
        "pwd -P; for f in f ../up/g sub/h k; do echo $f > $f; done",
        inputs={"w": {"in": b""}},
        working_directory="w",
        output_paths=paths,
    )
    assert [file.path for file in result.output_files] == paths
    assert [await rig.cas.get(file.digest) for file in result.output_files] == [
        b"f\n",
        b"../up/g\n",
        b"sub/h\n",
        b"k\n",
    ]
    assert (await rig.cas.get(result.stdout_digest)).endswith(b"/w\n")


async def test_links_inside_directories_are_kept(rig: Rig) -> None:
    # OUT-08
    result = await rig.shell(
        "mkdir d; ln -s . d/self; ln -s /etc d/out; ln -s none d/dangling", output_paths=["d"]
    )
    tree = await read_tree(rig.cas, result.output_directories[0])
    assert listing(tree) == {"self": ".", "out": "/etc", "dangling": "none"}


async def test_empty_outputs(rig: Rig) -> None:
    # OUT-10
    result = await rig.shell("mkdir d; touch f", output_paths=["d", "f"])
    assert result.output_files[0].digest == SHA256.empty.to_proto()
    data = await rig.cas.get(result.output_directories[0].tree_digest)
    assert data == b"\x0a\x00", "a Tree whose root is there, and empty"


def records(tree: bytes) -> Iterator[tuple[int, bytes]]:
    """The outermost fields of `tree` as they follow each other: tag byte and content."""
    while tree:
        tag, length, shift, position = tree[0], 0, 0, 1
        while True:
            byte = tree[position]
            length |= (byte & 0x7F) << shift
            shift, position = shift + 7, position + 1
            if not byte & 0x80:
                break
        yield tag, tree[position : position + length]
        tree = tree[position + length :]


async def test_trees_are_canonical_and_topologically_sorted(rig: Rig) -> None:
    # OUT-11, OUT-12: `deep` occurs at several depths, and once below itself under another name.
    result = await rig.shell(
        "mkdir -p t/z t/b/y t/a/x/w t/empty1 t/empty2;"
        "for d in t/z t/b/y t/a/x/w t/b; do echo same > $d/f; done; echo 1 > t/é; echo 2 > t/Z",
        output_paths=["t"],
    )
    (output,) = result.output_directories
    assert output.is_topologically_sorted
    data = await rig.cas.get(output.tree_digest)
    tags, contents = zip(*records(data), strict=True)
    assert tags == (0x0A, *[0x12] * (len(tags) - 1))
    directories = [reapi.Directory.FromString(content) for content in contents]
    digests = [SHA256.digest(content).hash for content in contents]
    assert len(set(digests)) == len(digests)
    for position, directory in enumerate(directories):
        for node in directory.directories:
            assert digests.index(node.digest.hash) > position
        for nodes in (directory.files, directory.directories, directory.symlinks):
            names = [node.name for node in nodes]
            assert names == sorted(names)
    referenced = {node.digest.hash for directory in directories for node in directory.directories}
    assert referenced == set(digests[1:])


async def test_equal_directories_have_equal_trees(rig: Rig) -> None:
    # OUT-11
    scripts = ["mkdir t t/a; echo 1 > t/a/f; ln -s x t/l", "mkdir t; ln -s x t/l; mkdir t/a;"]
    scripts[1] += "echo 1 > t/a/f; chmod 640 t/a/f; touch -d @77 t/a"
    results = [await rig.shell(script, output_paths=["t"]) for script in scripts]
    assert results[0].output_directories == results[1].output_directories


@pytest.mark.parametrize(
    ("format_", "has_tree", "has_directories"),
    [
        (FORMATS.TREE_ONLY, True, False),
        (FORMATS.DIRECTORY_ONLY, False, True),
        (FORMATS.TREE_AND_DIRECTORY, True, True),
        (77, True, False),  # EXE-30
    ],
)
async def test_directory_formats(
    rig: Rig, format_: int, has_tree: bool, has_directories: bool
) -> None:
    # OUT-13, OUT-14
    result = await rig.shell(
        "mkdir -p d/e/g; echo 1 > d/e/f", output_paths=["d"], output_directory_format=format_
    )
    (output,) = result.output_directories
    assert output.HasField("tree_digest") is has_tree
    assert output.is_topologically_sorted is has_tree
    assert output.HasField("root_directory_digest") is has_directories
    leaf = reapi.Directory(files=[reapi.FileNode(name="f", digest=digest_of(b"1\n"))])
    leaf.directories.add(name="g", digest=digest_of(b""))
    root = reapi.Directory()
    root.directories.add(name="e", digest=digest_of(leaf.SerializeToString()))
    if has_tree:
        assert (await read_tree(rig.cas, output)).root == root
    stored = {SHA256.digest(message.SerializeToString()) for message in (leaf, root)}
    missing = await rig.cas.blobs.find_missing(stored)
    assert missing == (set() if has_directories else stored)
    if has_directories:
        assert output.root_directory_digest == digest_of(root.SerializeToString())


@pytest.mark.parametrize("working_directory", ["", "w"])
async def test_the_empty_path_is_the_whole_working_directory(
    rig: Rig, working_directory: str
) -> None:
    # OUT-15
    inputs = {"in": b"1", "w": {"in": b"2"}}
    result = await rig.shell(
        "echo 3 > new", inputs=inputs, working_directory=working_directory, output_paths=[""]
    )
    (output,) = result.output_directories
    assert output.path == ""
    expected: dict[str, object] = {"new": digest_of(b"3\n").hash}
    if working_directory:
        expected |= {"in": digest_of(b"2").hash}
    else:
        expected |= {"in": digest_of(b"1").hash, "w": None, "w/in": digest_of(b"2").hash}
    assert listing(await read_tree(rig.cas, output)) == expected


async def test_overlapping_outputs_and_untouched_inputs(rig: Rig) -> None:
    # OUT-16, OUT-17
    result = await rig.shell(
        "echo 1 > d/f", inputs={"in": b"2"}, output_paths=["d", "d/f", "in", "d"]
    )
    assert [file.path for file in result.output_files] == ["d/f", "in"]
    assert [directory.path for directory in result.output_directories] == ["d"]
    assert result.output_files[1].digest == digest_of(b"2")


async def test_names_that_differ_in_case_are_two(rig: Rig) -> None:
    # OUT-23: as on the file system that they come from.
    result = await rig.shell("mkdir d; echo 1 > d/Foo; echo 2 > d/foo", output_paths=["d"])
    tree = await read_tree(rig.cas, result.output_directories[0])
    assert listing(tree) == {"Foo": digest_of(b"1\n").hash, "foo": digest_of(b"2\n").hash}


async def test_node_properties_where_asked_for(rig: Rig) -> None:
    # OUT-18
    script = (
        "mkdir d; echo 1 > f; echo 1 > d/g; ln -s f l; chmod 640 f; touch -d @1000000000.5 f d/g;"
        "chmod 710 d; touch -d @1000000001 d"
    )
    paths = ["f", "d", "l"]
    plain = await rig.shell(script, output_paths=paths)
    assert not plain.output_files[0].HasField("node_properties")
    asked = await rig.shell(
        script, output_paths=paths, output_node_properties=["unix_mode", "mtime"]
    )
    properties = asked.output_files[0].node_properties
    assert properties.mtime.ToNanoseconds() == 1_000_000_000_500_000_000
    assert properties.unix_mode.value == 0o640
    assert asked.output_symlinks[0].node_properties.unix_mode.value == 0o777
    root = (await read_tree(rig.cas, asked.output_directories[0])).root
    assert root.node_properties.unix_mode.value == 0o710
    assert root.node_properties.mtime.seconds == 1_000_000_001
    assert root.files[0].node_properties.mtime.nanos == 500_000_000


async def test_special_files_inside_are_left_out_and_named(rig: Rig) -> None:
    # OUT-19
    outcome = await rig.run(
        await rig.cas.shell("mkdir d; mkfifo d/p; echo 1 > d/f", output_paths=["d"])
    )
    assert outcome.error is None
    tree = await read_tree(rig.cas, outcome.result.output_directories[0])
    assert listing(tree) == {"f": digest_of(b"1\n").hash}
    assert "d/p" in outcome.message


async def test_a_socket_is_no_output(cas: Cas, tmp_path: Path) -> None:
    # OUT-19
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(FailedPrecondition):
            await upload(cas.blobs, tmp_path, "s")


async def test_forbidden_outputs_are_read_all_the_same(rig: Rig) -> None:
    # OUT-20
    result = await rig.shell(
        "mkdir -p d/e; for f in d/e/f g o/h; do echo 1 > $f; chmod 0 $f; done; chmod 0 d/e d o",
        output_paths=["d", "g", "o/h"],
    )
    assert listing(await read_tree(rig.cas, result.output_directories[0])) == {
        "e": None,
        "e/f": digest_of(b"1\n").hash,
    }
    assert [file.digest for file in result.output_files] == [digest_of(b"1\n")] * 2
    assert rig.leftovers() == []


class CountingStore(MemoryBlobStore):
    """Remembers what was sent to it, and how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Digest] = []
        self.asked = 0

    async def find_missing(self, digests: Any) -> set[Digest]:
        self.asked += 1
        return await super().find_missing(digests)

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
        self.written += blobs
        return await super().write_many(blobs)

    def open_write(self, digest: Digest) -> Any:
        self.written.append(digest)
        return super().open_write(digest)


async def upload(
    blobs: BlobStore, folder: Path, *paths: str, gives_files: bool = False
) -> reapi.ActionResult:
    uploads = Uploads(SHA256, blobs, gives_files=gives_files)
    command = reapi.Command(output_paths=paths)
    collected = await collect_outputs(folder, command, uploads, budget())
    await uploads.publish()
    return collected.result


def budget() -> OutputBudget:
    return OutputBudget(executor="executor-1", max_files=10**6, max_bytes=2**40)


async def test_only_missing_blobs_are_sent_and_asked_for_once(tmp_path: Path) -> None:
    # OUT-22
    store = CountingStore()
    blobs = VerifyingBlobStore(store)
    large, small = b"1" * 2**20, b"2" * 1000
    for name, data in {"l1": large, "l2": large, "s1": small, "s2": small, "e": b""}.items():
        (tmp_path / name).write_bytes(data)
    await upload(blobs, tmp_path, "l1", "s1")
    assert sorted(store.written) == sorted([SHA256.digest(large), SHA256.digest(small)])
    store.written, store.asked = [], 0
    await upload(blobs, tmp_path, "l1", "l2", "s1", "s2", "e")
    assert store.written == []
    assert store.asked == 2, "once for each of the large ones, once for all small ones"


class RefusingStore(MemoryBlobStore):
    """Refuses the first batch."""

    refused: Mapping[Digest, bytes] = {}

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
        if self.refused:
            return await super().write_many(blobs)
        self.refused = blobs
        return {digest: FailedPrecondition("not now") for digest in blobs}


async def test_what_was_taken_along_before_a_failure_still_arrives(tmp_path: Path) -> None:
    # What the command said is named in the result, whatever becomes of its outputs.
    for number in range(60):
        (tmp_path / f"f{number}").write_bytes(b"%d" % number * 50_000)
    store = RefusingStore()
    uploads = Uploads(SHA256, VerifyingBlobStore(store))
    digest = uploads.add(b"said")
    command = reapi.Command(output_paths=[f"f{number}" for number in range(60)])
    with pytest.raises(FailedPrecondition, match="not now"):
        await collect_outputs(tmp_path, command, uploads, budget())
    assert digest in store.refused
    await uploads.publish()
    assert await store.read_many([digest]) == {digest: b"said"}


async def test_many_outputs_take_bounded_memory_and_all_arrive(cas: Cas, tmp_path: Path) -> None:
    # More than is kept in memory: the rest is read again.
    contents = {f"f{number}": b"%06d" % number * 20_000 for number in range(220)}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    result = await upload(cas.blobs, tmp_path, *contents)
    for file in result.output_files:
        assert await cas.get(file.digest) == contents[file.path]


@pytest.mark.usefixtures("deep_folders")
async def test_a_directory_deeper_than_recursion(rig: Rig) -> None:
    script = "import os\nfor i in range(1500): os.mkdir('d'); os.chdir('d')"
    result = await rig.shell(f'python3 -c "{script}"', output_paths=["d"])
    tree = await read_tree(rig.cas, result.output_directories[0])
    assert len(tree.children) == 1499
    assert rig.leftovers() == []


@pytest.mark.usefixtures("deep_folders")
async def test_a_directory_deeper_than_paths_go(rig: Rig) -> None:
    script = "import os\nfor i in range(2200): os.mkdir('d'); os.chdir('d')"
    error = await error_of(rig, f'python3 -c "{script}"', output_paths=["d"])
    assert isinstance(error, FailedPrecondition)
    assert rig.leftovers() == []


@pytest.mark.parametrize("path", ["passwd", "."])
async def test_a_root_replaced_by_a_link_has_no_outputs(rig: Rig, path: str) -> None:
    error = await error_of(
        rig, "cd ..; rm -rf root; ln -s /etc root; ls root/passwd", output_paths=[path]
    )
    assert isinstance(error, FailedPrecondition)
    assert "replaced" in str(error)


async def test_a_survey_never_begins_behind_a_link(cas: Cas, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "f").write_text("secret")
    (tmp_path / "root").symlink_to("real")
    with pytest.raises(FailedPrecondition, match="behind a link"):
        await upload(cas.blobs, tmp_path / "root", "f")


async def test_nothing_behind_a_link_is_made_readable(rig: Rig, tmp_path: Path) -> None:
    # OUT-20 is about the action's own folders.
    secret = tmp_path / "elsewhere" / "secret"
    secret.mkdir(parents=True)
    (secret / "x").write_text("")
    secret.chmod(0o600)
    action = await rig.cas.shell(
        "true", inputs={"l": str(secret.parent)}, output_paths=["l/secret/x"]
    )
    outcome = await rig.run(action)
    assert secret.stat().st_mode & 0o777 == 0o600
    assert not outcome.result.output_files
