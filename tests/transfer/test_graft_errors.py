"""Grafts that cannot be: two leaves for one place, lost values, rules and leaves that are none."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import CompositionError, SelectionError, ShapeError
from nnopt_jax.transfer import graft, rules

F = np.float32
KEY = jax.random.key(0)


def ones(**shapes):
    return {path: np.full(shape, i + 1, F) for i, (path, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize(
    ("source", "target", "rule", "text"),
    [
        (ones(**{"a/q": (1, 2), "a/k": (1, 2), "b/q": (1, 2)}), {"qk": np.zeros((1, 4), F)},
         rules.fuse(r"(?:a|b)/(?P<part>[qk])", "qk", ("q", "k")), "two leaves .* are part 'q'"),
        (ones(**{"enc/0": (2,), "dec/0": (2,), "dec/1": (2,)}), {"w": np.zeros((2, 2), F)},
         rules.stack(r"(?:enc|dec)/(?P<index>\d+)", "w"), "two leaves .* are index '0'"),
        (ones(**{"l/0": (2,), "l/00": (2,)}), {"w": np.zeros((2, 2), F)},
         rules.stack(r"l/(?P<index>\d+)", "w"), "layers 0, 00 are not a run"),
        (ones(layers=(2, 3)), {"w": np.zeros(3, F)}, rules.unstack("layers", "w"), "two leaves"),
        (ones(a=(2,), b=(2,), c=(2,)), {"w": np.zeros(2, F)}, rules.rename(".", "w"), "two leaves"),
    ],
)  # fmt: skip
def test_no_leaf_is_lost_to_another(source, target, rule, text):
    with pytest.raises(SelectionError, match=text):
        graft(target, source, [rule])
    loose = graft(target, source, [rule], strict=False)
    jax.tree.map(np.testing.assert_array_equal, loose.params, target)
    assert loose.report.failed.keys() == target.keys()
    assert not loose.report.copied


def test_patterns_may_name_other_groups_as_well():
    source = {f"l_{i}/{part}": np.full((1, 2), i, F) for i in range(2) for part in "qk"}
    target = {f"l_{i}/qk": np.zeros((1, 4), F) for i in range(2)}
    pattern = r"l_(?P<index>\d+)/(?P<part>[qk])"
    found = graft(target, source, [rules.fuse(pattern, r"l_\g<index>/qk", ("q", "k"))]).params
    for i in range(2):
        np.testing.assert_array_equal(found[f"l_{i}/qk"], np.full((1, 4), i))
    target = {part: np.zeros((2, 1, 2), F) for part in "qk"}
    found = graft(target, source, [rules.stack(pattern, r"\g<part>")]).params
    np.testing.assert_array_equal(found["k"][:, 0, 0], [0, 1])


def test_one_rule_may_be_listed_twice():
    flip, move = rules.transpose("w"), rules.rename("w", "v")
    made = graft({"v": np.zeros((2, 3), F)}, ones(w=(2, 3)), [flip, flip, move, move])
    np.testing.assert_array_equal(made.params["v"], np.ones((2, 3)))
    assert made.report.dead_rules == ()


def test_what_does_not_fit_stays_where_that_is_allowed():
    """A misfit, a failed rule and a dtype, each told, beside a leaf that comes."""
    target = {"good": np.zeros(2, F), "shape": np.zeros(3, F), "flip": np.zeros((2, 2), F),
              "codes": np.zeros(2, np.int8)}  # fmt: skip
    source = ones(good=(2,), shape=(2,), flip=(2, 2), codes=(2,))
    made = graft(target, source, [rules.transpose("flip", (0, 1, 2))], strict=False)
    np.testing.assert_array_equal(made.params["good"], source["good"])
    for path in ("shape", "flip", "codes"):
        assert made.params[path] is target[path]
        assert path in made.report.failed
    assert (made.report.copied, made.report.kept, made.report.unused) == (("good",), (), ())
    with pytest.raises(ShapeError, match=r"2 problems\n  codes: .*\n  shape: "):
        graft({**target, "flip": np.zeros((2, 2), F)}, source)


@pytest.mark.parametrize(
    ("source", "dtype"),
    [
        (np.array([300.0], F), np.int8),
        (np.array([1.0], F), np.bool_),
        (np.array([1j], np.complex64), F),
        (np.array([300]), np.int8),
        (np.array([-1]), np.uint8),
        (np.array([8], np.uint8), jnp.int4),
        (np.array([2]), np.bool_),
        (KEY, np.uint32),
        (np.array(1.0, F), KEY.dtype),
    ],
)
def test_dtypes_that_would_lose_values_are_refused(source, dtype):
    target = {"w": jax.ShapeDtypeStruct(source.shape, dtype)}
    given = jnp.asarray(source).dtype
    text = f"w: is {target['w'].dtype} in the target, where values of {given} would be lost"
    with pytest.raises(ShapeError) as told:
        graft(target, {"w": source})
    assert text in str(told.value)
    if source.shape:
        target = {"w": jax.ShapeDtypeStruct((2,), dtype)}
        with pytest.raises(ShapeError, match=r"transfer\.rules\.corner: values of"):
            graft(target, {"w": source}, [rules.adapt("w", rules.corner)])


@pytest.mark.parametrize(
    ("source", "dtype"),
    [
        (np.array([-128, 127]), np.int8),
        (np.array([-8, 7], np.int8), jnp.int4),
        (np.array([True]), np.int32),
        (np.array([3]), F),
        (np.array([0.1], F), np.float16),
        (np.array([], np.int32), np.int8),
        (np.array([2.0], F), np.complex64),
    ],
)
def test_other_dtypes_are_cast(source, dtype):
    found = graft({"w": jax.ShapeDtypeStruct(source.shape, dtype)}, {"w": source}).params["w"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, source.astype(dtype))


def test_keys_are_leaves():
    found = graft({"k": jax.random.key(1)}, {"k": KEY}).params["k"]
    assert (jax.random.key_data(found) == jax.random.key_data(KEY)).all()


def test_whole_numbers_under_jit_must_fit_by_their_dtype():
    target = {"w": jax.ShapeDtypeStruct((2,), np.int8)}
    with pytest.raises(ShapeError, match="int32 would be lost"):
        jax.jit(lambda x: graft(target, {"w": x}).params)(jnp.zeros(2, jnp.int32))


@pytest.mark.parametrize(
    ("target", "source", "given", "text"),
    [
        ({"w": 0.0}, {"w": "text"}, [], "w: of the source is the str 'text'"),
        ({"w": "text"}, {"w": 0.0}, [], "w: of the target is the str 'text'"),
        ({"w": 0.0}, {"w": np.array(["a"])}, [], "w: of the source is <U1"),
        ({"w": 0.0}, {"w": jax.ShapeDtypeStruct((), F)}, [], "w: of the source is abstract"),
        ({"w": 0}, {"w": np.array(2**40)}, [], "int64, and some of its numbers are beyond int32"),
        ({"w": 0}, {"w": 2**40}, [], "beyond int32"),
        ({"w": 0.0}, {"w": 1.0}, None, "rules is None; give a list"),
        ({"w": 0.0}, {"w": 1.0}, rules.keep("w"), "rules is of type Rule; give a list"),
        ({"w": 0.0}, {"w": 1.0}, "keep", "rules is the str 'keep'; give a list"),
        ({"w": 0.0}, {"w": 1.0}, ["a", None], "rule 1 is the str 'a'.*\n.*rule 2 is None"),
    ],
)
def test_leaves_without_numbers_and_what_is_no_rule(target, source, given, text):
    for strict in (True, False):
        with pytest.raises(CompositionError, match=text):
            graft(target, source, given, strict=strict)


def broken(source, target):
    raise AttributeError("no such thing")


@pytest.mark.parametrize(
    ("shapes", "rule", "text"),
    [
        ({"q": (2, 2), "k": (3, 3)}, rules.fuse("(?P<part>.)", "w", "qk", 0), r"w: fuse\("),
        ({"q": (2,), "k": (2,)}, rules.fuse("(?P<part>.)", "w", "qk", 1), r"w: fuse\("),
        ({"w": (2,)}, rules.split("w", "{part}", "qk", 1), r"w: split\("),
        ({"w": ()}, rules.split("w", "{part}", "qk"), r"w: split\("),
        ({"w": (2,)}, rules.split("w", "{part}", "qk", sizes=(-1, 3)), r"no parts of \[-1, 3\]"),
        ({"w": ()}, rules.unstack("w", "{index}"), r"w: unstack\("),
        ({"la": (2,)}, rules.stack("l(?P<index>.)", "w"), r"w: stack\(.*'a'"),
        ({"w": (2,)}, rules.transpose("w", 1), r"w: transpose\[1\] does not fit"),
    ],
)  # fmt: skip
def test_rules_that_cannot_do_what_they_say_name_the_leaf(shapes, rule, text):
    target = {"w": np.zeros(7, F)}
    with pytest.raises(SelectionError, match=text):
        graft(target, ones(**shapes), [rule])
    assert graft(target, ones(**shapes), [rule], strict=False).params["w"] is target["w"]


@pytest.mark.parametrize(
    ("how", "shape"),
    [(lambda source, target: None, (2,)), (broken, (2,)), (rules.rows, ()),
     (rules.grid("half_pixel"), (2,))],
)  # fmt: skip
def test_adapters_that_fail_name_the_leaf(how, shape):
    target = {"w": np.zeros(shape, F)}
    with pytest.raises(ShapeError, match=r"w: adapt\('w', .*\) makes no \(2?,?\) of \(4, 1\): "):
        graft(target, ones(w=(4, 1)), [rules.adapt("w", how)])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: rules.rename("(a)", r"\2"), "invalid group reference"),
        (lambda: rules.stack(r"(?P<index>\d)", r"\g<name>"), "unknown group name"),
        (lambda: rules.rename("a", None), "not a regular expression and template"),
        (lambda: rules.split("qk", "{part}", ("q", "q")), "names a part twice"),
        (lambda: rules.fuse("(?P<part>.)", "w", "qq"), "names a part twice"),
        (lambda: rules.split("qk", "{part}", ()), "holds no names"),
        (lambda: rules.split("qk", "{part}", (0, 1)), "holds no names"),
    ],
)
def test_rules_that_mean_nothing_are_refused_when_they_are_made(make, text):
    with pytest.raises(SelectionError, match=text):
        make()


def test_shapes_may_be_one_number():
    found = graft({"w": np.zeros(4, F)}, ones(w=(2, 2)), [rules.reshape("w", -1)]).params["w"]
    np.testing.assert_array_equal(found, np.ones(4))


def test_what_keep_hides_is_unused():
    made = graft({"a": 0.0, "head": 5.0}, {"a": 1.0, "head": 2.0}, [rules.keep("head")])
    assert made.params["head"] == 5.0
    assert (made.report.kept, made.report.unused) == (("head",), ("head",))


def test_packed_leaves_keep_their_dtype_and_say_that_of_others():
    params = {"w": jnp.ones((8, 4))}
    tx = nnopt.quantization.uniform(4)
    packed = tx.pack(params, tx.init(params))
    found = graft({"w": jnp.zeros((8, 4), jnp.bfloat16)}, packed).params["w"]
    assert isinstance(found, nnopt.arrays.Quantized)
    assert found.dtype == "float32"
    found = graft(packed, {"w": jnp.ones((8, 4), jnp.bfloat16)}).params["w"]
    assert found.dtype == jnp.float32
    with pytest.raises(ShapeError, match="values of complex64 would be lost"):
        graft(packed, {"w": jnp.ones((8, 4), jnp.complex64)})
