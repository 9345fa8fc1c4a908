"""The mailbox in which the newest value wins."""

from __future__ import annotations

import threading
import time

from mirrordepth_edge.support.latest import Latest

WAIT_S = 10.0


def test_a_new_value_replaces_one_that_was_not_taken() -> None:
    latest = Latest[str]()
    assert latest.put("first") is None
    assert latest.put("second") == "first"
    assert latest.waiting == "second"
    assert latest.dropped == 1
    assert latest.get(0) == "second"
    assert latest.get(0) is None
    assert latest.put("third") is None
    assert latest.dropped == 1


def test_get_waits_no_longer_than_its_timeout() -> None:
    begin_s = time.perf_counter()
    assert Latest[int]().get(0.05) is None
    assert 0.04 < time.perf_counter() - begin_s < WAIT_S


def test_get_waits_for_a_value_from_another_thread() -> None:
    latest = Latest[int]()
    threading.Timer(0.05, latest.put, [7]).start()
    assert latest.get(WAIT_S) == 7


def test_close_wakes_a_waiting_thread() -> None:
    latest = Latest[int]()
    threading.Timer(0.05, latest.close).start()
    assert latest.get(None) is None
    assert latest.closed


def test_after_close_the_last_value_can_be_taken_and_new_ones_are_rejected() -> None:
    latest = Latest[int]()
    latest.put(1)
    latest.close()
    assert latest.put(2) == 2
    assert latest.get(None) == 1
    assert latest.get(None) is None
    assert latest.dropped == 0


def test_every_value_is_taken_or_dropped_once() -> None:
    latest, values, taken, replaced = Latest[int](), range(1, 2001), [], []

    def produce() -> None:
        for value in values:
            if (old := latest.put(value)) is not None:
                replaced.append(old)
        latest.close()

    producer = threading.Thread(target=produce)
    producer.start()
    while (value := latest.get(WAIT_S)) is not None:
        taken.append(value)
    producer.join()
    assert taken == sorted(taken)
    assert taken[-1] == values[-1]
    assert sorted(taken + replaced) == list(values)
    assert latest.dropped == len(replaced)


def test_a_shared_condition_waits_for_several_mailboxes() -> None:
    changed = threading.Condition()
    left, right = Latest[str](changed), Latest[str](changed)
    threading.Timer(0.05, right.put, ["right"]).start()
    with changed:
        assert changed.wait_for(lambda: left.waiting or right.waiting, WAIT_S) == "right"
        assert right.get(0) == "right"
    assert left.get(0) is None
