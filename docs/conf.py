"""Builds the documentation: ``bash tools/build_docs.sh`` (Sphinx, with Markdown by MyST)."""
import os
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from mmskd.version import __version__  # noqa: E402

project = 'mmskd'
copyright = 'mmskd contributors'
release = version = __version__

extensions = [
    'myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode',
    'sphinx_copybutton'
]
source_suffix = {'.md': 'markdown'}
exclude_patterns = ['_build', 'notebooks/*']
nitpicky = False  # the types in signatures are those of packages whose inventories are not at hand

html_theme = 'furo'
html_title = f'mmskd {version}'
html_static_path = ['_static']
html_css_files = ['wide_tables.css']

myst_enable_extensions = ['colon_fence', 'deflist', 'dollarmath']
myst_heading_anchors = 3

autodoc_member_order = 'bysource'
autodoc_typehints = 'none'  # the docstrings say them
autodoc_default_options = {'members': True, 'show-inheritance': True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
copybutton_prompt_text = r'\$ '

# Pages of the site that are files of the repository: what lies in docs/ only points there
ELSEWHERE = {
    'configs': ROOT / 'configs' / 'README.md',
    'contributing': ROOT / 'CONTRIBUTING.md',
    'security': ROOT / 'SECURITY.md',
    'changelog': ROOT / 'CHANGELOG.md'
}


def read_page(app, page, source):
    """Take a page from where it is, with links that lead to pages of the site or are plain text."""
    file = ELSEWHERE.get(page, DOCS / f'{page}.md')
    pages = {path: name for name, path in ELSEWHERE.items()}

    def link(match):
        text, target, anchor = match['text'], match['target'], match['anchor'] or ''
        path = Path(os.path.normpath(file.parent / target))
        if path.suffix == '.md' and path.parent == DOCS:
            text = '' if text == path.name else text  # then Sphinx puts the page's title there
            return f'[{text}]({path.name}{anchor})'
        return f'[{text}]({pages[path]}.md{anchor})' if path in pages else text

    source[0] = re.sub(
        r'(?<!!)\[(?P<text>[^\]]+)\]\((?!\w+:)(?P<target>[^)#\s]+)(?P<anchor>#[^)]*)?\)', link,
        file.read_text(encoding='utf-8'))


def setup(app):
    """Called by Sphinx."""
    app.connect('source-read', read_page)
