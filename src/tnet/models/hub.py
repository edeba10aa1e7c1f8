"""Models on the Hugging Face hub: the same three files that :func:`tnet.save_model` writes, never a pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import EntryNotFoundError

from tnet.errors import CheckpointError

_Model = TypeVar("_Model", bound="HubModel")


class HubModel(ModelHubMixin):
    """What makes a model shareable: ``push_to_hub``, ``save_pretrained`` and ``from_pretrained``.

    Example:
        >>> tnet.load_model("runs/photos").push_to_hub("you/photos", private=True)
        >>> model = TNet.from_pretrained("you/photos")
    """

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the model as a folder; see :func:`tnet.save_model`.

        Args:
            save_directory: replaced if it exists.
            options: ``repo_id`` and ``push_to_hub``, with what else ``push_to_hub`` takes.

        Returns:
            The address of the commit if it was pushed too.

        Raises:
            OutputError: the folder cannot be written.
        """
        from tnet.models.io import save_model

        folder = save_model(self, Path(save_directory))  # type: ignore[arg-type]
        unused = ("config", "model_card_kwargs")  # both follow from the model
        options = {name: value for name, value in options.items() if name not in unused}
        if not options.pop("push_to_hub", False):
            return None
        return self.push_to_hub(options.pop("repo_id", None) or folder.name, **options)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls: type[_Model],
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        device: str | torch.device = "cpu",
    ) -> _Model:
        """Load a model from the hub, or from a folder.

        Only weights in safetensors and the configuration are fetched; nothing in them can run.

        Args:
            pretrained_model_name_or_path: ``owner/name`` on the hub, or a folder as for :func:`tnet.load_model`.
            revision: branch, tag or commit.
            cache_dir: folder of the cache; the hub's own if ``None``.
            force_download: fetch what is in the cache, too.
            local_files_only: fetch nothing.
            token: of the hub; ``None`` for the one of ``hf auth login``.
            device: where to put it.

        Returns:
            The model in evaluation mode.

        Raises:
            CheckpointError: it cannot be fetched, is damaged, or is a model of another kind.
        """
        from tnet.models.io import CONFIG_NAME, WEIGHTS_NAME, load_model

        source = str(pretrained_model_name_or_path)
        folder = Path(source)
        if not folder.is_dir():
            try:
                fetched = snapshot_download(
                    source,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=[CONFIG_NAME, WEIGHTS_NAME],
                )
            except (OSError, ValueError, EntryNotFoundError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
                raise CheckpointError(
                    f"model {source} is not a folder, and cannot be fetched from the hub ({reason}); check the name, "
                    "the network and your access (hf auth login), or give a folder"
                ) from None
            folder = Path(fetched)
        model = load_model(folder, device=device)
        if not isinstance(model, cls):
            raise CheckpointError(
                f"model {source} is a {type(model).__name__}, not a {cls.__name__}; load it with "
                f"{type(model).__name__}.from_pretrained, or tnet.load_model"
            )
        return model
