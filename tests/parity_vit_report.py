"""Golden cases of minivit/report.py (scikit-learn's metrics) and minivit/resnet.py (torchvision's ResNet-18)."""

import numpy as np
import torch

from minivit import report, resnet


def train_metrics(golden, device, dtype) -> dict:
    """Metrics are counts and their ratios: float64 whatever the dtype, returned as numpy so that no digit is lost."""
    logits, target = golden.input("logits").to(device), golden.input("target").to(device)
    confusion = report.confusion_matrix(target, logits.argmax(1), logits.shape[1])
    table = report.per_class_table(confusion)
    out = {f"top{k}": np.array([report.top_k(logits, target, k)]) for k in (1, 2, 3, 5)}
    columns = [table[name].double() for name in ("precision", "recall", "f1", "support")]
    return out | {"confusion": confusion.cpu().numpy(), "per_class": torch.stack(columns, dim=1).numpy()}


def tv_resnet18_full(golden, device, dtype) -> dict:
    model = resnet.resnet18(golden.config["num_classes"], stem="imagenet").eval()
    state = model.state_dict()
    # The formula has no value for the integer counters: they keep the constructor's.
    weights = {name: golden.formula(name, value.shape) for name, value in state.items() if value.is_floating_point()}
    model.load_state_dict(state | weights)
    model.to(device, dtype)
    images = golden.input("x").to(device, dtype)
    x, out = model.stem(images), {"logits": model(images)}
    for name in ("layer1", "layer2", "layer3", "layer4"):
        out[name] = x = getattr(model, name)(x)
    return out


CASES = {"train_metrics": train_metrics, "tv_resnet18_full": tv_resnet18_full}
