"""Our simulators in other frameworks: NumPy arrays in, arrays and vjps out (`arrays`), JAX (`jax`), PyTorch (`torch`).

`jax` and `torch` need packages that the rest of stablebptt does not.
"""
