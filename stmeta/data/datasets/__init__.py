"""Data sets that can be made here, without a download."""
