"""A status write is a JSON merge patch of what has changed (RFC 7396)."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gpubatch_operator.kube.writing import difference
from unit.operator.fake import merge

# A merge patch can't set a value to null, nor can a status hold one: the API server drops it.
values = st.recursive(
    st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "b"]),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from("abcd"), below, max_size=4),
    max_leaves=12,
)
documents = st.dictionaries(st.sampled_from("abcd"), values, max_size=4)


@given(documents, documents)
def test_the_difference_applied_gives_the_new_document(old: dict[str, Any], new: dict[str, Any]):
    assert merge(old, difference(old, new)) == new


@given(documents)
def test_nothing_has_changed_nothing_is_sent(document: dict[str, Any]):
    assert difference(document, document) == {}


def test_the_examples_of_rfc_7396():
    """Appendix A, those that are about objects: so `merge` is what the API server does."""
    assert merge({"a": "b"}, {"a": "c"}) == {"a": "c"}
    assert merge({"a": "b"}, {"b": "c"}) == {"a": "b", "b": "c"}
    assert merge({"a": "b", "b": "c"}, {"a": None}) == {"b": "c"}
    assert merge({"a": ["b"]}, {"a": "c"}) == {"a": "c"}
    assert merge({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}) == {"a": {"b": "d"}}
    assert merge({"e": None}, {"a": 1}) == {"e": None, "a": 1}
    assert merge({}, {"a": {"bb": {"ccc": None}}}) == {"a": {"bb": {}}}
