"""Put a trained run into the package, in half precision, with a model card. For maintainers.

python examples/ship.py RUN --name NAME [--evaluation FILE.json ...]

Ship first, then measure what was shipped by its name, then ship again with the measurements. A prior is trained on
codes of a shipped tokenizer: half precision moves some codes, so those of the run it came from are another tokenizer's.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

import prior
import tokenizers_vq as tvq
from prior import model as priors
from prior.model import Prior
from tokenizers_vq import folders, tokenizer
from tokenizers_vq.ablation.judges import Judge, judge_of, resemblance
from tokenizers_vq.config import read_yaml
from tokenizers_vq.evaluation.tables import label
from tokenizers_vq.tokenizer import Tokenizer
from tokenizers_vq.training.recipe import load_recipe
from tokenizers_vq.training.tracking import read_log

ONE, ALL = 8_000_000, 40_000_000  # bytes
DATA = "Tiny ImageNet (Stanford CS231n's subset of ImageNet, 64 px): 80 of its 200 classes, 12,000 photographs"
DATA_LICENCE = "Tiny ImageNet's images are for research and education use only"
LICENCE = "research and education only"
TERMS = (
    "for research and education use only, as the images that they were trained on; the package's own licence covers "
    "its code, not these weights"
)
FLATTERED = {
    "": "",
    "same": "; flattered: a loss compared this very network's features",
    "family": "; may be flattered: a loss compared features of a relative of this network",
}
ROUNDING = (
    "Weights are stored as float16 and loaded as float32. Rounding moves some codes against the run they came from, so "
    "the fingerprint is that of this file: what it shall decode must be encoded with it."
)


def main(arguments: list[str] | None = None) -> Path:
    """Returns the folder written. Exits with one line for what cannot be shipped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True, help="by which it will be loaded")
    parser.add_argument("--evaluation", type=Path, nargs="*", default=[], help="JSON of `tvq evaluate NAME --out`")
    parser.add_argument("--data", default=DATA, help="what it was trained on")
    parser.add_argument("--data-licence", default=DATA_LICENCE)
    parser.add_argument("--licence", default=LICENCE, help="of the weights")
    parser.add_argument("--terms", default=TERMS, help="the licence in a sentence")
    parser.add_argument("--command", help="that trained it; unset, as the run's recipe says")
    options = parser.parse_args(arguments)
    found = folders.local(options.run)
    if found is None or not (options.run / "recipe.yaml").is_file():
        parser.error(f"{options.run} is no run: it needs recipe.yaml and model/")
    is_prior = "network" in json.loads((found / folders.CONFIG).read_text())
    model: Any = of_shipped_tokenizer(prior.load(options.run)) if is_prior else tvq.load(options.run)
    before = None if is_prior else model.fingerprint
    model.half()
    wrong = [name for name, tensor in model.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if wrong:
        parser.error(f"{wrong[0]} does not fit half precision (at most {torch.finfo(torch.float16).max:.0f})")
    card = make_card(options, model, is_prior)
    weights = priors.WEIGHTS if is_prior else tokenizer.WEIGHTS
    final = weights / options.name
    weights.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=weights, prefix=".") as aside:
        made = Path(aside, options.name)
        model.save_pretrained(made, card=card)
        size = bytes_in(made)
        shipped = [folder / name for folder in (tokenizer.WEIGHTS, priors.WEIGHTS) for name in folders.shipped(folder)]
        together = size + sum(bytes_in(folder) for folder in shipped if folder != final)
        if size > ONE or together > ALL:
            parser.error(
                f"{options.run} takes {size:,} bytes, all shipped models {together:,}; at most {ONE:,} and {ALL:,}"
            )
        check(made, is_prior)
        shutil.rmtree(final, ignore_errors=True)
        made.rename(final)
    print(f"{final}: {size:,} bytes of {ONE:,}, all shipped models {together:,} of {ALL:,}")
    if not is_prior:
        print(f"fingerprint {model.fingerprint[:8]}, of the run {before[:8]}: train priors on codes of {options.name}")
    if not options.evaluation:
        print(f"no figures in its card yet: measure {options.name}, then ship again with --evaluation")
    return final


