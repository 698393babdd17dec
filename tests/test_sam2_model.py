import copy
import json
from pathlib import Path

import parity
import pytest
import torch
from helpers.sam2_tiny import CONFIG, frames, tiny_model

from minisam_glue.sam2 import PRESETS, SAM2, ImagePredictor, build, load, mask_decoder
from minisam_glue.sam2.model import preset_of

FOLDER = Path(__file__).parent / "golden" / "sam2"


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith("demo")])
def test_every_official_manifest_loads_strictly(name):
    with torch.device("meta"):
        model = SAM2(PRESETS[name])
    state = parity.manifest_state(FOLDER / f"manifest_{name}.pt.json")
    model.load_state_dict(state, strict=True, assign=True)
    assert preset_of(state) == name
    entries = json.loads((FOLDER / f"manifest_{name}.pt.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == entries["num_params"]


@pytest.mark.parametrize(("name", "parameters"), [("demo", 1_310_586), ("demo_wide", 2_204_778)])
def test_the_demo_presets_are_small_and_told_from_the_others(name, parameters):
    with torch.device("meta"):
        model = SAM2(PRESETS[name])
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert preset_of(model.state_dict()) == name


def test_file_in_the_official_layout_gives_the_same_masks(tmp_path):
    model = tiny_model()
    torch.save({"model": model.state_dict()}, tmp_path / "tiny.pt")
    loaded = load(tmp_path / "tiny.pt", CONFIG)
    predictors = [ImagePredictor(m) for m in (model, loaded)]
    for predictor in predictors:
        predictor.set_image(frames(1)[0])
    first, second = (p.predict(boxes=[5, 10, 20, 25], logits=True) for p in predictors)
    torch.testing.assert_close(first.masks, second.masks, atol=1e-5, rtol=1e-5)
    assert torch.equal(first.masks > 0, second.masks > 0)


def test_a_resized_model_is_the_model_of_that_size():
    model, expected = copy.deepcopy(tiny_model(64)), tiny_model(96)
    images, point, label = torch.randn(1, 3, 96, 96), torch.tensor([[[30.0, 50.0]]]), torch.ones(1, 1, dtype=torch.long)
    model.resize(96)
    for_both = []
    for m in (model, expected):
        features = m.encode_image(images)
        for_both.append(m.decode(features.tokens, features.high_res, point, label, None, True))
    torch.testing.assert_close(for_both[0].masks, for_both[1].masks)
    assert for_both[0].masks.shape[-1] == 24
    with pytest.raises(ValueError, match="image_size 100: it must be a multiple of 32; the nearest: 96 and 128"):
        model.resize(100)


def test_missing_or_unknown_keys_are_refused(tmp_path):
    state = dict(tiny_model().state_dict())
    for change in ({"extra": torch.zeros(1)}, {"no_mem_embed": None}):
        broken = {k: v for k, v in (state | change).items() if v is not None}
        torch.save({"model": broken}, tmp_path / "broken.pt")
        with pytest.raises(ValueError, match="extra|no_mem_embed"):
            load(tmp_path / "broken.pt", CONFIG)


def test_other_files_and_names_are_clear_errors(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="its state dict is a list of 2, not a dictionary"):
        load(tmp_path / "list.pt")
    torch.save({"model": tiny_model().state_dict()}, tmp_path / "tiny.pt")
    with pytest.raises(ValueError, match="give their configuration"):
        load(tmp_path / "tiny.pt")
    with pytest.raises(ValueError, match="sam2.1_hiera_tiny"):
        build("sam3")
    with pytest.raises(ValueError, match="multiple of 32"):
        type(CONFIG)(image_size=100)
    for sizes in ({"dim": 100}, {"mem_dim": 2}, {"dim": 96, "mem_dim": 64}):
        with pytest.raises(ValueError, match="multiple of 32, and a divisor"):
            type(CONFIG)(**sizes)


def test_training_sees_the_single_mask_even_where_it_is_unstable(monkeypatch):
    monkeypatch.setattr(mask_decoder, "STABILITY", 2.0)  # no mask is that stable
    model, (xy, labels) = build(CONFIG), (torch.full((1, 2, 2), 9.0), torch.tensor([[2, 3]]))
    features = model.encode_image(torch.randn(1, 3, 64, 64))
    shown = model.decode(features.tokens, features.high_res, xy, labels, None, multimask=False)
    three = model.decode(features.tokens, features.high_res, xy, labels, None, multimask=True)
    assert torch.isclose(three.masks, shown.masks).flatten(2).all(2).any()
    taught = model.train().decode(features.tokens, features.high_res, xy, labels, None, multimask=False)
    assert taught.masks.shape == shown.masks.shape and not torch.allclose(taught.masks, shown.masks)


def test_a_built_model_segments_with_finite_random_weights():
    model = build(CONFIG)
    assert not model.training and model.no_obj_ptr.abs().max() > 0
    tokens = model.encode_image(torch.randn(2, 3, 64, 64)).tokens
    assert tokens.shape == (2, 16, 256) and tokens.isfinite().all()
