"""Writes `torchdistill.npz`: losses of torchdistill on small random features.

torchdistill brings much that nothing else here needs, so it is not a dependency; its answers are
kept. In an environment that has PyTorch and torchvision:

    pip install --no-deps torchdistill==1.1.5
    python tests/reference/golden/make_torchdistill.py
"""

from __future__ import annotations

import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent
TEMPERATURES = (1.0, 4.0, 20.0)


def main() -> None:
    import torch
    from torchdistill.losses.mid_level import ATLoss, KDLoss, SimpleLossWrapper

    rng = np.random.default_rng(21)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    kept = {
        "student": 3 * draw(6, 10),
        "teacher": 3 * draw(6, 10),
        "labels": rng.integers(0, 10, 6),
        "student_map": draw(3, 4, 4, 5),  # channels last; PyTorch gets them first
        "teacher_map": draw(3, 4, 4, 7),
        "regressor": draw(5, 7),
    }

    def seen(name: str, dtype: torch.dtype = torch.float32) -> dict:
        x = torch.from_numpy(kept[name]).to(dtype)
        return {"at": {"output": x.permute(0, 3, 1, 2) if x.ndim == 4 else x}}

    for temperature in TEMPERATURES:
        loss = KDLoss("at", "output", "at", "output", temperature=temperature, alpha=0.3)
        labels = torch.from_numpy(kept["labels"])
        # In float64: at temperature 20 float32 is 3e-6 off, which the library is not.
        wide = (seen(name, torch.float64) for name in ("student", "teacher"))
        kept[f"kd/{temperature}"] = loss(*wide, labels).numpy()
    path = {"path": "at", "io": "output"}
    for mode in ("code", "paper"):
        loss = ATLoss({"one": {"student": path, "teacher": path, "weight": 1}}, mode=mode)
        kept[f"attention/{mode}"] = loss(seen("student_map"), seen("teacher_map")).numpy()
    regressor = torch.nn.Conv2d(5, 7, 1, bias=False)
    with torch.no_grad():
        regressor.weight.copy_(torch.from_numpy(kept["regressor"].T[:, :, None, None].copy()))
        led = {"at": {"output": regressor(seen("student_map")["at"]["output"])}}
    told = {"module_path": "at", "io": "output"}
    loss = SimpleLossWrapper(
        torch.nn.MSELoss(),
        input={**told, "is_from_teacher": False},
        target={**told, "is_from_teacher": True},
    )
    kept["hint"] = loss(led, seen("teacher_map"), None).numpy()
    np.savez_compressed(HERE / "torchdistill.npz", **kept)


if __name__ == "__main__":
    main()
