from __future__ import annotations

import io
import logging

from rich.console import Console
from rich.progress import Progress, TextColumn

from nnopt_jax.cli.progress import Bars, Lines

ROW = {"step": 10, "stage": "train", "epoch": 2, "loss": 0.25, "sparsity": 0.5, "valid_error": 0.1}


def test_bars_on_a_terminal():
    said = io.StringIO()
    console = Console(file=said, force_terminal=True, width=100)
    columns = TextColumn("{task.description} {task.completed} {task.fields[described]}")
    with Progress(columns, console=console) as progress:
        bars = Bars(progress)
        bars.stage("train", "1/2", 10, 5)
        bars.step(10)
        bars.row(ROW)
        bars.note("going on")
    text = said.getvalue()
    assert "1/2 train 10 epoch 2  loss 0.2500  zeros 50.0 %  valid error 10.00 %" in text
    assert "going on" in text


def test_lines_elsewhere(caplog):
    caplog.set_level(logging.INFO, "nnopt_jax.cli")
    lines = Lines()
    lines.stage("train", "1/2", 1000, 5)
    lines.row(ROW | {"step": 9})
    lines.row(ROW)  # too soon after the one before
    lines.row(ROW | {"test_error": 0.2})
    assert [record.getMessage() for record in caplog.records] == [
        "1/2 train: 1000 steps, 5 done",
        "1/2 train: epoch 2  loss 0.2500  zeros 50.0 %  valid error 10.00 %",
        "1/2 train: epoch 2  loss 0.2500  zeros 50.0 %  valid error 10.00 %  test error 20.00 %",
    ]
