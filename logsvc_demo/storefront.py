"""storefront: a second service of the demo that knows no shipper; it writes a log file.

    python -m logsvc_demo.storefront --log FILE --history-days 2

An agent follows the file (``python -m shippers.agent FILE``).
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from logsvc_demo.world import World, schedule

_PAGES = ("/", "/products/17", "/cart", "/checkout", "/account")


def _request(out: TextIO, moment: float, rng: random.Random) -> None:
    stamp = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    page, took_ms = rng.choice(_PAGES), rng.lognormvariate(3.2, 0.4)
    level, status = ("WARNING", 404) if rng.random() < 0.02 else ("INFO", 200)
    out.write(f"{stamp} {level} storefront GET {page} {status} in {took_ms:.0f} ms\n")


def main() -> None:
    """Write history, then go on live until ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--history-days", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=2)
    args = parser.parse_args()
    stop, rng = threading.Event(), random.Random(args.seed)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    start = time.time() - args.history_days * 86_400
    world = World(start, stop)
    with args.log.open("a", encoding="utf-8", buffering=1 << 16) as out:
        for moment, _ in schedule(world, {"request": 15.0}, rng, start, None):
            if world.is_live and stop.is_set():
                break
            _request(out, moment, rng)
            if world.is_live:
                out.flush()
    sys.exit(0)


if __name__ == "__main__":
    main()
