"""Few-shot episodes and algorithmic sequences."""