def of_shipped_tokenizer(model: Prior) -> Prior:
    """The prior with the name of its tokenizer, which must be shipped, in place of a path."""
    for name in tvq.list_models("shipped"):
        if tvq.load(name).fingerprint == model.config.fingerprint:
            model.config = model.config.replace(tokenizer=name)
            return model
    raise SystemExit(
        f"ship.py: no shipped tokenizer has the fingerprint {str(model.config.fingerprint)[:8]} of this prior's codes: "
        "ship the tokenizer first, and train the prior on what `tvq encode NAME` writes"
    )


def make_card(options: argparse.Namespace, model: Tokenizer | Prior, is_prior: bool) -> dict[str, Any]:
    """What the model card says."""
    recipe = read_yaml(options.run / "recipe.yaml")
    steps = read_log(options.run / "log.jsonl")[-1]["step"]
    command = "tvq-prior train recipe.yaml CODES" if is_prior else "tvq train recipe.yaml"
    what = "class-conditional prior" if is_prior and model.config.condition.kind == "class" else "prior"
    return {
        "title": f"{options.name}: {what if is_prior else 'image tokenizer'}, shipped with tokenizers-vq",
        "name": options.name,
        "data": f"{options.data}; {steps:,} steps of {recipe['batch_size']} images",
        "data_licence": options.data_licence,
        "licence": options.licence,
        "terms": options.terms,
        "command": options.command or f"{command} --out {options.run.name}",
        "seed": recipe["seed"],
        "figures": dict(row for file in options.evaluation for row in figures(file, options.name, model, options.run)),
        "notes": f"{ROUNDING.split('. ')[0]}." if is_prior else ROUNDING,
        "recipe": yaml.safe_dump(portable(recipe), sort_keys=False, allow_unicode=True),
    }


def figures(file: Path, name: str, model: Tokenizer | Prior, run: Path) -> list[tuple[str, float | int]]:
    """Rows of the card from an evaluation, which must be of the shipped files."""
    found = json.loads(file.read_text())
    again = f"{file} is not of {name} as it is shipped: evaluate it by that name"
    if isinstance(model, Prior):
        if found.get("model") != name:
            raise SystemExit(f"ship.py: {again}")
        where = f", codes of {found['images']:,} held-out images"
        rows = [
            (f"bits per token{where}", found["bits_per_token"]),
            (f"bits per image{where}", found["bits_per_image"]),
        ]
        return [*rows, *((f"entropy of these codes, bits per token{where}", value) for value in found["entropies"])]
    if found["tokenizer"].get("fingerprint") != model.fingerprint:
        raise SystemExit(f"ship.py: {again}")
    data, usage = found["data"], found["usage"]
    recipe = load_recipe(str(run / "recipe.yaml"))
    split = f" {data['split']}" if data.get("split") else ""
    where = f", {Path(data['name']).name}{split} at {'x'.join(map(str, model.config.size))}, {data['images']:,} images"
    rows = []
    for metric, measured in found["metrics"].items():
        unit = f" ({measured['unit']})" if measured["unit"] else ""
        judge, of = judge_of(metric), ""
        if "backbone" in measured:
            judge, of = Judge("features", measured["backbone"], measured["layer"]), f" of {measured['backbone']}"
        flattered = FLATTERED[resemblance(judge, recipe)] if judge else ""
        rows.append((f"{label(metric)}{of}{unit}{where}{flattered}", measured["value"]))
    return [*rows, (f"share of codes used{where}", usage["usage"])]


def portable(value: Any) -> Any:
    """A recipe in which the machine's folders are left out of paths."""
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def check(folder: Path, is_prior: bool) -> None:
    """What was written loads and works."""
    if is_prior:
        model = prior.load(folder)
        tok = tvq.load(model.config.tokenizer)
        images = tok.decode(model.layout.unflatten(model.sample(1)))
    else:
        tok = tvq.load(folder)
        images = tok.decode(tok.encode(torch.zeros(1, tok.config.channels, *tok.config.size)))
    if not math.isfinite(float(images.sum())):
        raise SystemExit("ship.py: in half precision it decodes to no numbers")


def bytes_in(folder: Path) -> int:
    """Size of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


if __name__ == "__main__":
    main()
