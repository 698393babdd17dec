"""Speed of our optical flow beside OpenCV's on one pair of frames, interleaved.

    python benchmarks/flow_speed.py --threads 2            # needs the bench extra (opencv-python-headless)

Prints the median time of each, their ratio, and the largest difference between both flows.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

try:
    import cv2
except ImportError:
    cv2 = None

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minisam_glue.flow import farneback
from minisam_glue.support.processes import run_program


def pair(height: int, width: int) -> list[np.ndarray]:
    """Two frames of one texture, the second moved by 4 pixels."""
    noise = np.random.RandomState(0).rand(height + 8, width + 8).astype(np.float32)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    return [np.ascontiguousarray(texture[i : i + height, i : i + width]) for i in (0, 4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    if cv2 is None:
        parser.error('needs OpenCV: pip install -e ".[bench]"')
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    frames = pair(*args.size)
    tensors = [torch.from_numpy(frame)[None] for frame in frames]

    def reference() -> np.ndarray:
        return cv2.calcOpticalFlowFarneback(*frames, None, 0.5, 3, 15, 3, 5, 1.2, 0)

    with torch.inference_mode():
        difference = np.abs(farneback(*tensors)[0].permute(1, 2, 0).numpy() - reference()).max()
        times = {"OpenCV": [], "ours": []}
        for _ in range(args.rounds):
            for name, compute in (("OpenCV", reference), ("ours", lambda: farneback(*tensors))):
                begun = time.perf_counter()
                compute()
                times[name].append(time.perf_counter() - begun)
    ours, theirs = (float(np.median(times[name])) for name in ("ours", "OpenCV"))
    print(f"torch {torch.__version__}, OpenCV {cv2.__version__}, {args.threads} threads, {args.size[1]}x{args.size[0]}")
    print(f"OpenCV {1e3 * theirs:.1f} ms, ours {1e3 * ours:.1f} ms: {ours / theirs:.2f} times as long")
    print(f"largest difference of the flows: {difference:.1e} pixels")


if __name__ == "__main__":
    sys.exit(run_program(main))
