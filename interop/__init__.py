"""Our simulators in other frameworks: NumPy arrays in, arrays and vjps out (`arrays`), JAX (`jax`), PyTorch (`torch`).

Trained controllers for use elsewhere: `export`, and a module per format (`c_source`, `onnx`, `torch_module`). `jax`, `torch`,
`onnx` and `torch_module` need packages that the rest of stablebptt does not.
"""
