"""A sentence encoder of MiniLM's size with int8 weights and activations, against PyTorch's.

    pip install -e '.[reference]'
    python benchmarks/encoder.py [--batch 1,8,32] [--tokens 128] [--rounds 25]

Six layers of width 384 with random weights: ours dense and with `quantize_activations` over
`uniform`, laid out; PyTorch's `BertModel` dense and by `quantize_dynamic` of all linear layers.
All four take turns in one process, with as many threads each; a ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import os
import warnings

import jax
import numpy as np
import torch
import transformers
from interleave import interleave, show

import nnopt_jax as nnopt
from nnopt_jax.zoo.bert import Bert


def theirs(model: Bert) -> tuple[torch.nn.Module, torch.nn.Module]:
    """PyTorch's encoder of the same sizes, dense and with dynamic int8."""
    config = transformers.BertConfig(
        vocab_size=model.vocabulary,
        hidden_size=model.width,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        intermediate_size=model.hidden,
    )
    dense = transformers.BertModel(config, add_pooling_layer=False).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is called deprecated, and still what people use
        quantized = torch.ao.quantization.quantize_dynamic(
            dense, {torch.nn.Linear}, dtype=torch.qint8
        )
    return dense, quantized


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = Bert()
    params = model.init(jax.random.key(0))
    tx = nnopt.chain(
        nnopt.quantization.uniform(8, where="**/kernel", granularity="channel"),
        nnopt.quantization.quantize_activations(8, where="**/kernel"),
    )
    ids = jax.ShapeDtypeStruct((1, options.tokens), "int32")
    tx = tx.bind(nnopt.graph(model.apply, params, ids, ids))
    packed = nnopt.prepack(tx.pack(params, tx.init(params)), where="**/kernel")
    run, on_packed = jax.jit(model.apply), jax.jit(nnopt.on_packed(model.apply))
    dense, quantized = theirs(model)
    print(f"jax {jax.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for batch in map(int, options.batch.split(",")):
        drawn = np.random.default_rng(0).integers(0, model.vocabulary, (batch, options.tokens))
        mask = np.ones_like(drawn)
        ids, ones = jax.device_put((drawn, mask))
        tokens, attends = torch.from_numpy(drawn), torch.from_numpy(mask)

        def pytorch(network: torch.nn.Module, tokens=tokens, attends=attends) -> torch.Tensor:
            with torch.inference_mode():
                return network(tokens, attends).last_hidden_state

        timings = interleave(
            {
                "PyTorch, dynamic int8": lambda: pytorch(quantized),
                "ours, int8": lambda ids=ids, ones=ones: on_packed(packed, ids, ones),
                "ours, float32": lambda ids=ids, ones=ones: run(params, ids, ones),
                "PyTorch, float32": lambda: pytorch(dense),
            },
            rounds=options.rounds,
        )
        show(f"batch of {batch}, {options.tokens} tokens", timings)


if __name__ == "__main__":
    main()
