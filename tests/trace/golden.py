"""What the zoo's models do with packed leaves, written down: `python tests/trace/golden.py`.

One file for each model, under `tests/trace/golden/`; the tests compare. Read the difference before
it is committed: a leaf that becomes dense where it was not is a fault.
"""

from __future__ import annotations

import pathlib
import sys

FOLDER = pathlib.Path(__file__).with_suffix("")


def told(report) -> str:
    """A line for each use: leaf, node, primitive, and why it is materialized if it is."""
    lines = {
        f"{use.path}: {use.form} meets {use.primitive}, "
        + (f"dense: {use.reason}" if use.reason else "packed")
        for use in report.uses
    }
    return "\n".join(sorted(lines)) + "\n"


def main() -> None:
    """Writes all files, of leaves in eight bits."""
    import jax

    import nnopt_jax as nnopt
    from tests.trace.zoo.case import pack
    from tests.trace.zoo.models import MODELS

    FOLDER.mkdir(exist_ok=True)
    for name, make in MODELS.items():
        case = make()
        packed = jax.eval_shape(pack, case.params)
        report = nnopt.on_packed(case.apply).report(packed, *case.args)
        (FOLDER / f"{name}.txt").write_text(told(report))
        print(name, file=sys.stderr)


if __name__ == "__main__":
    main()
