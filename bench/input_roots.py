"""Input roots of 10,000 files in 500 folders, against a loop in C that links as many.

The blobs are in a disk store. Every figure is that of the layout alone, or of the cleaning alone,
in the server's own threads.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from bench.measurement import Cost, Pair, Row, in_turns
from stoker.digest import SHA256, Digest
from stoker.execution.input_root import InputRoot
from stoker.execution.removal import remove_tree
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import BlobStore, Context
from stoker.storage.input_tree import InputTree
from stoker.storage.tree_cache import InputTrees
from stoker.storage.verifying import VerifyingBlobStore
from stoker_storage_disk import DiskSettings, open_disk_blob_store

_LOOP = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

int lay_out(const char *top, const char **sources, int count, int in_folder) {
    char name[64];
    if (mkdir(top, 0755)) return -1;
    int root = open(top, O_RDONLY | O_DIRECTORY), folder = -1;
    for (int i = 0; i < count; i++) {
        if (i % in_folder == 0) {
            if (folder >= 0) close(folder);
            snprintf(name, sizeof name, "d%d", i / in_folder);
            if (mkdirat(root, name, 0755)) return -1;
            folder = openat(root, name, O_RDONLY | O_DIRECTORY);
        }
        snprintf(name, sizeof name, "f%d", i % in_folder);
        if (linkat(AT_FDCWD, sources[i], folder, name, 0)) return -1;
    }
    close(folder);
    close(root);
    return 0;
}
"""

_IN_FOLDER = 20


def measure(*, quick: bool) -> list[Row]:
    """Rows for a fresh root, for the same again, and for cleaning, of links and of copies."""
    return trio.run(_measure, quick)


async def _measure(quick: bool) -> list[Row]:
    folders, rounds = (10, 2) if quick else (500, 9)
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as name:
        async with _open_site(Path(name), folders) as site:
            return [
                await site.fresh_row(rounds),
                await site.row("the same again, none changed", rounds, _again(site, 0), 1.0),
                await site.row("the same again, 1 changed", rounds, _again(site, 1), 5.0),
                await site.row("the same again, 100 changed", rounds, _again(site, 100)),
                await site.row("cleaning after one output", rounds, _cleaned(site, site.linked)),
                await site.row("fresh root, copies", min(rounds, 3), _fresh(site, link=False)),
                await site.row(
                    "cleaning after one output, copies", rounds, _cleaned(site, site.copied)
                ),
            ]


@asynccontextmanager
async def _open_site(folder: Path, folders: int) -> AsyncIterator[_Site]:
    context = Context("bench", folder, {})
    settings = DiskSettings(path="cas", fsync=False)
    async with open_disk_blob_store(settings, context) as store:
        site = _Site(folder, VerifyingBlobStore(store), folders)
        await site.prepare()
        yield site


