"""Makes headrace's demo model: a small Llama trained on Python's standard library.

python scripts/train_demo_model.py              all three commands in turn
python scripts/train_demo_model.py prepare      corpus and tokenizer, into the work directory
python scripts/train_demo_model.py train        needs the work directory only; resumes
python scripts/train_demo_model.py export       writes the asset directory
"""

import argparse
import sys
from pathlib import Path

from demo_model.recipe import Recipe

REPOSITORY_DIR = Path(__file__).resolve().parent.parent
WORK_DIR = REPOSITORY_DIR / "build" / "demo_model"
ASSET_DIR = REPOSITORY_DIR / "src" / "headrace" / "assets" / "demo"


def main() -> int:
    """Run the chosen command; return the exit code."""
    options = parse_options()
    commands = {"prepare": run_prepare, "train": run_train, "export": run_export}
    chosen = list(commands) if options.command == "all" else [options.command]
    try:
        for name in chosen:
            commands[name](options)
    except (FileNotFoundError, ValueError) as error:
        print(f"train_demo_model: {error}", file=sys.stderr)
        return 2
    return 0


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    recipe = Recipe()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "command", nargs="?", default="all", choices=["all", "prepare", "train", "export"]
    )
    parser.add_argument("--work-dir", type=Path, default=WORK_DIR)
    parser.add_argument("--output", type=Path, default=ASSET_DIR, help="asset directory")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--total-steps", type=int, default=recipe.total_steps)
    parser.add_argument("--peak-learning-rate", type=float, default=recipe.peak_learning_rate)
    parser.add_argument("--checkpoint-interval-s", type=float, default=120.0)
    return parser.parse_args()


def run_prepare(options: argparse.Namespace) -> None:
    """Write the prepared corpus."""
    from demo_model.corpus import prepare  # keeps the tokenizer's trainer out of `train`

    manifest = prepare(options.work_dir)
    print(f"prepared {options.work_dir}: {manifest}")


def run_train(options: argparse.Namespace) -> None:
    """Train to the end."""
    from demo_model.training import train

    recipe = Recipe(total_steps=options.total_steps, peak_learning_rate=options.peak_learning_rate)
    result = train(
        recipe,
        options.work_dir,
        device_name=options.device,
        checkpoint_interval_s=options.checkpoint_interval_s,
    )
    print(f"trained: {result}")


def run_export(options: argparse.Namespace) -> None:
    """Write the asset directory."""
    from demo_model.asset import export

    bits_per_byte = export(options.work_dir, options.output)
    print(f"exported {options.output}: {bits_per_byte:.4f} held-out bits per byte")


if __name__ == "__main__":
    sys.exit(main())
