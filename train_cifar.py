"""Train a Vision Transformer on small images: the script form of the command `minivit`.

python train_cifar.py --patch 4 --depth 12                      # preset cifar on CIFAR-10, from scratch
python train_cifar.py --data shapes --preset shapes-demo        # no download, minutes on a CPU
python train_cifar.py --help                                    # all options, with more examples
"""

import functools
import sys

from minivit.__main__ import main as run_command

main = functools.partial(run_command, command="python train_cifar.py")

if __name__ == "__main__":
    sys.exit(main())
