"""How Sphinx builds the site: pages in Markdown (MyST), the API from docstrings (napoleon), without a network."""

import inspect
import re
from collections import defaultdict
from pathlib import Path

import rerank_trainer

project = "rerank_trainer"
author = "the developers of rerank_trainer"
version = release = rerank_trainer.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = f"rerank_trainer {release}"
html_show_copyright = False

myst_heading_anchors = 4  # pages link to each other's headings, as on GitHub

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say the types in words, and shapes

# Pages of the repository that the site shows too, and which links from docs/ mean by them.
OUTSIDE = {
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changelog.md",
    "../benchmarks/README.md": "benchmarks.md",
    "../examples/README.md": "examples.md",
}


def setup(app) -> None:
    """Let links that lead out of docs/ lead to the site's copy of the page; a script is named without a link."""
    app.connect("source-read", lambda app, page, source: _link_inside(source))
    app.connect("include-read", lambda app, path, page, source: _link_inside(source))


def _link_inside(source: list[str]) -> None:
    for outside, inside in OUTSIDE.items():
        source[0] = source[0].replace(f"]({outside}", f"]({inside}")
    source[0] = re.sub(r"\[([^\]]+)\]\([^)]*\.py\)", r"`\1`", source[0])


def write_api_pages() -> None:
    """One page a part of the package: what the part's own docstring says, then its public names."""
    names_of = defaultdict(list)
    for name in rerank_trainer.__all__:
        module = inspect.getmodule(getattr(rerank_trainer, name)).__name__
        names_of[module.split(".")[1]].append(f"{module}.{name}")
    folder = Path(__file__).parent / "api"
    folder.mkdir(exist_ok=True)
    names_of["losses"] = [f"rerank_trainer.losses.{name}" for name in rerank_trainer.losses.__all__ if name != "LOSSES"]
    for part, names in names_of.items():
        lines = [f"# {part}", "```{eval-rst}", f".. automodule:: rerank_trainer.{part}", "   :noindex:", ""]
        for name in names:
            is_class = inspect.isclass(getattr(rerank_trainer, name.rsplit(".", 1)[1], None))
            lines += [f".. auto{'class' if is_class else 'function'}:: {name}", *["   :members:"] * is_class, ""]
        (folder / f"{part}.md").write_text("\n".join([*lines, "```", ""]), encoding="utf-8")


write_api_pages()
