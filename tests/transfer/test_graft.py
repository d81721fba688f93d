"""Grafts: what goes where, in which layout and shape, and what is told where it does not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import ndimage

import nnopt_jax as nnopt
from nnopt_jax.errors import SelectionError, ShapeError
from nnopt_jax.ops.resize import resize_grid
from nnopt_jax.transfer import graft, rules


def arrays(**shapes):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_names_layouts_and_shapes_in_one_graft():
    """A small PyTorch-like source into a target of another naming, layout and size."""
    source = arrays(**{
        "model.embed.weight": (10, 6),
        **{f"model.layers.{i}.{p}.weight": (6, 6) for i in range(2) for p in "qkv"},
        **{f"model.layers.{i}.norm": (6,) for i in range(2)},
        "model.pos": (5, 6),
        "lm_head.weight": (10, 6),
    })  # fmt: skip
    target = {
        "embed": jnp.zeros((12, 6)),
        "blocks": {"qkv": jnp.zeros((2, 6, 18)), "norm": jnp.zeros((2, 6), jnp.bfloat16)},
        "pos": jnp.zeros((10, 6)),
        "head": jnp.full((6, 3), 7.0),
    }
    made = graft(target, source, [
        rules.drop("lm_head.weight"),
        rules.transpose(r"re:[qkv]\.weight$"),
        rules.fuse(r"model\.layers\.(\d)\.(?P<part>[qkv])\.weight", r"layers/\1/qkv", "qkv"),
        rules.rename(r"model\.layers\.(\d)\.norm", r"layers/\1/norm"),
        rules.stack(r"layers/(?P<index>\d+)/(.*)", r"blocks/\2"),
        rules.rename(r"model\.(embed)\.weight", r"\1"),
        rules.rename(r"model\.pos", "pos"),
        rules.adapt("embed", rules.rows),
        rules.adapt("pos", rules.grid("align_corners")),
        rules.keep("head"),
    ])  # fmt: skip
    got = made.params
    for i in range(2):
        fused = [source[f"model.layers.{i}.{p}.weight"].T for p in "qkv"]
        np.testing.assert_array_equal(got["blocks"]["qkv"][i], np.concatenate(fused, -1))
        norm = source[f"model.layers.{i}.norm"].astype(jnp.bfloat16)
        np.testing.assert_array_equal(got["blocks"]["norm"][i], norm)
    embed = source["model.embed.weight"]
    np.testing.assert_array_equal(got["embed"][:10], embed)
    np.testing.assert_allclose(got["embed"][10:], [embed.mean(0)] * 2, rtol=1e-6)
    np.testing.assert_array_equal(got["head"], np.full((6, 3), 7.0))
    np.testing.assert_array_equal(got["pos"][0], source["model.pos"][0])
    grid = ndimage.zoom(source["model.pos"][1:].reshape(2, 2, 6), (1.5, 1.5, 1), order=1)
    np.testing.assert_allclose(got["pos"][1:], grid.reshape(9, 6), atol=1e-6)
    assert made.report.kept == ("head",)
    assert set(made.report.adapted) == {"embed", "pos"}
    assert set(made.report.copied) == {"blocks/qkv", "blocks/norm"}


def test_stack_undoes_unstack_and_split_undoes_fuse():
    source = arrays(**{f"l{i}/{p}/w": (3, 4) for i in range(2) for p in ("q", "k")})
    there = graft(
        {"l": {"qk": jnp.zeros((2, 3, 8))}}, source,
        [rules.fuse(r"(l\d)/(?P<part>[qk])/w", r"\1/qk", ("q", "k")),
         rules.stack(r"l(?P<index>\d)/qk", "l/qk")],
    )  # fmt: skip
    shapes = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in source.items()}
    back = graft(
        shapes, there.params,
        [rules.unstack("l/qk", "l{index}/qk"),
         rules.split(r"(l\d)/qk", r"\1/{part}/w", ("q", "k"))],
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, back.params, source)


@pytest.mark.parametrize("sampling", ["align_corners", "half_pixel"])
@pytest.mark.parametrize(("n", "m"), [(4, 6), (4, 9), (5, 3), (3, 3), (2, 1)])
def test_grids_are_interpolated_as_others_do(sampling, n, m):
    grid = np.random.default_rng(0).normal(size=(n, n, 8)).astype(np.float32)
    found = resize_grid(grid.reshape(n * n, 8), m * m, sampling).reshape(m, m, 8)
    if sampling == "half_pixel":
        wanted = jax.image.resize(grid, (m, m, 8), "bilinear", antialias=False)
    elif m == 1:
        wanted = grid[:1, :1]
    else:
        wanted = ndimage.zoom(grid, (m / n, m / n, 1), order=1)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_corner_cuts_and_keeps_what_it_does_not_reach():
    source, target = arrays(w=(5, 2))["w"], np.full((3, 4), 9.0, np.float32)
    found = graft({"w": target}, {"w": source}, [rules.adapt("w", rules.corner)]).params["w"]
    wanted = target.copy()
    wanted[:, :2] = source[:3]
    np.testing.assert_array_equal(found, wanted)


def test_packed_leaves_come_packed():
    params = {"w": jnp.asarray(arrays(w=(8, 4))["w"])}
    tx = nnopt.quantization.uniform(4)
    packed = tx.pack(params, tx.init(params))
    found = graft({"v": jnp.zeros((8, 4))}, packed, [rules.rename("w", "v")]).params["v"]
    assert isinstance(found, nnopt.arrays.Quantized)
    jax.tree.map(np.testing.assert_array_equal, found, packed["w"])


def test_leaves_go_where_the_target_lies():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec("a", "b"))
    source = arrays(w=(8, 4))
    for target in (
        jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=sharding),
        jax.device_put(jnp.zeros((8, 4)), sharding),
    ):
        found = graft({"w": target}, source).params["w"]
        assert found.sharding == sharding
        np.testing.assert_array_equal(found, source["w"])


def test_all_that_finds_no_counterpart_is_told_with_the_nearest_names():
    source, target = arrays(**{"enc/kernel": (2,), "old": (3,)}), arrays(**{"enc/kernl": (2,)})
    with pytest.raises(SelectionError) as told:
        graft(target, source, [rules.rename("nothing", "x"), rules.transpose("**/none")])
    text = str(told.value)
    assert "enc/kernl: finds no leaf in the source" in text
    assert "Did you mean enc/kernel?" in text
    assert "old: of the source has no place" in text
    assert "rule rename('nothing', 'x') selected no leaf" in text
    assert "rule transpose('**/none') selected no leaf" in text
    loose = graft(target, source, [rules.rename("nothing", "x")], strict=False)
    np.testing.assert_array_equal(loose.params["enc/kernl"], target["enc/kernl"])
    assert loose.report.unused == ("enc/kernel", "old")
    assert loose.report.dead_rules == ("rename('nothing', 'x')",)


@pytest.mark.parametrize(
    ("shapes", "wanted", "given", "kind", "text"),
    [
        ({"a": (2,), "b": (3, 3)}, {"a": (4,), "b": (9,)}, [], ShapeError, r"2 problems\n  a: is"),
        ({"a": (2,)}, {"a": (4,)}, [rules.adapt("a", lambda s, t: s)], ShapeError, r"made \(2,\)"),
        ({"a1": (2,), "a2": (2,)}, {"a": (2,)}, [rules.rename("a.", "a")], SelectionError, "two"),
        ({"l1": (2,), "l2": (2,)}, {"l": (2, 2)}, [rules.stack(r"l(?P<index>\d)", "l")],
         SelectionError, "layers 1, 2 are not a run from 0"),
        ({"l0": (2,), "l1": (3,)}, {"l": (2, 2)}, [rules.stack(r"l(?P<index>\d)", "l")],
         SelectionError, "cannot be stacked"),
        ({"q": (2,)}, {"qk": (4,)}, [rules.fuse(r"(?P<part>.)", "qk", "qk")],
         SelectionError, r"has parts \['q'\], the rule names \['q', 'k'\]"),
        ({"qk": (5,)}, {"q": (2,)}, [rules.split("qk", "{part}", "qk")],
         SelectionError, "of size 5 along axis -1"),
        ({"a": (2, 3)}, {"a": (3, 2)}, [rules.transpose("a", (0, 1, 2))],
         SelectionError, r"a: transpose\[\(0, 1, 2\)\] does not fit"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(shapes, wanted, given, kind, text):
    target = arrays(**wanted)
    before = {path: x.copy() for path, x in target.items()}
    with pytest.raises(kind, match=text):
        graft(target, arrays(**shapes), given)
    jax.tree.map(np.testing.assert_array_equal, target, before)


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: rules.rename("(", "a"), SelectionError, "not a regular expression"),
        (lambda: rules.stack("a", "a"), SelectionError, r"no group \(\?P<index>"),
        (lambda: rules.grid("bilinear"), ShapeError, "'half_pixel'; the two differ"),
        (lambda: resize_grid(np.zeros((6, 2)), 9, "half_pixel"), ShapeError, "not squares"),
    ],
)
def test_rules_that_mean_nothing(make, kind, text):
    with pytest.raises(kind, match=text):
        make()
