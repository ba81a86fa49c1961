"""Models from pixels to logits: from the zoo, from timm, or your own.

`build` gives a `Classifier`, which takes pixels in 0..255 and normalises them inside, so that
training, evaluation, an exported file and a server cannot differ in what they do to a pixel.
"""

from __future__ import annotations

from vidi.model.building import build, check_name, name_of, own, start_from
from vidi.model.checkpointing import checkpoint_activations
from vidi.model.classifier import (
    Classifier,
    freeze,
    freeze_batch_norm,
    own_parts,
    reset_head,
    set_head,
)
from vidi.model.counting import activation_bytes, facts
from vidi.model.from_timm import HubModel, declare_missing_operators, import_timm, is_own
from vidi.model.fusion import fused
from vidi.model.listing import Listing, list_models
from vidi.model.pretrained import fetch_weights, weights_facts

__all__ = [
    "Classifier",
    "HubModel",
    "Listing",
    "activation_bytes",
    "build",
    "check_name",
    "checkpoint_activations",
    "declare_missing_operators",
    "facts",
    "fetch_weights",
    "freeze",
    "freeze_batch_norm",
    "fused",
    "import_timm",
    "is_own",
    "list_models",
    "name_of",
    "own",
    "own_parts",
    "reset_head",
    "set_head",
    "start_from",
    "weights_facts",
]
