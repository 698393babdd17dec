"""Fine-tuning: train the last blocks of a Vision Transformer alone, or its early layers at lower rates.

Layer-wise decay of the learning rate: ELECTRA, Clark et al., arXiv 2003.10555; for images BEiT, Bao et al., arXiv
2106.08254 (each in the appendix on fine-tuning). Layers are the embedding, each block, and what follows them (norm
and heads).
"""

import re

from torch import nn

from minivit.vit import VisionTransformer


def freeze(model: VisionTransformer, last: int) -> None:
    """Let only the last `last` blocks, the final norm and the heads of a model learn.

    In a training loop of your own call keep_frozen after each model.train(). ValueError if the model has fewer blocks.
    """
    if not isinstance(model, VisionTransformer):
        raise TypeError(f"a {type(model).__name__} has no blocks to choose from: give a VisionTransformer")
    blocks = [*model.blocks, *model.class_blocks]
    if type(last) is not int or not 0 <= last <= len(blocks):
        raise ValueError(f"--train-last is {last}, of a model with {len(blocks)} blocks: give 0 to {len(blocks)}")
    model.requires_grad_(False)
    for part in (*blocks[len(blocks) - last :], model.norm, model.fc_norm, model.head, model.head_dist):
        if part is not None:
            part.requires_grad_(True)


def keep_frozen(model: nn.Module) -> None:
    """Put modules in which nothing learns into evaluation mode.

    Else their running means would move and their dropout would act.
    """
    for module in model.modules():
        if is_frozen(module):
            module.eval()
        if isinstance(module, VisionTransformer) and is_frozen(module.patch_embed):
            module.pos_dropout.eval()  # it has no parameters that would tell


def is_frozen(module: nn.Module) -> bool:
    """Whether a module has parameters, and none of them learns."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def layers_above(name: str, model: nn.Module) -> int:
    """The number of layers behind the parameter of this name: 0 for norm and heads, depth + 1 for the embedding.

    model: a VisionTransformer, or what holds one: DDP, torch.compile, a model of yours, whose other parameters count
    as heads. ValueError if there is none.
    """
    vits = [(prefix, vit) for prefix, vit in model.named_modules() if isinstance(vit, VisionTransformer)]
    if not vits:
        raise ValueError(f"layers are those of a VisionTransformer, and this {type(model).__name__} has none")
    prefix, vit = vits[0]
    inside = name.removeprefix(f"{prefix}." if prefix else "")
    block = re.match(r"(class_)?blocks\.(\d+)\.", inside)
    if block:
        return vit.config.depth - int(block[2]) - (len(vit.blocks) if block[1] else 0)
    outside = inside == name and prefix
    return 0 if outside or re.match(r"(norm|fc_norm|head|head_dist)\.", inside) else vit.config.depth + 1


def learning_share(model: nn.Module) -> tuple[int, int]:
    """The number of parameters that learn, and of all."""
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return learning, sum(p.numel() for p in model.parameters())
