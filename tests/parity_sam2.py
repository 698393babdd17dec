"""Our SAM 2 on the golden files of the official one (sam2 1.1.0); see parity.py for how to run them."""

import json
import re
from contextlib import contextmanager

import numpy as np
import parity
import torch

from minisam_glue.sam2 import PRESETS, SAM2, ImagePredictor, SAM2Config, VideoTracker, accelerate
from minisam_glue.sam2.components import clean, fill_holes
from minisam_glue.sam2.fast import FastImageFeatures, NestedMaskDecoder, depth_to_space, space_to_depth
from minisam_glue.sam2.layers import sine_position_1d, sine_position_2d
from minisam_glue.sam2.mask_decoder import stability, stable_mask
from minisam_glue.sam2.preprocess import frame_pixels, image_pixels

FORMS = ("plain", "fast")


def sam2_config(golden) -> SAM2Config:
    """The configuration inside a file: a checkpoint's name, or the official options as nested dicts."""
    config = golden.config
    if "checkpoint" in config:
        return PRESETS[config["checkpoint"].removesuffix(".pt")]
    trunk = config["image_encoder"]["trunk"]
    switches = (
        "no_obj_embed_spatial",
        "add_tpos_enc_to_obj_ptrs",
        "proj_tpos_enc_in_obj_ptrs",
        "use_signed_tpos_enc_to_obj_ptrs",
    )
    return SAM2Config(
        trunk["embed_dim"],
        trunk["num_heads"],
        *(tuple(trunk[k]) for k in ("stages", "global_att_blocks", "window_spec", "window_pos_embed_bkg_spatial_size")),
        config["image_size"],
        *(bool(config.get(k)) for k in switches),
    )


def formula_model(golden, device: str = "cpu") -> SAM2:
    """The model of a file with the file's weights: the formula, then the overrides such as '+= 5'."""
    with torch.device("meta"):
        model = SAM2(sam2_config(golden)).eval()
    state = parity.formula_state(
        {k: tuple(v.shape) for k, v in model.state_dict().items()}, golden.meta["weights"]["salt"]
    )
    for name, change in golden.meta["weights"]["overrides"].items():
        sign, value = re.fullmatch(r"([+*])= (\S+)", change).groups()
        state[name] = state[name] + float(value) if sign == "+" else state[name] * float(value)
    model.load_state_dict(state, strict=True, assign=True)
    return model.to(device)


