"""Video data: shards on disk, and clips, episodes and sequences made from them.

    from stmeta.data import ClipLoader, LoaderConfig

The names below are the public interface; each is imported when it is first used, so PyAV, torch
and DALI are loaded only by what needs them. Two functions are called like their packages and are
found there: `stmeta.data.ingest.ingest` and `stmeta.data.verify.verify`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stmeta._util.lazy_names import lazy_names

if TYPE_CHECKING:
    from stmeta.data.episodes.clips import ClipSource as ClipSource
    from stmeta.data.episodes.clips import FeatureSource as FeatureSource
    from stmeta.data.episodes.images import ImageSource as ImageSource
    from stmeta.data.episodes.images import image_episodes as image_episodes
    from stmeta.data.episodes.loader import EpisodeBatch as EpisodeBatch
    from stmeta.data.episodes.loader import EpisodeLoader as EpisodeLoader
    from stmeta.data.episodes.sampler import EpisodeSampler as EpisodeSampler
    from stmeta.data.episodes.sequences import TaskBatch as TaskBatch
    from stmeta.data.episodes.sequences import TaskLoader as TaskLoader
    from stmeta.data.episodes.sequences import associative_recall_task as associative_recall_task
    from stmeta.data.episodes.sequences import copy_task as copy_task
    from stmeta.data.episodes.sequences import repeat_copy_task as repeat_copy_task
    from stmeta.data.loading.batch import ClipBatch as ClipBatch
    from stmeta.data.loading.config import LoaderConfig as LoaderConfig
    from stmeta.data.loading.loader import ClipLoader as ClipLoader
    from stmeta.data.loading.sampler import ClipRequest as ClipRequest
    from stmeta.data.loading.sampler import ClipSampler as ClipSampler
    from stmeta.data.shards.classes import read_classes as read_classes
    from stmeta.data.shards.classes import write_classes as write_classes
    from stmeta.data.shards.index import BadSample as BadSample
    from stmeta.data.shards.index import ShardIndex as ShardIndex
    from stmeta.data.shards.index import build_index as build_index
    from stmeta.data.shards.paths import find_shards as find_shards
    from stmeta.data.shards.tar_index import SampleInfo as SampleInfo
    from stmeta.data.shards.writer import EncodedSample as EncodedSample
    from stmeta.data.shards.writer import ShardWriter as ShardWriter
    from stmeta.data.shards.writer import write_shards as write_shards
    from stmeta.data.storage.config import StorageConfig as StorageConfig
    from stmeta.data.video.probe import VideoInfo as VideoInfo
    from stmeta.data.video.probe import probe as probe

__all__ = [
    "BadSample",
    "ClipBatch",
    "ClipLoader",
    "ClipRequest",
    "ClipSampler",
    "ClipSource",
    "EncodedSample",
    "EpisodeBatch",
    "EpisodeLoader",
    "EpisodeSampler",
    "FeatureSource",
    "ImageSource",
    "LoaderConfig",
    "SampleInfo",
    "ShardIndex",
    "ShardWriter",
    "StorageConfig",
    "TaskBatch",
    "TaskLoader",
    "VideoInfo",
    "associative_recall_task",
    "build_index",
    "copy_task",
    "find_shards",
    "image_episodes",
    "probe",
    "read_classes",
    "repeat_copy_task",
    "write_classes",
    "write_shards",
]
_MODULES = {
    "BadSample": "shards.index",
    "ClipBatch": "loading.batch",
    "ClipLoader": "loading.loader",
    "ClipRequest": "loading.sampler",
    "ClipSampler": "loading.sampler",
    "ClipSource": "episodes.clips",
    "EncodedSample": "shards.writer",
    "EpisodeBatch": "episodes.loader",
    "EpisodeLoader": "episodes.loader",
    "EpisodeSampler": "episodes.sampler",
    "FeatureSource": "episodes.clips",
    "ImageSource": "episodes.images",
    "LoaderConfig": "loading.config",
    "SampleInfo": "shards.tar_index",
    "ShardIndex": "shards.index",
    "ShardWriter": "shards.writer",
    "StorageConfig": "storage.config",
    "TaskBatch": "episodes.sequences",
    "TaskLoader": "episodes.sequences",
    "VideoInfo": "video.probe",
    "associative_recall_task": "episodes.sequences",
    "build_index": "shards.index",
    "copy_task": "episodes.sequences",
    "find_shards": "shards.paths",
    "image_episodes": "episodes.images",
    "probe": "video.probe",
    "read_classes": "shards.classes",
    "repeat_copy_task": "episodes.sequences",
    "write_classes": "shards.classes",
    "write_shards": "shards.writer",
}

if not TYPE_CHECKING:
    __getattr__ = lazy_names(__name__, _MODULES)
