"""Our CLIPSeg and heat-map tools on the golden files: one function per case, each returning {output name: value}."""

import json
from functools import lru_cache

import numpy as np
import parity
import parity_flow
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as tv

from minisam_glue import heatmap
from minisam_glue.clipseg.clip import CLIPConfig, TextConfig, VisionConfig
from minisam_glue.clipseg.heat_mapper import preprocess
from minisam_glue.clipseg.model import PRESETS, CLIPSeg, CLIPSegConfig
from minisam_glue.pixels import normalise


def run(golden, device, dtype):
    case = golden.meta["case"]
    kinds = ("seg_refined", "preprocess", "vision", "text", "flow")
    kind = next((kind for kind in kinds if case.startswith(kind)), case)
    return globals()["case_" + kind](golden, torch.device(device), dtype)


# --- Building the model ------------------------------------------------------------------------------------


def model_config(config: dict) -> CLIPSegConfig:
    if "full" in config:
        return PRESETS[config["full"].removeprefix("manifest_clipseg-")]
    v, t = config["vision"], config["text"]
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return CLIPSegConfig(
        CLIPConfig(
            VisionConfig(*(v[name] for name in sizes), v["image_size"], v["patch_size"]),
            TextConfig(
                *(t[name] for name in sizes),
                t["vocab_size"],
                t["max_position_embeddings"],
                None if t["eos_token_id"] == 2 else t["eos_token_id"],
            ),
            config["projection_dim"],
        ),
        config["reduce_dim"],
        tuple(config["extract_layers"]),
        config["conditional_layer"],
        config["use_complex_transposed_convolution"],
        config["decoder_num_attention_heads"],
        config["decoder_intermediate_size"],
    )


@lru_cache(maxsize=1)
def build(config_json: str, salt: str, device, dtype) -> CLIPSeg:
    model = CLIPSeg(model_config(json.loads(config_json)))
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    model.load_state_dict(parity.formula_state(shapes, salt))
    return model.to(device, dtype).eval()


def model_of(golden, device, dtype) -> CLIPSeg:
    return build(json.dumps(golden.config), golden.meta.get("salt", ""), device, dtype)


def inputs(golden, device, dtype, *names):
    values = (golden.input(name).to(device) for name in names)
    return [value.to(dtype) if value.is_floating_point() else value for value in values]


# --- Encoders ----------------------------------------------------------------------------------------------


