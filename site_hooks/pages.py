"""What the site has beside the files of docs/: pages of the root, and the recipe's reference.

MkDocs calls the functions whose names begin with `on_`. Links are written for readers of the
repository; here they are turned to the pages that they mean.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recipe_reference import reference, slug

ROOT = Path(__file__).resolve().parents[1]
BROUGHT = {
    "README.md": "index.md",
    "studies/README.md": "studies/index.md",
    "benchmarks/README.md": "speed.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files outside docs/, and the pages that they become."""
SCHEMA, REFERENCE = "docs/recipe.schema.json", "recipe.md"
INSTEAD = {
    SCHEMA: REFERENCE,
    "docs/examples/text/report.md": "examples/text/report.html",
}
"""Files that are read as another page on the site."""
ELSEWHERE = re.compile(
    r"""<(?:script|link|img|iframe)\b[^>]*(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)"""
)
"""What a page of the site would fetch from another server."""
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Makes anchors as GitHub does, so that a link to a heading holds in both places."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the root, the files that they show or link, and the reference."""
    from mkdocs.structure.files import File

    for source, page in (BROUGHT | linked()).items():
        if page.endswith(".md"):
            text = (ROOT / source).read_text(encoding="utf-8")
            files.append(File.generated(config, page, content=text))
        else:
            files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    text = reference(json.loads((ROOT / SCHEMA).read_text(encoding="utf-8")))
    files.append(File.generated(config, REFERENCE, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turns a page's links."""
    if page.file.src_uri == REFERENCE:
        return markdown
    return turned(markdown, source_of(page.file.src_uri), titles(config.nav))


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Refuses a page that would fetch anything from another server."""
    from mkdocs.exceptions import PluginError

    if found := ELSEWHERE.findall(output):
        raise PluginError(f"{page.file.src_uri} fetches {found[0]}; the site needs no network")
    return output


def linked() -> dict[str, str]:
    """Returns the files that brought pages link to and nobody else brings, each by its place."""
    found: dict[str, str] = {}
    left = list(BROUGHT)
    while left:
        source = left.pop()
        for place in links(source):
            is_new = place not in found and place not in BROUGHT and (ROOT / place).is_file()
            if is_new and not place.startswith("docs/"):
                found[place] = place
                left += [place] if place.endswith(".md") else []
    return found


def links(source: str) -> Iterator[str]:
    """Yields the files that a Markdown file links to, by their place in the repository."""
    for _, link, _ in LINK.findall((ROOT / source).read_text(encoding="utf-8")):
        if link and ":" not in link:
            yield posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def source_of(page: str) -> str:
    """Returns the file of the repository that a page is made of.

    >>> source_of("index.md"), source_of("guides/chats.md")
    ('README.md', 'docs/guides/chats.md')
    """
    brought = {page: source for source, page in (BROUGHT | linked()).items()}
    return brought.get(page, f"docs/{page}")


def page_of(source: str) -> str:
    """Returns the page, or file of the site, that a file of the repository becomes.

    >>> page_of("studies/README.md"), page_of("docs/methods.md"), page_of(SCHEMA)
    ('studies/index.md', 'methods.md', 'recipe.md')
    """
    return (BROUGHT | INSTEAD).get(source, source.removeprefix("docs/"))


def turned(text: str, source: str, names: Mapping[str, str]) -> str:
    """Returns a Markdown file's text with its links as they are on the site.

    A link whose text is the path of a page gets the page's name. Code stays as it is.

    Args:
        source: the file, by its place in the repository.
        names: the pages' names in the navigation, by page.
    """
    here = posixpath.dirname(page_of(source))

    def turn(match: re.Match[str]) -> str:
        shown, link, anchor = match[1], match[2], match[3] or ""
        if not link or ":" in link:
            return match[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
        page = page_of(there)
        if shown in (link, there):
            shown = names.get(page, shown)
        return f"[{shown}]({posixpath.relpath(page, here or '.')}{anchor})"

    is_code, lines = False, []
    for line in text.split("\n"):
        is_code ^= line.startswith("```")
        lines.append(line if is_code else LINK.sub(turn, line))
    return "\n".join(lines)


def titles(nav: Any) -> dict[str, str]:
    """Returns the names of the pages in the navigation, by page."""
    if isinstance(nav, Mapping):
        found = {page: name for name, page in nav.items() if isinstance(page, str)}
        below = [each for each in nav.values() if not isinstance(each, str)]
        return found | titles(below)
    parts = [titles(each) for each in nav or () if not isinstance(each, str)]
    return {page: name for part in parts for page, name in part.items()}
