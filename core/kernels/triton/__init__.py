"""Triton kernels for GPUs. Triton is an optional dependency: nothing here imports it before it is needed."""
