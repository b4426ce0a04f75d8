"""Verifies shards and shows what is in them."""
