"""Our simulators elsewhere: NumPy arrays in, arrays and vjps out (`arrays`), whole paths step by step (`paths`).

`jax`, `torch` and `gymnasium` need packages that the rest of stablebptt does not.
"""
