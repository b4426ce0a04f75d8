"""Video data: shards on disk (`shards`, `ingest`) and clips from them (`plan`, `loader`).

Nothing is imported here, so that a part that needs PyAV or DALI costs nothing until it is used.
"""
