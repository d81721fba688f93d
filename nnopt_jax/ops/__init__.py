"""Pure array functions: no trees, no state; safe under jit, vmap and grad, and on meshes."""
