"""Every layout of published ViT weights gives the same scores; what does not fit is named by key."""

import dataclasses
import json
import zipfile

import numpy as np
import pytest
import torch
from helpers.vit_layouts import BIG_VISION, TINY, google, hugging_face, renamed, save, tiny_state, torchvision

from minivit import checkpoint
from minivit.pretrained import HALVES, IMAGENET, Loaded, load_pretrained
from minivit.reading import load_npz
from minivit.vit import VisionTransformer

STATE = tiny_state()
HEADLESS = {name: tensor for name, tensor in STATE.items() if not name.startswith("head.")}
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def behind(prefix: str, state: dict) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


def scores(path, config=TINY, head: dict | None = None) -> tuple[torch.Tensor, Loaded]:
    torch.manual_seed(1)
    model = VisionTransformer(config).eval()
    loaded = load_pretrained(model, path)
    if head:
        model.load_state_dict(head, strict=False)
    return model(IMAGES), loaded


def expected(state=STATE, config=TINY) -> torch.Tensor:
    model = VisionTransformer(config).eval()
    model.load_state_dict(state)
    return model(IMAGES)


FILES = {  # name: content, and what the line says
    "timm.pth": (STATE, ".pth"),
    "state_dict.pth": ({"state_dict": STATE, "epoch": 3}, ".pth"),
    "model.pth": ({"model": STATE, "optimizer": {"state": {}}}, ".pth"),
    "ema.pth": ({"state_dict": {k: v + 1 for k, v in STATE.items()}, "state_dict_ema": STATE}, ".pth"),
    "parallel.pth": (behind("module.", STATE), "(timm's names behind 'module.')"),
    "lightning.ckpt": ({"state_dict": behind("model.net.", STATE)}, "(timm's names behind 'model.net.')"),
    "torchvision.pth": (torchvision(STATE), "(torchvision's names)"),
    "parallel_torchvision.pth": (behind("module.", torchvision(STATE)), "(torchvision's names behind 'module.')"),
    "hugging_face.bin": (hugging_face(STATE), "(Hugging Face's names behind 'vit.')"),
    "transformers5.bin": (hugging_face(STATE, since_5=True), "(Hugging Face's names behind 'vit.')"),
    "google.npz": (google(STATE), "(Google's names)"),
    "target.npz": (google(STATE, prefix="opt/target/") | {"opt/state/step": np.int64(3)}, "behind 'opt/target/')"),
}


@pytest.mark.parametrize("name", FILES)
def test_each_layout_gives_the_same_scores(name, tmp_path):
    got, loaded = scores(save(tmp_path / name, FILES[name][0]))
    assert torch.equal(got, expected())
    assert FILES[name][1] in loaded.line and "new" not in loaded.line


HEADLESS_FILES = {
    "timm.pth": (HEADLESS, ""),
    "pre_logits.pth": (
        STATE | {"pre_logits.fc.weight": torch.eye(16), "pre_logits.fc.bias": torch.zeros(16)},
        "; not used: pre_logits.fc.bias, pre_logits.fc.weight",
    ),
    "google_21k.npz": (
        google(STATE) | {"pre_logits/kernel": np.eye(16), "pre_logits/bias": np.zeros(16)},
        "; not used: pre_logits.bias, pre_logits.weight",
    ),
    "vit_model.bin": (
        hugging_face(HEADLESS, prefix="") | {"pooler.dense.weight": torch.eye(16), "pooler.dense.bias": torch.ones(16)},
        "; not used: pooler.dense.bias, pooler.dense.weight",
    ),
    "other_classes.pth": (STATE | {"head.weight": torch.ones(7, 16), "head.bias": torch.ones(7)}, ""),
}


@pytest.mark.parametrize("name", HEADLESS_FILES)
def test_without_a_head_that_fits_the_head_alone_is_new_and_the_line_says_so(name, tmp_path):
    content, unused = HEADLESS_FILES[name]
    got, loaded = scores(save(tmp_path / name, content), head={k: v for k, v in STATE.items() if k.startswith("head.")})
    assert torch.equal(got, expected())
    assert loaded.line.endswith(f"; new, to be trained: head.weight, head.bias{unused}")


