"""What the linters found in the files, and where everything came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from nanoflux_export.console import size
from nanoflux_export.findings import places
from nanoflux_export.remarks import remarks
from nanoflux_export.report.words import bundle_name, listing
from nanoflux_mobile.manifest import Finding, Manifest
from nanoflux_mobile.markup import Markup, block, element, head, join, scroller, section, spaced

_COLUMNS = ("Severity", "Rule", "Count", "Where", "What happens, what mends it")
_ORDER = ("error", "warning", "note")


def lint_table(manifests: Sequence[Manifest]) -> Markup:
    """The section with the findings; bundles of one runtime with equal findings share a block."""
    lead = (
        "What the linter read in the saved files. An error is refused by the phone's processor or "
        "computed wrong there, and fails the bundle unless the recipe says why it may pass; a "
        "warning leaves the processor or slows it down; a note is worth knowing. Only a device "
        "shows where an operation runs."
    )
    groups: dict[tuple[str, tuple[Finding, ...]], list[str]] = {}
    for manifest in manifests:
        groups.setdefault((manifest.target, manifest.lint), []).append(bundle_name(manifest))
    blocks = [_findings(listing(names), found) for (_, found), names in groups.items()]
    return section("lint", "Lint", lead, *blocks)


def remark_list(manifests: Sequence[Manifest]) -> Markup:
    """The section of what bundles say of themselves; empty where all is as it was asked for."""
    told = {bundle_name(manifest): list(remarks(manifest)) for manifest in manifests}
    if not any(told.values()):
        return Markup("")
    lead = "What a target could not do as it was asked, and values near the end of half precision."
    lists = [
        join((element("h3", name), element("ul", *(element("li", text) for text in texts))))
        for name, texts in told.items()
        if texts
    ]
    return section("remarks", "Remarks", lead, *lists)


def _findings(names: str, findings: Sequence[Finding]) -> Markup:
    title = element("h3", names)
    if not findings:
        return join((title, element("p", "Nothing found.", class_="none")))
    graphs = groupby(findings, key=lambda finding: finding.component)
    blocks = [_graph(name, list(found)) for name, found in graphs]
    table = element("table", head(_COLUMNS, ("Count",)), *blocks, class_="lint")
    return join((title, scroller(f"Lint findings of {names}", table)))


def _graph(name: str, findings: Sequence[Finding]) -> Markup:
    ordered = sorted(findings, key=lambda f: (bool(f.suppressed), _ORDER.index(f.severity)))
    return block(name, len(_COLUMNS), map(_finding, ordered))


def _finding(finding: Finding) -> Markup:
    severity = f"{finding.severity}, suppressed" if finding.suppressed else finding.severity
    kind = "suppressed" if finding.suppressed else finding.severity
    told = [element("p", finding.why), element("p", finding.fix)]
    if finding.suppressed:
        told.append(element("p", f"The recipe lets it pass: {finding.suppressed}"))
    cells = (
        element("td", severity, class_=f"severity {kind}"),
        element("td", spaced(finding.rule, _source(finding.source))),
        element("td", f"{finding.count:,}", class_="number"),
        element("td", places(finding)),
        element("td", *told),
    )
    return join(cells)


def _source(source: str) -> Markup:
    """A link, where the source is one that a browser opens safely."""
    if source.startswith("https://"):
        return element("a", "source", href=source, rel="noreferrer")
    return element("small", source)


def provenance(manifests: Sequence[Manifest]) -> Markup:
    """The footer: recipe, digests, tools and files of every bundle."""
    bundles = element("div", *map(_origin, manifests), class_="origins")
    return element("footer", element("h2", "Made from"), bundles)


def _origin(manifest: Manifest) -> Markup:
    facts = {
        "made by": manifest.created_by,
        "with": _pairs(manifest.tools, " "),
        "recipe": manifest.recipe.name,
        "overrides": _pairs(manifest.recipe.overrides, "=") or "none",
        "picture": f"{manifest.canvas.image_side} px, {len(manifest.sigmas) - 1} steps",
        "meant for": listing(sorted({entry.compute_unit for entry in manifest.components})),
    }
    digests = {
        "recipe digest": manifest.recipe.digest,
        "source sha256": manifest.source_sha256,
        "bundle digest": manifest.digest,
    }
    lines = [join((element("dt", key), element("dd", value))) for key, value in facts.items()]
    lines += [
        join((element("dt", key), element("dd", element("code", value))))
        for key, value in digests.items()
    ]
    title = element("h3", bundle_name(manifest))
    return element("div", title, element("dl", *lines), _files(manifest), class_="origin")


def _pairs(values: Mapping[str, str], between: str) -> str:
    return ", ".join(f"{key}{between}{value}" for key, value in values.items())


def _files(manifest: Manifest) -> Markup:
    rows = [
        element(
            "tr",
            element("th", file.path, scope="row"),
            element("td", size(file.bytes), class_="number"),
            element("td", element("code", file.sha256[:16])),
        )
        for file in manifest.files
    ]
    columns = head(("File", "Size", "sha256, first 16"), ("Size",))
    table = element("table", columns, element("tbody", *rows))
    label = f"Files of {bundle_name(manifest)}"
    summary = element("summary", f"{len(manifest.files)} files")
    return element("details", summary, scroller(label, table))
