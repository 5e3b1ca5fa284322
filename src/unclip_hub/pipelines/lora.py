"""LoRA adapters over all networks of a pipeline, in one file: diffusers' methods, under diffusers' names."""

from os import PathLike
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE, LoraBaseMixin, _fetch_state_dict
from diffusers.loaders.peft import PeftAdapterMixin
from torch import Tensor

from unclip_hub.models.lora import check_fits, require_peft, save_lora


_OPTIONS = (
    "weight_name",
    "cache_dir",
    "force_download",
    "proxies",
    "local_files_only",
    "token",
    "revision",
    "subfolder",
)


class LoraMixin(LoraBaseMixin):
    """``load_lora_weights save_lora_weights fuse_lora unfuse_lora``; from diffusers ``set_adapters unload_lora_weights
    delete_adapters enable_lora disable_lora get_list_adapters get_active_adapters``."""

    _lora_loadable_modules = ["prior", "text_proj", "decoder", "super_res_first", "super_res_last", "super_res_1024"]

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | PathLike[str] | dict[str, Tensor],
        adapter_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Load an adapter beside those already there, and make it the active one of the networks that it is for.

        Args:
            pretrained_model_name_or_path_or_dict: a folder, a safetensors file, a repository of the Hub, or tensors
                whose names begin with the component's.
            adapter_name: to tell several adapters apart; by default ``default_0``, ``default_1`` and so on.
            kwargs: ``weight_name``, the file's name; ``cache_dir force_download proxies local_files_only token
                revision subfolder`` as in ``from_pretrained``.

        Raises:
            ValueError: an adapter of another network, or one for a component that this pipeline does not have; the
                pipeline is then as it was. Or its name is taken.
        """
        require_peft()
        state, metadata = self.lora_state_dict(pretrained_model_name_or_path_or_dict, **kwargs)
        taken = {name for names in self.get_list_adapters().values() for name in names}
        if adapter_name is None:
            adapter_name = next(name for i in range(len(taken) + 1) if (name := f"default_{i}") not in taken)
        if adapter_name in taken:
            raise ValueError(f"the adapter name {adapter_name!r} is taken: choose another or delete that adapter")
        parts = self._by_component(state)
        for name, tensors in parts.items():
            check_fits(getattr(self, name), tensors, name=name)
        for name in parts:
            getattr(self, name).load_lora_adapter(
                state, prefix=name, adapter_name=adapter_name, metadata=metadata, _pipeline=self
            )

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: str | PathLike[str] | dict[str, Tensor], **kwargs: Any
    ) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        """An adapter's tensors, named ``component.layer``, and what its file says of how it was made."""
        if kwargs.keys() - set(_OPTIONS):
            unknown = ", ".join(sorted(kwargs.keys() - set(_OPTIONS)))
            raise TypeError(f"load_lora_weights has no option {unknown}; it has {', '.join(_OPTIONS)}")
        source: Any = pretrained_model_name_or_path_or_dict
        options: dict[str, Any] = {name: kwargs.get(name) for name in _OPTIONS}
        options["weight_name"] = options["weight_name"] or LORA_WEIGHT_NAME_SAFE
        return _fetch_state_dict(  # type: ignore[return-value]
            source if isinstance(source, dict) else str(source),
            use_safetensors=True,
            user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
            allow_pickle=False,
            **options,
        )

    def save_lora_weights(self, save_directory: str | PathLike[str], adapter_name: str | None = None) -> None:
        """Write one adapter of all networks to ``pytorch_lora_weights.safetensors`` in a folder.

        Args:
            adapter_name: which one; not needed if there is only one.
        """
        adapters = sorted({name for names in self.get_list_adapters().values() for name in names})
        if adapter_name is None:
            if len(adapters) != 1:
                raise ValueError(f"expected adapter_name, one of {', '.join(adapters) or 'none: there is no adapter'}")
            adapter_name = adapters[0]
        save_lora(self._networks(), Path(save_directory), adapter_name=adapter_name)

    def fuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """diffusers' own, by default of all networks."""
        super().fuse_lora(components or list(self._networks()), **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """diffusers' own, by default of all networks."""
        super().unfuse_lora(components or list(self._networks()), **kwargs)

    def _networks(self) -> dict[str, Any]:
        found = {name: getattr(self, name, None) for name in self._lora_loadable_modules}
        # diffusers' own upsampler, which a pipeline may hold instead of ours, takes no adapters
        return {name: network for name, network in found.items() if isinstance(network, PeftAdapterMixin)}

    def _by_component(self, state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, _, rest = key.partition(".")
            parts.setdefault(name, {})[rest] = value
        strangers = sorted(parts.keys() - self._networks().keys())
        if strangers or not parts:
            got = ", ".join(strangers) or "nothing"
            raise ValueError(f"the adapter must be of {', '.join(self._networks())}, got one of {got}")
        return parts
