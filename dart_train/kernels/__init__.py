"""Fused kernels in Triton. Nothing here is used unless a recipe or a program names it."""
