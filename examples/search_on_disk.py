"""Search a million embeddings that are on disk, not in memory.

Run: python examples/search_on_disk.py runs/million --count 1000000

Embeddings are drawn around 1,000 centers and written to a Lance table in parts; only the ids stay in memory. Queries
are searched exactly, by reading all vectors once, and then by an index that looks into a few of its cells. Needs the
extra "lance". With a URI of object storage instead of a folder the same runs beyond one machine.
"""

import argparse
import resource
import time

import torch
from tqdm import tqdm

from detkit.retrieval import LanceIndex

WIDTH, PART = 256, 50_000


def drawn(count: int, *, seed: int) -> torch.Tensor:
    """Embeddings (count, 256) around 1,000 centers."""
    centers = torch.randn(1000, WIDTH, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    owners = torch.randint(1000, (count,), generator=generator)
    return centers[owners] + 0.7 * torch.randn(count, WIDTH, generator=generator)


def timed(what: str, start: float) -> None:
    """Print how long something took, and the most memory that the process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: {time.perf_counter() - start:.1f} s, peak memory {peak:.1f} GB", flush=True)


def main() -> None:
    """Write, search, index, search again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri", help="a new folder, or object storage")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=100)
    options = parser.parse_args()
    index, start = LanceIndex(WIDTH, options.uri), time.perf_counter()
    for seed, first in enumerate(tqdm(range(0, options.count, PART), unit="part"), start=1):
        index.add(drawn(min(PART, options.count - first), seed=seed))
    timed(f"{len(index)} vectors written", start)
    queries = drawn(options.queries, seed=-1)
    start = time.perf_counter()
    exact = index.search(queries, 10)
    timed(f"{options.queries} queries, exactly", start)
    start = time.perf_counter()
    recall = index.build()
    timed(f"index built, which finds {recall:.3f} of the ten nearest of its own vectors", start)
    start = time.perf_counter()
    found = index.search(queries, 10)
    timed(f"{options.queries} queries, by the index", start)
    same = (found.ids[:, :, None] == exact.ids[:, None]).any(2).float().mean()
    print(f"found {same:.3f} of the ten nearest of the queries")


if __name__ == "__main__":
    main()
