"""Conditioning: what crosses from one stage of unCLIP to the next."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """A batch of captions as CLIP sees them and, once a prior or a picture supplied it, their CLIP image embedding.

    The embeddings are the encoders' projections, not normalised (b batch, d CLIP width, l tokens, e width of the text
    encoder).
    """

    text_embed: Float[Tensor, "b d"]  # z_t
    text_states: Float[Tensor, "b l e"]
    text_mask: Bool[Tensor, "b l"]  # False on padding
    image_embed: Float[Tensor, "b d"] | None = None  # z_i

    def __len__(self) -> int:
        return len(self.text_embed)

    def repeat(self, times: int) -> "Conditioning":
        """Each row ``times`` times, copies of a row side by side."""
        return self._map(lambda x: x.repeat_interleave(times, dim=0))

    def expand(self, batch: int) -> "Conditioning":
        """One row seen as a batch of ``batch`` rows; a batch of that size is returned as it is."""
        if len(self) == batch:
            return self
        if len(self) != 1:
            raise ValueError(f"cannot expand conditioning of {len(self)} rows to {batch}: expected 1 or {batch} rows")
        return self._map(lambda x: x.expand(batch, *x.shape[1:]))

    def take(self, count: int) -> "Conditioning":
        """The first ``count`` rows."""
        return self._map(lambda x: x[:count])

    def cut(self, length: int) -> "Conditioning":
        """The first ``length`` text tokens."""
        return replace(self, text_states=self.text_states[:, :length], text_mask=self.text_mask[:, :length])

    def distinct(self) -> tuple["Conditioning", Int[Tensor, " b"]]:
        """Without the rows that equal the one before them; and which of those that are left each row was."""
        parts = [x for x in vars(self).values() if x is not None]
        same = torch.stack([(x[1:] == x[:-1]).flatten(1).all(1) for x in parts]).all(0)
        first = torch.nn.functional.pad(~same, (1, 0), value=True)
        return self._map(lambda x: x[first]), first.cumsum(0) - 1

    def roll(self, shift: int) -> "Conditioning":
        """Row ``i`` at place ``i + shift``, the last ones first."""
        return self._map(lambda x: x.roll(shift, dims=0))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Conditioning":
        """On a device, the floating-point parts in ``dtype``."""
        return self._map(lambda x: x.to(device=device, dtype=dtype if x.is_floating_point() else None))

    def with_image(self, image_embed: Float[Tensor, "b d"]) -> "Conditioning":
        """The same captions with this image embedding."""
        return replace(self, image_embed=image_embed)

    def where(self, keep: Bool[Tensor, "b"], other: "Conditioning") -> "Conditioning":
        """These captions where ``keep``, elsewhere the one row of ``other``; the image embeddings stay as they are."""
        return replace(
            self,
            text_embed=torch.where(keep[:, None], self.text_embed, other.text_embed),
            text_states=torch.where(keep[:, None, None], self.text_states, other.text_states),
            text_mask=torch.where(keep[:, None], self.text_mask, other.text_mask),
        )

    def _map(self, function) -> "Conditioning":
        return replace(self, **{name: function(value) for name, value in vars(self).items() if value is not None})
