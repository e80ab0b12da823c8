"""The language of the kernels: structs, dispatch, compiled code on disk, registers, views. It has no mirror in `adjoint`."""
