"""CLIPSeg's network and its published files."""

import json
from dataclasses import replace

import parity
import pytest
import torch
from helpers.clipseg_tiny import CONFIG, tiny_model

from minisam_glue.clipseg.clip import Attention, VisionEmbeddings
from minisam_glue.clipseg.model import CLIPSeg, load

GOLDEN = parity.ROOT / "golden" / "clipseg"
MANIFESTS = {name: GOLDEN / f"manifest_clipseg-{name}.json" for name in ("rd64-refined", "rd64", "rd16")}


def images(count: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def published(name: str) -> dict[str, torch.Tensor]:
    """A file as published: the manifest's keys, and the old buffers that it still carries."""
    legacy = json.loads(MANIFESTS[name].read_text())["legacy_entries"]
    state = parity.manifest_state(MANIFESTS[name])
    return state | {key: torch.arange(shape[1])[None] for key, (shape, _) in legacy.items()}


# --- Published files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_published_file_loads_by_its_own_key_names(name, tmp_path):
    torch.save(published(name), tmp_path / "file.bin")
    model = load(tmp_path / "file.bin", name)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == {
        key: tuple(value.shape) for key, value in parity.manifest_state(MANIFESTS[name]).items()
    }
    assert not model.training and not any(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("clip.visual_projection.weight"), "1 missing, such as clip.visual_projection.weight"),
        (lambda s: s.update(more=torch.zeros(1)), "1 not known, such as more"),
        (lambda s: s.update({"clip.logit_scale": torch.zeros(2)}), "1 of another shape, such as clip.logit_scale"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(change, words, tmp_path):
    state = published("rd16")
    change(state)
    torch.save(state, tmp_path / "file.bin")
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "file.bin", "rd16")


def test_a_file_of_another_preset_is_refused(tmp_path):
    torch.save(published("rd64"), tmp_path / "file.bin")
    with pytest.raises(ValueError, match="Choose the preset that fits"):
        load(tmp_path / "file.bin", "rd64-refined")
    with pytest.raises(ValueError, match="no preset 'rd32'"):
        load(tmp_path / "file.bin", "rd32")


# --- The network -------------------------------------------------------------------------------------------


def test_attention_is_softmax_of_scaled_products():
    torch.manual_seed(0)
    attention, x = Attention(12, 3), torch.randn(2, 5, 12)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    q, k, v = (
        proj(x).view(2, 5, 3, 4).permute(0, 2, 1, 3) for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    for mask in (None, causal):
        scores = q @ k.mT / 2
        scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
        expected = attention.out_proj((scores.softmax(-1) @ v).permute(0, 2, 1, 3).flatten(2))
        torch.testing.assert_close(attention(x, mask), expected)


def test_several_images_and_phrases_in_one_pass_equal_one_at_a_time():
    model, x = tiny_model(), images(2, 40, 40)
    conditions = torch.randn(3, 20)
    together = model(x, conditions)
    assert together.shape == (2, 3, 40, 40)
    for i in range(2):
        for p in range(3):
            torch.testing.assert_close(model(x[i : i + 1], conditions[p : p + 1])[0, 0], together[i, p])


def test_each_image_may_have_conditions_of_its_own():
    model, x = tiny_model(), images(2, 32, 32)
    conditions = torch.randn(2, 3, 20)
    together = model(x, conditions)
    for i in range(2):
        torch.testing.assert_close(model(x[i : i + 1], conditions[i])[0], together[i])


def test_a_condition_that_comes_in_later_leaves_the_steps_before_it_to_the_image_alone():
    torch.manual_seed(0)
    model = CLIPSeg(replace(CONFIG, conditional_layer=1)).eval()
    seen = []
    model.decoder.layers[0].register_forward_hook(lambda module, args, output: seen.append(len(output)))
    logits = model(images(2, 32, 32), torch.randn(3, 20))
    assert logits.shape == (2, 3, 32, 32) and seen == [2]  # once for each image
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("height, width", [(8, 8), (24, 56), (64, 16)])
def test_a_heat_map_has_the_size_of_the_image_whatever_it_is(height, width):
    assert tiny_model()(images(1, height, width), torch.randn(1, 20)).shape == (1, 1, height, width)


def test_an_image_that_does_not_split_into_patches_is_refused():
    with pytest.raises(ValueError, match="30 x 40 pixels: both sides must be multiples of 8"):
        tiny_model()(images(1, 30, 40), torch.randn(1, 20))


def test_positions_of_the_learned_grid_are_kept_and_others_lie_between_them():
    torch.manual_seed(0)
    embeddings = VisionEmbeddings(CONFIG.clip.vision)
    table = embeddings.position_embedding.weight
    assert torch.equal(embeddings.positions(4, 4), table)
    larger = embeddings.positions(12, 4)
    torch.testing.assert_close(larger[0], table[0])  # of the class token
    # With three cells for one, every third centre is where it was.
    torch.testing.assert_close(larger[1:].view(12, 4, -1)[1::3], table[1:].view(4, 4, -1))


def test_layers_behind_the_last_activation_are_not_run():
    model = tiny_model()
    expected = model(images(1, 32, 32), torch.ones(1, 20))
    model.clip.vision_model.encoder["layers"][3] = None
    torch.testing.assert_close(model(images(1, 32, 32), torch.ones(1, 20)), expected)


def test_padding_behind_the_end_of_a_text_changes_nothing():
    clip = tiny_model().clip
    end = CONFIG.clip.text.vocab_size - 1
    short = torch.tensor([[end - 1, 5, 7, end]])
    padded = torch.tensor([[end - 1, 5, 7, end, 0, end, 3]])
    torch.testing.assert_close(clip.encode_text(padded), clip.encode_text(short))


def test_the_end_of_a_text_is_a_given_token_or_the_highest():
    text = tiny_model().clip.text_model
    ids = torch.tensor([[1, 9, 4, 9], [8, 4, 2, 4]])
    assert text.end_position(ids).tolist() == [1, 0]
    text.end_token = 4
    assert text.end_position(ids).tolist() == [2, 1]


def test_similarity_is_the_scaled_cosine_and_highest_for_an_image_of_the_same_direction():
    clip = tiny_model().clip
    x, ids = images(2, 32, 32), torch.tensor([[1, 2, 30], [4, 5, 30]])
    image, text = clip.encode_image(x), clip.encode_text(ids)
    expected = clip.logit_scale.exp() * torch.cosine_similarity(image[:, None], text[None], dim=-1)
    torch.testing.assert_close(clip(x, ids), expected)


def test_a_loss_reaches_every_weight_that_the_heat_map_depends_on():
    model = tiny_model()
    ids = torch.tensor([[1, 2, 30]])
    model(images(1, 32, 32), model.clip.encode_text(ids)).square().mean().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    unused = (
        "clip.logit_scale",
        "clip.visual_projection",
        "clip.vision_model.post",
        "clip.vision_model.encoder.layers.3",
    )
    assert {name for name in without if not name.startswith(unused) and "k_proj.bias" not in name} == set()
