"""Segment what a sentence names, in images, folders, videos and cameras. The same as the command `minisam`.

    python segment.py img.jpg "car. person."                  # segmented/img/: annotated.jpg, masks/, result.json
    python segment.py clip.mp4 "car." --redetect 30           # detected on the first frame with a car, then tracked
    python segment.py examples/hexagons.jpg "green hexagon." --weights demo    # small weights that are here
    python segment.py --help                                  # everything else
    torchrun --nproc-per-node 2 segment.py photos/ "dog."     # the inputs are shared among processes

The flags stand in minisam_glue/cli/parser.py, the run in minisam_glue/cli/run.py.
"""

import sys

from minisam_glue.cli import main

if __name__ == "__main__":
    sys.exit(main())
