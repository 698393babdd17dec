"""python -m minisam_glue.datasets RESULT_DIR --to coco: data sets of results that are there already."""

import sys

from ..support.processes import begin_program

if __name__ == "__main__":
    begin_program()
    from ..cli.data_sets import run  # torch takes seconds to import: Ctrl-C is quiet then, too

    sys.exit(run())
