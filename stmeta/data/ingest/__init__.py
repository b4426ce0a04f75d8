"""A user's own videos to a data set of shards."""
