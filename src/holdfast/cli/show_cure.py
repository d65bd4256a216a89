"""How a cure looks in a terminal: what is prescribed, what the proofs say, what was kept."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from holdfast.clinic.cure import Cure
from holdfast.clinic.proof import Proof
from holdfast.figures.wording import number
from holdfast.report.arms import arm_rows

_DIFF = {"- ": "red", "+ ": "green"}
_VERDICTS = {"helps": "bold green", "hurts": "bold red"}


def show_cure(console: Console, cure: Cure) -> None:
    """Print the prescription with its diff, each proof with its arms, and the receipt.

    Args:
        console: where to.
        cure: as it ended.
    """
    console.print(Text("Prescription", style="bold"))
    if not cure.prescription.choices:
        console.print(_indented("nothing: no finding names a treatment"))
    for choice in cure.prescription.choices:
        console.print(_indented(str(choice)))
    if cure.prescription.plans:
        console.print()
        console.print(Text.assemble(("Change  ", "bold"), cure.plan.treatment))
        for line in cure.plan.diff.splitlines():
            console.print(Text("    " + line, style=_DIFF.get(line[:2], "dim")), soft_wrap=True)
    for proof in cure.proofs:
        console.print()
        _show_proof(console, proof)
    console.print()
    _show_receipt(console, cure)


def cure_as_dict(cure: Cure) -> dict[str, Any]:
    """Plain values for JSON.

    Args:
        cure: as it ended.

    Returns:
        Prescription, proofs and receipt; `null` for the receipt where nothing was kept.
    """
    receipt = cure.receipt
    return {
        "prescription": {
            "treatment": cure.prescription.treatment,
            "diff": cure.prescription.diff,
            "source": cure.prescription.source,
            "choices": [
                {"rule": each.rule, "treatment": each.treatment, "decision": each.decision, "reason": each.reason}
                for each in cure.prescription.choices
            ],
        },
        "proofs": [each.as_dict() for each in cure.proofs],
        "receipt": None
        if receipt is None
        else {
            "treatment": receipt.treatment,
            "changes": list(receipt.changes),
            "error_eval": receipt.error_eval,
            "error_train": receipt.error_train,
            "renamed": dict(receipt.renamed),
            "removed": list(receipt.removed),
        },
    }


def _show_proof(console: Console, proof: Proof) -> None:
    console.print(
        Text.assemble(
            ("Proof  ", "bold"), f"{proof.treatment}: ", (proof.verdict, _VERDICTS.get(proof.verdict, "bold yellow"))
        )
    )
    console.print(_indented(proof.sentence))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("arm", no_wrap=True)
    heads = ["loss", "diverged", "ms a step", "shift, median", "shift, largest (where)"]
    for head in ([proof.primary] if proof.primary != "loss" else []) + heads:
        table.add_column(head, justify="right")
    for row in arm_rows(proof):
        cells = [number(row.outcome)] if proof.primary != "loss" else []
        cells += [number(row.loss), f"{row.diverged} of {proof.seeds}", number(1000 * row.seconds)]
        shift = row.shift
        cells += ["–", "–"] if shift is None else [number(shift.median), f"{number(shift.largest)} ({shift.where})"]
        table.add_row(row.name, *cells)
    console.print(Padding(table, (0, 0, 0, 4)))
    console.print(
        _indented(
            f"Means over {proof.seeds} trainings an arm of {proof.steps} steps, on batches not trained on. Time: median"
            " of a training step. Shift: parameter drift of a layer's input over one step, in reference SD, over the"
            " first trainings' observed steps.",
            style="dim",
        )
    )


def _show_receipt(console: Console, cure: Cure) -> None:
    receipt = cure.receipt
    if receipt is None:
        why = "no treatment was proved to help" if cure.proofs else "there was nothing to prove"
        console.print(Text.assemble(("Receipt  ", "bold"), f"none: {why}; the network is as it was"))
        return
    console.print(
        Text.assemble(
            ("Receipt  ", "bold"),
            f"{receipt.treatment}, {len(receipt.changes)} change{'' if len(receipt.changes) == 1 else 's'}; "
            "receipt.undo() takes it back bit for bit",
        )
    )
    if receipt.error_eval is not None and receipt.error_train is not None:
        console.print(
            _indented(
                f"largest change of an output on the batch: {number(receipt.error_eval)} in eval mode, "
                f"{number(receipt.error_train)} in train mode"
            )
        )
    if receipt.renamed:
        told = f"{len(receipt.renamed)} keys of the state_dict have another name now"
        console.print(_indented(f"{told}; receipt.convert(checkpoint) gives an old one the new names"))


def _indented(text: str, *, style: str = "") -> Padding:
    return Padding(Text(text, style=style), (0, 0, 0, 4), expand=False)
