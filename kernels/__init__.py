"""The operator library: records (ops), dispatch, and their kernels in C (cpu) and Triton (triton)."""
