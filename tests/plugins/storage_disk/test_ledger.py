"""Who may evict what: the races that a test of the whole store would have to be lucky to meet."""

from __future__ import annotations

import threading

from stoker_storage_disk.ledger import Ledger


def ledger() -> Ledger:
    return Ledger(max_bytes=None, alarm_bytes=None)


def test_use_between_choice_and_eviction_spares_a_file() -> None:
    # FMB-03: eviction has chosen it, and then somebody is told that it is there.
    files = ledger()
    files.touch(["asked for"], 1)
    assert not files.try_condemn("asked for", spare_touched=True)
    assert files.take_due() == ({"asked for": 1}, [])
    assert files.try_condemn("asked for", spare_touched=True)


def test_file_that_is_being_evicted_is_absent() -> None:
    # STO-03: nobody is told of it, and nobody counts on it.
    files = ledger()
    assert files.try_condemn("going", spare_touched=True)
    assert files.touch(["going", "staying"], 1) == {"going"}
    with files.pins() as pins:
        assert pins.add("going", "staying") == {"staying"}
    assert files.take_due() == ({"staying": 1}, [])
    files.release(["going"])
    assert files.touch(["going"], 1) == set()


def test_pinned_file_is_not_evicted() -> None:
    files = ledger()
    with files.pins() as one, files.pins() as other:
        assert one.add("read") == {"read"}
        assert one.add("read", "other") == {"read", "other"}
        with files.pins() as third:
            third.add("read")
        assert other.add("read") == {"read"}
        assert not files.try_condemn("read", spare_touched=False)
    assert files.try_condemn("read", spare_touched=False)


def test_claims_wait_for_each_other() -> None:
    # BSW-21: also of two who claim the same names in another order.
    files = ledger()
    seen: list[str] = []

    def claim(names: list[str]) -> None:
        for _ in range(500):
            with files.claimed(names):
                seen.append("in")
                seen.append("out")

    threads = [threading.Thread(target=claim, args=[names]) for names in (["a", "b"], ["b", "a"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["in", "out"] * 1_000


def test_claimed_file_is_not_evicted() -> None:
    files = ledger()
    with files.claimed(["published"]):
        assert not files.try_condemn("published", spare_touched=False)
        assert not files.try_claim("published")
        # It is as it was, until it is replaced.
        assert files.touch(["published"], 1) == set()
    assert files.try_claim("published")


def test_alarm_is_raised_above_its_mark() -> None:
    files = Ledger(max_bytes=100, alarm_bytes=50)
    alarms: list[int] = []
    files.on_alarm = lambda: alarms.append(files.used_bytes)
    assert files.try_take(50)
    assert files.try_take(10)
    assert not files.try_take(41)
    files.store(60, 60)
    assert files.used_bytes == 60
    assert alarms == [60]


def test_many_are_pinned_and_used_at_one_stroke() -> None:
    # STO-01, FMB-03: one by one, keeping count would take longer than linking them.
    files = ledger()
    assert files.try_condemn("going", spare_touched=True)
    with files.pins() as one, files.pins() as other:
        assert one.add_used({"going", "staying"}, 5) == {"going"}
        assert other.add_used({"staying"}, 7) == set()
        files.touch(["staying"], 6)
        assert not files.try_condemn("staying", spare_touched=False)
        with files.pins() as third:
            third.add_used({"staying"}, 4)
        assert not files.try_condemn("staying", spare_touched=False)
    assert not files.try_condemn("staying", spare_touched=True)
    assert files.is_due
    assert files.take_due()[0]["staying"] == 7
    assert not files.is_due
    assert files.try_condemn("staying", spare_touched=True)
