"""Cases of the fused ops, one file each; see tests/ops/_harness.py."""