class _Site:
    """Blobs, a tree of them, and roots to lay it out in."""

    def __init__(self, folder: Path, blobs: BlobStore, folders: int) -> None:
        self._folder = folder
        self.blobs = blobs
        self._folders = folders
        self.trees = InputTrees(blobs)
        self.linked = InputRoot(folder / "linked", blobs, link=True)
        self.copied = InputRoot(folder / "copied", blobs)
        self._tops = itertools.count()
        self._loop = _compile(folder)

    async def prepare(self) -> None:
        self.tree = await self.changed(0, "")
        count = self._folders * _IN_FOLDER
        digests = [_digest(number, "") for number in range(count)]
        async with self.blobs.open_paths(digests) as paths:
            texts = [str(paths[digest]).encode() for digest in digests]
        self._sources = (ctypes.c_char_p * count)(*texts)
        for root in (self.linked, self.copied):
            await root.lay_out(self.tree)

    async def changed(self, count: int, salt: str) -> InputTree:
        """The tree with other contents in so many files, each in a folder of its own."""
        blobs: dict[Digest, bytes] = {}
        top = reapi.Directory()
        for folder in range(self._folders):
            directory = reapi.Directory()
            for file in range(_IN_FOLDER):
                number = folder * _IN_FOLDER + file
                data = _data(number, salt if file == 0 and folder < count else "")
                blobs[digest := SHA256.digest(data)] = data
                directory.files.add(name=f"f{file}", digest=digest.to_proto())
            data = directory.SerializeToString()
            blobs[digest := SHA256.digest(data)] = data
            top.directories.add(name=f"d{folder}", digest=digest.to_proto())
        data = top.SerializeToString()
        blobs[root := SHA256.digest(data)] = data
        assert not await self.blobs.write_many(blobs)
        return await self.trees.read(root)

    def new_top(self) -> Path:
        return self._folder / f"fresh-{next(self._tops)}"

    async def loop(self) -> Cost:
        """What the loop in C takes."""
        top = self.new_top()

        async def lay_out() -> None:
            arguments = (str(top).encode(), self._sources, len(self._sources), _IN_FOLDER)
            assert not await trio.to_thread.run_sync(self._loop.lay_out, *arguments)

        cost = await timed(lay_out)
        await trio.to_thread.run_sync(remove_tree, str(top))
        return cost

    async def fresh_row(self, rounds: int) -> Row:
        fresh = _fresh(self, link=True)
        await fresh()
        await self.loop()
        pair = Pair(*await in_turns(rounds, fresh, self.loop))
        what = f"fresh root of {len(self._sources):,} files"
        return pair.wall_row(what, "links in C", unit="ms", per_second=1e3, at_most=1.5)

    async def row(
        self,
        what: str,
        rounds: int,
        turn: Callable[[], Awaitable[Cost]],
        most_ms: float | None = None,
    ) -> Row:
        """A row of milliseconds; where a bound was agreed, against that bound."""
        costs = [await turn() for _ in range(rounds)]
        return Row(
            what=what,
            unit="ms",
            ours=[cost.wall_seconds * 1e3 for cost in costs],
            against="the bound" if most_ms else "1 ms",
            theirs=[most_ms or 1.0] * rounds,
            at_most=1.0 if most_ms and len(self._sources) == 10_000 else None,
        )


def _fresh(site: _Site, *, link: bool) -> Callable[[], Awaitable[Cost]]:
    async def turn() -> Cost:
        root = InputRoot(site.new_top(), site.blobs, link=link)
        cost = await timed(lambda: root.lay_out(site.tree))
        await root.remove()
        return cost

    return turn


def _again(site: _Site, count: int) -> Callable[[], Awaitable[Cost]]:
    salts = itertools.count()

    async def turn() -> Cost:
        tree = await site.changed(count, f"{count} {next(salts)}")
        if site.linked.directory is not None:
            await site.linked.clean()
        return await timed(lambda: site.linked.lay_out(tree))

    return turn


def _cleaned(site: _Site, root: InputRoot) -> Callable[[], Awaitable[Cost]]:
    async def turn() -> Cost:
        await root.lay_out(site.tree)
        await trio.sleep(0.1)  # as long as an action takes
        (root.folder / "d3" / "output").write_bytes(b"")
        return await timed(root.clean)

    return turn


async def timed(work: Callable[[], Awaitable[object]]) -> Cost:
    """What `work` takes here."""
    cpu, wall = time.process_time(), time.perf_counter()
    await work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def _data(number: int, salt: str) -> bytes:
    return b"%d %s\n" % (number, salt.encode()) * 100


def _digest(number: int, salt: str) -> Digest:
    return SHA256.digest(_data(number, salt))


def _compile(folder: Path) -> ctypes.CDLL:
    compiler = shutil.which("cc")
    if compiler is None:
        raise SystemExit("input_roots needs a C compiler, to have something to be held against")
    source, library = folder / "loop.c", folder / "loop.so"
    source.write_text(_LOOP)
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    return ctypes.CDLL(str(library))
