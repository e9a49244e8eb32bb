"""What models see and retrieve, as the page shows it: from the lists that `seeing` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskclip_bench.report.images import Sheet
from maskclip_bench.results.paired import holm
from maskclip_bench.results.table_model import SIGNIFICANCE, signed_points

WIDTH = 150
PATCH = 0.05
"""Side of the marked patch, a share of the image."""

TITLES = {
    "purity": "Cluster purity",
    "neighbours": "Nearest patches of the same class",
    "pointing": "Text points at the object",
    "attention": "Attention points at an object",
}
EXPLANATIONS = {
    "purity": (
        "k-means of the patches of objects, as many clusters as there are classes; share of the "
        "patches whose class is the most frequent one of their cluster. By chance: the same with "
        "shuffled classes."
    ),
    "neighbours": (
        "Share of the 5 nearest patches of other images that have the class of the query patch, "
        "for patches of objects. By chance: the share of that class among the patches of the other "
        "images."
    ),
    "pointing": (
        "The map of a class name over the image has its highest place on an object of that class "
        "(pointing game, without tolerance). By chance: the share of the image that these objects "
        "take."
    ),
    "attention": (
        "The patch with the most attention shows an object, in windows that hold objects and "
        "something else. By chance: the share of the window that objects take."
    ),
}
VIEWS = {
    "own": (
        "Features, own colours",
        "The first three principal components of a model's patch features as red, green and blue. "
        "One basis for all images of a model: within a model the same colour means the same "
        "direction.",
        "map",
    ),
    "shared": (
        "Features, common colours",
        "One basis for all models together (multiple factor analysis): the same colour means the "
        "same common direction in every model.",
        "map",
    ),
    "attention": (
        "Attention",
        "What the pooled image feature attends to in the last block; a model that averages its "
        "patches has no class token, so the attention that each patch receives is shown.",
        "heat",
    ),
    "text": (
        "Text to patches",
        "Cosine of each patch with the name of the image's largest object, as a heat map. “on it”: "
        "the highest place is on the object.",
        "heat",
    ),
    "nearest": (
        "Nearest patches",
        "The five patches of other images that are nearest to the marked patch, with their "
        "surroundings. Blue frame: same class; crossed: another.",
        "strip",
    ),
}


def seen_view(seen: Mapping[str, Any] | None, display: str) -> dict[str, Any] | None:
    """The section "What a model sees"; None where nothing was looked at."""
    if not seen or not seen.get("rows"):
        return None
    rows: Mapping[str, Any] = seen["rows"]
    numbers = [name for name in TITLES if any(name in row["numbers"] for row in rows.values())]
    views = [name for name in VIEWS if any(name in row["views"] for row in rows.values())]
    baseline: str | None = seen.get("baseline")
    clear = _clear(rows)
    compared = baseline is not None and baseline in rows and len(rows) > 1
    small = "Small print: 95 % interval by image"
    if compared and baseline is not None:
        small += (
            f", then the difference to {rows[baseline]['label']} in points, starred where p ≤ 0.05 "
            "after Holm's correction over this table"
        )
    windows = seen["tiles"]
    reading = f", each read in {windows} x {windows} windows" if windows > 1 else ""
    return {
        "intro": f"All models on the same images of {display}: numbers from {seen['num_images']} "
        f"images{reading}, pictures of {len(seen['images'])}.",
        "numbers": [
            {
                "title": TITLES[name],
                "explanation": EXPLANATIONS[name],
                "chance": _chance(rows, name),
            }
            for name in numbers
        ],
        "rows": [
            {
                "label": row["label"],
                "cells": [
                    _number(row["numbers"].get(name), (key, name) in clear) for name in numbers
                ],
            }
            for key, row in rows.items()
        ],
        "small_print": f"{small}. One training run a row: the noise of another seed is not in it.",
        "views": [
            {"name": name, "title": VIEWS[name][0], "explanation": VIEWS[name][1]} for name in views
        ],
        "images": [_image(image, place, rows, views) for place, image in enumerate(seen["images"])],
        "notes": _notes(seen),
    }


def _clear(rows: Mapping[str, Any]) -> set[tuple[str, str]]:
    """(row, number) whose difference is clear after the correction over all of them."""
    tests = [
        (key, name, value["difference"]["p_value"])
        for key, row in rows.items()
        for name, value in row["numbers"].items()
        if value.get("difference")
    ]
    adjusted = holm([p for _, _, p in tests])
    return {
        (key, name) for (key, name, _), p in zip(tests, adjusted, strict=True) if p <= SIGNIFICANCE
    }


def _number(value: Mapping[str, Any] | None, is_clear: bool) -> dict[str, str] | None:
    if value is None:
        return None
    difference = value.get("difference")
    delta = sign = ""
    if difference:
        delta = signed_points(difference["difference"], 1) + ("*" if is_clear else "")
        sign = "" if not is_clear else "better" if difference["difference"] > 0 else "worse"
    return {
        "value": f"{100 * value['value']:.1f}",
        "interval": f"{100 * value['low']:.1f}–{100 * value['high']:.1f}",
        "delta": delta,
        "sign": sign,
    }


def _chance(rows: Mapping[str, Any], name: str) -> str:
    values = [row["numbers"][name]["chance"] for row in rows.values() if name in row["numbers"]]
    return f"{100 * sum(values) / len(values):.1f}"


def _image(
    image: Mapping[str, Any], place: int, rows: Mapping[str, Any], views: list[str]
) -> dict[str, Any]:
    x, y = image["query"]
    classes = ", ".join(image["classes"]) or "no named object"
    left, top = 100 * (x - PATCH / 2), 100 * (y - PATCH / 2)
    return {
        "id": image["id"],
        "file": image["file"],
        "alt": f"{image['id']}: {classes}",
        "height": max(1, round(WIDTH * image["height"] / image["width"])),
        "mask": image.get("mask"),
        "query": f"left:{left:.1f}%;top:{top:.1f}%;width:{100 * PATCH:g}%;height:{100 * PATCH:g}%",
        "caption": f"marked: {image['target']}" if image["target"] else image["id"],
        "models": [_model(row, image, place, views) for row in rows.values()],
    }


def _model(
    row: Mapping[str, Any], image: Mapping[str, Any], place: int, views: list[str]
) -> dict[str, Any]:
    pictures = []
    for view in views:
        files = row["views"].get(view)
        if files is None:
            continue
        title, _, kind = VIEWS[view]
        hits = row["hits"].get(view)
        hit = said = None
        alt = f"{title} of {row['label']} on {image['id']}"
        if view == "text" and hits:
            hit = bool(hits[place])
            said = "on it" if hit else "beside it"
        if view == "nearest" and hits:
            number = sum(hits[place])
            hit, said = number > 0, f"{number} of {len(hits[place])}"
        if said:
            alt += f": {said}"
        pictures.append(
            {"view": view, "file": files[place], "kind": kind, "hit": hit, "said": said, "alt": alt}
        )
    return {"label": row["label"], "pictures": pictures}


def _notes(seen: Mapping[str, Any]) -> list[str]:
    notes = [f"Attention: {text}." for text in dict.fromkeys(
        row["attention_of"] for row in seen["rows"].values() if row["attention_of"]
    )]  # fmt: skip
    notes += [f"{row['label']}: {note}" for row in seen["rows"].values() for note in row["notes"]]
    notes += [f"{key} was not looked through: {why}" for key, why in seen["failed"].items()]
    return notes


def retrieval_view(
    found: Mapping[str, Any] | None, labels: Mapping[str, str], display: str
) -> dict[str, Any] | None:
    """The section "Retrieval"; None where nothing was retrieved."""
    if not found or not found.get("answers"):
        return None
    stored = found["sheet"]
    sheet = Sheet(
        stored["file"], stored["columns"], stored["rows"], stored["tile"], stored["place"]
    )

    def picture(image: int, size: int) -> dict[str, str]:
        name = found["ids"][str(image)]
        return {"style": sheet.style(name, size=size) or "", "alt": str(name)}

    answers = found["answers"]
    images = []
    for place, image in enumerate(found["asked_images"]):
        said = [_texts(found, row, answers[row]["images"][place], image, labels) for row in answers]
        images.append({**picture(image, 110), "answers": said})
    texts = []
    for place, text in enumerate(found["asked_texts"]):
        right = found["owner"][str(text)]
        lines = []
        for row in answers:
            one = answers[row]["texts"][place]
            shown = [{**picture(i, 48), "right": i == right} for i in one["found"]]
            lines.append({**_answer(row, one, labels), "pictures": shown})
        texts.append({"text": found["texts"][str(text)], "answers": lines})
    return {
        "intro": f"The same queries to every model, among {found['num_images']:,} images and "
        f"{found['num_texts']:,} captions of {display}: the five nearest answers, and the place of "
        "the first right one.",
        "images": images,
        "texts": texts,
    }


def _texts(
    found: Mapping[str, Any],
    row: str,
    one: Mapping[str, Any],
    image: int,
    labels: Mapping[str, str],
) -> dict[str, Any]:
    texts = [
        {"text": found["texts"][str(i)], "right": found["owner"][str(i)] == image}
        for i in one["found"]
    ]
    return {**_answer(row, one, labels), "texts": texts}


def _answer(row: str, one: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    rank = one["rank"]
    said = "first" if rank == 1 else f"place {rank:,}"
    return {"label": labels.get(row, row), "hit": rank <= len(one["found"]), "said": said}
