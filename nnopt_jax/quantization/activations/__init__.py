"""Integer quantization: codes of 8 and 16 bits, for weights and for activations.

Weights are quantized by a transform, `uniform`. Activations are values inside the model, so the
model calls a function on them: any JAX function does, flax modules included.

    def model(params, grids, x):                     # grids: what calibration or training found
        x = dynamic(x)                               # range of this batch, or of each row: axis=-1
        x = jax.nn.relu(x @ params["hidden"])
        x = fake_quant(x, *grids["hidden"])          # a fixed range
        return x @ params["out"]

A fixed range comes from calibration (`observe` batches, then `absmax_grid`, `percentile_grid`,
`mse_grid` or `kl_grid`), or is followed during training (`ema_range`, `ema_grid`). Gradients pass
straight through, so that the same function serves training with the rounding in the loop.
"""
