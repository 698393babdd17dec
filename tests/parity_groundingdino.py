"""Our Grounding DINO on the golden files: one function per case, each returning {output name: value}."""

import json
from functools import lru_cache

import numpy as np
import parity
import torch
from helpers import official_phrases
from helpers.gather_samples import gather_samples

from minisam_glue.boxes import cxcywh_to_xyxy
from minisam_glue.grounding_dino.bert import BertConfig
from minisam_glue.grounding_dino.deformable_attention import MSDeformAttn, deformable_sample
from minisam_glue.grounding_dino.fast import accelerate
from minisam_glue.grounding_dino.fusion import BiAttentionBlock
from minisam_glue.grounding_dino.geometry import (
    box_embedding,
    build_geometry,
    inverse_sigmoid,
    shapes_on_levels,
    sine_embedding,
    sine_position,
    valid_cells,
)
from minisam_glue.grounding_dino.model import PRESETS, GroundingDINO, GroundingDINOConfig
from minisam_glue.grounding_dino.swin import SwinConfig
from minisam_glue.grounding_dino.tokenizer import WordPieceTokenizer
from minisam_glue.grounding_dino.transformer import Text, TextLayer, contrastive_logits

FORMS = ("plain", "fast")
ONE_FORM = ("embeddings", "text", "text_batch", "text_long", "text_enhancer", "postprocess")
VOCABULARY = parity.ROOT / "golden" / "tokenizers" / "bert-base-uncased-vocab.txt"


@lru_cache(maxsize=1)
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer.load(VOCABULARY)


def run(golden, device, dtype, fast=False):
    return globals()["case_" + golden.meta["case"]](golden, torch.device(device), dtype, fast)


# --- Building the model ------------------------------------------------------------------------------------


def model_config(config: dict) -> GroundingDINOConfig:
    presets = {"swin_T_224_1k": PRESETS["swin-t"], "swin_B_384_22k": PRESETS["swin-b"]}
    if config["backbone"] in presets:
        return presets[config["backbone"]]
    s, b = config["swin"], config["bert"]
    return GroundingDINOConfig(
        SwinConfig(s["embed_dim"], tuple(s["depths"]), tuple(s["num_heads"]), s["window_size"]),
        BertConfig(
            b["vocab_size"],
            b["hidden_size"],
            b["num_hidden_layers"],
            b["num_attention_heads"],
            b["intermediate_size"],
            b["max_position_embeddings"],
        ),
        config["hidden_dim"],
        config["dim_feedforward"],
        config["enc_layers"],
        config["dec_layers"],
        config["num_queries"],
    )


def formula_name(key: str) -> str:
    """All copies of the shared box head take the weights of one name."""
    key = key.removeprefix("transformer.decoder.") if "decoder.bbox_embed." in key else key
    return "bbox_embed.0." + key.split(".", 2)[2] if key.startswith("bbox_embed.") else key


def with_formula_weights(module, salt: str, device, dtype, fast: bool):
    state = module.state_dict()
    new = {
        k: parity.formula(formula_name(k), tuple(v.shape), salt) if v.is_floating_point() else v
        for k, v in state.items()
    }
    module.load_state_dict(new)
    module = module.to(device, dtype).eval()
    return accelerate(module) if fast else module


@lru_cache(maxsize=1)
def build(config_json: str, salt: str, device, dtype, fast: bool) -> GroundingDINO:
    model = with_formula_weights(GroundingDINO(model_config(json.loads(config_json))), salt, device, dtype, fast)
    model.transformer.decoder.embed_boxes = official_box_embedding
    return model


def model_of(golden, device, dtype, fast) -> GroundingDINO:
    return build(json.dumps(golden.config), golden.meta.get("salt", ""), device, dtype, fast)


# --- What the official code does in a batch; ours does not, so that a batch equals its images one by one ----


def official_box_embedding(boxes, geometry):
    """Boxes as fractions of the canvas, by the valid ratios of the first level."""
    return box_embedding(boxes * geometry.valid_ratios[:, :1].repeat(1, 1, 2), geometry.position.shape[-1])


def official_batch_mask(attention: torch.Tensor, heads: int) -> torch.Tensor:
    """The official text enhancer gives sample b, head h the mask of sample (b * heads + h) % B."""
    B = len(attention)
    order = torch.arange(B * heads, device=attention.device) % B
    return attention[order.view(B, heads), 0]  # (B, h, L, L)


