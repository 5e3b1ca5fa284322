"""``python -m unclip_hub.cli``, for torchrun."""

from unclip_hub.cli import main


if __name__ == "__main__":
    main()
