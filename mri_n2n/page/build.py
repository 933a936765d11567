"""A page as HTML in one file: text escaped, images encoded, and a policy that forbids the browser any request.

Styles and script are those of this package, allowed by their hashes; the data are JSON, which no browser runs.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from pathlib import Path
from string import Template

import numpy as np

from mri_n2n.page.contents import Difference, Layer, Page, Section, Table
from mri_n2n.page.pixels import Encoded, encode, encode_mask
from mri_n2n.report import (
    ERROR_GAIN,
    OPPOSITE,
    RESEARCH_USE_ONLY,
    STARTS,
    bright,
    describe_view,
    direction_of_slices,
    edges_of_view,
    orient_for_display,
    pixel_aspect,
)

HERE = Path(__file__).parent
LIMIT = 14_500_000  # bytes of a page: what mail and archives take, and a browser opens at once
ENDS = STARTS | {"L": "patient's left", "P": "posterior", "I": "inferior"}
REST = 12_000  # of the template, and of what is said of layers and of what was rounded
SOURCE_UNIT = "the input's own scale"


def page_html(page: Page, limit: int = LIMIT) -> str:
    """The whole file. Images are as fine as `limit` bytes allow, and the page says how fine, and which slices it has."""
    stored = [layer for layer in page.layers if isinstance(layer, Layer)]
    volumes = [_oriented(layer.images, page) for layer in stored]
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    rows, columns = volumes[0].shape[1:]
    style += f":root {{ --ratio: {columns / (rows * pixel_aspect(page.geometry)):.6f}; }}\n"
    text = "\n".join(_section(one) for one in page.sections)
    masks = [] if page.masks is None else [encode_mask(mask) for mask in _different(page.masks)]
    encoded = encode(volumes, limit - len(style) - len(script) - 2 * len(text) - sum(map(len, masks)) - REST)
    about = Section("Images on this page", _precision(page, stored, encoded, len(volumes[0])))
    simulated = '<strong class="simulated">Simulated k-space</strong>' if page.simulated else ""
    return Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(
        name=html.escape(page.name),
        use=RESEARCH_USE_ONLY.capitalize(),
        simulated=simulated,
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        cautions=_cautions(page.cautions),
        view=html.escape(_view(page)),
        missing="".join(f"<p>{html.escape(one)}</p>" for one in page.missing),
        sections=f"{text}\n{_section(about)}",
        facts=_json(_facts(page, encoded, volumes[0].shape[1:], masks)),
    )


def _oriented(volume: np.ndarray, page: Page) -> np.ndarray:
    return np.stack([orient_for_display(image, page.geometry) for image in volume])


def _different(masks: np.ndarray) -> np.ndarray:
    """The first alone where all are the same."""
    return masks[:1] if (masks == masks[:1]).all() else masks


def _facts(page: Page, encoded: Encoded, shape: tuple[int, int], masks: list[str]) -> dict:
    """What the script needs."""
    stored = [layer for layer in page.layers if isinstance(layer, Layer)]
    reconstruction = next((one for one in stored if one.name == "reconstruction"), stored[-1])
    layers: list[dict] = []
    for layer in page.layers:
        said = {"name": layer.name, "about": layer.about}
        if isinstance(layer, Difference):
            layers.append(said | {"kind": "difference", "first": layer.first, "second": layer.second})
            continue
        index = stored.index(layer)
        steps, kind = encoded.steps[index], "map" if layer.own_scale else "image"
        scale = {"low": steps.low, "step": steps.step, "high": float(layer.images.max())}
        layers.append(said | {"kind": kind, "slices": encoded.texts[index]} | scale)
    edges = edges_of_view(page.geometry)
    coverage = None
    if page.masks is not None:
        shares = page.masks.mean(axis=(1, 2)).tolist()
        kept = masks if len(masks) == 1 else [masks[index] for index in encoded.slices]
        shares = shares * len(page.layers[0].images) if len(shares) == 1 else shares
        coverage = {"shape": page.masks.shape[1:], "slices": kept, "shares": [shares[i] for i in encoded.slices]}
    return {
        "shape": shape,
        "slices": encoded.slices,
        "count": len(stored[0].images),
        "layers": layers,
        "window": [0.0, bright(reconstruction.images[len(reconstruction.images) // 2])],
        "errorGain": ERROR_GAIN,
        "edges": None if edges is None else [edges[0], OPPOSITE[edges[1]], OPPOSITE[edges[0]], edges[1]],
        "coverage": coverage,
        "ofSlices": _of_slices(page, encoded.slices),
    }


def _of_slices(page: Page, slices: tuple[int, ...]) -> list[str] | None:
    """The rows of tables of slices, as a line each."""
    tables = [table for section in page.sections for table in section.tables if table.of_slices]
    if not tables:
        return None
    lines = [[f"{t.head[j]} {t.rows[i][j]}" for t in tables for j in range(1, 1 + t.of_slices)] for i in slices]
    return [", ".join(line) for line in lines]


def _view(page: Page) -> str:
    """Which side is where, or that it is not known."""
    view, towards = describe_view(page.geometry), direction_of_slices(page.geometry)
    if not view:
        return "Orientation unknown: the file does not say how the slices lie. They are shown as stored, which side is which cannot be told."
    order = f"; slice numbers grow towards {ENDS[towards]}" if towards else ""
    return f"{view[0].upper()}{view[1:]}{order}. Oblique slices go by the nearest direction."


def _precision(page: Page, stored: list[Layer], encoded: Encoded, count: int) -> tuple[str, ...]:
    """What was rounded and left out, in words."""
    rounding = ", ".join(f"{one.name} {steps.step / 2:.3g}" for one, steps in zip(stored, encoded.steps, strict=True))
    said = [
        f"Intensities are on {SOURCE_UNIT}, rounded to {encoded.levels} levels from the least to the largest value of each "
        f"volume: at most {rounding} away from the values in the result's own files, which are exact. Analyse those, not this page."
    ]
    every = encoded.slices[1] - encoded.slices[0] if len(encoded.slices) > 1 else count
    if len(encoded.slices) < count:
        said.append(
            f"To keep the page small it holds {len(encoded.slices)} of the {count} slices: one in {every}, from slice "
            f"{encoded.slices[0]} on. The result's own files have all."
        )
    if encoded.levels < 1024:
        said.append(
            "To keep the page small, grey values are coarse: in a narrow window steps can be seen that the image does not have."
        )
    if any(isinstance(one, Difference) for one in page.layers):
        said.append("Differences are taken of the rounded values.")
    return tuple(said)


def _cautions(cautions: tuple[str, ...]) -> str:
    if not cautions:
        return ""
    points = "".join(f"<li>{html.escape(one)}</li>" for one in cautions)
    return f'<section class="cautions" aria-labelledby="warnings"><h2 id="warnings">Warnings</h2><ul>{points}</ul></section>'


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    parts += [f"<p>{html.escape(one)}</p>" for one in section.paragraphs]
    parts += [_table(one, section.title) for one in section.tables]
    if section.points:
        parts.append(f"<ul>{''.join(f'<li>{html.escape(one)}</li>' for one in section.points)}</ul>")
    return f"<section>{''.join(parts)}</section>"


def _table(table: Table, title: str) -> str:
    """Columns after the first hold numbers where the table has a head, values where it has none."""
    rows = []
    for index, (first, *cells) in enumerate(table.rows):
        which = f' data-slice="{index}"' if table.of_slices else ""
        inner = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr{which}><th scope="row">{html.escape(first)}</th>{inner}</tr>')
    head = "".join(f'<th scope="col">{html.escape(one)}</th>' for one in table.head)
    head = f"<thead><tr>{head}</tr></thead>" if any(table.head) else ""
    kind = "numbers" if head else "facts"
    label = html.escape(f"{title}, table", quote=True)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table class="{kind}">{head}'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _hash(text: str) -> str:
    """As a Content-Security-Policy names the text of an element."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _json(value: dict) -> str:
    """JSON that ends no element: no <, which could begin </script>."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
