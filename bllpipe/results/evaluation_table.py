"""An evaluation for people: a row an exit, a row a threshold."""

from __future__ import annotations

from bllpipe.results.evaluation import EarlyExit, Evaluation, Exit


def evaluation_table(evaluation: Evaluation) -> str:
    """All figures of ``evaluation``, with what they mean."""
    parts = [_heading(evaluation), *_exit_rows(evaluation)]
    if len(evaluation.exits) > 1:
        parts += ["", *_early_rows(evaluation)]
    if evaluation.training_only_parameters:
        parts.append(f"only training needs {evaluation.training_only_parameters:,} parameters more, in the objectives")
    return "\n".join(parts)


def _heading(evaluation: Evaluation) -> str:
    recorded = evaluation.recorded_test_accuracy
    measured = "" if recorded is None else f"; the run itself measured {_percent(recorded)}"
    return (
        f"{evaluation.run}: {evaluation.method}, step {evaluation.step}, {evaluation.test_images:,} test images, "
        f"test accuracy {_percent(evaluation.test_accuracy)}{measured}"
    )


def _exit_rows(evaluation: Evaluation) -> list[str]:
    width = max(len("after"), *(len(each.after) for each in evaluation.exits))
    return [
        f"exit  {'after':<{width}} {'test accuracy':>14} {'together':>10} {'MFLOPs':>10} {'parameters':>12}   "
        "head's share of its block",
        *(_exit_row(each, width) for each in evaluation.exits),
        "together: the mean class probabilities of the exits up to this one;",
        "MFLOPs for one image and parameters are those of the network up to the exit, with its own head;",
        "two FLOPs are one multiply-accumulate, in convolutions and matrix products",
    ]


def _exit_row(each: Exit, width: int) -> str:
    return (
        f"{each.number:>4}  {each.after:<{width}} {_percent(each.test_accuracy):>14} "
        f"{_percent(each.ensemble_accuracy):>10} {each.flops / 1e6:>10,.3f} {each.parameters:>12,}   "
        f"FLOPs {_percent(each.head_flops_share)}, "
        f"parameters {_percent(each.head_parameters_share)}"
    )


def _early_rows(evaluation: Evaluation) -> list[str]:
    left = "".join(f"{f'at exit {each.number}':>11}" for each in evaluation.exits)
    return [
        f"leave at confidence  test accuracy   mean cost{left}",
        *(_early_row(each) for each in evaluation.early_exits),
        "mean cost: FLOPs for an image, of all heads on its way too, relative to the network without local heads",
    ]


def _early_row(each: EarlyExit) -> str:
    left = "".join(f"{_percent(part):>11}" for part in each.left)
    return f"{each.threshold:>19.3f} {_percent(each.test_accuracy):>14} {_percent(each.relative_cost):>11}{left}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"
