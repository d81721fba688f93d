"""Pure functions of arrays, without trees or state, for use under jit, vmap, grad and on meshes."""
