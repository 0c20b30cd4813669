"""`from_pretrained`, `save_pretrained` and `push_to_hub` of a network, with arguments of huggingface_hub's mixin."""

import sys
from pathlib import Path
from typing import Any, Self

from torch import nn

from residuum.errors import WeightsError, quoted

_OF_AN_UPLOAD = ("commit_message", "private", "token", "branch", "create_pr")


class Shared(nn.Module):
    """A network that comes from a folder or the hub, and goes there. It is called as huggingface_hub's `ModelHubMixin`.

    The folder is that of `residuum.save_pretrained`. Files are read and written by a room above this one: so its public
    functions are called, which are imported, as huggingface_hub is, when a method here is called.
    """

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """The network of a folder or of `owner/name` on the hub, in evaluation mode: `residuum.from_pretrained`.

        Raises what that raises, and `WeightsError` for a class that a folder does not tell how to build.
        """
        model = _public("from_pretrained")(
            pretrained_model_name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        if not isinstance(model, cls):
            raise WeightsError(
                f"a folder says how to build a residuum.ResNet, and nothing of {quoted(cls.__name__)}; build one from "
                "the config of residuum.from_pretrained, and load its state dict"
            )
        return model

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, push_to_hub: bool = False, **more: Any
    ) -> str | None:
        """Write the network as a folder: `residuum.save_pretrained`, which takes `classes`, `metrics` and the others.

        With `push_to_hub` it is uploaded to `repo_id` as well, and the address is given; `more` may then have the
        arguments of `push_to_hub` too. Raises `WeightsError`.
        """
        if push_to_hub and repo_id is None:
            raise WeightsError("push_to_hub needs to know where to: add repo_id, owner/name")
        upload = {name: more.pop(name) for name in _OF_AN_UPLOAD if push_to_hub and name in more}
        _public("save_pretrained")(self, save_directory, **more)
        return None if repo_id is None or not push_to_hub else self.push_to_hub(repo_id, **upload, **more)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool = True,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool = False,
        **card: Any,
    ) -> str:
        """Upload the network to `owner/name` on the hub, private unless that is said otherwise; gives its address.

        `card` is what `residuum.save_pretrained` takes besides the folder, such as `classes` and `metrics`. Raises
        `WeightsError`, and `MissingExtraError` without huggingface_hub.
        """
        address: str = _public("push_to_hub")(
            self,
            repo_id,
            commit_message=commit_message,
            private=private,
            token=token,
            branch=branch,
            create_pr=create_pr,
            **card,
        )
        return address


def _public(name: str) -> Any:
    """A public function of the package, which knows all rooms and imports them when they are used."""
    return getattr(sys.modules["residuum"], name)
