"""Sharding: a folder of videos to a data set of shards, encoded alike and indexed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stmeta._util.lazy_names import lazy_names

if TYPE_CHECKING:
    from stmeta.data.ingest.encode import EncodeOptions as EncodeOptions
    from stmeta.data.ingest.encode import encode_frames as encode_frames
    from stmeta.data.ingest.sharding import IngestReport as IngestReport
    from stmeta.data.ingest.sharding import ingest as ingest
    from stmeta.data.ingest.sharding import ingest_plan as ingest_plan
    from stmeta.data.ingest.sources import BadSource as BadSource
    from stmeta.data.ingest.sources import Part as Part
    from stmeta.data.ingest.sources import Plan as Plan
    from stmeta.data.ingest.sources import Source as Source
    from stmeta.data.ingest.sources import plan_sources as plan_sources

__all__ = [
    "BadSource",
    "EncodeOptions",
    "IngestReport",
    "Part",
    "Plan",
    "Source",
    "encode_frames",
    "ingest",
    "ingest_plan",
    "plan_sources",
]
_MODULES = {
    "BadSource": "sources",
    "EncodeOptions": "encode",
    "IngestReport": "sharding",
    "Part": "sources",
    "Plan": "sources",
    "Source": "sources",
    "encode_frames": "encode",
    "ingest": "sharding",
    "ingest_plan": "sharding",
    "plan_sources": "sources",
}

if not TYPE_CHECKING:
    __getattr__ = lazy_names(__name__, _MODULES)
