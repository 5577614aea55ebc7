"""From photographs to a tokenizer, its report, a prior and new images, through the command line; minutes on two cores.

python examples/demo.py [--tokenizer-steps N] [--prior-steps N] [--out FOLDER]

Writes only into FOLDER (runs/demo). Stopped and started again it goes on; started once more it is done at once.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = {"tvq": "tokenizers_vq.cli", "tvq-prior": "prior.cli"}


class Commands:
    """Runs command lines one after another; those that an earlier call ran to their end, in this order, are skipped."""

    def __init__(self, record: Path) -> None:
        self.record, self.number = record, 0
        self.done = record.read_text().splitlines() if record.exists() else []

    def run(self, program: str, *arguments: object) -> None:
        """Run `tvq` or `tvq-prior`; leave with its status where it fails."""
        words = [program, *map(str, arguments)]
        line = shlex.join(words)
        print(f"\n$ {line}", flush=True)
        number, self.number = self.number, self.number + 1
        if self.done[number : number + 1] == [line]:
            print("  (done before)", flush=True)
            return
        del self.done[number:]  # what came after it was made from what it is about to make
        start = time.perf_counter()
        # The package of this interpreter is meant, whatever PATH finds under the script's name.
        code = f"from {PACKAGES[program]} import main; main()"
        status = subprocess.run([sys.executable, "-c", code, *words[1:]]).returncode
        if status:
            print(f"demo: failed with status {status}: {line}", file=sys.stderr)
            sys.exit(status if status > 0 else 128 - status)
        print(f"  ({time.perf_counter() - start:.0f} s)", flush=True)
        self.done.append(line)
        self.record.parent.mkdir(parents=True, exist_ok=True)
        self.record.write_text("\n".join(self.done) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer-steps", type=int, default=550, help="steps of the tokenizer's training")
    parser.add_argument("--prior-steps", type=int, default=150, help="steps of the prior's training")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder that everything is written to")
    chosen = parser.parse_args()
    out: Path = chosen.out

    print(
        "The images are photographs that come inside scikit-image, cut into windows of 128 x 128 pixels: the left of\n"
        "each photograph is trained on, the right is held out. A dozen photographs are a demonstration, no benchmark."
    )
    tokenizer, codes, held_out, prior = out / "tokenizer", out / "codes", out / "codes-held-out", out / "prior"
    commands = Commands(out / "commands.txt")
    commands.run("tvq", "train", "demo", f"steps={chosen.tokenizer_steps}", "--out", tokenizer)
    measure = ("--backbone", "none")  # a feature distance of so few images would say nothing
    commands.run("tvq", "evaluate", tokenizer, "--out", out / "evaluation.json", *measure)
    commands.run("tvq", "report", tokenizer, "--out", out / "report", *measure)
    reconstructions = ("--data", "skimage", "--split", "test", "--count", 24, "--out", out / "reconstructions")
    commands.run("tvq", "reconstruct", tokenizer, *reconstructions)
    commands.run("tvq", "encode", tokenizer, "skimage", "--split", "train", "--out", codes)
    commands.run("tvq", "encode", tokenizer, "skimage", "--split", "test", "--out", held_out)
    steps = (f"held_out_codes={held_out}", f"steps={chosen.prior_steps}")
    commands.run("tvq-prior", "train", "demo", codes, *steps, "--out", prior)
    commands.run("tvq-prior", "score", prior, "--out", out / "prior.json")
    commands.run("tvq-prior", "sample", prior, "--grid", "13x6", "--top-p", 0.95, "--out", out / "samples")
    summarise(out)


def summarise(out: Path) -> None:
    evaluation = json.loads((out / "evaluation.json").read_text())
    prior = json.loads((out / "prior.json").read_text())
    metrics, usage = evaluation["metrics"], evaluation["usage"]
    figures = ", ".join(
        f"{name.replace('_', '-').upper()} {metric['value']:.4g}"
        for name, metric in metrics.items()
        if name in ("psnr", "ssim") or name.startswith("lpips")  # there where weights of its trunk are at hand
    )
    told = {
        "held-out images": f"{figures} ({evaluation['data']['images']} windows of the photographs' right parts)",
        "codes used": f"{usage['usage']:.1%} of them occur in the held-out images",
        "prior": f"{prior['bits_per_token']:.2f} bits per token on held-out codes, unigram {prior['unigram']:.2f}",
        "the run": out / "tokenizer",
    }
    made = {
        "the report": out / "report" / "report.html",
        "reconstructions": out / "reconstructions" / "grid.png",
        "new images": out / "samples" / "grid.png",
    }
    print()
    for name, value in told.items():
        print(f"{name + ':':<18}{value}")
    print("Photographs inside scikit-image: a demonstration, no benchmark.\n\nOpen what it made:")
    for name, path in made.items():
        print(f"  {name + ':':<18}{path.resolve().as_uri()}")


if __name__ == "__main__":
    main()