def test_hugging_faces_distilled_model_has_both_heads(tmp_path):
    config = dataclasses.replace(TINY, distillation=True)
    state = tiny_state(config)
    got, loaded = scores(save(tmp_path / "deit.bin", hugging_face(state, prefix="deit.")), config)
    assert torch.equal(got, expected(state, config)) and loaded.normalisation == IMAGENET


def test_big_vision_adds_no_position_to_the_class_token(tmp_path):
    arrays = renamed(google(STATE), BIG_VISION)
    arrays["pos_embedding"] = arrays["pos_embedding"][:, 1:]
    got, _ = scores(save(tmp_path / "big_vision.npz", behind("params/", arrays)))
    state = dict(STATE, pos_embed=STATE["pos_embed"].clone())
    state["pos_embed"][:, 0] = 0
    assert torch.equal(got, expected(state))


def without(part: str, state: dict) -> dict:
    return {name: value for name, value in state.items() if part not in name}


def cut(part: str, state: dict) -> dict:
    return {name: value[:4] if part in name else value for name, value in state.items()}


HF = hugging_face(STATE)
MISFITS = [
    ("timm.pth", STATE | {"blocks.0.attn.rope": torch.ones(3)}, "has beyond the model blocks.0.attn.rope"),
    ("lightning.ckpt", behind("model.", STATE) | {"loss.weight": torch.ones(3)}, "beyond the model loss.weight"),
    ("hybrid.npz", google(STATE) | {"conv_root/kernel": np.ones((7, 7, 3, 64))}, "beyond the model conv_root.weight"),
    ("google.npz", without("1/key/b", google(STATE)), "blocks.0.attn.k.bias"),
    ("hf.bin", without("query.b", HF), "lacks blocks.0.attn.qkv.bias"),
    ("hf.bin", cut("1.attention.attention.key.w", HF), "blocks.1.attn.k.weight"),
    ("two.pth", behind("student.", STATE) | behind("teacher.", STATE), "models, under 'student.' and 'teacher.'"),
    ("twice.npz", google(STATE) | renamed(google(STATE), BIG_VISION), "stand for the same weights, pos_embed"),
    ("half.pth", without("head.bias", STATE), "lacks head.bias"),
    ("vit-pytorch.pth", {"pos_embedding": torch.ones(1, 5, 16), "cls_token": torch.ones(1, 1, 16)}, "lacks"),
]


@pytest.mark.parametrize("name, content, words", MISFITS)
def test_what_does_not_fit_is_named_by_key_and_nothing_is_loaded(name, content, words, tmp_path):
    model = VisionTransformer(TINY)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_pretrained(model, save(tmp_path / name, content))
    assert str(error.value).startswith(str(tmp_path / name)) and words in str(error.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


# ---- numpy's archives -----------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def npy(header: str) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


DAMAGED = {
    "objects": {"cls.npy": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + b"x" * 8},
    "a shape of too many numbers": {"cls.npy": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999,)}")},
    "texts": {"cls.npy": npy("{'descr': '<U2', 'fortran_order': False, 'shape': (1,)}") + b"x" * 8},
    "code in the header": {"cls.npy": npy("open('exploded', 'w')")},
    "no array": {"cls.npy": b"words"},
}


