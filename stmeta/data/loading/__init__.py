"""From shards to batches of clips: sampler, decoding threads, collate, resume."""
