"""Linear probing: at first only the head learns, on features that stay as they are; then everything does."""

from __future__ import annotations

from torch import nn

from soupkit.errors import RecipeError


def head_prefixes(model: nn.Module) -> tuple[str, ...]:
    """timm's names of the classifier layers, each with a dot behind it; none where the model does not say."""
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return tuple(f"{name}." for name in ([named] if isinstance(named, str) else named))


class Probe:
    """Switches a model between training its head alone and training all of it (LP-FT: Kumar et al. 2022).

    arXiv:2202.10054. While it probes, what is not the head gets no gradient and is in eval mode, so that
    batch-norm statistics stay and no feature is dropped. Raises RecipeError for a model that names no head.
    """

    def __init__(self, model: nn.Module) -> None:
        prefixes = head_prefixes(model)
        if not prefixes:
            raise RecipeError(
                "linear probing needs a model that names its head", hint="leave the linear probe out"
            )
        self.model = model
        self.body = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not name.startswith(prefixes)
        ]
        self.head = [module for name, module in model.named_modules() if f"{name}.".startswith(prefixes)]
        self.probing = False

    def switch(self, *, probing: bool) -> None:
        """Train the head alone, or everything; called with what holds already, it does nothing."""
        if probing == self.probing:
            return
        self.probing = probing
        for parameter in self.body:
            parameter.requires_grad_(not probing)
            parameter.grad = None
        self.model.train(not probing)
        for module in self.head:
            module.train()
