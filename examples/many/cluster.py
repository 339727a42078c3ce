"""One block of pictures after the other on the processes of a Ray cluster, or of one that is started for it."""

import logging
import os

import pyarrow as arrow
from tqdm import tqdm

import many
from many.joined import done
from many.workers import Settings, Worker


def detect(paths: list[str], settings: Settings, *, workers: int, block: int, address: str | None, retry: bool) -> None:
    """Write the results of those ``paths`` that have none yet."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is reported to anybody
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(many)  # no other machine needs a copy of this folder
    cpus = None if address else workers
    ray.init(address=address, num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.max_errored_blocks = False, 0
    there = done(settings.parts, retry=retry)  # only now: a process of a killed run finishes its block before it ends
    left = [path for path in paths if path not in there]
    blocks = [arrow.table({"path": left[first : first + block]}) for first in range(0, len(left), block)]
    processes = ray.data.ActorPoolStrategy(size=min(workers, max(len(blocks), 1)))
    found = ray.data.from_arrow(blocks).map_batches(
        Worker, fn_constructor_args=(settings,), batch_size=None, batch_format="pyarrow", compute=processes, num_cpus=1
    )
    with tqdm(total=len(left), unit="picture") as bar:
        for batch in found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0) if left else ():
            bar.update(len(batch))
    ray.shutdown()