@pytest.mark.parametrize("damage", [*DAMAGED, "a pickle", "no archive", "a bomb", "a cut"])
def test_a_damaged_archive_of_numpy_is_refused_and_runs_no_code(damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.npz"
    if damage == "a pickle":
        np.savez(path, cls=np.array([Bomb()], dtype=object))
    elif damage == "no archive":
        path.write_bytes(b"not an archive")
    elif damage == "a cut":
        path.write_bytes(save(path, google(STATE)).read_bytes()[:-900])
    else:
        kind = zipfile.ZIP_DEFLATED if damage == "a bomb" else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", kind) as archive:
            for name, content in DAMAGED.get(damage, {"cls.npy": bytes(1 << 22)}).items():
                archive.writestr(name, content)
    with pytest.raises(ValueError, match="w.npz cannot be read as weights"):
        load_pretrained(VisionTransformer(TINY), path)
    assert not (tmp_path / "exploded").exists()


def test_arrays_are_read_to_the_bit_in_any_order_and_type(tmp_path):
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((3, 4)).astype(np.float32)
    whole, wide = np.arange(6).reshape(2, 3), rng.standard_normal(5)
    arrays = {"c": floats, "f": np.asfortranarray(floats), "big": floats.astype(">f4"), "i": whole, "d": wide}
    np.savez(tmp_path / "a.npz", **arrays, one=np.float32(2.5), half=floats.astype(np.float16))
    brain = torch.from_numpy(floats).bfloat16()
    bits = brain.view(torch.int16).numpy().view("V2")
    np.savez_compressed(tmp_path / "b.npz", brain=bits)
    read = load_npz(tmp_path / "a.npz")
    assert all(np.array_equal(read[name].numpy(), array) for name, array in arrays.items())
    assert read["one"].item() == 2.5 and read["half"].dtype == torch.float16
    assert torch.equal(load_npz(tmp_path / "b.npz")["brain"], brain)


# ---- normalisation --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, normalisation",
    [
        ("vit_b_16-c867db91.pth", torchvision(STATE), IMAGENET),
        ("ViT-B_16.npz", google(STATE), HALVES),
        ("B_16-i21k-300ep-lr_0.001-aug_medium1.npz", google(STATE), HALVES),
        ("vit_base_patch16_224.augreg2_in21k_ft_in1k.pth", STATE, HALVES),
        ("jx_vit_base_p16_224-80ecf9dd.pth", STATE, HALVES),
        ("vit_base_patch16_224.dino.pth", STATE, IMAGENET),
        ("deit_base_patch16_224-b5f2ef4d.pth", {"model": STATE}, IMAGENET),
        ("google-vit.bin", hugging_face(STATE), HALVES),
        ("ismael/vit_base_patch16_224.augreg_in21k.pth", STATE, HALVES),  # neither MAE nor DINO
        ("dinosaurs/vit_base_patch16_224.augreg_in21k.pth", STATE, HALVES),
        ("augreg/vit.pth", STATE, IMAGENET),
        ("vit_small_patch14_dinov2.lvd142m.pth", STATE, IMAGENET),
        ("deit3-base/pytorch_model.bin", hugging_face(STATE), IMAGENET),
    ],
)
def test_the_file_says_how_its_images_were_normalised(name, content, normalisation, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    assert load_pretrained(VisionTransformer(TINY), save(tmp_path / name, content)).normalisation == normalisation


def test_a_description_beside_a_file_of_the_hub_says_it_and_a_damaged_one_is_named(tmp_path):
    path = save(tmp_path / "pytorch_model.bin", hugging_face(STATE))
    wanted = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    for name, content in (
        ("config.json", {"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}),
        ("preprocessor_config.json", wanted),
    ):
        (tmp_path / name).write_text(json.dumps(content))
        assert load_pretrained(VisionTransformer(TINY), path).normalisation == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        (tmp_path / name).write_text(json.dumps({"hidden_size": 16}))
    for damaged in ("{", json.dumps(wanted | {"image_std": [0, 1, 1]}), "[" * 10**5):
        (tmp_path / "preprocessor_config.json").write_text(damaged)
        with pytest.raises(ValueError, match="preprocessor_config.json does not say how images are normalised"):
            load_pretrained(VisionTransformer(TINY), path)


def test_a_checkpoint_of_this_program_brings_its_own(tmp_path):
    model = VisionTransformer(dataclasses.replace(TINY, classes=2))
    state = {"describe": {}, "config": {}, "mean": [0.1] * 3, "std": [0.2] * 3, "model": model.state_dict()}
    checkpoint.save(tmp_path / "best.pt", state)
    assert load_pretrained(model, tmp_path / "best.pt").normalisation == ((0.1,) * 3, (0.2,) * 3)
    for change in ({"describe": "a note"}, {"describe": {"data_root": 3}}, {"config": {"seed": "x"}}, {"std": None}):
        torch.save(state | change, tmp_path / "best.pt")
        with pytest.raises(ValueError, match="best.pt: "):
            load_pretrained(model, tmp_path / "best.pt")
