"""What a folder surely does not hold."""

from __future__ import annotations

from collections.abc import Iterator

from stoker_storage_disk.absent import AbsentNames

NAMES = [f"sha256/ab/{number:064x}-142" for number in range(4_000)]


def test_no_name_that_was_noted_counts_as_absent() -> None:
    absent = AbsentNames()
    assert not absent.surely(NAMES[0]), "nothing is known yet"
    absent.renew(0, [], lambda: True)
    assert absent.surely(NAMES[0])
    for name in NAMES[::2]:
        absent.note_present(name)
    assert not any(map(absent.surely, NAMES[::2]))
    told = sum(map(absent.surely, NAMES[1::2]))
    assert told > 0.99 * len(NAMES) / 2, "it is told of nearly all others"


def test_a_renewal_loses_nothing_that_comes_meanwhile() -> None:
    absent = AbsentNames()
    absent.renew(0, [], lambda: True)

    def names() -> Iterator[str]:
        yield NAMES[0]
        absent.note_present(NAMES[1])

    absent.renew(1, names(), lambda: True)
    assert not any(map(absent.surely, NAMES[:2]))
    assert absent.surely(NAMES[2])


def test_a_renewal_from_names_that_were_not_all_counts_for_nothing() -> None:
    absent = AbsentNames()
    absent.renew(1, NAMES[:1], lambda: False)
    assert not absent.surely(NAMES[1])
    assert absent.is_due


def test_many_names_make_a_renewal_due() -> None:
    absent = AbsentNames()
    absent.renew(1, NAMES[:1], lambda: True)
    assert not absent.is_due
    for number in range(70_000):
        absent.note_present(f"{number}")
    assert absent.is_due