def official_selection(golden, scores: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and numbers of the selected cells (B, Q), padding included.

    Where the file selected a cell whose score differs from ours by rounding only, its selection stands.
    """
    values, ours = scores.topk(number)
    if "topk_indices" not in golden.outputs:
        return values, ours
    official = torch.from_numpy(golden.outputs["topk_indices"]).to(ours.device)
    tied = (scores.gather(1, official) - values).abs() < 5e-4
    return values, torch.where(tied, official, ours)


# --- Inputs ------------------------------------------------------------------------------------------------


def smooth_image(spec: dict) -> torch.Tensor:
    """A sum of eight cosines per channel and a little noise, as the meta data describe it."""
    rng, (C, H, W) = np.random.RandomState(spec["seed"]), spec["shape"]
    y, x = np.meshgrid(np.arange(H), np.arange(W), indexing="ij")
    image = np.zeros((C, H, W))
    for channel in image:
        amplitude, fy, fx = rng.standard_normal(8), rng.uniform(-6, 6, 8), rng.uniform(-6, 6, 8)
        phase = rng.uniform(0, 2 * np.pi, 8)
        for k in range(8):
            channel += 0.5 * amplitude[k] * np.cos(2 * np.pi * (fy[k] * y / H + fx[k] * x / W) + phase[k])
    image += 0.2 * rng.standard_normal((C, H, W))
    return torch.from_numpy(image.astype(np.float32))


def batch_of(golden, names, device, dtype):
    """Images zero-padded to one canvas, and their sizes before that."""
    images = [smooth_image(golden.meta["inputs"][name]) for name in names]
    H, W = (max(image.shape[i] for image in images) for i in (1, 2))
    batch = torch.zeros(len(images), 3, H, W)
    for row, image in zip(batch, images):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch.to(device, dtype), [tuple(image.shape[1:]) for image in images]


def tokens_of(golden, device):
    """Ids of all captions, and which are no padding."""
    rows = [tokenizer().encode(caption) for caption in golden.meta["inputs"]["captions"]]
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=device)
    valid = torch.tensor([[i < len(row) for i in range(length)] for row in rows], device=device)
    return ids, valid


# --- Parts -------------------------------------------------------------------------------------------------


def case_embeddings(golden, device, dtype, fast):
    stored = {k: torch.from_numpy(v).to(device) for k, v in golden.stored.items()}
    shapes = tuple(map(tuple, stored["spatial_shapes"].tolist()))
    valid = (shapes, tuple((int(0.75 * h), int(0.5 * w)) for h, w in shapes))
    geometry = build_geometry(shapes, valid, golden.config["hidden_dim"], device)
    pos2 = sine_embedding(stored["pos2"].flip(-1), 128).flatten(-2)
    pos4 = box_embedding(stored["pos4"], golden.config["hidden_dim"])
    return {
        "sine_text": sine_embedding(stored["position_ids"], 256),
        "sine_xy": pos4,
        "sineembed4": pos4,
        "sineembed2": pos2,
        "pe_hw": sine_position(~stored["mask"], 256).permute(0, 3, 1, 2),
        "valid_ratios": geometry.valid_ratios,
        "reference_points": geometry.reference,
        "output_memory_zero": ~geometry.usable,
        "output_proposals": geometry.proposals,
        "inverse_sigmoid": inverse_sigmoid(stored["x"]),
    }


def case_msdeform(golden, device, dtype, fast):
    c, stored = golden.config, {k: torch.from_numpy(v).to(device) for k, v in golden.stored.items()}
    attention = MSDeformAttn(c["embed_dim"], c["num_levels"], c["num_heads"], c["num_points"])
    attention = with_formula_weights(attention, golden.meta["salt"], device, dtype, fast)
    shapes = tuple(map(tuple, stored["spatial_shapes"].tolist()))
    query, value, valid = stored["query"].to(dtype), stored["value"].to(dtype), ~stored["key_padding_mask"]
    sample = gather_samples if fast else deformable_sample
    heads = value.unflatten(-1, (c["num_heads"], -1))
    return {
        "ref2": attention(query, stored["ref2"], value, shapes, valid),
        "ref4": attention(query, stored["ref4"], value, shapes, valid),
        "ref2_nomask": attention(query, stored["ref2"], value, shapes, None),
        "core": sample(heads, shapes, stored["core_locations"], stored["core_weights"]),
    }


def case_fusion(golden, device, dtype, fast):
    c, stored = golden.config, {k: torch.from_numpy(v).to(device) for k, v in golden.stored.items()}
    block = BiAttentionBlock(c["v_dim"], c["embed_dim"], c["num_heads"])
    block = with_formula_weights(block, golden.meta["salt"], device, dtype, fast)
    v, l = stored["v"].to(dtype), stored["l"].to(dtype)
    masked = block(v, l, ~stored["attention_mask_v"], ~stored["attention_mask_l"])
    plain = block(v, l, None, None)
    return {"v": masked[0], "l": masked[1], "v_nomask": plain[0], "l_nomask": plain[1]}


def case_text_enhancer(golden, device, dtype, fast):
    c = golden.config
    layer = with_formula_weights(
        TextLayer(c["d_model"], c["nhead"], c["dim_feedforward"]), golden.meta["salt"], device, dtype, fast
    )
    src, pos = (torch.from_numpy(golden.stored[k]).to(device, dtype).transpose(0, 1) for k in ("src", "pos"))
    attend = ~torch.from_numpy(golden.stored["src_mask"]).to(device)
    out = layer(src, pos, official_batch_mask(attend[:, None], c["nhead"]))
    return {"out": out.transpose(0, 1)}


def case_swin(golden, device, dtype, fast):
    model, out = model_of(golden, device, dtype, fast), {}
    swin = model.backbone[0]
    images, sizes = batch_of(golden, ("image0", "image1"), device, dtype)
    with Recorder(model) as seen:
        maps = model.backbone[0](images)
        out["batch_patch_embed"] = seen.of(swin.patch_embed).permute(0, 3, 1, 2)
        for i, layer in enumerate(swin.layers):
            out[f"batch_stage{i}_prenorm"] = seen.of(layer).flatten(1, 2)
    shapes = tuple(tuple(m.shape[-2:]) for m in maps)
    own = torch.tensor(shapes_on_levels(sizes, tuple(images.shape[-2:]), shapes), device=device)
    for i, (shape, m) in enumerate(zip(shapes, maps)):
        valid = valid_cells(*shape, own[:, i])
        out[f"feat{i}"], out[f"mask{i}"], out[f"pos{i}"] = m, ~valid, sine_position(valid, 256).permute(0, 3, 1, 2)
    single, _ = batch_of(golden, ("single",), device, dtype)
    return out | {f"single_feat{i}": m for i, m in enumerate(swin(single))}


class Recorder:
    """Keeps the last output of every module while it is open."""

    def __init__(self, model):
        self.outputs = {}
        self.handles = [m.register_forward_hook(self.keep) for m in model.modules()]

    def keep(self, module, inputs, output):
        self.outputs[module] = output

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def of(self, module):
        return self.outputs[module]


# --- Text --------------------------------------------------------------------------------------------------


def case_text(golden, device, dtype, fast):
    model = model_of(golden, device, dtype, fast)
    ids, valid = tokens_of(golden, device)
    with Recorder(model) as seen:
        text = model.encode_text(ids, valid)
        hidden = seen.of(model.bert)
    cut = ids[:, : text.valid.shape[1]]
    return {
        "full_input_ids": ids,
        "input_ids": cut,
        "token_type_ids": torch.zeros_like(cut),
        "text_self_attention_masks": text.attention[:, 0],
        "position_ids": text.positions,
        "text_token_mask": text.valid,
        "bert_last_hidden_state": hidden,
        "encoded_text": text.features,
    }


case_text_batch = case_text_long = case_text


# --- The whole model ---------------------------------------------------------------------------------------


def case_end_to_end(golden, device, dtype, fast):
    """Run every stage and keep what passes between them."""
    model, got = model_of(golden, device, dtype, fast), {}
    with Recorder(model) as seen:
        images, sizes = batch_of(golden, [n for n in golden.meta["inputs"] if n.startswith("image")], device, dtype)
        text = model.encode_text(*tokens_of(golden, device))
        got["bert"], got["encoded_text"] = seen.of(model.bert), text.features
        text.attention = official_batch_mask(text.attention, model.transformer.encoder.text_layers[0].self_attn.heads)
        levels = model.encode_image(images)
        geometry = geometry_of(model, levels, images, sizes)
        words = encoder_outputs(model, levels, geometry, text, seen, got)
        text = Text(words, text.valid, text.positions, text.attention)
        query_outputs(golden, model, geometry, text, seen, got)
    width = golden.outputs["pred_logits"].shape[-1] if "pred_logits" in golden.outputs else 0
    official_width = max(0, width - words.shape[1])  # official logits are padded to 256 tokens
    filler = got["pred_logits"].new_full((*got["pred_logits"].shape[:2], official_width), -torch.inf)
    got["pred_logits"] = torch.cat((got["pred_logits"], filler), -1)
    return got


case_encoder = case_two_stage = case_decoder = case_end_to_end_batch = case_end_to_end
case_end_to_end_padding = case_swint_fullsize = case_end_to_end


def geometry_of(model, levels, images, sizes):
    shapes, canvas = tuple(tuple(level.shape[-2:]) for level in levels), tuple(images.shape[-2:])
    own = shapes_on_levels(sizes, canvas, shapes)
    return build_geometry(shapes, own, model.config.hidden_dim, images.device)


def encoder_outputs(model, levels, geometry, text, seen, got) -> torch.Tensor:
    encoder = model.transformer.encoder
    got["memory"], got["memory_text"] = model.transformer.encode(levels, geometry, text)
    got |= {f"backbone{i}": m for i, m in enumerate(seen.of(model.backbone[0]))}
    got |= {f"src{i}": level for i, level in enumerate(levels)}
    for i, layer in enumerate(encoder.layers):
        got[f"fusion{i}_v"], got[f"fusion{i}_l"] = seen.of(encoder.fusion_layers[i])
        got[f"text_layer{i}"], got[f"enc_layer{i}"] = seen.of(encoder.text_layers[i]), seen.of(layer)
    got["mask_flatten"] = torch.zeros(geometry.usable.shape).bool() if geometry.valid is None else ~geometry.valid
    got["valid_ratios"] = geometry.valid_ratios
    last_level = geometry.position.split([h * w for h, w in geometry.shapes], 1)[-1]
    got["pos3"] = last_level.transpose(1, 2).unflatten(-1, geometry.shapes[-1])
    return got["memory_text"]


def query_outputs(golden, model, geometry, text, seen, got) -> None:
    transformer = model.transformer
    candidates, scores = transformer.score_tokens(got["memory"], geometry, text)
    got["output_memory"], got["enc_max_logits"] = candidates, scores
    got["enc_class"] = contrastive_logits(candidates, text)
    got["enc_bbox_delta"] = transformer.enc_out_bbox_embed(candidates)
    got["topk_logits"], selected = official_selection(golden, scores, model.config.num_queries)
    got["topk_indices"] = selected
    _, start = transformer.initial_boxes(candidates, selected, geometry)
    got["refpoints_unsigmoid"], got["ref_is_inf"] = start, start.isinf().all(-1)
    got["init_box_proposal"] = geometry.proposals.gather(1, selected[..., None].expand(-1, -1, 4)).sigmoid()
    got["tgt"] = transformer.tgt_embed.weight.expand(len(start), -1, -1)
    hidden, references = transformer.decode(got["memory"], start, geometry, text)
    got |= {f"layer{i}_raw": seen.of(layer) for i, layer in enumerate(transformer.decoder.layers)}
    got |= {f"hs{i}": h for i, h in enumerate(hidden)} | {f"ref{i}": r for i, r in enumerate(references)}
    output = model.head(hidden[-1], references[-2], len(hidden) - 1, text)
    got["hs_last"], got["pred_logits"], got["pred_boxes"] = hidden[-1], output.logits, output.boxes


# --- Official post-processing ------------------------------------------------------------------------------


def case_postprocess(golden, device, dtype, fast):
    """JSON in, JSON out: the official cases with every answer replaced by ours."""
    cases = json.loads(str(golden.outputs["cases"]))
    answers = [POSTPROCESS[case["kind"]](golden, case) for case in cases]
    decoded = [
        item
        | {
            "fast": tokenizer().decode(item["ids"]),
            "slow": tokenizer().decode(item["ids"]),
            "slow_nocleanup": tokenizer().join(item["ids"]),
        }
        for item in json.loads(str(golden.outputs["decode"]))
    ]
    return {"cases": json.dumps(answers), "decode": json.dumps(decoded)}


def official_predict(golden, case, caption: str, remove_combined: bool = False):
    logits, boxes = (torch.from_numpy(golden.stored[f"{name}{case['caption_index']}"]) for name in ("logits", "boxes"))
    return official_phrases.predict(
        logits, boxes, caption, tokenizer(), case["box_threshold"], case["text_threshold"], remove_combined
    )


def predict_case(golden, case):
    boxes, scores, phrases = official_predict(golden, case, case["caption"], case["remove_combined"])
    return case | {
        "preprocessed": official_phrases.preprocess_caption(case["caption"]),
        "boxes": boxes.tolist(),
        "scores": scores.tolist(),
        "phrases": phrases,
    }


def in_pixels(case, boxes, scores):
    H, W = case["source_hw"]
    return {"xyxy": (cxcywh_to_xyxy(boxes) * torch.tensor([W, H, W, H])).tolist(), "confidence": scores.tolist()}


def caption_case(golden, case):
    boxes, scores, phrases = official_predict(golden, case, case["caption"])
    return case | in_pixels(case, boxes, scores) | {"phrases": phrases}


def classes_case(golden, case):
    caption = ". ".join(case["classes"])
    boxes, scores, phrases = official_predict(golden, case, caption)
    return (
        case
        | in_pixels(case, boxes, scores)
        | {
            "caption_built": official_phrases.preprocess_caption(caption),
            "class_id": official_phrases.phrases_to_classes(phrases, case["classes"]),
        }
    )


def phrases_case(golden, case):
    return case | {"class_id": official_phrases.phrases_to_classes(case["phrases"], case["classes"])}


def preprocess_case(golden, case):
    return case | {"out": official_phrases.preprocess_caption(case["caption"])}


POSTPROCESS = {
    "predict": predict_case,
    "predict_with_caption": caption_case,
    "predict_with_classes": classes_case,
    "phrases2classes": phrases_case,
    "preprocess_caption": preprocess_case,
}
