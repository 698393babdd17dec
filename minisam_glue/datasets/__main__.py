"""python -m minisam_glue.datasets RESULT_DIR --to coco: data sets of results that are there already."""

import sys

from ..cli.data_sets import run

if __name__ == "__main__":
    sys.exit(run())
