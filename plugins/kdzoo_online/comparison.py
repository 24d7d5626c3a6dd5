"""Report items of algorithms with several networks that learn together."""

from __future__ import annotations

from collections.abc import Iterable

from kdzoo.api import FinishedRun, ReportItem, Table, agreement_percent, top1_percent


def peers_and_their_ensemble(run: FinishedRun) -> Iterable[ReportItem]:
    """Measure the mean of all networks of the group, and list each with the share of answers that differ from the
    student's.
    """
    result = run.student
    labels = ["student", *(f"peer {i}" for i in range(len(result.peers)))]
    networks = [run.network(result, label.replace(" ", "_")) for label in labels]
    ensemble = run.ensemble(networks)
    run.measure({"ensemble": ensemble})
    answers = []
    for label, module in [*zip(labels, networks, strict=True), ("ensemble", ensemble)]:
        logits, targets = run.predict(module)
        answers.append((label, logits, targets))
    student = answers[0][1]
    rows = tuple(
        (label, round(top1_percent(logits, targets), 2), round(100 - agreement_percent(logits, student), 2))
        for label, logits, targets in answers
    )
    yield Table(
        "The group and its ensemble",
        ("network", "top-1 in %", "answers other than the student's in %"),
        rows,
        "The ensemble averages the probabilities of all. Only the student is delivered.",
    )
