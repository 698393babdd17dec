"""Grounding DINO (Swin-T), ours against transformers and the official code: seconds per image and peak memory.

All sides get the same weights (the formula of tests/parity.py, no download), the same image and
caption. Each runs in a process of its own, in turns, so that a busy machine disturbs all alike.

    python benchmarks/grounding_dino_speed.py                                     # 800 x 1066, 2 threads
    python benchmarks/grounding_dino_speed.py --height 320 --width 416 --rounds 2 # a quick look
    python benchmarks/grounding_dino_speed.py --official-python VENV/bin/python --official-root GroundingDINO

The official code needs transformers 4.44, hence an environment of its own: VENV holds torch,
transformers==4.44.2 and what its requirements name; GroundingDINO is a clone (856dde2). Without it that
side is left out. The text is encoded anew at each run on all sides, although ours would cache it.
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sides
import torch
from peak_memory import forget_peak, peak_mib

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
MANIFEST = ROOT / "tests" / "golden" / "groundingdino" / "manifest_groundingdino_swint_ogc.json"
VOCABULARY = ROOT / "tests" / "golden" / "tokenizers" / "bert-base-uncased-vocab.txt"
CAPTION, IDS = "car . person .", [101, 2482, 1012, 2711, 1012, 102]


# --- The sides: each returns a function image -> (logits (Q, L), boxes (Q, 4)) -----------------------------


def ours(weights: dict, folder: Path):
    from minisam_glue.grounding_dino.fast import accelerate
    from minisam_glue.grounding_dino.model import PRESETS, GroundingDINO, load_official

    with torch.device("meta"):
        model = GroundingDINO(PRESETS["swin-t"]).eval()
    load_official(model, weights)
    accelerate(model)  # as load_models does

    def run(image):
        ids = torch.tensor([IDS], device=image.device)
        prediction = model(image, model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool)))[0]
        return prediction.logits[0], prediction.boxes[0]

    return model, run


def transformers_side(weights: dict, folder: Path):
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    model = GroundingDinoForObjectDetection(GroundingDinoConfig(disable_custom_kernels=True)).eval()
    missing, unexpected = model.load_state_dict(to_transformers(weights), strict=False)
    unused = [key for key in missing if "swin.layernorm" not in key]  # a norm that detection never calls
    if unused or unexpected:
        raise ValueError(f"transformers has other names than this script knows: {unused[:3]} {unexpected[:3]}")

    def run(image):
        ids = torch.tensor([IDS], device=image.device)
        out = model(
            pixel_values=image, input_ids=ids, token_type_ids=torch.zeros_like(ids), attention_mask=torch.ones_like(ids)
        )
        return out.logits[0, :, : len(IDS)], out.pred_boxes[0]

    return model, run


def official(weights: dict, folder: Path):
    import groundingdino
    from groundingdino.models import build_model
    from groundingdino.util.slconfig import SLConfig
    from transformers import BertConfig, BertModel

    BertModel(BertConfig()).save_pretrained(folder / "bert-base-uncased")
    (folder / "bert-base-uncased" / "vocab.txt").write_bytes(VOCABULARY.read_bytes())
    config = SLConfig.fromfile(str(Path(groundingdino.__path__[0]) / "config" / "GroundingDINO_SwinT_OGC.py"))
    config.device, config.text_encoder_type = "cpu", str(folder / "bert-base-uncased")
    model = build_model(config).eval()
    model.load_state_dict(weights)

    def run(image):
        out = model(image, captions=[CAPTION])
        # The official model keeps the features of the first image unless told to forget them.
        model.unset_image_tensor()
        return out["pred_logits"][0, :, : len(IDS)], out["pred_boxes"][0]

    return model, run


SIDES = {"ours": ours, "transformers": transformers_side, "official": official}

# Official name -> that of transformers 5, in the order in which they are applied.
RENAME = [
    (r"^backbone\.0\.", "model.backbone.conv_encoder.model."),
    (r"\.patch_embed\.proj", ".swin.embeddings.patch_embeddings.projection"),
    (r"\.patch_embed\.norm", ".swin.embeddings.norm"),
    (r"encoder\.model\.norm(\d)", lambda m: f"encoder.model.hidden_states_norms.stage{int(m[1]) + 1}"),
    (r"encoder\.model\.layers", "encoder.model.swin.encoder.layers"),
    (r"(blocks\.\d+)\.norm1", r"\1.layernorm_before"),
    (r"(blocks\.\d+)\.norm2", r"\1.layernorm_after"),
    (r"\.attn\.relative_position_bias_table", ".attention.relative_position_bias.relative_position_bias_table"),
    (r"(blocks\.\d+)\.attn\.proj", r"\1.attention.o_proj"),
    (r"(blocks\.\d+)\.attn\.([qkv])_part", r"\1.attention.\2_proj"),
    (r"^bert\.", "model.text_backbone."),
    (r"^feat_map", "model.text_projection"),
    (r"^input_proj", "model.input_proj_vision"),
    (r"^transformer\.tgt_embed", "model.query_position_embeddings"),
    (r"^transformer\.enc_out_bbox_embed", "model.encoder_output_bbox_embed"),
    (r"^transformer\.decoder\.norm", "model.decoder.layer_norm"),
    (r"ref_point_head", "reference_points_head"),
    (r"^transformer\.encoder\.layers\.(\d+)", r"model.encoder.layers.\1.deformable_layer"),
    (r"^transformer\.encoder\.text_layers\.(\d+)", r"model.encoder.layers.\1.text_enhancer_layer"),
    (r"text_enhancer_layer\.norm1", "text_enhancer_layer.layer_norm_before"),
    (r"text_enhancer_layer\.norm2", "text_enhancer_layer.layer_norm_after"),
    (r"^transformer\.encoder\.fusion_layers\.(\d+)", r"model.encoder.layers.\1.fusion_layer"),
    (r"gamma_v", "vision_param"),
    (r"gamma_l", "text_param"),
    (r"(fusion_layer\.layer_norm)_v", r"\1_vision"),
    (r"(fusion_layer\.layer_norm)_l", r"\1_text"),
    (r"(fusion_layer\.attn\..*)v_proj", r"\1vision_proj"),
    (r"(fusion_layer\.attn\..*)l_proj", r"\1text_proj"),
    (r"deformable_layer\.norm1", "deformable_layer.self_attn_layer_norm"),
    (r"deformable_layer\.norm2", "deformable_layer.final_layer_norm"),
    (r"(decoder\.layers\.\d+)\.norm1", r"\1.encoder_attn_layer_norm"),
    (r"(decoder\.layers\.\d+)\.norm2", r"\1.self_attn_layer_norm"),
    (r"(decoder\.layers\.\d+)\.norm3", r"\1.final_layer_norm"),
    (r"catext_norm", "encoder_attn_text_layer_norm"),
    (r"ca_text", "encoder_attn_text"),
    (r"cross_attn", "encoder_attn"),
    (r"\.q_part", ".query"),
    (r"\.k_part", ".key"),
    (r"\.v_part", ".value"),
    (r"\.linear([12])", r".fc\1"),
    (r"^transformer\.", "model."),
]


def to_transformers(weights: dict) -> dict:
    """Official state dict -> that of transformers: joint projections split, names by the table above."""
    out = {}
    for key, value in weights.items():
        if "relative_position_index" in key or "pooler" in key:
            continue
        joint = re.fullmatch(r"(.*\.)(?:qkv\.|in_proj_)(weight|bias)", key)
        parts = (
            {key: value}
            if not joint
            else {f"{joint[1]}{letter}_part.{joint[2]}": part for letter, part in zip("qkv", value.chunk(3))}
        )
        for name, part in parts.items():
            for pattern, replacement in RENAME:
                name = re.sub(pattern, replacement, name)
            out[name] = part
    return out


# --- One process per side ----------------------------------------------------------------------------------


def worker(args) -> None:
    """Load, then answer each line on standard input with one timed run, as a line of JSON."""
    torch.set_num_threads(args.threads)
    folder = Path(args.folder)
    weights, image = torch.load(folder / "weights.pth"), torch.load(folder / "image.pth")
    model, run = SIDES[args.worker](weights, folder)
    model, image = model.to(args.device), image.to(args.device)
    del weights
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        forget_peak()
    print(json.dumps({"ready": args.worker, "torch": torch.__version__}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        with torch.inference_mode():
            logits, boxes = run(image)
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        torch.save((logits.cpu(), boxes.cpu()), folder / f"{args.worker}.pth")
        print(json.dumps({"seconds": seconds, "peak_mib": peak_of(args.device)}), flush=True)


def peak_of(device: str) -> float:
    """Peak of the device's or the process's resident memory in MiB, weights included."""
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak_mib()


def start(side: str, args, folder: str) -> subprocess.Popen | None:
    """The process of a side once it is ready, or None with a line that says why not."""
    apart = side == "official"
    if apart and not args.official_python:
        print("official: left out (--official-python names no environment that has it)")
        return None
    command = [
        args.official_python if apart else sys.executable,
        __file__,
        "--worker",
        side,
        "--folder",
        folder,
        "--threads",
        str(args.threads),
        "--device",
        args.device,
    ]
    process = sides.start(side, command, args.verbose, {"PYTHONPATH": args.official_root} if apart else None)
    if process is None:
        print(f"{side}: left out (it could not start; --verbose shows why)")
    return process


def measure(args, folder: str) -> dict[str, dict]:
    """Seconds of each run and the peak, for each side that can run; one run of each is not counted."""
    started = {side: start(side, args, folder) for side in SIDES}
    workers = {side: process for side, process in started.items() if process and sides.ask(process)}
    runs = {side: [] for side in workers}
    for _ in range(args.rounds):
        for side, process in workers.items():
            run = sides.ask(process)
            if run is None:
                raise ValueError(f"{side} died (--verbose shows why)")
            runs[side].append(run)
    for process in workers.values():
        sides.end(process)
    return {
        side: {"seconds": [run["seconds"] for run in its], "peak_mib": its[-1]["peak_mib"]}
        for side, its in runs.items()
    }


def write_inputs(folder: Path, height: int, width: int) -> None:
    """Formula weights under their official names, and one smooth image."""
    import parity
    from parity_groundingdino import formula_name, smooth_image

    from minisam_glue.grounding_dino.swin import relative_position_index

    entries = json.loads(MANIFEST.read_text())["entries"]
    weights = {
        key: parity.formula(formula_name(key), tuple(shape))
        for key, (shape, dtype) in entries.items()
        if dtype == "float32"
    }
    weights |= {key: relative_position_index(7) for key in entries.keys() - weights.keys()}
    torch.save(weights, folder / "weights.pth")
    torch.save(smooth_image({"seed": 91, "shape": [3, height, width]})[None], folder / "image.pth")


def differences(folder: Path, side: str) -> str:
    """The distance of a side's output from ours. Nearly tied queries may change places: then whole rows differ."""
    (our_logits, our_boxes), (logits, boxes) = (torch.load(folder / f"{name}.pth") for name in ("ours", side))
    rows = (our_boxes - boxes).abs().amax(1) < 1e-3
    logit, box = (
        (a - b)[rows].abs().max() if rows.any() else torch.nan for a, b in ((our_logits, logits), (our_boxes, boxes))
    )
    return (
        f"{int(rows.sum())} of {len(rows)} queries in the same place; "
        f"their largest difference: logits {logit:.1e}, boxes {box:.1e}"
    )


