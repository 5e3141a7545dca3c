"""``rerank-trainer export``: a folder for servers, from one checkpoint or merged from several."""

from __future__ import annotations

from rerank_trainer.cli.options import ExportOptions
from rerank_trainer.models.export import export_classifier
from rerank_trainer.models.merging import merge_checkpoints
from rerank_trainer.models.preview import preview_checkpoint
from rerank_trainer.models.serving import serving_commands


def run(options: ExportOptions) -> None:
    """Write the folder, and print how servers are started on it."""
    _check(options)
    if len(options.model) == 1:
        export_classifier(options.model[0], options.output_dir)
    else:
        merge_checkpoints(options.model, options.output_dir, method=options.method, weights=options.weights)
    print("\n\n".join(serving.markdown() for serving in serving_commands(options.output_dir)))


def plan(options: ExportOptions) -> dict[str, str]:
    """What would be written."""
    _check(options)
    is_merged = len(options.model) > 1
    return {
        "model": "; ".join(str(preview_checkpoint(name)) for name in options.model),
        "export": f"merged, {options.method}" if is_merged else "a classifier with one logit",
        "output_dir": options.output_dir,
    }


def _check(options: ExportOptions) -> None:
    if len(options.model) == 1 and options.weights is not None:
        raise ValueError(f"weights={options.weights} are for several models, found {options.model}")
