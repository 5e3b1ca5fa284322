"""A decoder that sees what it must not repaint (Nichol et al. 2021, GLIDE, arXiv:2112.10741, section 3.2)."""

from typing import Any

import torch

from unclip_hub.models.decoder import UNet2DConditionModel


ADDED = 4  # channels: the masked picture and its mask


def widened_for_inpainting(decoder: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy that takes the noised picture, the masked picture (0 where masked) and the mask (1 where to repaint).

    The new input weights are 0, so before training it draws what ``decoder`` does, whatever the mask.

    Raises:
        ValueError: a decoder whose input is not a picture of three channels.
    """
    channels = decoder.config["in_channels"]
    if channels != 3:
        raise ValueError(f"only a decoder with in_channels 3 can be widened for inpainting, got {channels}")
    wide: Any = UNet2DConditionModel.from_config(decoder.config, in_channels=channels + ADDED)
    state, patch = decoder.state_dict(), decoder.config["patch_size"] ** 2
    weight = state["conv_in.weight"]  # (c0, 3 * patch and, last, any coordinates, 3, 3)
    added = weight.new_zeros(weight.shape[0], ADDED * patch, *weight.shape[2:])
    state["conv_in.weight"] = torch.cat([weight[:, : channels * patch], added, weight[:, channels * patch :]], dim=1)
    wide.load_state_dict(state)
    return wide.to(decoder.device, decoder.dtype).train(decoder.training)
