"""Our simulators inside other frameworks: arrays in, arrays and vjps out (`arrays`); JAX (`jax`) and PyTorch (`torch`).

A room of its own because each file needs a package that this one does not.
"""
