"""The kernels: Numba and NumPy alone.

The contract: a kernel takes arrays and fills its `out_*` arrays, any of which may be None, as any absent argument is
(Numba prunes the branch). It does not validate, raise, or know a reduction. Its scalar sums are float64 by blocks,
which the shape alone determines, so that the results are the same bits on any number of threads. A kernel does one
piece of its work, most often such a block (`_blocks` has it do all), and is specialised lazily by the types of its
arguments; half precision arrives as 16-bit integers (`_simd`). Pointers are made inside, every index that comes from
data is checked where it is used, and the layouts it serves are its docstring's.
"""
