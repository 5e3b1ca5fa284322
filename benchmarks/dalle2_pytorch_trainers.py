"""DALLE2-pytorch's two trainers at the sizes of ours, on embeddings that were computed before: no CLIP inside.

    pip install --target FOLDER --no-deps dalle2-pytorch==1.15.6 einops einops-exts rotary-embedding-torch \\
        ema-pytorch pytorch-warmup
"""

import sys
import types
from pathlib import Path
from typing import Any

from unclip_hub.training.decoder import DecoderBatch
from unclip_hub.training.prior import PriorBatch


# what its modules import and training does not use here, most of which does not install beside a CPU's PyTorch
_UNUSED = (
    "torchvision", "torchvision.transforms", "torchvision.utils", "kornia", "kornia.filters", "kornia.augmentation",
    "resize_right", "x_clip", "coca_pytorch", "vector_quantize_pytorch", "dalle2_pytorch.tokenizer",
)  # fmt: skip


def prior_step(folder: Path, batch: PriorBatch, *, width: int, layers: int, heads: int, tokens: int) -> Any:
    """One step of ``DiffusionPriorTrainer`` as a function, and the network."""
    package = _imported(folder)
    net = package.DiffusionPriorNetwork(
        dim=width, depth=layers, heads=heads, dim_head=width // heads, max_text_len=tokens, num_timesteps=1000
    )
    prior = package.DiffusionPrior(net, image_embed_dim=width, timesteps=1000, cond_drop_prob=0.1)
    trainer = package.DiffusionPriorTrainer(prior, lr=1e-4, wd=0.01, max_grad_norm=1.0).train()
    caption = batch.caption
    states = caption.text_states * caption.text_mask[..., None]  # how padding is told to it

    def step() -> None:
        trainer(text_embed=caption.text_embed, image_embed=batch.image_embed, text_encodings=states)
        trainer.update()

    return step, net


def decoder_step(folder: Path, batch: DecoderBatch, *, widths: tuple[int, ...], layers: int, heads: int) -> Any:
    """One step of ``DecoderTrainer`` as a function, and the network."""
    package = _imported(folder)
    condition = batch.condition
    assert condition.image_embed is not None
    unet = package.Unet(
        dim=widths[0],
        dim_mults=tuple(width // widths[0] for width in widths),
        num_resnet_blocks=layers,
        image_embed_dim=condition.image_embed.shape[1],
        text_embed_dim=condition.text_states.shape[2],
        cond_on_image_embeds=True,
        cond_on_text_encodings=True,
        max_text_len=condition.text_states.shape[1],
        attn_heads=heads,
        attn_dim_head=widths[-1] // heads,
    )
    # pictures come in [-1, 1] already
    decoder = package.Decoder(unet, image_size=batch.pixels.shape[-1], timesteps=1000, auto_normalize_img=False)
    trainer = package.DecoderTrainer(decoder, lr=1e-4, wd=0.01, max_grad_norm=1.0).train()
    states = condition.text_states * condition.text_mask[..., None]

    def step() -> None:
        trainer(batch.pixels, image_embed=condition.image_embed, text_encodings=states, unet_number=1)
        trainer.update(unet_number=1)

    return step, unet


def _imported(folder: Path) -> Any:
    if not (folder / "dalle2_pytorch").is_dir():
        raise FileNotFoundError(
            f"{folder} holds no dalle2_pytorch; this file's first lines say how to install it there"
        )
    if "dalle2_pytorch" not in sys.modules:
        sys.path.insert(0, str(folder))
        sys.modules.update({name: _Empty(name) for name in _UNUSED if name not in sys.modules})
    import dalle2_pytorch  # pyright: ignore[reportMissingImports]

    return dalle2_pytorch


class _Empty(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})
