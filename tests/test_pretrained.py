import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.vit_checkpoints import infer_config
from parity import manifest_state

from minivit.checkpoint import save_model
from minivit.layouts import to_our_names
from minivit.pretrained import load_pretrained, load_state, read_content, resize_position_embedding, state_dict_of
from minivit.vit import PRESETS, VisionTransformer, ViTConfig

MANIFESTS = sorted((Path(__file__).parent / "golden" / "vit").glob("manifest_*.json"))
VITS = [m for m in MANIFESTS if "resnet" not in m.name]
TINY = ViTConfig(image_size=8, patch=4, classes=3, dim=16, depth=2, heads=2)


@pytest.mark.parametrize("manifest", VITS, ids=[m.stem.removeprefix("manifest_") for m in VITS])
def test_every_official_vit_loads_strictly_under_its_own_key_names(manifest):
    state = to_our_names(manifest_state(manifest))
    with torch.device("meta"):
        model = VisionTransformer(infer_config(state))
    missing = model.state_dict().keys() ^ state.keys()
    assert not missing
    assert all(model.state_dict()[k].shape == v.shape for k, v in state.items())


def test_the_presets_of_published_models_are_torchvisions_and_timms():
    for name, preset in (
        ("manifest_torchvision_vit_b_16.json", "vit-b16"),
        ("manifest_timm_vit_base_patch16_224.json", "vit-b16"),
        ("manifest_torchvision_vit_b_32.json", "vit-b32"),
        ("manifest_torchvision_vit_l_16.json", "vit-l16"),
    ):
        manifest = next(m for m in VITS if m.name == name)
        assert infer_config(to_our_names(manifest_state(manifest))) == PRESETS[preset]


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    return state_dict_of(read_content(path), path)


def test_a_safetensors_file_is_read_to_the_bit(tmp_path):
    state = {"a": torch.randn(2, 3), "b": torch.randn(4).to(torch.bfloat16)}
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, dtype in (("a", "F32"), ("b", "BF16")):
        raw = state[name].view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(state[name].shape),
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    text = json.dumps(header).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    read = read_weights(tmp_path / "w.safetensors")
    assert read.keys() == state.keys() and all(torch.equal(read[k], state[k]) for k in state)


def test_another_class_count_keeps_all_but_the_head(tmp_path):
    source = VisionTransformer(TINY)
    torch.save({"model": source.state_dict()}, tmp_path / "vit.pth")
    model = VisionTransformer(ViTConfig(**{**vars(TINY), "classes": 7}))
    assert "new, to be trained: head.weight, head.bias" in load_pretrained(model, tmp_path / "vit.pth").line
    assert torch.equal(model.blocks[1].attn.qkv.weight, source.blocks[1].attn.qkv.weight)


def test_the_head_of_a_checkpoint_that_knows_other_classes_stays_new(tmp_path):
    model = VisionTransformer(replace(TINY, classes=2))
    save_model(tmp_path / "best.pt", model, ["ant", "bee"], [0.5] * 3, [0.2] * 3)
    for names, new in ((["ape", "cow"], True), (["bee", "ant"], True), (["ant", "bee"], False), (None, False)):
        other = VisionTransformer(replace(TINY, classes=2))
        head = other.head.weight.detach().clone()
        loaded = load_pretrained(other, tmp_path / "best.pt", names)
        assert ("new, to be trained: head.weight, head.bias" in loaded.line) == new
        assert torch.equal(other.head.weight, head if new else model.head.weight)
        assert torch.equal(other.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)


def test_another_image_size_resamples_the_positions_and_leaves_the_class_token_alone():
    source, model = VisionTransformer(TINY), VisionTransformer(ViTConfig(**{**vars(TINY), "image_size": (16, 24)}))
    load_state(model, source.state_dict())
    assert model.pos_embed.shape == (1, 1 + 24, 16)
    assert torch.equal(model.pos_embed[:, 0], source.pos_embed[:, 0])


