"""Ops on a memory [B, N, M]: one step of a memory, and the parts that steps are made of."""
