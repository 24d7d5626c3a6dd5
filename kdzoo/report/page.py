"""report.html: one page about one run that loads nothing and escapes every name."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from kdzoo import __version__
from kdzoo.errors import plain
from kdzoo.report import charts
from kdzoo.report.reading import Run, algorithm_of
from kdzoo.report.tables import COLUMNS, NOTHING, VARIANT_COLUMNS, cells, entries, item_cell, variants
from kdzoo.report.verdict import CAVEAT, Verdict, verdict


class Html(str):
    """Text that is markup already; every other string is escaped on its way into the page."""


def element(name: str, *children: Any, **attributes: Any) -> Html:
    """Build an element; ``class_`` is class, None leaves an attribute or a child out."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    opening = name + "".join(f' {key}="{html.escape(str(value))}"' for key, value in given.items())
    return Html(f"<{opening}>{join(*children)}</{name}>")


def join(*children: Any) -> Html:
    return Html("".join(c if isinstance(c, Html) else html.escape(str(c)) for c in children if c is not None))


def page(run: Run) -> str:
    """Return report.html: one file that loads nothing."""
    judged = verdict(run.results)
    title = f"{run.recipe.get('name') or run.folder.name}: {run.results['student']['model']}"
    body = element(
        "main",
        heading(run),
        the_verdict(judged, run),
        warnings(run),
        comparison(run),
        variants_table(run),
        *(item(shown, number) for number, shown in enumerate(run.results.get("report_items") or [])),
        pictures(run),
        *details(run),
        element("footer", f"Written by kdzoo {__version__} from the files of this run folder."),
    )
    style = Html(resources.files("kdzoo.report").joinpath("templates/report.css").read_text(encoding="utf-8"))
    head = element(
        "head",
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        element("title", title),
        element("style", style),
    )
    return "<!doctype html>\n" + element("html", head, element("body", body), lang="en") + "\n"


def heading(run: Run) -> Html:
    rows = entries(run.results)
    teachers = [str(entry["model"]) for role, entry in rows if role == "teacher" and not entry.get("file")]
    taught = f" from {' + '.join(teachers)}" if teachers else ""
    data = (run.results.get("data") or {}).get("name")
    return element(
        "header",
        element("h1", f"{run.results['student']['model']}{taught}"),
        element(
            "p",
            f"{run.recipe.get('name') or run.folder.name} · algorithm {algorithm_of(run)}",
            f" · data {data}" if data else None,
            f" · run {run.folder.name}",
            class_="muted",
        ),
        element("p", run.recipe["description"]) if run.recipe.get("description") else None,
    )


def the_verdict(judged: Verdict, run: Run) -> Html:
    return element(
        "section",
        element("h2", judged.headline),
        element("p", judged.sentence),
        element("ul", *(element("li", element("b", value), of) for value, of in judged.facts), class_="facts")
        if judged.facts
        else None,
        element("p", CAVEAT, class_="muted small", style="margin-top: 1rem") if run.results.get("paired") else None,
        class_=f"verdict {judged.tone}",
    )


def warnings(run: Run) -> Html | None:
    said = run.results.get("warnings") or []
    if not said:
        return None
    return element(
        "section",
        element("h2", f"{len(said)} warning{'s' if len(said) > 1 else ''}"),
        element("ul", *(element("li", text) for text in said)),
        class_="warnings",
    )


def comparison(run: Run) -> Html:
    titles = [
        element("th", column.title, element("small", column.unit or "\N{NO-BREAK SPACE}"), scope="col")
        for column in COLUMNS
    ]
    head = element("thead", element("tr", element("th", "Model", scope="col"), *titles))
    rows = []
    for role, entry, row in cells(run.results):
        dot = element("span", class_="dot", style=f"background: var(--c{charts.place(role)})", aria_hidden="true")
        name = element("th", dot, entry["label"], element("small", described(entry)), scope="row")
        numbers = (element("td", cell.text, class_="best" if cell.best else None) for cell in row)
        rows.append(element("tr", name, *numbers, class_=role))
    return element(
        "section",
        element("h2", "Side by side"),
        element("p", "All measured on the test split. ● is the best of a column, teachers aside.", class_="muted"),
        element("div", element("table", head, element("tbody", *rows)), class_="scroll"),
        element(
            "p",
            "Agreement: how often a model chooses the class that the teacher chooses. ECE: how far confidence is from "
            "accuracy on average, in 15 bins. Latency: batch of one, all timed in turn on the machine named below. "
            "Size: bytes of the file.",
            class_="muted small",
            style="margin-top: 1rem",
        ),
    )  # fmt: skip


def variants_table(run: Run) -> Html | None:
    found = variants(run.results)
    if not found:
        return None
    titles = (
        element("th", column.title, element("small", column.unit or "\N{NO-BREAK SPACE}"), scope="col")
        for column in VARIANT_COLUMNS
    )
    rows = [
        element("tr", element("th", entry["label"], scope="row"), *(element("td", text) for text in texts))
        for entry, texts in found
    ]
    head = element("thead", element("tr", element("th", "Variant", scope="col"), *titles))
    return element(
        "section",
        element("h2", "Other ways to answer"),
        element(
            "p",
            "Measured on the test split like the models above, and not part of the delivered student. Latency: batch "
            "of one, timed in turn with the student's.",
            class_="muted",
        ),
        element("div", element("table", head, element("tbody", *rows)), class_="scroll"),
    )


