"""The command line parser, which runs one command and prints an error as one message."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from nnopt_jax.errors import NnoptError

_log = logging.getLogger("nnopt_jax")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "nnopt", description="Neural-network optimization: recipes, plans and small files."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="train, pack, write model.nnopt and a report")
    run.add_argument("recipe", help="a YAML file")
    run.add_argument("--fresh", action="store_true", help="remove what an earlier run left")
    run.add_argument(
        "--distributed", action="store_true", help="one of several processes, on any machines"
    )
    run.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0; clusters may set it")
    run.add_argument("--processes", type=int, help="how many processes there are")
    run.add_argument("--process", type=int, help="which this is, from 0")
    run.add_argument(
        "--heartbeat", type=int, default=100, help="seconds until a silent process counts as lost"
    )
    plan = commands.add_parser("plan", help="what a recipe will do, before any weight moves")
    plan.add_argument("recipe", help="a YAML file")
    plan.add_argument("--list", action="store_true", help="list all leaves of the model instead")
    for command in (run, plan):
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="change the recipe, e.g. stages.train.epochs=2 (any number of times)",
        )

    inspect = commands.add_parser("inspect", help="what lies in a .nnopt file, leaf by leaf")
    inspect.add_argument("file")
    diff = commands.add_parser("diff", help="how the models of two files differ, leaf by leaf")
    for name in ("left", "right"):
        diff.add_argument(name, help="a .nnopt file, or the folder of a run")
    bench = commands.add_parser("bench", help="how long a call takes, dense and packed")
    bench.add_argument("path", help="the folder of a run, or a .nnopt file that holds a program")
    bench.add_argument("--batch", type=int, nargs="+", default=[1, 8, 128], metavar="SIZE")
    bench.add_argument("--rounds", type=int, default=100, help="calls of each, in turns")
    data = commands.add_parser("data", help="fetch a data set")
    data.add_argument("name", choices=["mnist"])
    data.add_argument(
        "--dir",
        default=os.environ.get("NNOPT_DATA", "data"),
        help="where to; default $NNOPT_DATA, or data",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; by default those of the process.

    Returns:
        The exit status: 0, or 2 for an error that the user can fix, which is printed to stderr.

    Example:
        >>> from nnopt_jax.cli import main
        >>> main(["inspect", "nowhere.nnopt"])
        2
    """
    args = _parser().parse_args(argv)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # so that recipes may name local modules
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False  # some libraries add a handler to the root logger
    try:
        # Imported late, so that --help and errors on the command line return at once.
        from nnopt_jax.cli import commands

        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax also raises what it logs
        getattr(commands, args.command)(args)
    except NnoptError as error:
        sys.stderr.write(f"nnopt: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("nnopt: stopped; the same command continues from the last checkpoint\n")
        return 130
    finally:
        _log.removeHandler(handler)
        _log.propagate = True
    return 0
