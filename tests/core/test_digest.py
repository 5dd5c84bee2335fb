"""Digest functions by published vectors, and the rules that tell which one a request means."""

from __future__ import annotations

import pytest

from stoker.digest import (
    BLAKE3,
    DIGEST_FUNCTIONS,
    MD5,
    SHA1,
    SHA256,
    SHA384,
    SHA512,
    Digest,
    DigestFunction,
    check_lengths,
    digest_function,
)
from stoker.errors import InvalidRequest
from stoker.protos import remote_execution_pb2 as reapi

# FIPS 180-4, RFC 1321 and the BLAKE3 paper: of nothing, and of b"abc".
VECTORS: dict[DigestFunction, tuple[str, str]] = {
    SHA256: (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    ),
    BLAKE3: (
        "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
    ),
    SHA384: (
        (
            "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da"
            "274edebfe76f65fbd51ad2f14898b95b"
        ),
        (
            "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed"
            "8086072ba1e7cc2358baeca134c825a7"
        ),
    ),
    SHA512: (
        (
            "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce"
            "47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e"
        ),
        (
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
            "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
        ),
    ),
    SHA1: (
        "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "a9993e364706816aba3e25717850c26c9cd0d89d",
    ),
    MD5: ("d41d8cd98f00b204e9800998ecf8427e", "900150983cd24fb0d6963f7d28e17f72"),
}

UNSET = reapi.DigestFunction.UNKNOWN


@pytest.mark.parametrize("function", DIGEST_FUNCTIONS, ids=str)
def test_vectors(function: DigestFunction) -> None:
    empty, abc = VECTORS[function]
    assert function.empty == Digest(empty, 0, function)
    assert function.digest(b"abc") == Digest(abc, 3, function)
    hasher = function.new()
    hasher.update(b"a")
    hasher.update(memoryview(b"bc"))
    assert hasher.hexdigest() == abc
    assert function.hash_length == len(abc)
    assert reapi.DigestFunction.Value.Name(function.number) == function.name


@pytest.mark.parametrize("function", DIGEST_FUNCTIONS, ids=str)
def test_named_function(function: DigestFunction) -> None:
    # GEN-08
    assert digest_function(function.number, 5) is function
    others = [other for other in DIGEST_FUNCTIONS if other is not function]
    with pytest.raises(InvalidRequest, match=f"{function.name} is not offered.*{others[0].name}"):
        digest_function(function.number, function.hash_length, others)


def test_number_that_nobody_knows() -> None:
    # GEN-08
    for number in (-1, reapi.DigestFunction.VSO, 4711):
        with pytest.raises(InvalidRequest, match="SHA256, BLAKE3"):
            digest_function(number, 64)


@pytest.mark.parametrize(
    ("length", "function"), [(32, MD5), (40, SHA1), (64, SHA256), (96, SHA384), (128, SHA512)]
)
def test_length_tells_the_function(length: int, function: DigestFunction) -> None:
    # GEN-06, GEN-07
    assert digest_function(UNSET, length) is function
    assert digest_function(UNSET, length, (BLAKE3, function)) is function
    assert function.segment == ""


def test_length_does_not_tell_blake3() -> None:
    # GEN-07
    with pytest.raises(InvalidRequest, match="BLAKE3"):
        digest_function(UNSET, 64, (BLAKE3, SHA1))
    assert BLAKE3.segment == "blake3/"


@pytest.mark.parametrize("length", [0, 63, 66])
def test_length_of_no_function(length: int) -> None:
    # GEN-04
    with pytest.raises(InvalidRequest, match=f"{length} digits"):
        digest_function(UNSET, length)


def test_request_without_digests_is_of_the_first_function() -> None:
    assert digest_function(UNSET) is SHA256
    assert digest_function(UNSET, None, (SHA1, SHA256)) is SHA1


def test_mixed_lengths() -> None:
    # GEN-02
    check_lengths(SHA256, [SHA256.empty.hash, BLAKE3.empty.hash])
    with pytest.raises(InvalidRequest, match=SHA1.empty.hash):
        check_lengths(SHA256, [SHA256.empty.hash, SHA1.empty.hash])


def test_same_bytes_under_two_functions_are_two_blobs() -> None:
    # GEN-10
    digests = {function.digest(b"the same") for function in DIGEST_FUNCTIONS}
    assert len(digests) == len(DIGEST_FUNCTIONS)
    assert Digest("0" * 64, 1, SHA256) != Digest("0" * 64, 1, BLAKE3)
