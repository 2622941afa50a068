"""The kernels: Numba and NumPy alone.

The contract: a kernel takes arrays and fills its `out_*` arrays, any of which may be None, as any absent argument is
(Numba prunes the branch). It does not raise. Kernels of class indices look at them before they write anything: an
invalid one is a flag in `out_sums`, which the engine makes an exception of, and their weights, which are added up on
the way, divide the gradient of the mean (`targets`). No other kernel validates its arguments or knows a reduction.

Scalar sums are float64 by blocks, which the shape alone determines (and where large outputs begin in a cache line), so
that the results are the same bits on any number of threads. A kernel does one piece of its work, most often such a
block (`_blocks` has it do all), and is specialised lazily by the types of its arguments; half precision arrives as
16-bit integers (`_elements`). Pointers are made inside, an index that comes from data is checked wherever it is part of
an address, and the layouts a kernel serves are its docstring's.
"""
