"""The documentation site: all pages are reached, all links lead somewhere, all tools are named."""
import importlib
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / 'docs'


def test_each_page_is_in_the_contents():
    contents = {
        line
        for block in re.findall(r'```{toctree}(.*?)```', (DOCS / 'index.md').read_text(), re.S)
        for line in block.splitlines() if line and not line.startswith(':')
    }
    assert contents == {page.stem for page in DOCS.glob('*.md')} - {'index'}


def test_each_tool_is_named():
    text = (DOCS / 'tools.md').read_text()
    tools = {str(file.relative_to(ROOT)) for pattern in ('*.py', '*.sh', 'analysis/*.py')
             for file in (ROOT / 'tools').glob(pattern)}
    helpers = {f'tools/{name}.py' for name in ('analysis/calibration_tables',
                                               'analysis/small_models', 'markdown_table')}
    assert not [tool for tool in tools - helpers if f'`{tool}`' not in text]


def test_links_between_files_lead_somewhere():
    pages = [*ROOT.glob('*.md'), *DOCS.glob('*.md'), ROOT / 'configs' / 'README.md']
    for page in pages:
        for target in re.findall(r'\]\((?!\w+:)([^)#\s]+)', page.read_text()):
            assert (page.parent / target).exists(), f'{page.name}: {target}'


def test_each_picture_is_there_for_light_and_for_dark_pages():
    """And is small: the README loads with all of them."""
    readme = (ROOT / 'README.md').read_text()
    dark, light = (re.findall(rf'{where}="([^"]+)"', readme) for where in ('srcset', 'src'))
    assert len(dark) == len(light) > 2
    for first, second in zip(light, dark):
        assert first.replace('_light', '_dark') == second
        for name in (first, second):
            assert 1000 < (ROOT / name).stat().st_size < 200_000, name
    assert readme.count('<img') == len(re.findall(r'<img src="[^"]+" alt="[^"]{20,}">', readme))


@pytest.fixture
def draw_pictures(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    return importlib.import_module('draw_pictures')


def test_the_chart_of_gains_is_of_the_studies_as_they_are(draw_pictures):
    found = draw_pictures.gains_of(
        [draw_pictures.StudyResults(path) for path in sorted(draw_pictures.STUDIES.glob('*.json'))])
    gain = {each.title: each.differences for each in found}[
        'bench_retinanet, retinanet: rescaled (test)']
    # less error and above 0: better
    assert gain['ECE taken away'].mean > gain['ECE taken away'].margin > 0
    for name in draw_pictures.THEMES:
        with Image.open(draw_pictures.OUT / f'gains_{name}.png') as picture:
            assert picture.text[draw_pictures.NUMBERS_KEY] == draw_pictures.as_numbers(found), (
                'python tools/draw_pictures.py')


def test_the_drawing_is_what_the_script_draws(draw_pictures):
    for name, theme in draw_pictures.THEMES.items():
        assert (draw_pictures.OUT /
                f'ride_along_{name}.svg').read_text() == draw_pictures.ride_along(theme)


def test_site_is_built_without_a_warning(tmp_path, capsys):
    for package in ('sphinx', 'myst_parser', 'furo', 'sphinx_copybutton'):
        pytest.importorskip(package)
    from sphinx.cmd.build import main
    path = list(sys.path)
    try:  # in this process, which has imported already what the API reference is made of
        failed = main(['-W', '--keep-going', '-q', '-b', 'html', str(DOCS), str(tmp_path)])
    finally:
        sys.path[:] = path
    assert not failed, capsys.readouterr().err
    assert 'PSKDHook' in (tmp_path / 'api.html').read_text()
    assert (tmp_path / 'searchindex.js').is_file()
    assert (tmp_path / '_images' / 'ride_along_dark.svg').is_file()


def test_notebook_runs(capsys):
    pytest.importorskip('mmdet')
    notebook = json.loads((DOCS / 'notebooks' / 'attach.ipynb').read_text())
    names: dict = {}
    for cell in notebook['cells']:
        if cell['cell_type'] == 'code':
            assert not cell['outputs'], 'outputs do not belong into the repository'
            exec(compile(''.join(cell['source']), 'attach.ipynb', 'exec'), names)
    said = capsys.readouterr().out
    same, later = (float(re.search(rf'{when}\s+(\S+)', said)[1])
                   for when in ('the same self', 'five steps later'))
    assert same == 0 < later
