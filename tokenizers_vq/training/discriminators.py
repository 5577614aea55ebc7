"""The discriminator that a run has trained, or that lies beside a saved tokenizer."""

from __future__ import annotations

from pathlib import Path

from tokenizers_vq.config import parse, read_yaml
from tokenizers_vq.discriminators import saved
from tokenizers_vq.discriminators.base import Discriminator
from tokenizers_vq.models import find
from tokenizers_vq.training.checkpoint import newest
from tokenizers_vq.training.recipe import Recipe


def trained_discriminator(name: str) -> tuple[Discriminator | None, str]:
    """The discriminator of the newest whole checkpoint of a run, else the one beside a saved tokenizer, in eval mode.

    None, with the reason, where there is none, or where it has not been trained yet. Raises one line for a broken one.
    """
    run, beside = Path(name), find(name) / saved.FOLDER
    recipe = run / "recipe.yaml"
    if not recipe.is_file():
        return (saved.load(beside), "") if beside.is_dir() else (None, "none was saved with this model")
    parsed = parse(Recipe, read_yaml(recipe), str(recipe))
    if parsed.adversary is None:
        return None, "the run is trained without an adversary"
    found = newest(run / "checkpoints")
    if found is None:
        return None, "the run has no checkpoint that would hold it"
    step, parts = found
    started = int(parts["state.start"]["started"])
    if not 0 <= started < step:
        begins = f"step {started}" if started >= 0 else "a step not yet known"
        return None, f"at step {step} of the run it is untrained: it starts at {begins}"
    discriminator = parsed.adversary.discriminator.build(parsed.model.channels, parsed.model.size)
    try:
        discriminator.load_state_dict(parts["modules.discriminator"], strict=True)
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"{run / 'checkpoints' / str(step)} does not fit the discriminator of {recipe} "
            f"({' '.join(str(error).split())[:200]}): it is of another version"
        ) from None
    return discriminator.eval(), ""
