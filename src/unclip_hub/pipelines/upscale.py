"""Upscaling: pictures of any size → the same pictures, larger by an upsampler's factor."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unclip_hub.pipelines.base import Pictures, UnCLIPPipelineBase
from unclip_hub.pipelines.checks import check_run
from unclip_hub.pipelines.output import Images, UnCLIPPipelineOutput, as_output
from unclip_hub.pipelines.prompted import same_sized
from unclip_hub.pipelines.settings import settings
from unclip_hub.pipelines.stage import Generator, on_step_end
from unclip_hub.pipelines.tiling import upsample_tiled, upsampler_sizes, windows_over


class UnCLIPUpscalePipeline(UnCLIPPipelineBase):
    """The upsampler alone: 64 → 256 px, and larger pictures in windows of that size that overlap.

    ```python
    UnCLIPUpscalePipeline(**pipe.components)(Image.open("small.png")).images[0]
    ```
    """

    @torch.no_grad()
    def __call__(
        self,
        image: Pictures | None = None,
        *,
        stage: str = "super_res",
        super_res_num_inference_steps: int | None = None,
        generator: Generator = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
    ) -> UnCLIPPipelineOutput | tuple[Images, None, Images]:
        """Make every picture larger by the stage's factor: 4 for Karlo and the bundled model. Steps are its own.

        Args:
            image: pictures of one size, any size: PIL, array or tensor (in [0, 1]), or a list of them. The upsamplers
                are trained on clean pictures made small, so noise and JPEG's blocks grow too.
            stage: ``"super_res"`` (trained from 64 px), or ``"super_res_1024"`` (from 256 px).
            generator: one for all pictures, or a list of one per picture.

        Raises:
            ValueError: pictures of several sizes, more than 64 windows, or a stage that the checkpoint lacks.
        """
        chosen = settings(self, super_res_num_inference_steps=super_res_num_inference_steps)
        small, _ = upsampler_sizes(self, stage)
        given = same_sized(image)
        windows_over(*(max(small, side) for side in given.shape[-2:]), size=small)  # refuses too many
        check_run(
            self,
            batch=len(given),
            settings=chosen,
            generator=generator,
            latents={},
            output_type=output_type,
            callback_inputs=callback_on_step_end_tensor_inputs,
        )
        images = upsample_tiled(
            self, given, num_inference_steps=chosen.steps["super_res"], stage=stage,
            generator=generator, on_step=on_step_end(self, callback_on_step_end),
        )  # fmt: skip
        self.maybe_free_model_hooks()
        finished, before = as_output(images, output_type), as_output(given, output_type)
        return UnCLIPPipelineOutput(finished, None, before) if return_dict else (finished, None, before)
