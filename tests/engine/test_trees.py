"""Nested dicts and paths."""

from voxtune.engine.trees import flat, joined, mapped, nested, select


def test_nested_and_flat_undo_each_other():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flat(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert nested(flat(tree)) == tree


def test_joined_takes_the_seconds_where_both_have_a_path():
    assert joined({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}, "d": 4}) == {
        "a": {"b": 1, "c": 3},
        "d": 4,
    }
    assert joined({"a": {"b": 1}}, {}) == {"a": {"b": 1}}


INNER = {"inner/c1": {"kernel": 1, "query/kernel": 2}, "a": {"b": 3}}


def test_names_with_slashes_stay_whole():
    kept = select(lambda path: path.startswith("inner"), INNER)
    left = select(lambda path: not path.startswith("inner"), INNER)
    assert kept == {"inner/c1": {"kernel": 1, "query/kernel": 2}}
    assert left == {"a": {"b": 3}}
    assert joined(kept, left) == INNER
    assert joined(INNER, {"inner/c1": {"kernel": 9}})["inner/c1"] == {
        "kernel": 9,
        "query/kernel": 2,
    }
    doubled = mapped(lambda path, value: (path, 2 * value), INNER)
    assert doubled["inner/c1"]["query/kernel"] == ("inner/c1/query/kernel", 4)