def print_report(report: dict[str, dict], folder: Path) -> None:
    """A line for each side, its ratios to ours, and the difference between the outputs; ratios join the report."""
    ours_first = report["ours"]
    for side, r in report.items():
        r["ratio"] = statistics.median(b / a for a, b in zip(ours_first["seconds"], r["seconds"]))
        median, least = statistics.median(r["seconds"]), min(r["seconds"])
        print(
            f"{side:<13} {median:7.2f} s ({least:.2f})  {r['ratio']:5.2f}x our time   {r['peak_mib']:6.0f} MiB, "
            f"ours / theirs {ours_first['peak_mib'] / r['peak_mib']:.2f}"
        )
        if side != "ours":
            r["difference"] = differences(folder, side)
            print(f"{'':<13} {r['difference']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1066)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each side, after one that is not timed")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--official-python", help="interpreter of an environment for the official code")
    parser.add_argument("--official-root", default="", help="clone of IDEA-Research/GroundingDINO")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--verbose", action="store_true", help="show the warnings of all sides")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    with tempfile.TemporaryDirectory() as name:
        write_inputs(Path(name), args.height, args.width)
        report = measure(args, name)
        print(
            f"\n{platform.processor() or platform.machine()}, {args.device}, {args.threads} threads, "
            f"{args.height} x {args.width}, {args.rounds} rounds, median (least)"
        )
        print_report(report, Path(name))
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            arguments = vars(args) | {"out": str(args.out)}
            args.out.write_text(json.dumps({"arguments": arguments, "torch": torch.__version__, "results": report}))


if __name__ == "__main__":
    from minisam_glue.support.processes import run_program

    sys.exit(run_program(main))
