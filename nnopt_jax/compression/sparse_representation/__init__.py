"""Sparse representation: only what is kept is stored, and trained.

Packed parameters are parameters: with `nnopt.chain()`, the transform that does nothing, a training
loop moves the survivors alone, and the optimizer remembers nothing of what was pruned.

Example:
    >>> import jax, jax.numpy as jnp
    >>> import optax
    >>> import nnopt_jax as nnopt
    >>> prune = nnopt.pruning.magnitude(0.75)
    >>> params = {"kernel": jnp.arange(1.0, 17.0).reshape(4, 4)}
    >>> small, nothing = prune.pack(params, prune.init(params)), nnopt.chain()
    >>> moments = optax.sgd(0.1, momentum=0.9).init(nnopt.trainable(nothing, small, ()))
    >>> [x.shape for x in jax.tree.leaves(moments)]
    [(4,)]
    >>> loss = lambda params: (params["kernel"] ** 2).sum()
    >>> _, grads = nnopt.value_and_grad(loss, nothing)(small, ())
    >>> small, _ = nnopt.step(nothing, small, (), grads.train, grads)
    >>> small["kernel"].values
    Array([39., 42., 45., 48.], dtype=float32)
"""
