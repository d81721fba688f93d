"""Adapters against PEFT's: what they compute, and what their gradients are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.transfer import dora, lora

F32 = np.float32
SETTINGS = {
    "lora": ({"lora_alpha": 8}, lora(4, alpha=8)),
    "rslora": ({"lora_alpha": 8, "use_rslora": True}, lora(4, alpha=8, rank_stabilized=True)),
    "dora": ({"lora_alpha": 8, "use_dora": True}, dora(4, alpha=8)),
}


@pytest.mark.reference
@pytest.mark.parametrize("name", SETTINGS)
def test_adapted_layers_agree(name):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    theirs, tx = SETTINGS[name]
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("fc", torch.nn.Linear(24, 16))
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["fc"], **theirs)
    ).eval()
    layer = adapted.base_model.model.fc
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype(F32) for shape in ((24, 4), (4, 16)))
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(torch.from_numpy(a.T.copy()))
        layer.lora_B["default"].weight.copy_(torch.from_numpy(b.T.copy()))
    kernel = jnp.asarray(layer.base_layer.weight.detach().numpy().T)
    params = {"fc": kernel}
    state = tx.init(params, key=jax.random.key(0))
    learned = state.learned["fc"] | {"a": jnp.asarray(a), "b": jnp.asarray(b)}
    if name == "dora":
        length = layer.lora_magnitude_vector["default"].weight.detach().numpy()
        np.testing.assert_allclose(learned["magnitude"].ravel(), length, rtol=1e-6)
    state = state._replace(learned={"fc": learned})
    bias = layer.base_layer.bias.detach().numpy()[None]
    x, slope = rng.normal(size=(5, 24)).astype(F32), rng.normal(size=(5, 16)).astype(F32)

    def loss(p):
        return ((x @ p["fc"] + bias) * slope).sum()

    _, grads = nnopt.value_and_grad(loss, tx)(params, state)
    out = adapted(torch.from_numpy(x))
    np.testing.assert_allclose(
        x @ tx.apply(params, state)["fc"] + bias, out.detach().numpy(), rtol=1e-5, atol=2e-6
    )
    (out * torch.from_numpy(slope)).sum().backward()
    found = grads.train.learned["fc"]
    for ours, weight in (("a", layer.lora_A["default"]), ("b", layer.lora_B["default"])):
        np.testing.assert_allclose(found[ours], weight.weight.grad.numpy().T, rtol=1e-4, atol=1e-4)
    if name == "dora":
        wanted = layer.lora_magnitude_vector["default"].weight.grad.numpy()
        np.testing.assert_allclose(found["magnitude"].ravel(), wanted, rtol=1e-4, atol=1e-4)
    merged = adapted.merge_and_unload().fc.weight.detach().numpy().T
    packed = nnopt.materialize(tx.pack(params, state))["fc"]
    np.testing.assert_allclose(packed, merged, rtol=1e-6, atol=1e-6)
