"""What every timed process does: get ready, say so, run, and say how it went. Imports nothing."""

import json
import resource
import time
from collections.abc import Callable

READY = "ready"


def timed(run: Callable[[], int], *, built: Callable[[], float] = float) -> None:
    """Run what is ready and print JSON: images/s, and processor time an image in ms.

    Args:
        run: Returns the number of images.
        built: Returns how many seconds of the run went into building the network, which others do
            before they are ready.
    """
    print(READY, flush=True)
    processor, start = _processor_seconds(), time.perf_counter()
    count = run()
    seconds = time.perf_counter() - start - built()
    processor = _processor_seconds() - processor
    print(json.dumps({"speed": count / seconds, "processor": 1e3 * processor / count}))


def _processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
