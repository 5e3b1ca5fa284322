"""What DALLE2-pytorch's own code was recorded with, computed by a converted folder from the same inputs."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

import unclip_hub.schedulers.dalle2_pytorch
from unclip_hub import denoise
from unclip_hub.models.dalle2_pytorch_prior import DALLE2PytorchPrior
from unclip_hub.models.dalle2_pytorch_projection import DALLE2PytorchProjection
from unclip_hub.models.dalle2_pytorch_unet import DALLE2PytorchUNet
from unclip_hub.schedulers.dalle2_pytorch import DALLE2PytorchScheduler


SCALE = 1.5  # of the recorded runs
Given = Mapping[str, Tensor]


class Prior:
    """The prior of a folder with the recorded captions."""

    def __init__(self, folder: Path, given: Given) -> None:
        self.network = DALLE2PytorchPrior.from_pretrained(folder, subfolder="prior").eval()
        self.scheduler = DALLE2PytorchScheduler.from_pretrained(folder, subfolder="prior_scheduler")
        self.given = given
        self.mask = (given["text_encodings"] != 0).any(dim=-1)

    def __call__(self, x: Tensor, t: Tensor | int, *, mask: Tensor | None = None) -> Tensor:
        text, states = self.given["text_embed"], self.given["text_encodings"]
        mask = self.mask if mask is None else mask
        return self.network(x, t, text, states, mask).predicted_image_embedding

    def null(self, x: Tensor, t: Tensor | int) -> Tensor:
        """The unconditional pass; where a release has none, its code ran the conditional one."""
        if self.network.unconditional == "none":
            return self(x, t)
        text, states = (torch.zeros_like(self.given[name]) for name in ("text_embed", "text_encodings"))
        return self.network(x, t, text, states, torch.zeros_like(self.mask)).predicted_image_embedding

    def outputs(self) -> dict[str, Tensor]:
        made = {}
        for t in (0, 33, 99):
            x = self.given["prior.x"]
            made[f"prior.out.t{t}"], made[f"prior.null.t{t}"] = self(x, t), self.null(x, t)
            made[f"prior.cfg2.t{t}"] = _guided(self, self.null, 2.0)(x, torch.tensor(t))
        alone = self.network(self.given["prior.x"], 0, self.given["text_embed"]).predicted_image_embedding
        made["prior.out_no_encodings.t0"] = alone
        return made

    def sample(self, run: str, *, steps: int, forgets_its_mask: bool = False) -> Tensor:
        """A trajectory, times the embedding's scale.

        Args:
            forgets_its_mask: release 0.15's guided sampler overwrote the caller's text mask in its first
                unconditional pass, so that from the second step on no pass saw the text's tokens.
        """
        conditional: Callable[..., Tensor] = self
        if forgets_its_mask:
            masks = iter([self.mask])
            conditional = lambda x, t: self(x, t, mask=next(masks, torch.zeros_like(self.mask)))  # noqa: E731
        return _sample(_guided(conditional, self.null, SCALE), self.scheduler, steps, _noises(self.given, run))


class Cascade:
    """The U-Nets of a folder with the recorded conditions."""

    places = (("decoder", "text_proj", "decoder_scheduler"), ("super_res_first", None, "super_res_scheduler"))

    def __init__(self, folder: Path, given: Given, steps: list[int]) -> None:
        self.given, self.steps = given, steps
        self.networks = []
        for unet, projection, scheduler in self.places[: len(steps)]:
            project = projection and DALLE2PytorchProjection.from_pretrained(folder, subfolder=projection).eval()
            network = DALLE2PytorchUNet.from_pretrained(folder, subfolder=unet).eval()
            self.networks.append(
                (network, project, DALLE2PytorchScheduler.from_pretrained(folder, subfolder=scheduler))
            )

    def run(self, place: int, x: Tensor, t: Tensor | int, *, low: Tensor | None, null: bool) -> Tensor:
        network, project, _ = self.networks[place]
        if project is None:
            return network(torch.cat([x, low], dim=1), t).sample
        mask = (self.given["text_encodings"] != 0).any(dim=-1) & (not null)
        twice = 2 if null else 1  # the learned "no image" comes first
        states, time = project(
            image_embeddings=self.given["image_embed"],
            prompt_embeds=self.given["text_embed"].repeat(twice, 1),
            text_encoder_hidden_states=self.given["text_encodings"].repeat(twice, 1, 1),
            do_classifier_free_guidance=null,
        )
        mask = F.pad(mask, (project.config["clip_extra_context_tokens"], 0), value=True)
        states, time = states[: len(x)], time[: len(x)]
        return network(x, t, states, class_labels=time, attention_mask=mask).sample

    def outputs(self, names: list[str]) -> dict[str, Tensor]:
        made = {}
        for name in names:
            place, t = int(name[4]), int(name.rpartition("t")[2])
            low = self.given.get(f"unet{place}.lowres_cond_img")
            made[name] = self.run(place, self.given[f"unet{place}.x"], t, low=low, null=".null." in name)
        return made

    def sample(self, run: str, *, stages: int) -> Tensor:
        """Pictures in [0, 1], as recorded. The original guides the learned variance, too, which `guide` does not."""
        images, noises = None, _noises(self.given, run)
        for place in range(stages):
            network, _, scheduler = self.networks[place]
            size, low = network.config["sample_size"], None
            if images is not None:
                low = F.interpolate(images, size, mode="nearest").clamp(-1, 1)

            def conditional(x: Tensor, t: Tensor, place=place, low=low) -> Tensor:
                return self.run(place, x, t, low=low, null=False)

            def null(x: Tensor, t: Tensor, place=place, low=low) -> Tensor:
                return self.run(place, x, t, low=low, null=True)

            mine = [noise for noise in noises if noise.shape[-1] == size]
            images = _sample(_guided(conditional, null, SCALE), scheduler, self.steps[place], mine)
        return (images + 1) / 2


def _guided(conditional: Callable[..., Tensor], null: Callable[..., Tensor], scale: float) -> Callable[..., Tensor]:
    def predict(x: Tensor, t: Tensor) -> Tensor:
        towards, away = conditional(x, t), null(x, t)
        return away + scale * (towards - away)

    return predict


def _noises(given: Given, run: str) -> list[Tensor]:
    count = sum(name.startswith(f"{run}.noise.") for name in given)
    return [given[f"{run}.noise.{i}"] for i in range(count)]


def _sample(
    predict: Callable[..., Tensor], scheduler: DALLE2PytorchScheduler, steps: int, noises: list[Tensor]
) -> Tensor:
    """The loop from the first of the recorded noises, with the others in its steps."""
    left: Iterator[Tensor] = iter(noises)
    scheduler.set_timesteps(steps)
    with patch.object(unclip_hub.schedulers.dalle2_pytorch, "randn_tensor", lambda *_, **__: next(left)):
        return denoise(predict, next(left), scheduler)
