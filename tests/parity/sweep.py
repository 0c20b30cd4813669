"""Every network of every peer against ours: the largest relative difference of logits and of input gradients.

Run it in the repository's root, with timm and transformers installed: `python -m tests.parity.sweep [NAME]`.
"""

import gc
import sys

import torch

from tests.parity.forms import all_forms, compare

SIZES = ((64, 64), (97, 113))
LIMIT = 1e-5


def main() -> None:
    contains = sys.argv[1] if len(sys.argv) > 1 else ""
    worst, failed, count = 0.0, [], 0
    for form in all_forms():
        if contains not in form.name:
            continue
        for asked in SIZES:
            odd = form.even and asked[0] % 2 == 1
            size, note = ((96, 128), "  (the peer fails at odd sizes)") if odd else (asked, "")
            logits, gradients = compare(form, size)
            print(f"{form.name:42} {size[0]:3}x{size[1]:<3}  {logits:.1e}  {gradients:.1e}{note}", flush=True)
            worst = max(worst, logits, gradients)
            if not max(logits, gradients) <= LIMIT:
                failed.append(form.name)
            gc.collect()
        count += 1
    print(f"{count} networks, largest relative difference {worst:.1e}, torch {torch.__version__}")
    if failed:
        sys.exit(f"more than {LIMIT:g}: {', '.join(failed)}")


if __name__ == "__main__":
    main()
