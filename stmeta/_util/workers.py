"""Runs a function over many items in processes, in order; a process that dies costs one item.

On the pool of the standard library, which loses all items when a process dies; here they are tried
again. Other pools were tried with the same tests: pebble's workers share one pipe, and one that is
killed while it holds the pipe leaves the others waiting for ever; loky passes, but replaces nothing
of this, and takes twice the time for many small items.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from stmeta._errors import DataError
from stmeta._util.machine_errors import StorageError
from stmeta._util.watchdog import WATCH

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def ordered_map(
    function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int
) -> Iterator[tuple[_Item, _Result | DataError]]:
    """Apply a function to items in processes; yield each item with its result, in order.

    Only a few items per worker are on their way at a time, so results do not pile up. A decoder
    that crashes takes its process down, not the run: the items that were on their way are tried
    again one at a time, and the guilty one gets a DataError.

    Args:
        function: top-level function; may raise DataError, which is yielded, not raised, but for
            StorageError, which is not about an item.
        items: picklable.
        workers: processes; 1 = here, without a process.

    Raises:
        StorageError: the machine fails.
        RuntimeError: processes cannot start at all.
    """
    if workers <= 1:
        yield from ((item, _call(function, item)) for item in items)
        return
    waiting: deque[tuple[_Item, Future[Any]]] = deque()
    stream = iter(items)
    pool = process_pool(workers)
    try:
        while True:
            while len(waiting) < 4 * workers and (item := next(stream, _END)) is not _END:
                waiting.append((item, _submit(pool, function, item)))
            if not waiting:
                return
            try:
                result = waiting[0][1].result()
            except BrokenProcessPool:
                pool.shutdown()
                # Which one killed its process is not known: each gets a process of its own.
                for item, future in waiting:
                    done = future.done() and future.exception() is None
                    yield item, future.result() if done else _alone(function, item)
                waiting.clear()
                pool = process_pool(workers)
                continue
            yield waiting.popleft()[0], result
    finally:
        pool.shutdown(cancel_futures=True)


_END: Any = object()


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Processes that end with this one.

    Raises:
        RuntimeError: they cannot start.
    """
    # spawn: a fork would copy the locks of FFmpeg's and torch's threads in whatever state they are.
    context = get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin, initargs=(context.Barrier(workers),)
    )
    try:
        pool.submit(os.getpid).result()
        # All start now: where one dies while the pool starts another, the pool waits for that one
        # for ever.
        WATCH.add(*[x.result() for x in [pool.submit(_meet) for _ in range(workers)]])
    except BrokenProcessPool as error:
        raise RuntimeError(
            "worker processes cannot start, as they run the main script again; put its work under "
            'if __name__ == "__main__":, or use workers=1'
        ) from error
    return pool


def _submit(pool: ProcessPoolExecutor, function: Callable[[Any], Any], item: Any) -> Future[Any]:
    """Put an item on its way; a pool that an earlier item broke refuses it in the future."""
    try:
        return pool.submit(_call, function, item)
    except BrokenProcessPool as error:
        refused: Future[Any] = Future()
        refused.set_exception(error)
        return refused


def _alone(function: Callable[[Any], Any], item: Any) -> Any:
    with process_pool(1) as pool:
        try:
            return pool.submit(_call, function, item).result()
        except BrokenProcessPool:
            return DataError("reading it crashed the process")


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    try:
        return function(item)
    except StorageError:
        raise  # not about the item
    except DataError as error:
        return error


_barrier: Any = None


def _begin(barrier: Any) -> None:
    """Prepare a worker, which waits for the others in `_meet`."""
    global _barrier
    _barrier = barrier
    _follow_parent()


def _meet() -> int:
    _barrier.wait()
    return os.getpid()


def _follow_parent() -> None:
    """End this process when its parent is killed; a worker would wait for work for ever."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
