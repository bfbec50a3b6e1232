"""Which region is asked: the primary, unless it was unavailable a moment ago; pure decisions, by hand-made clocks."""

from __future__ import annotations

from smcache._regions import Regions
from smcache.errors import AccessDenied, SecretNotFound, Throttled, Unavailable

CLAIM = 10.0


def regions(count: int = 2) -> Regions:
    """Return regions whose pauses are 1, 2, 4, ... seconds."""
    return Regions(count, CLAIM, lambda failures, first, most: min(most, first * 2 ** (failures - 1)))


def test_the_order_is_that_given_while_all_are_well() -> None:
    assert regions(3).order(0) == [0, 1, 2]


def test_an_unavailable_region_is_asked_last_until_its_pause_is_over() -> None:
    there = regions(3)
    assert there.ended(0, Unavailable("down"), 0)
    assert there.order(0.9) == [1, 2, 0]
    assert there.order(1) == [0, 1, 2]


def test_a_throttled_region_counts_as_unavailable() -> None:
    assert regions().ended(0, Throttled("slow down"), 0)


def test_one_request_alone_finds_out_whether_a_region_is_back() -> None:
    there = regions()
    there.ended(0, Unavailable("down"), 0)
    assert there.order(1) == [0, 1]
    assert there.order(1) == [1, 0]
    assert there.order(1 + CLAIM) == [0, 1]  # the one that was to find out never came back


def test_pauses_grow_while_it_lasts_and_an_answer_ends_them() -> None:
    there = regions()
    for _ in range(3):
        there.ended(0, Unavailable("down"), 0)
    assert there.order(3.9) == [1, 0]
    assert not there.ended(0, None, 4)
    assert there.order(4) == there.order(4) == [0, 1]


def test_when_all_are_unavailable_all_are_asked_all_the_same() -> None:
    there = regions()
    there.ended(0, Unavailable("down"), 0)
    there.ended(1, Unavailable("down"), 0)
    assert there.order(0.5) == [0, 1]


def test_the_primarys_no_is_final_and_a_replicas_is_not() -> None:
    there = regions()
    assert not there.ended(0, AccessDenied("no"), 0)
    assert there.ended(1, SecretNotFound("not replicated"), 0)
    assert there.order(0) == [0, 1]


def test_a_region_from_which_nothing_comes_back_is_unavailable_though_no_request_has_failed() -> None:
    """One that drips is cut short by nobody: the share of the time that it may take has passed."""
    there = regions()
    there.asked(0, 100)
    there.asked(0, 103)
    assert there.order(104.9) == [0, 1]
    assert there.order(105) == [1, 0]
    assert there.order(106) == [0, 1]  # its pause is over: one request finds out


def test_any_answer_ends_the_silence() -> None:
    there = regions()
    for error in (None, SecretNotFound("no")):
        there.asked(0, 100)
        there.asked(0, 101)
        there.ended(0, error, 104)
        assert there.order(105) == [0, 1]
        there.asked(0, 105)
        assert there.order(109) == [0, 1]
        there.ended(0, None, 109)
