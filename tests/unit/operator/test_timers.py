"""Who is looked at again, and when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpubatch_operator.timers import Timers


def test_a_later_time_replaces_an_earlier_one_and_the_other_way_round():
    timers = Timers()
    timers.put("a", 10)
    timers.put("a", 20)
    timers.put("b", 20)
    timers.put("b", 5)
    assert (timers.next(), timers.take(15), timers.next()) == (5, {"b"}, 20)
    timers.drop("a")
    assert (timers.next(), timers.take(100)) == (None, set())


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.integers(0, 9)))), st.integers(0, 9))
def test_it_is_a_dict_with_a_quick_minimum(puts: list[tuple[str, int | None]], now: int):
    timers, model = Timers(), dict[str, int]()
    for key, at in puts:
        if at is None:
            timers.drop(key)
            model.pop(key, None)
        else:
            timers.put(key, at)
            model[key] = at
    assert timers.next() == min(model.values(), default=None)
    assert timers.take(now) == {k for k, at in model.items() if at <= now}
    assert timers.next() == min((at for at in model.values() if at > now), default=None)
