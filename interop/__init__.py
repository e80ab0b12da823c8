"""Our simulators inside other frameworks: arrays in, arrays and vjps out (`arrays`); JAX (`jax`) and PyTorch (`torch`).

Each file here needs a package that the rest of stablebptt does not.
"""
