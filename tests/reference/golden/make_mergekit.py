"""Writes `mergekit.npz`: what mergekit makes of small random tensors.

mergekit is LGPL and pins old versions of much else, so it is not a dependency; its answers are
kept. In an environment that has PyTorch, transformers, safetensors and pydantic 2:

    pip install --no-deps mergekit==0.1.5
    python tests/reference/golden/make_mergekit.py
"""

from __future__ import annotations

import pathlib
import types

import numpy as np

HERE = pathlib.Path(__file__).parent
SHARES, DENSITIES = (0.0, 0.25, 0.5, 0.9), (0.2, 0.5, 1.0)
WEIGHTS = ([1.0, 1.0, 1.0], [0.5, 0.3, 0.9])


def main() -> None:
    import torch
    from mergekit.merge_methods.generalized_task_arithmetic import (
        ConsensusMethod,
        GeneralizedTaskArithmeticMerge,
    )
    from mergekit.merge_methods.slerp import slerp
    from mergekit.sparsify import SparsificationMethod

    rng = np.random.default_rng(20)
    models = rng.normal(size=(4, 8, 6)).astype(np.float32)
    tensors = [torch.from_numpy(x) for x in models]
    near = (models[0] + 1e-3 * models[1]).astype(np.float32)  # nearly parallel: along a line
    kept = {"models": models, "near": near}
    for t in SHARES:
        for name, other in (("slerp", tensors[1]), ("slerp_near", torch.from_numpy(near))):
            kept[f"{name}/{t}"] = slerp(torch.tensor([t]), tensors[0][None], other[None])[0].numpy()
    merge = GeneralizedTaskArithmeticMerge(
        consensus_method=ConsensusMethod.sum,
        sparsification_method=SparsificationMethod.magnitude,
        default_normalize=True,
        default_rescale=False,
        method_name="ties",
        method_pretty_name="TIES",
        method_reference_url=None,
    )
    group = types.SimpleNamespace(
        base=types.SimpleNamespace(tensor=tensors[0]),
        non_base=[types.SimpleNamespace(tensor=x, id=i) for i, x in enumerate(tensors[1:])],
    )
    for density in DENSITIES:
        for number, weights in enumerate(WEIGHTS):
            told = {"weight": weights, "density": [density] * 3, "rescale": False,
                    "normalize": True, "int8_mask": False, "lambda": 0.7}  # fmt: skip
            kept[f"ties/{density}/{number}"] = merge.merge_group(group, **told).numpy()
    np.savez_compressed(HERE / "mergekit.npz", **kept)


if __name__ == "__main__":
    main()
