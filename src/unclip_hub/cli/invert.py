"""`unclip invert`: pictures to the embedding and the noise that make them."""

from pathlib import Path

import click

from unclip_hub.cli import options, plain_errors


@click.command(name="invert")
@click.argument("images", metavar="PICTURE...", nargs=-1, required=True)
@options.output("latent.safetensors")
@options.exact
@click.option("--steps", "num_inference_steps", type=options.STEPS, help="[default: 25]")
@click.option("--iterations", type=options.STEPS, default=1, help="Of each step, if not --exact. [default: 1]")
@click.option("--prompt", default="", metavar="TEXT", help="A caption for the decoder, by default the empty one.")
@options.model
def command(
    images: tuple[str, ...],
    *,
    output: Path,
    exact: bool,
    num_inference_steps: int | None,
    iterations: int,
    prompt: str,
    model: str | None,
    device: str,
    dtype: str,
    quiet: bool,
    debug: bool,
) -> None:
    """Find what each PICTURE is made from: its CLIP embedding and the decoder's noise, in one file.

    `unclip vary` and `unclip edit` start from such a file. Printed is how far the pictures made from it are from the
    originals at the decoder's size: root mean square, pixels going from -1 to 1.

    Example: unclip invert cat.jpg --exact --output cat.safetensors
    """
    if output.suffix != options.LATENT:
        raise click.UsageError(f"cannot write {output}: expected a name in {options.LATENT}")
    options.check_place(output)
    with plain_errors(debug=debug):
        from unclip_hub.images import read_picture
        from unclip_hub.pipelines.inversion import invert
        from unclip_hub.pipelines.text_to_image import UnCLIPPipeline

        given, where = [read_picture(image) for image in images], options.locate(model)
        pipe = options.load(UnCLIPPipeline, where, device=device, dtype=dtype, quiet=quiet)
        latent = invert(
            pipe,
            given,
            exact=exact,
            prompt=prompt,
            num_inference_steps=num_inference_steps,
            iterations=iterations,
        )
        output.parent.mkdir(parents=True, exist_ok=True)
        latent.save(output)
        click.echo(output)
        for image, error in zip(images, latent.errors, strict=True):
            click.echo(f"{image}: {error:.2g}")
