"""Generate `benchmarks/RESULTS.md` from `benchmarks/results`. Usage: python benchmarks/make_results.py"""

from __future__ import annotations

from pathlib import Path

from mirrordepth_edge.bench.results_table import results_page
from mirrordepth_edge.support.files import atomic_write

HERE = Path(__file__).parent

if __name__ == "__main__":
    with atomic_write(HERE / "RESULTS.md") as temporary:
        temporary.write_text(results_page(HERE / "results"), encoding="utf-8")
    print(f"wrote {HERE / 'RESULTS.md'}")
