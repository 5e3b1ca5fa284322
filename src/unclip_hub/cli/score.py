"""`unclip score`: how well captions fit a picture."""

import click

from unclip_hub.cli import options, plain_errors


@click.command(name="score")
@click.argument("image", metavar="PICTURE")
@click.argument("captions", metavar="CAPTION...", nargs=-1, required=True)
@click.option(
    "--logit-scale",
    type=click.FloatRange(min=0, min_open=True),
    callback=options.finite,
    default=100.0,
    help="What cosines are multiplied by before the softmax. [default: 100, CLIP's]",
)
@options.model
def command(
    image: str,
    captions: tuple[str, ...],
    *,
    logit_scale: float,
    model: str | None,
    device: str,
    dtype: str,
    quiet: bool,
    debug: bool,
) -> None:
    """Say how well each CAPTION fits PICTURE, to the model's CLIP; the best comes first.

    A line for each: its probability, if one of the captions is right; the cosine of the embeddings; the caption.

    Example: unclip score pet.jpg "a cat" "a dog" "a house"
    """
    with plain_errors(debug=debug):
        from unclip_hub.images import read_picture
        from unclip_hub.pipelines.scoring import score
        from unclip_hub.pipelines.text_to_image import UnCLIPPipeline

        picture, where = read_picture(image), options.locate(model)
        pipe = options.load(UnCLIPPipeline, where, device=device, dtype=dtype, quiet=quiet)
        made = score(pipe, picture, captions=list(captions), logit_scale=logit_scale)
        rows = zip(made.probabilities[0].tolist(), made.similarities[0].tolist(), captions, strict=True)
        for probability, cosine, caption in sorted(rows, reverse=True):
            click.echo(f"{probability:6.1%}  {cosine:+.3f}  {caption}")
