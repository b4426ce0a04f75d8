"""Ops on videos and on their patches and tokens."""
