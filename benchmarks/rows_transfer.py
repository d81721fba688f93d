"""The table of transfer and parallelism in docs/results.md, from the headers of recipes.

    python benchmarks/rows_transfer.py            # prints it, in a second: nothing is trained
    python benchmarks/rows_transfer.py --write    # into docs/results.md
    python benchmarks/configs.py transfer         # runs the recipes, and compares their headers

Errors and sizes of recipes are those in their headers, which `benchmarks/configs.py --write` puts
there; those of other rows were printed by the command that the row names, those on one device by
that of the recipe and `--set parallel=null`, others as the header says. Bytes a device are from
`nnopt plan` of the recipe. Eight devices are simulated; `DEVICES` goes before the command.
"""

from __future__ import annotations

import argparse
import pathlib
import re
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
MARK = "<!-- benchmarks/rows_transfer.py -->\n"
DEVICES = "XLA_FLAGS=--xla_force_host_platform_device_count=8 "
PAPERS = {
    "Hinton 2015": "1503.02531",
    "Hu 2021": "2106.09685",
    "Sanh 2019": "1910.01108",
    "Chen 2016": "1511.05641",
    "GSPMD": "2105.04663",
    "Megatron-LM": "1909.08053",
    "GPipe": "1811.06965",
    "ZeRO": "1910.02054",
}


class Row(NamedTuple):
    """One line of the table.

    Args:
        method: as it is called.
        paper: a key of `PAPERS`, or nothing.
        what: is done to which network.
        measured: the effect; `{dense}`, `{packed}`, `{before}`, `{after}` and `{ratio}` are those
            of the recipe's header.
        run: the recipe, or the script with its options.
        devices: whether eight devices are simulated for it.
    """

    method: str
    paper: str
    what: str
    measured: str
    run: str
    devices: bool = False


TABLE = {
    "transfer: parameters": [
        Row(
            "transfer.distillation_loss",
            "Hinton 2015",
            "a quarter of the width is taught by the whole; full MNIST, five seeds",
            "2.23 % alone -> 1.64 % taught; the teacher has 1.00 %",
            "benchmarks/distill.py",
        ),
        Row(
            "transfer.distillation_loss",
            "Hinton 2015",
            "the same on 5,000 digits",
            "6.60 % alone -> {packed} % taught",
            "configs/transfer/distillation.yaml",
        ),
        Row(
            "transfer.lora",
            "Hu 2021",
            "rank 4 over frozen weights of 2 bits",
            "{dense} % dense, 9.40 % rounded alone, {packed} % with factors; {ratio} smaller",
            "configs/transfer/lora.yaml",
        ),
    ],
    "transfer: structure": [
        Row(
            "transfer.select_layers",
            "Sanh 2019",
            "a transformer of two blocks begins with two of a trained one's four",
            "{packed} % after five epochs, 18.80 % from random weights (6.40 % after ten); the "
            "four have 9.00 %",
            "configs/transfer/structure.yaml",
        ),
    ],
    "transfer: mixed": [
        Row(
            "transfer.save_model",
            "",
            "a transformer, pruned and rounded to 8 bits, and its program in one file",
            "{dense} -> {packed} %, {before} -> {after} bytes, 13,238 of them program",
            "configs/transfer/mixed.yaml",
        ),
        Row(
            "transfer.load_model",
            "Hu 2021",
            "a file of 18,678 bytes, 4,850 of them program, learns digits upside down by adapters",
            "81.2 -> 9.4 %, with no code of the network",
            "examples/13_structure.py",
        ),
    ],
    "parallel: data": [
        Row(
            "parallel: {mesh: {data: 8}}",
            "GSPMD",
            "a batch in eighths, in two halves one after another",
            "{packed} % (3.80 % on one device); the whole network on each device",
            "configs/parallel/data.yaml",
            devices=True,
        ),
    ],
    "parallel: model": [
        Row(
            "parallel: {mesh: {data: 2, model: 4}}",
            "Megatron-LM",
            "a transformer's heads and hidden units on four devices, the batch on two",
            "{packed} % (6.40 % on one device); 117,504 of 413,952 bytes a device",
            "configs/parallel/tensor.yaml",
            devices=True,
        ),
        Row(
            "parallel.pipeline",
            "GPipe",
            "two stages of two blocks, each cut in two, times two for the batch",
            "8.7 % after 300 steps; 216,320 of 810,752 bytes a device; stages wait 20 %",
            "examples/15_model_parallel.py",
            devices=True,
        ),
    ],
    "parallel: parameters": [
        Row(
            "parallel: {mesh: {fsdp: 8}}",
            "ZeRO",
            "weights, moments and masks in eighths, under pruning and 8-bit rounding",
            "{dense} -> {packed} %, {ratio} smaller (4.20 -> 3.20 % and 32.3x on one device); "
            "243,240 of 1,066,440 bytes a device",
            "configs/parallel/fsdp.yaml",
            devices=True,
        ),
        Row(
            "parallel.predict",
            "ZeRO",
            "the packed network in shares",
            "6.5 %; a device is sent 53,040 bytes a batch, 940,800 dense",
            "examples/16_parameter_parallel.py",
            devices=True,
        ),
    ],
}
HEADER = ("method", "paper", "what", "measured", "run")
SAYS = re.compile(
    r"^# prints: test error (?:(?P<dense>[\d.]+) % dense, )?(?P<packed>[\d.]+) % packed; "
    r"(?P<before>[\d,]+) bytes to (?P<after>[\d,]+) \((?P<ratio>[\d.]+x)\)",
    re.MULTILINE,
)


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table."""
    recipe, measured = row.run.startswith("configs/"), row.measured
    if recipe:
        said = SAYS.search((ROOT / row.run).read_text())
        assert said is not None, f"{row.run} does not say what it prints"
        measured = measured.format(**said.groupdict())
    command = f"{DEVICES if row.devices else ''}{'nnopt run' if recipe else 'python'} {row.run}"
    paper = f"[{row.paper}](https://arxiv.org/abs/{PAPERS[row.paper]})" if row.paper else ""
    return f"`{row.method}`", paper, row.what, measured, f"`{command}`"


def markdown() -> str:
    """The table of docs/results.md."""
    found = [HEADER, ("---",) * len(HEADER)]
    for title, rows in TABLE.items():
        found.append((f"**{title}**", *[""] * (len(HEADER) - 1)))
        found.extend(map(cells, rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/results.md")
    table = markdown()
    print(table)
    if parser.parse_args().write:
        page = ROOT / "docs" / "results.md"
        before, mark, rest = page.read_text().partition(MARK)
        assert mark, "docs/results.md has no place for the table"
        page.write_text(f"{before}{mark}{table}\n{rest[rest.index(chr(10) * 2) + 1 :]}")


if __name__ == "__main__":
    main()
