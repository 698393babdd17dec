"""What a Vision Transformer looks at: the weights of its attentions, rollout, and the pictures of --save-attention."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train_cifar
from minivit import checkpoint, explain, predict
from minivit.explain import attention_maps, relevance, rollout, spotlight
from minivit.fast import accelerate
from minivit.vit import VisionTransformer, ViTConfig

BASE = {"image_size": 16, "patch": 4, "dim": 16, "depth": 3, "heads": 2, "classes": 3}
MODELS = {  # T special tokens, N = 16 patches
    "class token": {},
    "mean": {"class_token": False, "pool": "mean", "relative_bias": "joint", "qk_temperature": True},
    "distillation": {"distillation": True, "relative_bias": "decomposed"},
    "tail": {"distillation": True, "class_attention": 2, "relative_bias": "decomposed"},
    "late tokens": {"class_attention": 1, "tokens_enter_late": True, "talking_heads": True},
}


def model_of(name: str) -> VisionTransformer:
    """A model with large weights, so that attention is far from even."""
    torch.manual_seed(0)
    model = VisionTransformer(ViTConfig(**BASE | MODELS[name])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_weights_times_values_are_what_the_attention_of_each_block_gives(name):
    model, images = model_of(name), torch.randn(2, 3, 16, 16)
    outputs, values = [], []
    original = explain.recorder

    def recorder(attend, maps):
        recording = original(attend, maps)

        def call(q, k, v, bias):
            values.append(v)
            outputs.append(recording(q, k, v, bias))
            return outputs[-1]

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explain, "recorder", recorder)
        maps = attention_maps(model, images)
    if not model.config.talking_heads:
        assert all((m >= 0).all() for m in maps)
    T, N = model.config.tokens, 16
    whole, tail = (N if model.config.tokens_enter_late else T + N), model.config.class_attention
    assert [m.shape[1:] for m in maps] == [(2, whole, whole)] * (3 - tail) + [(2, T, T + N)] * tail
    for weights, v, output in zip(maps, values, outputs, strict=True):
        torch.testing.assert_close(weights @ v, output, rtol=1e-5, atol=1e-5)
    if not model.config.talking_heads:
        assert all(torch.allclose(m.sum(-1), torch.ones(())) and (m >= 0).all() for m in maps)


@pytest.mark.parametrize("name", MODELS)
def test_an_accelerated_model_has_the_same_maps_and_stays_accelerated(name):
    plain, images = model_of(name), torch.randn(2, 3, 16, 16)
    fast = accelerate(copy.deepcopy(plain)).train()
    for a, b in zip(attention_maps(plain, images), attention_maps(fast, images), strict=True):
        torch.testing.assert_close(a, b)
    assert fast.training and [type(m) for m in fast.modules()] == [type(m) for m in accelerate(plain).modules()]
    assert not any("attend" in vars(m) for m in fast.modules())


def test_rollout_is_the_product_of_half_attention_and_half_identity():
    first, second = torch.rand(2, 1, 2, 3, 3).softmax(-1)
    identity = torch.eye(3)
    expected = (second[0].mean(0) + identity) / 2 @ (first[0].mean(0) + identity) / 2
    torch.testing.assert_close(rollout([first, second])[0], expected)


def test_rollout_of_talking_heads_takes_the_size_of_their_weights():
    mixed = torch.tensor([[[0.2, -0.6], [-0.5, -0.5]], [[0.2, -0.2], [0.0, -1.0]]])[None]  # two heads of two tokens
    shares = torch.tensor([[0.2 / 0.6, 0.4 / 0.6], [0.25, 0.75]])
    torch.testing.assert_close(rollout([mixed])[0], (shares + torch.eye(2)) / 2)


def test_rollout_of_class_attention_changes_the_special_tokens_alone():
    patches, tail = torch.rand(1, 2, 4, 4).softmax(-1), torch.rand(1, 2, 1, 5).softmax(-1)
    result = rollout([patches, tail])[0]
    identity = torch.eye(5)
    before = torch.block_diag(torch.ones(1, 1), (patches[0].mean(0) + identity[1:, 1:]) / 2)
    torch.testing.assert_close(result[1:], before[1:])
    torch.testing.assert_close(result[0], (tail[0].mean(0)[0] + identity[0]) / 2 @ before)


@pytest.mark.parametrize("name", MODELS)
def test_relevance_shares_one_among_patches_and_what_is_left_of_special_tokens(name):
    model, images = model_of(name), torch.randn(2, 3, 16, 16)
    shares = relevance(model, images)
    rest = rollout(attention_maps(model, images))
    torch.testing.assert_close(rest.sum(-1), torch.ones(rest.shape[:2]))
    assert shares.shape == (2, 4, 4) and (shares >= 0).all() and (shares.sum((1, 2)) <= 1 + 1e-5).all()
    if model.config.pool == "mean":
        torch.testing.assert_close(shares.flatten(1), rest.mean(1))
    else:
        T = model.config.tokens  # the heads read the class token, and the distillation token if there is one
        torch.testing.assert_close(shares.flatten(1), rest[:, :T, T:].mean(1))


def test_a_patch_that_all_tokens_look_at_is_lit(monkeypatch):
    model = model_of("class token")
    weights = torch.full((1, 2, 17, 17), 0.01)
    weights[..., 1 + 6] = 1  # row 1, column 2
    monkeypatch.setattr(explain, "attention_maps", lambda *_: [weights / weights.sum(-1, keepdim=True)] * 3)
    shares = relevance(model, torch.zeros(1, 3, 16, 16))[0]
    assert shares.argmax() == 6
    lit = spotlight(torch.full((3, 16, 16), 200, dtype=torch.uint8), shares)
    assert lit.shape == (3, 16, 32) and (lit[:, :, :16] == 200).all()
    assert lit[0, 6, 16 + 10] > 150 and lit[0, 14, 16 + 2] < 60


def test_what_has_no_attention_is_refused():
    with pytest.raises(ValueError, match="attention is a Vision Transformer's, and this model is a Linear"):
        attention_maps(torch.nn.Linear(2, 2), torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="no attention to follow"):
        rollout([])


def save(path: Path, preset: str = "shapes-demo", **overrides: int) -> str:
    model = checkpoint.build_model(preset, 2, overrides)
    about = {"preset": preset, "overrides": overrides, "data": "folder", "data_root": "images"}
    state = {"config": {"seed": 0}, "describe": about, "classes": ["a", "b"], "mean": [0.4] * 3, "std": [0.2] * 3}
    checkpoint.save(path, state | {"precision": "float32", "weights": "raw", "epoch": 1, "model": model.state_dict()})
    return str(path)


def test_predict_writes_each_picture_beside_what_the_model_looks_at(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict, "AT_ONCE", 2)
    path = save(tmp_path / "best.pt", dim=16, depth=1, heads=2, image_size=16)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for name in ("x/cat.png", "y/Cat.png", "z.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(name)
    words = ["--predict", path, "x/cat.png", "y/Cat.png", "none.png", "z.png", "--device", "cpu"]
    assert train_cifar.main([*words, "--save-attention", "new/maps"]) == 2
    told = [line.partition("(attention: ")[::2] for line in capsys.readouterr().out.splitlines()]
    files = [(line.partition(":")[0], shown.rstrip(")")) for line, shown in told]
    assert files[:2] == [("x/cat.png", "new/maps/cat.png"), ("y/Cat.png", "new/maps/Cat-2.png")]
    assert sorted(p.name for p in Path("new/maps").iterdir()) == ["Cat-2.png", "cat.png", "z.png"]
    written = np.asarray(Image.open("new/maps/z.png"))
    assert written.shape == (256, 512, 3)  # sixteen times as large
    assert np.array_equal(written[::16, :256:16], pixels) and (written[:, 256:] <= written[:, :256]).all()


def test_attention_of_a_resnet_and_a_folder_that_is_none_are_refused_before_a_picture_is_read(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    none = save(tmp_path / "none.pt", depth=0, dim=16, heads=2)
    vit = save(tmp_path / "vit.pt", dim=16, depth=1, heads=2)
    for words, told in (
        (["--predict", none, "x.png", "--save-attention", "maps"], "needs a Vision Transformer with blocks"),
        (["--predict", vit, "x.png", "--save-attention", "file/maps"], "--save-attention file/maps can't be written"),
        (["--predict", vit, "x.png", "--save-attention", "."], "x.png lies there, and is not overwritten"),
        (["--eval", vit, "--save-attention", "maps"], "--save-attention goes with --predict"),
    ):
        assert train_cifar.main([*words, "--device", "cpu"]) == 2
        printed = capsys.readouterr()
        assert told in printed.err and len(printed.err.splitlines()) == 1 and not printed.out
    assert not Path("maps").exists()


def test_the_attention_that_is_saved_is_that_to_the_image_as_the_model_sees_it(tmp_path):
    (member,) = predict.load_members(
        [Path(save(tmp_path / "best.pt", dim=16, depth=1, heads=2, image_size=16))], torch.device("cpu")
    )
    with torch.no_grad():
        member.model.blocks[0].attn.qkv.weight.mul_(8)  # opinions
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shares = relevance(member.model, (images / 255 - 0.4) / 0.2)
    assert (shares - relevance(member.model, images / 255)).abs().max() > 1e-3
    for found, image, share in zip(predict.attention(member, images), images, shares):
        assert (found.int() - spotlight(image, share).int()).abs().max() <= 1
