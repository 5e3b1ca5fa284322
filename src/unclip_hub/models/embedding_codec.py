"""CLIP embeddings as codes: principal components, the strongest first, each quantised (arXiv:2204.06125, 2.2)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unclip_hub.embeddings import PCA


class EmbeddingCodec(nn.Module):
    """The first principal components of embeddings, in order of decreasing eigenvalue, a bucket of each as its code.

    All buckets of a component hold as many of the embeddings that it was fitted to, so that a code is a rank: codes
    of every component are spread alike. Until `fit` it is a code for standard normal vectors.
    """

    mean: Tensor
    basis: Tensor
    levels: Tensor

    def __init__(self, width: int, *, components: int, buckets: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("basis", torch.eye(components, width))
        self.register_buffer("levels", normal_scores(buckets).repeat(components, 1))  # what each code stands for

    @torch.no_grad()
    def fit(self, embeds: Float[Tensor, "n d"]) -> None:
        """Take components and buckets from these embeddings.

        Raises:
            ValueError: fewer than two embeddings, or of another width.
        """
        components, buckets = self.levels.shape
        if embeds.shape[1] != len(self.mean):
            raise ValueError(f"embeddings must be (n, {len(self.mean)}), got {tuple(embeds.shape)}")
        pca = PCA.fit(embeds, components=components)
        ordered = pca.transform(embeds).sort(dim=0).values  # (n, k)
        ranks = (torch.arange(buckets, dtype=torch.float64, device=embeds.device) + 0.5) / buckets
        at = (ranks * len(embeds) - 0.5).clamp(0, len(embeds) - 1)
        below, above = ordered[at.floor().long()], ordered[at.ceil().long()]
        self.mean.copy_(pca.mean)
        self.basis.copy_(pca.basis)
        self.levels.copy_(torch.lerp(below, above, at.frac()[:, None]).T)

    def encode(self, embeds: Float[Tensor, "b d"]) -> Int[Tensor, "b k"]:
        """The nearest code of each component."""
        with torch.autocast(embeds.device.type, enabled=False):
            coordinates = (embeds.to(self.mean) - self.mean) @ self.basis.T
        edges = (self.levels[:, 1:] + self.levels[:, :-1]) / 2
        return torch.searchsorted(edges.contiguous(), coordinates.T.contiguous()).T

    def forward(self, codes: Int[Tensor, "b j"]) -> Float[Tensor, "b d"]:
        """The embeddings of the first j components' codes, the mean along the others: fewer codes, a coarser idea."""
        count = codes.shape[1]
        return self.embed(self.levels[:count].to(codes.device).gather(1, codes.T).T)

    def embed(self, coordinates: Float[Tensor, "b j"]) -> Float[Tensor, "b d"]:
        """The embeddings of coordinates along the first j components; at least in float32."""
        precise = torch.promote_types(self.mean.dtype, torch.float32)
        device, count = coordinates.device, coordinates.shape[1]
        basis, mean = self.basis[:count].to(device, precise), self.mean.to(device, precise)
        with torch.autocast(device.type, enabled=False):
            return coordinates.to(precise) @ basis + mean

    def expected(self, logits: Float[Tensor, "b k n"]) -> Float[Tensor, "b k"]:
        """The mean coordinate along each component, by the distributions of their codes."""
        return torch.einsum("bkn,kn->bk", logits.softmax(-1), self.levels.to(logits))


class BucketVectors(nn.Module):
    """A vector for every bucket: a learned one, and a smooth function of its score, so that neighbours learn together.

    Of a vector h, the inner products with them are logits over the buckets; `zero` starts with all alike. Where a
    score is a normal one, any Gaussian is among the smooth functions: its logit is a parabola in the score. The
    shortest of the `waves` is 8 / waves long.
    """

    def __init__(self, width: int, *, buckets: int, waves: int = 16, zero: bool = False):
        super().__init__()
        self.buckets, self.waves = buckets, waves
        self.table = nn.Embedding(buckets, width)
        self.smooth = nn.Linear(2 + 2 * waves, width, bias=False)
        nn.init.normal_(self.table.weight, std=0.02)
        if zero:
            nn.init.zeros_(self.table.weight)
            nn.init.zeros_(self.smooth.weight)

    def forward(self, scores: Float[Tensor, "n"], *, dtype: torch.dtype) -> Float[Tensor, "n w"]:
        angles = scores[:, None] * torch.arange(1, self.waves + 1, device=scores.device) * (torch.pi / 4)
        parabola = torch.stack([scores, (scores**2 - 1) / 2**0.5], dim=1)
        features = torch.cat([parabola, angles.cos(), angles.sin()], dim=1).to(dtype)
        return self.table(torch.arange(self.buckets, device=scores.device)) + self.smooth(features)


def normal_scores(buckets: int, *, device: torch.device | None = None) -> Float[Tensor, "n"]:
    """The median of each of `buckets` equally likely parts of a standard normal distribution."""
    return torch.special.ndtri((torch.arange(buckets, device=device, dtype=torch.float32) + 0.5) / buckets)


def cosine_scores(buckets: int, *, device: torch.device | None = None) -> Float[Tensor, "n"]:
    """The middle of each of `buckets` equally wide parts of -1 … 1, stretched to a variance of 1."""
    return 3**0.5 * ((torch.arange(buckets, device=device, dtype=torch.float32) + 0.5) / buckets * 2 - 1)


def cosine_codes(cosine: Float[Tensor, "b"], *, buckets: int) -> Int[Tensor, "b"]:
    """The bucket of each cosine, of equally wide ones over -1 … 1."""
    return ((cosine + 1) / 2 * buckets).long().clamp(0, buckets - 1)
