"""Where shards lie: a local folder, or an address that is read through a disk cache."""
