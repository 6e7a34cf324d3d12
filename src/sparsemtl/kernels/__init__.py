"""C++ kernels, compiled on first use where a compiler is there.

Every kernel has a path in torch that computes the same. `compiled` builds and loads; beside each source stands the
module that calls it. `SPARSEMTL_KERNELS=0` in the environment turns all kernels off. A compilation that failed is tried
again after a day; `sparsemtl doctor` names the file to delete in order to try again at once.
"""