def item(shown: Mapping[str, Any], number: int) -> Html:
    """One thing that the algorithm shows."""
    kind = shown["kind"]
    if kind in ("heat_map", "scatter"):
        told = {key: plain_words(value, 400 if key == "note" else 40) for key, value in shown.items()}
        return picture((charts.heat_map if kind == "heat_map" else charts.scatter)(told, number))
    content = tiles(shown) if kind == "images" else numbers_table(shown["columns"], shown["rows"])
    return element(
        "section",
        element("h2", shown["title"]),
        element("p", shown["note"], class_="muted") if shown["note"] else None,
        content,
    )


def plain_words(value: Any, most: int) -> Any:
    """The same content with every text fit for a drawing."""
    if isinstance(value, str):
        return plain(value, most)
    if isinstance(value, Mapping):
        return {key: plain_words(inner, most) for key, inner in value.items()}
    return [plain_words(inner, most) for inner in value] if isinstance(value, list) else value


def numbers_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Html:
    head = element("thead", element("tr", *(element("th", title, scope="col") for title in columns)))
    body = (
        element("tr", element("th", item_cell(row[0]), scope="row"), *(element("td", item_cell(v)) for v in row[1:]))
        for row in rows
    )
    return element("div", element("table", head, element("tbody", *body)), class_="scroll")


def tiles(shown: Mapping[str, Any]) -> Html:
    captions = [*shown["captions"], *[""] * len(shown["images"])]
    figures = (
        element(
            "figure",
            Html(f'<img alt="{html.escape(str(caption))}" src="data:image/png;base64,{html.escape(png)}">'),
            element("figcaption", caption) if caption else None,
        )
        for png, caption in zip(shown["images"], captions, strict=False)
    )
    return element("div", *figures, class_="tiles")


def described(entry: Mapping[str, Any]) -> str:
    return f"{entry['model']} · {entry['file']}" if entry.get("file") else str(entry["model"])


def pictures(run: Run) -> Html | None:
    classes = run.results.get("per_class") or {}
    names = [plain(str(name), 40) for name in classes.get("classes") or ()]
    rows = [{**row, "stage": plain(str(row.get("stage", "")), 40)} for row in run.rows]
    labelled = [(role, {**entry, "label": plain(str(entry["label"]), 40)}) for role, entry in entries(run.results)]
    half = [charts.accuracy_against_latency(labelled), charts.learning_curves(rows)]
    logged_of = {plain(str(told["name"]), 40): told.get("logged_of") or {} for told in run.results.get("stages") or ()}
    whole = [charts.loss_terms(rows, logged_of), charts.per_class_accuracy(names, classes.get("top1_percent") or {})]
    return join(
        element("div", *(picture(chart) for chart in half if chart), class_="grid") if any(half) else None,
        *(picture(chart) for chart in whole if chart),
    )


def picture(chart: charts.Chart) -> Html:
    return element(
        "section",
        element("h2", chart.title),
        element("p", chart.caption, class_="muted"),
        element("figure", Html(chart.svg)),
    )


def details(run: Run) -> Iterator[Html]:
    """The parts that back up the numbers: levels, stages, provenance, recipe."""
    if pairing := run.results.get("pairing"):
        by_stage = pairing if isinstance(pairing, dict) else {"student": pairing}
        yield element(
            "section",
            element("h2", "Paired levels"),
            element(
                "p",
                "Which depths of the student learn from which of the teacher: name (channels, height, width).",
                class_="muted",
            ),
            *(
                join(element("h3", stage), element("pre", "\n".join(map(str, lines))))
                for stage, lines in by_stage.items()
            ),
        )
    if stages := run.results.get("stages"):
        keys = [key for key in STAGE_FACTS if any(stage.get(key) is not None for stage in stages)]
        yield element(
            "section",
            element("h2", "Stages"),
            element(
                "p", f"{duration(run.results['seconds'])} in all." if run.results.get("seconds") else "", class_="muted"
            ),
            words_table(
                [STAGE_FACTS[key] for key in keys],
                [[shown_fact(key, stage.get(key)) for key in keys] for stage in stages],
            ),
        )
    yield element(
        "section",
        element("h2", "Provenance"),
        element("p", "What it takes to repeat this run.", class_="muted"),
        words_table(["what", "value"], [[name, value] for name, value in flat(run.provenance)]),
    )
    yield element(
        "section",
        element("details", element("summary", element("h2", "Recipe")), element("pre", run.recipe_text)),
    )


#: What is shown of a stage, and under which head.
STAGE_FACTS = {"name": "stage", "key": "key", "best_epoch": "best epoch", "precision": "precision", "seconds": "time"}


def shown_fact(key: str, value: Any) -> str:
    if value is None:
        return NOTHING
    return duration(value) if key == "seconds" else str(value + 1) if key == "best_epoch" and value >= 0 else str(value)


def duration(seconds: float) -> str:
    """Seconds as people say them: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def words_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    head = element("thead", element("tr", *(element("th", title, scope="col") for title in header)))
    body = (
        element("tr", element("th", row[0], scope="row"), *(element("td", value) for value in row[1:])) for row in rows
    )
    return element("div", element("table", head, element("tbody", *body), class_="words"), class_="scroll")


def flat(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested content with their dotted names; long lists are cut."""
    for key, value in content.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, dict) and value.keys() == {"distribution", "version"}:
            yield name, f"{value['distribution']} {value['version']}"
        elif isinstance(value, dict) and value:
            yield from flat(value, name)
        elif isinstance(value, list):
            more = f" ... {len(value)} in all" if len(value) > 20 else ""
            yield name, ", ".join(map(str, value[:20])) + more
        else:
            yield name, NOTHING if value is None else str(value)