@pytest.mark.parametrize("size", [(32, 32), (64, 16), (32, 128)])
def test_positions_of_a_checkpoint_are_resampled_from_its_own_grid(size, tmp_path):
    settings = {**vars(TINY), "classes": 2, "image_size": (16, 64), "patch": 4}
    source = VisionTransformer(ViTConfig(**settings))
    model = VisionTransformer(ViTConfig(**settings | {"image_size": size}))
    ramp = torch.arange(16.0).expand(4, 16)  # of each place its column
    with torch.no_grad():
        source.pos_embed[0, 1:] = ramp.flatten()[:, None]
    save_model(tmp_path / "a.pt", source, ["a", "b"], (0.5,) * 3, (0.25,) * 3)
    load_pretrained(model, tmp_path / "a.pt", ["a", "b"])
    down, across = model.config.grid
    found = model.pos_embed[0, 1:, 0].view(down, across)
    step = 16 / across
    wanted = (torch.arange(across) + 0.5) * step - 0.5
    inner = slice(2, -2) if across > 4 else slice(1, -1)  # at the edges bicubic bends
    assert (found - wanted)[:, inner].abs().max() < 0.6 * step and torch.allclose(found, found[:1].expand(down, across))


def test_computed_positions_stay_those_of_the_models_own_grid(tmp_path):
    settings = {**vars(TINY), "classes": 2, "image_size": (16, 64), "patch": 4, "position": "sincos"}
    source = VisionTransformer(ViTConfig(**settings))
    model = VisionTransformer(ViTConfig(**settings | {"image_size": 32}))
    save_model(tmp_path / "a.pt", source, ["a", "b"], (0.5,) * 3, (0.25,) * 3)
    before = model.pos_embed.clone()
    load_pretrained(model, tmp_path / "a.pt", ["a", "b"])
    assert torch.equal(model.pos_embed, before)


def test_resampling_to_the_same_grid_changes_nothing():
    embedding = torch.randn(1, 2 + 9, 4)
    torch.testing.assert_close(resize_position_embedding(embedding, 2, (3, 3)), embedding)
    with pytest.raises(ValueError, match="not a square grid"):
        resize_position_embedding(embedding, 1, (3, 3))


def test_weights_of_another_architecture_are_refused_with_the_keys_that_differ(tmp_path):
    deeper = VisionTransformer(ViTConfig(**{**vars(TINY), "depth": 3}))
    with pytest.raises(ValueError, match=r"another architecture.*beyond the model blocks.2"):
        load_state(VisionTransformer(TINY), deeper.state_dict())
    with pytest.raises(ValueError, match="lacks blocks.2"):
        load_state(deeper, VisionTransformer(TINY).state_dict())
    wider = VisionTransformer(ViTConfig(**{**vars(TINY), "mlp_ratio": 2}))
    with pytest.raises(ValueError, match="other shapes of"):
        load_state(VisionTransformer(TINY), wider.state_dict())


def test_a_damaged_or_missing_file_is_named(tmp_path):
    (tmp_path / "bad.pth").write_bytes(b"not a checkpoint")
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 40)
    for name in ("bad.pth", "bad.safetensors"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as weights"):
            read_weights(tmp_path / name)
    with pytest.raises(ValueError, match="there is no weights file"):
        read_weights(tmp_path / "none.pth")
    torch.save({"model": [1, 2]}, tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_weights(tmp_path / "list.pth")


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_a_weights_file_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_weights(tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("shape", [(1, 0, 16), (1, 1, 16), (2, 25, 16), (1, 26, 8), (0, 2, 16)])
def test_positions_of_a_shape_that_can_not_be_resampled_are_named(shape, tmp_path):
    source = VisionTransformer(ViTConfig(image_size=16, patch=4, dim=16, depth=1, heads=2))
    torch.save(source.state_dict() | {"pos_embed": torch.zeros(shape)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="other shapes of pos_embed"):
        load_pretrained(source, tmp_path / "a.pth")
