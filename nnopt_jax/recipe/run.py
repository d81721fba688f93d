"""A whole run: from a recipe to a small file and a report."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
from jax.experimental import multihost_utils

from nnopt_jax.interop.orbax import Checkpoints
from nnopt_jax.recipe.earlier import Earlier, earlier
from nnopt_jax.recipe.finish import finish
from nnopt_jax.recipe.folder import Folder
from nnopt_jax.recipe.schema import Recipe
from nnopt_jax.recipe.setup import Setup, prepare
from nnopt_jax.recipe.start import started
from nnopt_jax.recipe.teacher import load_teacher
from nnopt_jax.recipe.train import resume, train
from nnopt_jax.recipe.watch import Watch
from nnopt_jax.report.html import page
from nnopt_jax.report.summary import Summary
from nnopt_jax.report.writers import JsonLines, write_whole


def run(recipe: Recipe, *, fresh: bool = False, watch: Watch | None = None) -> Summary | None:
    """Runs a recipe to its end, from where an earlier call of it stopped.

    The folder then holds `model.nnopt`, `metrics.jsonl`, `report.html`, `result.json`,
    `recipe.yaml` and `checkpoints/`. Killed at any moment, the same call goes on from the newest
    checkpoint and ends with the same parameters, bit for bit.

    Args:
        recipe: what `load` returned.
        fresh: whether to remove what an earlier run left in the folder.
        watch: is told of progress.

    Returns:
        What the final table and the report show; None on all but the first of several processes.

    Raises:
        NnoptError: something in the recipe is wrong, training diverged, or the disk is full.

    Example:
        >>> from nnopt_jax import recipe
        >>> recipe.run(recipe.load("configs/pruning/magnitude.yaml"))  # doctest: +SKIP
    """
    watch = watch or Watch()
    folder = Folder(recipe.folder)
    if not fresh:
        folder.require_same(recipe)
        if (summary := folder.finished()) is not None:
            watch.note(f"{folder.path} holds the finished run; --fresh starts it again")
            return summary
    needed = list(earlier(recipe))
    setup = prepare(recipe)
    alone = jax.process_index() == 0  # the one that writes; checkpoints are written by all
    if alone:
        folder.claim(recipe, fresh)
    for one in needed:
        if one.recipe is not None:
            run(one.recipe, fresh=fresh, watch=watch)
    setup = _built_upon(setup, needed)
    with Checkpoints(folder.checkpoints) as checkpoints:
        carry, done = resume(setup, checkpoints)
        if done:
            watch.note(f"going on after step {done}")
        rows = JsonLines(folder.metrics, upto=done, writes=alone)
        carry = train(setup, checkpoints, rows, carry, done, watch)
        if setup.spread is not None:  # brought together, whole, on every process
            anywhere = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), carry)
            carry, _ = checkpoints.restore(anywhere)
    summary = None
    if alone:
        summary = finish(setup, carry, rows.rows, folder)
        write_whole(folder.report, page(summary))
        write_whole(folder.result, json.dumps(summary.to_json()))
    if jax.process_count() > 1:  # nobody reads what is not yet written
        multihost_utils.sync_global_devices(str(folder.path))
    return summary


def _built_upon(setup: Setup, needed: list[Earlier]) -> Setup:
    """The setup with what earlier runs give it: a teacher, the parameters it starts from."""
    recipe, found = setup.recipe, {one.key: one.network(setup.data) for one in needed}
    if recipe.start is not None:
        model = started(recipe.start, found["start.run"].params, setup.model)
        setup = replace(setup, model=model)
    if recipe.distill is not None:
        teacher = load_teacher(recipe.distill, found["distill.teacher"], setup)
        setup = replace(setup, teacher=teacher)
    return setup
