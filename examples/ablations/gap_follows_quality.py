"""Does a critic's gap follow quality? Rank correlation with the feature distance over the checkpoints of two runs.

python examples/ablations/gap_follows_quality.py MODEL PHOTOS TEST OUT [PATH=VALUE ...]

Both runs begin with MODEL's weights: Wasserstein's objective with gradient penalty, whose gap of mean logits is meant
to fall as images get better, and the minimax game, whose loss is not. A killed command goes on where it was.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

import tokenizers_vq as tvq
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.loading import evaluation_batches
from tokenizers_vq.evaluation import evaluate
from tokenizers_vq.training.recipe import Recipe, load_recipe
from tokenizers_vq.training.runs import train
from tokenizers_vq.training.tracking import read_log
from tokenizers_vq.writing import write_atomically

CHECKPOINTS = 20
COMMON = ["optimizer.lr=3.0e-4", "adversary.optimizer.lr=5.0e-4", "adversary.warmup=20", "log_every=5"]
RUNS = {
    "wasserstein": ["adversary.objective={kind: wasserstein}", "adversary.regularisers=[{kind: gradient_penalty}]"],
    "minimax": ["adversary.objective={kind: minimax}"],
}
FIGURES = {"wasserstein": "adversary/gap", "minimax": "discriminator"}


def measured(recipe: Recipe, model: str, test: str, out: Path) -> list[dict[str, Any]]:
    """The feature distance after each stretch of `recipe.steps`, and the mean of the run's figures over it."""
    path, originals = out.with_suffix(".json"), {}
    points = json.loads(path.read_text()) if path.exists() else []
    for number in range(len(points) + 1, CHECKPOINTS + 1):
        steps = number * recipe.steps
        train(recipe.replace(steps=steps, checkpoint_every=recipe.steps), out, device="cpu", init_from=model)
        data = DataConfig(path=test, limit=256)
        batches = evaluation_batches(data, image_size=recipe.model.image_size, channels=3, batch_size=32)
        found = evaluate(tvq.load(out), batches, originals=originals).metrics
        lines = [line for line in read_log(out / "log.jsonl") if steps - recipe.steps < line["step"] <= steps]
        figures = {name: sum(line[name] for line in lines) / len(lines) for name in FIGURES.values()}
        points.append({"step": steps, **figures, **{name: metric.value for name, metric in found.items()}})
        write_atomically(path, json.dumps(points, indent=1))
        print({name: round(value, 4) for name, value in points[-1].items()}, flush=True)
    return points


def rank_correlation(*sides: list[float]) -> float:
    """Spearman's, of numbers without ties."""
    ranks = torch.stack([torch.tensor(side).argsort().argsort() for side in sides])
    return torch.corrcoef(ranks.double())[0, 1].item()


def main(model: str, photos: str, test: str, out: str, *overrides: str) -> None:
    for name, changes in RUNS.items():
        given = [f"data.path={photos}", "steps=30", *COMMON, *changes, *overrides]
        recipe = load_recipe(Path(__file__).parent / "recipes" / "adversary-32.yaml", given)
        points = measured(recipe, model, test, Path(out, name))
        rho = rank_correlation(*([point[figure] for point in points] for figure in (FIGURES[name], "feature_distance")))
        print(f"{name}: rank correlation of {FIGURES[name]} with the feature distance {rho:+.2f}, n = {len(points)}")


if __name__ == "__main__":
    if len(sys.argv) < 5:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
