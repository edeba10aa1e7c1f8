"""Models on the Hugging Face Hub: the three files of :func:`tnet.save_model`, never a pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import EntryNotFoundError

from tnet.errors import CheckpointError, first_line

_Model = TypeVar("_Model", bound="HubModel")


class HubModel(ModelHubMixin):
    """Mixin for ``push_to_hub``, ``save_pretrained`` and ``from_pretrained``.

    Example:
        >>> tnet.load_model("runs/photos").push_to_hub("you/photos", private=True)
        >>> model = TNet.from_pretrained("you/photos")
    """

    def save_pretrained(self, save_directory: str | Path, *, overwrite: bool = False, **options: Any) -> str | None:
        """Save the model to a folder; return the URL of the commit if it was also pushed.

        Args:
            save_directory: output folder; must be new or empty unless ``overwrite``.
            overwrite: replace the model's files in an existing folder; others stay.
            options: ``push_to_hub`` and ``repo_id``, and further arguments of ``push_to_hub``.

        Raises:
            OutputError: the folder exists and is not empty, or cannot be written.
        """
        from tnet.models.io import save_model

        folder = save_model(self, save_directory, overwrite=overwrite)  # type: ignore[arg-type]
        for unused in ("config", "model_card_kwargs"):  # both follow from the model
            options.pop(unused, None)
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
        """Load a model from the Hub or from a folder, in evaluation mode.

        Only safetensors weights and the configuration are fetched; nothing in them can run code.

        Args:
            pretrained_model_name_or_path: ``owner/name`` on the Hub, or a folder; see :func:`tnet.load_model`.
            revision: branch, tag or commit.
            cache_dir: folder of the cache; the Hub's own if ``None``.
            force_download: download cached files again.
            local_files_only: use only cached files.
            token: token of the Hub; ``None`` for that of ``hf auth login``.
            device: device of the model.

        Raises:
            CheckpointError: the model cannot be fetched, is damaged, or is of another class.
        """
        from tnet.models.calibration import CALIBRATION_NAME
        from tnet.models.io import CONFIG_NAME, WEIGHTS_NAME, load_model

        source = str(pretrained_model_name_or_path)
        folder = Path(source)
        if not folder.is_dir():
            try:
                fetched = snapshot_download(
                    source, revision=revision, cache_dir=cache_dir, force_download=force_download, token=token,
                    local_files_only=local_files_only, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME, CALIBRATION_NAME],
                )  # fmt: skip
            except (OSError, ValueError, EntryNotFoundError) as error:
                problem = f"model {source} is not a folder and cannot be fetched from the Hub ({first_line(error)})"
                remedy = "check the name, the network and your access (hf auth login), or give a folder"
                raise CheckpointError(f"{problem}; {remedy}") from None
            folder = Path(fetched)
        model = load_model(folder, device=device)
        if not isinstance(model, cls):
            remedy = f"load it with {type(model).__name__}.from_pretrained, or tnet.load_model"
            raise CheckpointError(f"model {source} is a {type(model).__name__}, not a {cls.__name__}; {remedy}")
        return model
