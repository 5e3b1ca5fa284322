import torch

from unclip_hub.models.unet import patchify, unpatchify


def test_patches_come_back_as_the_image():
    image = torch.randn(2, 3, 8, 12)
    patches = patchify(image, patch_size=4, coordinates=False)
    assert patches.shape == (2, 48, 2, 3)
    torch.testing.assert_close(unpatchify(patches, patch_size=4), image, rtol=0, atol=0)


def test_a_patch_holds_its_own_pixels_channel_by_channel():
    image = torch.randn(2, 3, 8, 12)
    patches = patchify(image, patch_size=4, coordinates=False)
    torch.testing.assert_close(patches[1, 16:32, 1, 2], image[1, 1, 4:8, 8:12].flatten(), rtol=0, atol=0)


def test_coordinates_are_the_patch_centres_x_then_y_after_the_image():
    patches = patchify(torch.randn(2, 3, 4, 8), patch_size=2, coordinates=True)
    assert patches.shape == (2, 14, 2, 4)
    torch.testing.assert_close(patches[1, 12], torch.tensor([[-0.75, -0.25, 0.25, 0.75]] * 2))
    torch.testing.assert_close(patches[1, 13], torch.tensor([[-0.5] * 4, [0.5] * 4]))


def test_coordinates_alone_leave_the_image():
    image = torch.randn(2, 3, 4, 6, dtype=torch.bfloat16)
    patches = patchify(image, patch_size=1, coordinates=True)
    assert patches.shape == (2, 5, 4, 6) and patches.dtype == torch.bfloat16
    torch.testing.assert_close(patches[:, :3], image, rtol=0, atol=0)
