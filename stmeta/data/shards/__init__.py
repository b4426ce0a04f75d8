"""Shards of videos: plain tars, their index, and the names of their classes."""
