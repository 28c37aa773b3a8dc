//! cpu-kernels.
