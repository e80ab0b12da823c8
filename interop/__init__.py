"""Our simulators elsewhere: NumPy arrays in, arrays and vjps out (`arrays`), whole paths step by step (`paths`).

Trained controllers for use elsewhere: `export`, and a module per format (`c_source`, `onnx`, `torch_module`). `jax`, `torch`,
`gymnasium`, `onnx` and `torch_module` need packages that the rest of stablebptt does not.
"""
