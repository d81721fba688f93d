"""Quantization of activations, inside the model, with dynamic, static or learned ranges.

Weights are quantized by a transform, such as `uniform`. Activations are values inside the model, so
the model calls a function on them; any JAX function can, Flax modules included.

    def model(params, grids, x):                     # grids: what calibration or training found
        x = dynamic(x)                               # range of this batch, or of each row: axis=-1
        x = jax.nn.relu(x @ params["hidden"])
        x = fake_quant(x, *grids["hidden"])          # a fixed range
        return x @ params["out"]

A fixed range comes from calibration (`update_range` batch by batch, then `absmax_grid`,
`percentile_grid`, `mse_grid` or `kl_grid`), or from moving averages in training (`ema_range`,
`ema_grid`). Gradients pass straight through, so that the same functions serve quantization-aware
training.
"""
