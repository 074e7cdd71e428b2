"""Set method auto beside each method alone and other tools, at equal budget and equal total compute.

The same as ``convwright reproduce rivals``, with the same options (``--quick``, ``--only 'resnet50-*'``, ``--seeds``,
``--out``, ``--jobs``, ``--data-dir``); what is compared and how stands in
`convwright.experiments.papers.baselines.rows`. Rows of torch-pruning
need it: ``pip install torch-pruning``; without it the others run.
"""

from __future__ import annotations

import sys

from convwright.cli import app

if __name__ == "__main__":
    app(["reproduce", "rivals", *sys.argv[1:]])
