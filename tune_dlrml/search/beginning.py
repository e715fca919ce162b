"""Checks a search and loads its data while Ray starts, each of which takes seconds of one core."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from tune_dlrml.cluster.cluster import kept_cluster
from tune_dlrml.config import SearchConfig
from tune_dlrml.search.preparation import PreparedSearch, prepare
from tune_dlrml.search.result import SearchPlace


@contextmanager
def prepared_search(config: SearchConfig, place: SearchPlace, judge_key: str | None = None) -> Iterator[PreparedSearch]:
    """A search whose input is valid; where it is new and needs a Ray of its own, that runs inside the block.

    Ray starts when the rows were read, so that a mistake in the file or in a row starts nothing; where one is found
    later, in the tokens, Ray ends again. A search that was started before may have nothing left to train.

    Args:
        config: The search.
        place: Where it lives.
        judge_key: For the judges' endpoint, if no file holds it.

    Raises:
        InputError: See `prepare`; or Ray does not start.
    """
    if place.ray_address is not None or place.folder(config.name).exists():
        yield prepare(config, place, judge_key)
        return
    notes: list[str] = []
    with ExitStack() as stack:
        with ThreadPoolExecutor(1, "preparing") as pool:
            read = threading.Event()
            preparing = pool.submit(prepare, config, place, judge_key, read.set)
            preparing.add_done_callback(lambda _: read.set())
            read.wait()
            if not preparing.done():
                stack.enter_context(kept_cluster(notes.append))
            prepared = preparing.result()
        yield replace(prepared, notes=(*prepared.notes, *notes))
