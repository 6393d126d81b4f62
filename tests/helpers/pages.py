"""Links and anchors of Markdown pages, by GitHub's rules."""

import functools
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOT_PUBLISHED = ("runs", "build", "dist", ".venv")


def without_code(text):
    """A page without code and formulas, in which brackets are no links and # is no heading."""
    text = re.sub(r"^( *)(```+|~~~+).*?^\1\2 *$", "", text, flags=re.M | re.S)
    return re.sub(r"\$\$.*?\$\$", "", text, flags=re.S)


@functools.cache
def anchors(page):
    """Anchors of a page: GitHub's of its headings, and those that it sets itself."""
    text = without_code(page.read_text(encoding="utf-8"))
    found = re.findall(r"""<\w+ (?:id|name)=["']([^"']+)["']""", text)
    counts = {}
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, flags=re.M):
        heading = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # a link: its text
        heading = re.sub(r"[`*]|<[^>]+>", "", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")
        counts[anchor] = counts.get(anchor, -1) + 1
        found.append(f"{anchor}-{counts[anchor]}" if counts[anchor] else anchor)
    return frozenset(found)


def links(page):
    """Targets of the links and pictures of a page."""
    text = re.sub(r"`[^`\n]*`", "", without_code(page.read_text(encoding="utf-8")))
    text = re.sub(r"(?<![$\\])\$[^$\n]+\$", "", text)
    return re.findall(r"\]\(<?([^)\s>]+)", text) + re.findall(r"""<(?:a|img)[^>]* (?:href|src)=["']([^"']+)""", text)


def broken_links(page):
    """Links of a page that lead to no file of the clone, or to no heading of a page."""
    broken = []
    for target in links(page):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        inside = path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[:1]
        if not inside or inside[0] in NOT_PUBLISHED or not path.exists():
            broken.append(f"{page.name}: {target}")
        elif anchor and path.suffix == ".md" and anchor not in anchors(path):
            broken.append(f"{page.name}: {target} (no such heading)")
        elif anchor and path.suffix != ".md":
            broken.append(f"{page.name}: {target} (an anchor of a file that has none)")
    return broken
