"""A folder as an input root, and outputs back in a folder."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stoker.client import RemoteInstance, digest_folder, download_outputs, open_remote
from stoker.digest import SHA256, Digest
from stoker.errors import FailedPrecondition, InvalidRequest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.testing.server import MEMORY_ONLY, open_test_server


def fill(folder: Path) -> None:
    (folder / "b" / "empty").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "b" / "tool").write_text("#!/bin/sh\n")
    (folder / "b" / "tool").chmod(0o755)
    (folder / "link").symlink_to("b/tool")
    (folder / "b" / "away").symlink_to("/nowhere")
    (folder / "ä").write_text("a")


async def test_directories_are_canonical(tmp_path: Path) -> None:
    fill(tmp_path)
    tree = await digest_folder(tmp_path, SHA256)
    root = reapi.Directory.FromString(tree.directories[tree.root])
    (b,) = root.directories
    inner = reapi.Directory.FromString(tree.directories[SHA256.parse(b.digest)])
    assert [file.name for file in root.files] == ["a.txt", "ä"]
    assert [(link.name, link.target) for link in root.symlinks] == [("link", "b/tool")]
    assert [(link.name, link.target) for link in inner.symlinks] == [("away", "/nowhere")]
    assert [(file.name, file.is_executable) for file in inner.files] == [("tool", True)]
    assert SHA256.parse(inner.directories[0].digest) == SHA256.empty
    for digest, data in tree.directories.items():
        assert SHA256.digest(data) == digest
    for digest, path in tree.files.items():
        assert SHA256.digest(path.read_bytes()) == digest


async def test_equal_folders_have_equal_digests(tmp_path: Path) -> None:
    roots = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name)
        roots.append((await digest_folder(tmp_path / name, SHA256)).root)
    assert roots[0] == roots[1]


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("*.pyc", {"top", "sub", "sub/keep", "sub/cache", "sub/cache/file"}),
        ("cache", {"top", "top.pyc", "sub", "sub/keep", "sub/x.pyc"}),
        ("sub/*", {"top", "top.pyc", "sub"}),
        ("top", {"top.pyc", "sub", "sub/keep", "sub/x.pyc", "sub/cache", "sub/cache/file"}),
    ],
)
async def test_what_is_excluded_is_left_out(tmp_path: Path, pattern: str, left: set[str]) -> None:
    (tmp_path / "sub" / "cache").mkdir(parents=True)
    for name in ("top", "top.pyc", "sub/keep", "sub/x.pyc", "sub/cache/file"):
        (tmp_path / name).write_text(name)
    tree = await digest_folder(tmp_path, SHA256, [pattern])

    def names(digest: Digest, prefix: str) -> set[str]:
        directory = reapi.Directory.FromString(tree.directories[digest])
        found = {prefix + file.name for file in directory.files}
        for node in directory.directories:
            found |= {prefix + node.name}
            found |= names(SHA256.parse(node.digest), f"{prefix}{node.name}/")
        return found

    assert names(tree.root, "") == left


async def test_a_deep_folder(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    depth = 1500  # beyond Python's recursion limit, within the longest path
    for _ in range(depth):
        os.mkdir("d", dir_fd=descriptor)
        below = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    try:
        tree = await digest_folder(tmp_path, SHA256)
    finally:
        # pytest removes folders by recursion, which this one would exhaust.
        for level in range(depth, 0, -1):
            (tmp_path / "/".join("d" * level)).rmdir()
    assert len(tree.directories) == depth + 1


async def test_a_socket_is_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidRequest, match="pipe"):
        await digest_folder(tmp_path, SHA256)


async def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))).write_text("")
    with pytest.raises(InvalidRequest, match="UTF-8"):
        await digest_folder(tmp_path, SHA256)


@pytest.fixture
async def remote(tmp_path: Path) -> AsyncIterator[RemoteInstance]:
    async with (
        open_test_server(MEMORY_ONLY, tmp_path) as server,
        open_remote(server.address) as opened,
    ):
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


async def put(remote: RemoteInstance, data: bytes) -> reapi.Digest:
    digest = SHA256.digest(data)
    await remote.upload_blobs({digest: data})
    return digest.to_proto()


async def put_tree(remote: RemoteInstance, source: Path) -> reapi.OutputDirectory:
    tree = await digest_folder(source, SHA256)
    await remote.upload_files(tree.files)
    directories = {
        digest: reapi.Directory.FromString(data) for digest, data in tree.directories.items()
    }
    root = directories.pop(tree.root)
    message = reapi.Tree(root=root, children=directories.values())
    digest = await put(remote, message.SerializeToString())
    return reapi.OutputDirectory(path="out/tree", tree_digest=digest)


async def test_outputs_come_back_as_they_were(
    remote: RemoteInstance, folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    fill(source)
    result = reapi.ActionResult(
        output_files=[
            reapi.OutputFile(path="out/file", digest=await put(remote, b"text")),
            reapi.OutputFile(path="../top", digest=await put(remote, b""), is_executable=True),
        ],
        output_directories=[await put_tree(remote, source)],
        output_symlinks=[reapi.OutputSymlink(path="out/link", target="file")],
    )
    (folder / "work").mkdir()
    written = await download_outputs(remote, result, folder, SHA256, working_directory="work")
    assert written == (5, 4 + 1 + 1 + 10)
    assert (folder / "work/out/file").read_bytes() == b"text"
    assert (folder / "work/out/link").readlink() == Path("file")
    assert os.access(folder / "top", os.X_OK)
    again = await digest_folder(folder / "work/out/tree", SHA256)
    assert again.root == (await digest_folder(source, SHA256)).root


@pytest.mark.parametrize("path", ["../x", "/tmp/x", "a/../../x", "", "x/"])
async def test_an_output_outside_of_the_folder_is_refused(
    remote: RemoteInstance, folder: Path, path: str
) -> None:
    file = reapi.OutputFile(path=path, digest=await put(remote, b"evil"))
    with pytest.raises(InvalidRequest):
        await download_outputs(remote, reapi.ActionResult(output_files=[file]), folder, SHA256)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../x", "/tmp/x", "a\0b"])
@pytest.mark.parametrize("kind", ["files", "directories", "symlinks"])
async def test_a_tree_with_a_bad_name_is_refused(
    remote: RemoteInstance, folder: Path, name: str, kind: str
) -> None:
    root = reapi.Directory()
    if kind == "symlinks":
        root.symlinks.add(name=name, target="x")
    else:
        getattr(root, kind).add(name=name, digest=SHA256.empty.to_proto())
    tree = reapi.Tree(root=root, children=[reapi.Directory()])
    output = reapi.OutputDirectory(
        path="out", tree_digest=await put(remote, tree.SerializeToString())
    )
    with pytest.raises(InvalidRequest):
        await download_outputs(
            remote, reapi.ActionResult(output_directories=[output]), folder, SHA256
        )
    assert list(folder.iterdir()) == []


async def test_nothing_is_written_through_a_link(
    remote: RemoteInstance, folder: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (folder / "there").symlink_to(victim)
    file = reapi.OutputFile(path="there/file", digest=await put(remote, b"evil"))
    with pytest.raises(FailedPrecondition, match="there"):
        await download_outputs(remote, reapi.ActionResult(output_files=[file]), folder, SHA256)
    assert list(victim.iterdir()) == []


async def test_a_link_of_the_same_result_is_not_followed(
    remote: RemoteInstance, folder: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    result = reapi.ActionResult(
        output_symlinks=[reapi.OutputSymlink(path="there", target=str(victim))],
        output_files=[reapi.OutputFile(path="there/file", digest=await put(remote, b"evil"))],
    )
    with pytest.raises(FailedPrecondition, match="folder in its place"):
        await download_outputs(remote, result, folder, SHA256)
    assert list(victim.iterdir()) == []


async def test_a_file_replaces_a_link_of_its_name(
    remote: RemoteInstance, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "victim").write_text("old")
    (folder / "file").symlink_to(tmp_path / "victim")
    file = reapi.OutputFile(path="file", digest=await put(remote, b"new"))
    await download_outputs(remote, reapi.ActionResult(output_files=[file]), folder, SHA256)
    assert (tmp_path / "victim").read_text() == "old"
    assert not (folder / "file").is_symlink()
    assert (folder / "file").read_text() == "new"