def case_vision(golden, device, dtype):
    model = model_of(golden, device, dtype)
    (images,) = inputs(golden, device, dtype, "pixel_values")
    vision = model.clip.vision_model
    states = vision.hidden_states(images)
    grid = (side // vision.embeddings.patch_size for side in images.shape[-2:])
    return {f"hidden_{i}": state for i, state in enumerate(states)} | {
        "last_hidden_state": states[-1],
        "pooler": vision(images),
        "image_embeds": model.clip.encode_image(images),
        "pos_embed": vision.embeddings.positions(*grid)[None],
    }


def case_text(golden, device, dtype):
    """With the padding hidden, as the official processor does, and without, as we do."""
    clip = model_of(golden, device, dtype).clip
    ids, valid = inputs(golden, device, dtype, "input_ids", "attention_mask")
    text, L = clip.text_model, ids.shape[1]
    causal = torch.ones(L, L, dtype=torch.bool, device=device).tril()
    states = text.hidden_states(ids, causal & valid.bool()[:, None, None])
    masked = text.final_layer_norm(states[-1])
    pooled = masked[torch.arange(len(ids)), text.end_position(ids)]
    return {f"masked_hidden_{i}": state for i, state in enumerate(states)} | {
        "masked_last_hidden_state": masked,
        "masked_pooler": pooled,
        "masked_text_embeds": clip.text_projection(pooled),
        "nomask_last_hidden_state": text.final_layer_norm(text.hidden_states(ids, causal)[-1]),
        "nomask_pooler": text(ids),
        "nomask_text_embeds": clip.encode_text(ids),
        "pool_index": text.end_position(ids),
    }


def case_clip_similarity(golden, device, dtype):
    clip = model_of(golden, device, dtype).clip
    images, ids = inputs(golden, device, dtype, "pixel_values", "input_ids")
    return {
        "logits_per_image": clip(images, ids),
        "image_embeds": F.normalize(clip.encode_image(images), dim=-1),
        "text_embeds": F.normalize(clip.encode_text(ids), dim=-1),
    }


# --- The whole model ---------------------------------------------------------------------------------------


def case_seg_refined(golden, device, dtype):
    """All pairs of images and phrases. The file has a row for each pair; what we compute once is repeated for it."""
    model = model_of(golden, device, dtype)
    images, ids = inputs(golden, device, dtype, "pixel_values", "input_ids")
    decoder, B, P = model.decoder, len(images), len(ids)
    seen = {}
    watched = {f"reduce_{i}": m for i, m in enumerate(decoder.reduces)}
    watched |= {f"declayer_{i}": m for i, m in enumerate(decoder.layers)}
    watched |= {"film_mul": decoder.film_mul, "film_add": decoder.film_add}
    if golden.config["use_complex_transposed_convolution"]:
        watched |= {f"upconv_{i}": decoder.transposed_convolution[i] for i in (0, 2)}
    hooks = [
        module.register_forward_hook(lambda module, args, output, name=name: seen.update({name: output}))
        for name, module in watched.items()
    ]
    conditions = model.clip.encode_text(ids)
    logits = model(images, conditions)
    for hook in hooks:
        hook.remove()
    for name in ("film_mul", "film_add"):
        seen[name] = seen[name].expand(B, -1, -1).flatten(0, 1)  # (1, P, R) -> (B * P, R)
    for name, value in seen.items():
        seen[name] = value.repeat_interleave(B * P // len(value), 0)
    labels = np.random.RandomState(golden.meta["inputs"]["labels"]["seed"]).rand(B * P, *images.shape[-2:]) > 0.5
    logits = logits.flatten(0, 1)
    return seen | {
        "conditional_embeddings": conditions.repeat(B, 1),
        "logits": logits,
        "loss": F.binary_cross_entropy_with_logits(logits.float().cpu(), torch.from_numpy(labels).float()),
    }


case_seg_simpleconv_96 = case_seg_refined


def case_seg_visual_prompt(golden, device, dtype):
    model = model_of(golden, device, dtype)
    names = ("pixel_values", "conditional_pixel_values", "conditional_embeddings")
    images, examples, conditions = inputs(golden, device, dtype, *names)
    from_image = model.clip.encode_image(examples)
    return {
        "cond_from_image": from_image,
        "logits_from_image": model(images, from_image[:, None])[:, 0],  # (B, D) -> (B, P = 1, D): one for each image
        "logits_from_embedding": model(images, conditions[:, None])[:, 0],
    }


def case_full_rd64_refined_352(golden, device, dtype):
    model = model_of(golden, device, dtype)
    images, ids = inputs(golden, device, dtype, "pixel_values", "input_ids")
    conditions = model.clip.encode_text(ids)
    states = model.clip.vision_model.hidden_states(images, depth=10)
    return {f"hidden_{i}": states[i].flatten()[::37] for i in (0, 4, 7, 10)} | {
        "conditional_embeddings": conditions,
        "logits": model(images, conditions)[:, 0],
    }


# --- Pixels ------------------------------------------------------------------------------------------------


def smooth_image(seed: int, height: int, width: int) -> np.ndarray:
    """Smoothed noise in 0..255, with plain noise over every other stripe of 20 pixels: uint8 (H, W, 3)."""
    offsets = np.arange(-12, 13)
    kernel = np.exp(-0.5 * (offsets / 3.0) ** 2)
    kernel /= kernel.sum()
    image = np.random.RandomState(seed).standard_normal((height, width, 3))
    for axis in (0, 1):
        padding = [(12, 12) if i == axis else (0, 0) for i in range(3)]
        padded = np.pad(image, padding, mode="symmetric")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 25, axis)
        image = windows @ kernel
    image = (image - image.min()) / (image.max() - image.min()) * 255
    noise = np.random.RandomState(seed + 1).randint(0, 256, (height, width, 3))
    stripes = np.arange(width) // 20 % 2 == 1
    image[:, stripes] = 0.6 * image[:, stripes] + 0.4 * noise[:, stripes]
    return np.rint(image).astype(np.uint8)


def case_preprocess(golden, device, dtype):
    """Our pixels are those of Pillow; the two other ways of resizing are here because the file has them."""
    spec = golden.meta["inputs"]["image"]
    image = golden.stored.get("image", smooth_image(spec["seed"], *spec["shape"][:2]))
    side = golden.config["size"][0]
    ours = preprocess(image, side).to(device)
    mean, std = (torch.tensor(golden.config[f"image_{name}"]).view(3, 1, 1) for name in ("mean", "std"))
    resized = torch.from_numpy(image.copy()).permute(2, 0, 1)
    as_floats = F.interpolate(resized[None].float(), (side, side), mode="bilinear", antialias=True)[0] / 255
    return {
        "pixel_values_pil": ours,
        "resized_uint8": ((ours.cpu() * std + mean) * 255).round().permute(1, 2, 0),
        "pixel_values_torchvision": normalise(tv.resize(resized, [side, side], antialias=True).float() / 255),
        "pixel_values_float_antialias": normalise(as_floats),
    }


# --- Heat maps ---------------------------------------------------------------------------------------------


def case_postprocess_otsu(golden, device, dtype):
    """Thresholds of bytes, as OpenCV and scikit-image have them, and of floats with 256 and 64 bins."""
    out = {}
    for name in (name.removeprefix("float_") for name in golden.stored if name.startswith("float_")):
        values, levels = golden.stored["float_" + name], golden.stored["u8_" + name]
        constant = levels.min() == levels.max()  # where OpenCV says 0
        whole = heatmap.otsu(levels)
        floats = [heatmap.otsu(values, bins) for bins in (256, 64)]
        out["thr_" + name] = torch.tensor([0 if constant else whole, whole, *floats], dtype=torch.float64)
    return out


def masks_of(golden) -> dict[str, np.ndarray]:
    return {name: golden.stored[name].astype(bool) for name in golden.stored}


def case_postprocess_components(golden, device, dtype):
    out = {}
    for name, mask in masks_of(golden).items():
        for connectivity in (8, 4):
            labels = heatmap.label_components(mask, connectivity)
            found = heatmap.measure_components(labels)
            stats = np.array([(x, y, r - x, b - y, n) for (x, y, r, b), n in zip(found.boxes, found.areas)], int)
            out[f"{name}_labels{connectivity}"] = labels
            out[f"{name}_stats{connectivity}"] = stats
            out[f"{name}_centroid{connectivity}"] = found.centroids
            out[f"{name}_cv2stats{connectivity}"] = with_background(mask, stats)
    return out


def with_background(mask: np.ndarray, stats: np.ndarray) -> np.ndarray:
    """OpenCV's table: the background first; where there is none its box is that of an empty loop over pixels."""
    rest = heatmap.measure_components((~mask).astype(np.int32))
    first = [(-1, 2**31 - 1, 0, 0, 0)]
    if len(rest.areas):
        x, y, r, b = rest.boxes[0]
        first = [(x, y, r - x, b - y, rest.areas[0])]
    return np.concatenate((first, stats.reshape(-1, 5)))


def case_postprocess_fill(golden, device, dtype):
    """Holes and sprinkles by means of components."""
    out = {}
    for name, mask in masks_of(golden).items():
        for connectivity in (4, 8):
            labels = heatmap.label_components(~mask, connectivity)
            found = heatmap.measure_components(labels)
            H, W = mask.shape
            at_border = [x == 0 or y == 0 or r == W or b == H for x, y, r, b in found.boxes]
            out[f"{name}_fill{connectivity}"] = mask | np.isin(labels, 1 + np.flatnonzero(~np.array(at_border, bool)))
            for area in (1, 8, 16):
                small = np.isin(labels, 1 + np.flatnonzero(found.areas <= area))
                out[f"{name}_holes{area}_c{connectivity}"] = mask | small
        labels = heatmap.label_components(mask, 8)
        areas = heatmap.measure_components(labels).areas
        for area in (1, 8, 16):
            out[f"{name}_objects{area}_c8"] = np.isin(labels, 1 + np.flatnonzero(areas > area))
    return {name: value.astype(np.uint8) for name, value in out.items()}


# --- Optical flow ------------------------------------------------------------------------------------------


def case_flow(golden, device, dtype):
    return parity_flow.run(golden, device, dtype)
