"""Makes Numba's simulator strict: what would lie outside of an array on a device is an error here.

NumPy counts negative indices from the end and shortens slices; the kernels' `load`, `store` and `column` do neither when they
are compiled. And the simulator's memory is zero, which hides what nobody wrote: here it begins as NaN (-1 of whole numbers),
as on the PTX machine.
"""

import numpy as np
from numba import cuda
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray, FakeWithinKernelCUDAArray
from numba.cuda.simulator.kernelapi import FakeCUDAShared


def refuse_outside(shape, index):
    """Raise IndexError if any place of an index, or of a tuple of them, lies outside."""
    for length, part in zip(shape, index if isinstance(index, tuple) else (index,)):
        if isinstance(part, slice):
            places = range(part.start or 0, length if part.stop is None else part.stop, part.step or 1)
            inside = not places or 0 <= places[0] <= places[-1] < length
        else:
            inside = 0 <= part < length
        if not inside:
            raise IndexError(f"index {part} is outside of an axis of {length}")


def fresh(array):
    """The array, with nothing in it that could pass for a result."""
    array.view(np.uint8)[...] = 0xFF
    return array


def install():
    """Make all arrays in the simulator's kernels strict, from now on."""
    read, write, begin, take = FakeCUDAArray.__getitem__, FakeCUDAArray.__setitem__, FakeCUDAShared.__init__, FakeCUDAShared.array

    def strict_read(self, index):
        refuse_outside(self._ary.shape, index)
        return read(self, index)

    def strict_write(self, index, value):
        refuse_outside(self._ary.shape, index)
        write(self, index, value)

    def begin_fresh(self, size):
        begin(self, size)
        fresh(self._dynshared)

    def strict_reshape(self, *shape):  # NumPy's own would come back
        return FakeWithinKernelCUDAArray(self._item.reshape(*shape))

    FakeCUDAArray.__getitem__, FakeCUDAArray.__setitem__ = strict_read, strict_write
    FakeWithinKernelCUDAArray.reshape = strict_reshape
    FakeCUDAShared.__init__ = begin_fresh
    FakeCUDAShared.array = lambda self, shape, dtype: FakeCUDAArray(take(self, shape, dtype))
    cuda.device_array = lambda shape, dtype, stream=0: FakeCUDAArray(fresh(np.empty(shape, dtype)))
