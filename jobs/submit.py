"""``flashvid submit`` for a clone: python -m jobs.submit CONFIG [KEY=VALUE...] --address http://head:8265"""

from __future__ import annotations

import sys

from pipeline.cli import main

if __name__ == "__main__":
    main(["submit", *sys.argv[1:]])