def make_image(seed: int, height: int, width: int, cell: int) -> np.ndarray:
    """Random coloured squares with a little noise, uint8 (H, W, 3): the generator that the files name."""
    rng = np.random.RandomState(seed)
    squares = rng.randint(0, 256, (-(-height // cell), -(-width // cell), 3))
    image = squares.repeat(cell, 0).repeat(cell, 1)[:height, :width] + rng.randint(-20, 21, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8)


def make_video(seed: int, count: int, height: int, width: int) -> list[np.ndarray]:
    """A textured square that moves over a noisy background: the generator that the files name."""
    rng = np.random.RandomState(seed)
    background = (rng.randint(0, 256, (12, 16, 3)) // 2).repeat(15, 0).repeat(15, 1)[:height, :width]
    square = (128 + rng.randint(0, 256, (8, 8, 3)) // 2).repeat(6, 0).repeat(6, 1)
    frames = []
    for t in range(count):
        frame = background + rng.randint(0, 25, (height, width, 3))
        x, y = 30 + 16 * t % 150, 40 + 7 * t % 80
        frame[y : y + 48, x : x + 48] = square
        frames.append(frame.clip(0, 255).astype(np.uint8))
    return frames


def drawn(golden, name: str) -> torch.Tensor | np.ndarray:
    """An input of one of this family's kinds."""
    spec = golden.meta["inputs"][name]
    kind = spec.get("kind", "standard_normal")
    if found := re.match(r"make_image\(seed,(\d+),(\d+),(\d+)\)", kind):
        return make_image(spec["seed"], *map(int, found.groups()))
    if name in golden.stored:
        return golden.input(name)
    values = torch.from_numpy(np.random.RandomState(spec["seed"]).standard_normal(spec["shape"]).astype(np.float32))
    if name == "stab_logits":
        values[0] *= 200
        values[2, 0] = -5
    return {"4*standard_normal": 4 * values, "(standard_normal > 0).float()": (values > 0).float()}.get(kind, values)


def as_map(tokens: torch.Tensor) -> torch.Tensor:
    """(B, N, C) -> (B, C, h, w)"""
    return tokens.mT.unflatten(2, (round(tokens.shape[1] ** 0.5), -1))


def fine_maps(features) -> tuple[torch.Tensor, torch.Tensor]:
    """The maps of stride 4 and 8 as (B, C, H, W), whichever form the model has."""
    s0, s1 = features.high_res
    if isinstance(features, FastImageFeatures):
        return depth_to_space(depth_to_space(s0)).permute(0, 3, 1, 2), depth_to_space(s1).permute(0, 3, 1, 2)
    return s0, s1


def nested(s0: torch.Tensor, s1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (B, C, H, W) of stride 4 and 8 as the fast mask decoder takes them."""
    s0, s1 = (x.permute(0, 2, 3, 1) for x in (s0, s1))
    return space_to_depth(space_to_depth(s0)), space_to_depth(s1)


def image_encoder(golden, model, device) -> dict:
    out = {}
    encoder, x = model.image_encoder, golden.input("image").to(device)
    embed = encoder.trunk.patch_embed(x)
    out["embed"] = embed + encoder.trunk.position(*embed.shape[1:3])
    with hooks((block, lambda _, y, i=i: out.update({f"block{i}": y})) for i, block in enumerate(encoder.trunk.blocks)):
        stages = encoder.trunk(x)
    coarsest = encoder.neck.convs[0](stages[3].permute(0, 3, 1, 2))  # official, and of no use
    for i, (stage, level) in enumerate(zip(stages, (*encoder.neck(stages), coarsest))):
        out[f"stage{i}"], out[f"neck{i}"] = stage.permute(0, 3, 1, 2), level
        out[f"pos{i}"] = as_map(sine_position_2d(*level.shape[2:], 256, x.device)[None])
    features = model.encode_image(x)
    out["fpn0"], out["fpn1"], out["fpn2"] = *fine_maps(features), as_map(features.tokens)
    return out


def prompt_encoder(golden, model, device) -> dict:
    encoder = model.sam_prompt_encoder
    points, labels, boxes, mask = (drawn(golden, n).to(device) for n in ("points", "labels", "boxes", "mask"))
    corners, corner_labels = boxes.view(-1, 2, 2), torch.tensor([[2, 3]], device=device).expand(len(boxes), 2)
    box_tokens = encoder.embed_points(corners, corner_labels)
    sparse, dense = encoder(points, labels)
    grid = encoder.grid**2
    return {
        "points_sparse": sparse,
        "nomask_dense": as_map(dense.expand(len(points), grid, -1)),
        "boxes_sparse": box_tokens,
        "points_boxes_sparse": torch.cat((encoder.embed_points(points, labels), box_tokens), 1),
        "boxaspoints_sparse": encoder(corners, corner_labels)[0],
        "mask_dense": as_map(encoder(points, labels, mask)[1]),
        "dense_pe": as_map(encoder.image_position()),
    }


def units(golden, model, device) -> dict:
    x = {name: drawn(golden, name).to(device) for name in golden.meta["inputs"]}
    tokens = {k: x[k].flatten(2).mT for k in ("pix_feat", "image_embeddings", "dense")}
    out = {}
    mask = x["mask"].sigmoid() * 20 - 10
    memory = model.memory_encoder(tokens["pix_feat"], mask)
    side = round(memory.shape[1] ** 0.5)
    out["mem_enc"], out["mem_enc_pos"] = as_map(memory), as_map(sine_position_2d(side, side, 64, memory.device)[None])
    out["mask_downsampler"] = model.memory_encoder.mask_downsampler(mask)
    out["mask_downsample"] = model.mask_downsample(x["mask_bin"])
    curr, curr_pos, memory, memory_pos = (x[k].transpose(0, 1) for k in ("curr", "curr_pos", "memory", "memory_pos"))
    attention = model.memory_attention
    out["mem_attn"] = attention(curr, curr_pos[0], memory, memory_pos, 8).transpose(0, 1)
    out["mem_attn_layer0_self"] = attention.layers[0].self_attn(curr, curr, curr)

    decoder, seen = model.sam_mask_decoder, {}
    high_res = nested(x["hr0"], x["hr1"]) if type(decoder) is NestedMaskDecoder else (x["hr0"], x["hr1"])
    for name, multimask in (("multi", True), ("single", False)):
        with hooks([(decoder.transformer, lambda _, y: seen.update(tokens=y[0], image=y[1]))]):
            d = decoder(
                tokens["image_embeddings"] + tokens["dense"],
                model.sam_prompt_encoder.image_position(),
                x["sparse"],
                high_res,
                multimask,
            )
        out |= {
            f"dec_{name}_masks": d.masks,
            f"dec_{name}_ious": d.ious,
            f"dec_{name}_objscore": d.object_score_logits[:, None],
            f"dec_{name}_tokens": d.tokens,
        }
    weights = decoder.hypernetworks(seen["tokens"][:, 2:6])
    masks = decoder.render(decoder.upscale(seen["image"], *high_res), weights)
    out |= {
        "dec_all4_masks": masks,
        "dec_all4_ious": decoder.iou_prediction_head(seen["tokens"][:, 1]).sigmoid(),
        "dec_stability": torch.stack([stability(m) for m in masks.unbind(1)], 1),
    }
    logits = x["stab_logits"].cpu()
    out["stab_masks"], out["stab_ious"] = stable_mask(logits, x["stab_ious"].cpu())
    out["stab_scores"] = torch.stack([stability(m) for m in logits.unbind(1)], 1)
    offsets = torch.arange(-7, 8, device=device) / 7
    return out | {"tpos_sine": sine_position_1d(offsets, 256), "tpos_proj": model.pointer_position(offsets)}


def image_predict(golden, model, device) -> dict:
    predictor = ImagePredictor(model)
    image, side = drawn(golden, "image"), model.config.image_size
    predictor.set_image(image)
    tokens = model.without_memory(predictor.encoded.features)
    out = {"preprocessed": image_pixels(image, side, device)[0], "image_embed": as_map(tokens)}
    out["high_res0"], out["high_res1"] = fine_maps(predictor.encoded.features)

    def ask(name, index=0, box=None, point_coords=None, point_labels=None, mask_input=None, multimask_output=True):
        mask = drawn(golden, mask_input) if mask_input else None
        got = predictor.predict(box, point_coords, point_labels, mask, multimask_output, logits=True, image=index)
        out.update({f"{name}_masks": got.masks, f"{name}_iou": got.scores, f"{name}_low": got.low_res})

    for name, prompt in golden.meta["prompts"].items():
        ask(name, **prompt)
    predictor.set_images([image, drawn(golden, "image2")])
    boxes = json.loads(re.search(r"box_batch (\[\[.*?\]\])", golden.meta["batch"]).group(1))
    for i, box in enumerate(boxes):
        ask(f"batch{i}", i, box=box, multimask_output=False)
    return out


def full_size(golden, model, device) -> dict:
    predictor = ImagePredictor(model)
    predictor.set_image(drawn(golden, "image"))
    out = {"image_embed": as_map(model.without_memory(predictor.encoded.features))}
    out["high_res0"], out["high_res1"] = fine_maps(predictor.encoded.features)
    box = json.loads(golden.meta["inputs"]["box"]["kind"].removeprefix("literal "))
    for name in ("single", "multi"):
        got = predictor.predict(box, multimask=name == "multi", logits=True)
        out |= {f"{name}_masks": got.masks, f"{name}_iou": got.scores, f"{name}_low": got.low_res}
    return out


def fill_holes_case(golden, model, device) -> dict:
    spec = golden.meta["inputs"]["mask"]
    values = np.random.RandomState(spec["seed"]).standard_normal(spec["shape"]).astype(np.float32)
    side = spec["shape"][-1]
    logits = torch.from_numpy(values.repeat(2, 2).repeat(2, 3)[:, :, :side, :side] + np.float32(0.8)).to(device)
    size = golden.meta["shapes"]["postprocess"][-2:]
    cleaned = clean(logits, 8, 8, 10.0, -10.0)
    return {
        "filled": fill_holes(logits, 8, 0.1),
        "postprocess": torch.nn.functional.interpolate(cleaned, size=size, mode="bilinear", align_corners=False),
    }


@contextmanager
def hooks(pairs):
    """Call hook(inputs, output) after each of these modules while the block runs."""
    handles = [module.register_forward_hook(lambda m, i, o, hook=hook: hook(i, o)) for module, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def capture(tracker, model, out: dict):
    """Record what goes into and comes out of the memory modules, by frame, in the official layouts."""

    def attention(inputs, y):
        memory, position, pointers = inputs[2:5]
        parts = {
            "": y,
            "_in_memory": memory,
            "_in_memory_pos": position,
            "_in_ptr_pos": position[:, position.shape[1] - pointers :],
        }
        out.update({f"mem_attn{name}_f{tracker.frame}": part.transpose(0, 1) for name, part in parts.items()})
        call = {"frame": tracker.frame, "memory_tokens": memory.shape[1], "num_obj_ptr_tokens": pointers}
        out["calls"] += [call] * len(memory)  # the official tracker has one call per object

    def encoder(inputs, y):
        out.update({f"mem_enc_f{tracker.frame}": as_map(y), f"mem_enc_in_mask_f{tracker.frame}": inputs[1]})

    return hooks([(model.memory_attention, attention), (model.memory_encoder, encoder)])


def video(golden, model, device) -> dict:
    """Replay the calls of a file: prompts and passes through the video, in the official order."""
    spec, attributes = golden.meta["inputs"]["video"], golden.meta["model_attrs_set_after_build"]
    frames = make_video(spec["seed"], *spec["shape"][:3])
    limit = attributes.get("max_cond_frames_in_attn", -1)
    # The official run had no hole filling: it needs a compiled extension.
    tracker = VideoTracker(
        model,
        len(frames),
        keep_all=True,
        max_hole=0,
        sticky=attributes.get("add_all_frames_to_correct_as_cond", False),
        non_overlap=attributes.get("non_overlap_masks", False),
        max_prompted=None if limit < 0 else limit,
        stride=attributes.get("memory_temporal_stride_for_eval", 1),
    )
    out = {"frame0_preprocessed": frame_pixels(frames[0], model.config.image_size, device)[0], "calls": []}
    with capture(tracker, model, out):
        for entry in golden.meta["calls"]:
            if "call" in entry:
                results = {r.frame: r for r in replay(tracker, frames, entry)}
            elif "out" in entry:
                result = results[int(entry["out"].rsplit("_f", 1)[1])]
                assert result.ids == entry["obj_ids"], (result.ids, entry)
                out[entry["out"]] = result.logits()
    assert out.pop("calls") == golden.meta["memory_attention_calls"]
    for i, obj in enumerate(tracker.objects.values()):
        memories = sorted((obj.bank.tracked | obj.bank.prompted).items())
        out |= {
            f"obj_ptr_o{i}": torch.stack([m.pointer for _, m in memories]),
            f"object_score_logits_o{i}": torch.stack([m.object_score_logits for _, m in memories])[:, None],
            f"low_res_masks_o{i}": torch.stack([m.logits for _, m in memories])[:, None],
        }
        out |= {f"maskmem_bf16_f{t}_o{i}": as_map(m.tokens[None]) for t, m in memories}
    return out


def replay(tracker, frames, entry) -> list:
    """One official call on our tracker."""
    args = dict(entry["args"])
    if entry["call"] == "propagate_in_video":
        return list(tracker.propagate(frames, args.get("start_frame_idx"), args.get("reverse", False)))
    tracker.seek(args["frame_idx"], frames[args["frame_idx"]])
    if entry["call"] == "add_new_mask":
        mask = np.zeros(frames[0].shape[:2], bool)
        if corners := json.loads(args["mask"].rsplit("=", 1)[1].replace("None", "null")):
            y0, y1, x0, x1 = corners
            mask[y0:y1, x0:x1] = True
        return [tracker.prompt(args["obj_id"], mask=mask)]
    return [
        tracker.prompt(
            args["obj_id"],
            args.get("box"),
            args.get("points"),
            args.get("labels"),
            keep_clicks=not args.get("clear_old_points", True),
        )
    ]


CASES = {
    "image_encoder": image_encoder,
    "prompt_encoder": prompt_encoder,
    "units": units,
    "image_predict": image_predict,
    "fill_holes": fill_holes_case,
    **{f"sam21_{size}_fullsize": full_size for size in ("tiny", "small", "base_plus", "large")},
}


def run(golden, device: str, dtype: torch.dtype, fast: bool = False) -> dict:
    """Every output of a file. Lower precisions run under autocast, as the official predictors do."""
    case = golden.meta["case"]
    model = formula_model(golden, device)
    model = accelerate(model) if fast else model
    with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
        return CASES.get(case, video)(golden, model, device)
