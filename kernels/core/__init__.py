"""The language of the kernels, which has no mirror in `adjoint`: structs, dispatch, compiled code on disk, registers, views."""
