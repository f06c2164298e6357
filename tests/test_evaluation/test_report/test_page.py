"""The whole report of real runs, as a file and as a browser shows it."""
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from mmskd.errors import UsageError
from mmskd.evaluation.report import page
from mmskd.evaluation.report.page import number, write_report
from mmskd.evaluation.report.runs import Run

CHROMIUM = next(filter(None, map(shutil.which, (
    'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))), None)
DETECTION_CHARTS = {
    'curve_loss', 'curve_pskd_alpha', 'curve_coco_bbox_mAP', 'curve_calibration_ECE',
    'reliability_0', 'reliability_1', 'risk_coverage', 'by_name_AP', 'by_name_ECE'
}
POSE_CHARTS = {
    'curve_loss', 'curve_PCK', 'reliability_0', 'reliability_1', 'risk_coverage', 'by_name_PCK',
    'by_name_ECE'
}


def report_of(folders, out_dir, draw=True, **options):
    with pytest.MonkeyPatch.context() as patch:
        if not draw:  # what is drawn is looked at in two reports, which is enough
            patch.setattr(page.charts, 'save', lambda chart, folder: '')
            patch.setattr(page, 'NUM_PICTURES', 1)
        patch.setattr(page, 'SCORE_THR', 0.0)  # models of two epochs are sure of nothing
        return write_report(folders, out_dir, quiet=True, **options)


@pytest.fixture(scope='module')
def detection_report(detection_runs, tmp_path_factory):
    return report_of(detection_runs, tmp_path_factory.mktemp('out') / 'detection')


@pytest.fixture(scope='module')
def pose_report(pose_runs, tmp_path_factory):
    return report_of(pose_runs, tmp_path_factory.mktemp('out') / 'pose')


class Page(HTMLParser):
    """Ids, addresses, alternative texts and the cells of tables."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.addresses, self.unnamed, self.tables = [], [], [], {}
        self._cell = None
        self.text = path.read_text(encoding='utf-8')
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids += [values['id']] if 'id' in values else []
        self.addresses += [values[key] for key in ('href', 'src', 'xlink:href') if key in values]
        if tag == 'img' and not values.get('alt') or tag == 'svg' and not values.get('aria-label'):
            self.unnamed.append(values)
        if tag == 'table':
            self._table = self.tables.setdefault(values.get('id'), [])
        elif tag == 'tr':
            self._table.append([])
        elif tag in ('td', 'th'):
            self._table[-1].append('')
            self._cell = True

    def handle_endtag(self, tag):
        if tag in ('td', 'th'):
            self._cell = None

    def handle_data(self, data):
        if self._cell:
            self._table[-1][-1] = ' '.join((self._table[-1][-1] + data).split())


@pytest.mark.parametrize('kind', ['detection', 'pose'])
def test_one_file_with_everything(kind, request):
    path = request.getfixturevalue(f'{kind}_report')
    content = Page(path)
    charts = DETECTION_CHARTS if kind == 'detection' else POSE_CHARTS
    assert charts | {'disagreement_1'} <= set(content.ids)
    assert len(content.ids) == len(set(content.ids))
    assert all(address.startswith(('#', 'data:')) for address in content.addresses)
    assert not re.search(r'url\((?!#)', content.text) and '<script' not in content.text
    assert not content.unnamed, 'each picture has an alternative text'
    for name in charts:
        assert (path.parent / f'{name}.png').is_file()
        assert (path.parent / f'{name}_dark.png').is_file()
    assert (path.parent / 'disagreement_1.png').is_file()


def test_table_of_metrics(detection_report, detection_runs):
    header, *rows = Page(detection_report).tables['metrics']
    assert header == ['metric', 'baseline', 'pskd', 'difference']
    cells = {row[0]: row[1:] for row in rows}
    assert 'ECE ↓' in cells and not any('circle' in name for name in cells), 'classes are bars'
    logged = [Run(folder).last_metrics()['coco/bbox_mAP'] for folder in detection_runs]
    means = [(logged[0] + logged[1]) / 2, (logged[2] + logged[3]) / 2]
    values = [cell.split('±')[0].strip() for cell in cells['mAP ↑']]
    assert values[:2] == [number(mean) for mean in means]
    assert values[2].lstrip('▲▼ ') == number(means[1] - means[0], signed=True)
    assert all('±' in cell for cell in cells['mAP ↑'])


def test_differences_of_the_configs(detection_report, pose_report):
    _, row = Page(detection_report).tables['differences']
    assert row[0] == 'custom_hooks' and 'PSKDHook' not in row[1] and 'PSKDHook' in row[2]
    _, row = Page(pose_report).tables['differences']
    assert row == ['optim_wrapper.optimizer.lr', '0.0001', '0.01']


def test_baseline_and_one_group(detection_runs, tmp_path):
    path = report_of(detection_runs[1:3], tmp_path, draw=False, baseline=str(detection_runs[2]))
    header, *rows = Page(path).tables['metrics']
    assert header[1:3] == ['pskd', 'baseline']
    assert all(row[3] == '–' for row in rows), 'no common seed, no difference'
    content = Page(report_of(detection_runs[:2], tmp_path, draw=False))
    assert content.tables['metrics'][0] == ['metric', 'baseline']
    assert 'reliability_0' in content.ids and 'disagreement_1' not in content.ids


def test_what_is_missing_is_said(detection_runs, tmp_path):
    """One run without checkpoints, one without scalars."""
    for source, name in zip(detection_runs[1:3], ('no_weights', 'no_scalars')):
        shutil.copytree(source, tmp_path / name)
    for checkpoint in (tmp_path / 'no_weights').glob('*.pth'):
        checkpoint.unlink()
    log, = (tmp_path / 'no_scalars').glob('*/vis_data/scalars.json')
    shutil.copy(log.with_name('config.py'), tmp_path / 'no_scalars')
    log.unlink()
    folders = [tmp_path / 'no_weights', tmp_path / 'no_scalars']
    content = Page(report_of(folders, tmp_path / 'out', draw=False))
    assert 'no_weights holds no last checkpoint' in content.text
    assert 'no_scalars: no vis_data/scalars.json' in content.text
    metrics = {row[0]: row[1:] for row in content.tables['metrics']}
    assert '–' not in metrics['mAP ↑'][:2], 'one from the log, the other from the checkpoint'


def test_runs_of_other_images_are_not_mixed(detection_runs, tmp_path):
    from tests.support import runs
    shutil.copytree(detection_runs[1], tmp_path / 'other')
    data = runs.data(tmp_path / 'data', train=8, val=3)
    for config in (tmp_path / 'other').rglob('*.py'):
        config.write_text(config.read_text().replace(
            str(detection_runs[0].parent / 'data'), str(data)))
    content = Page(report_of([detection_runs[0], tmp_path / 'other'], tmp_path / 'out', draw=False))
    assert 'its images, classes or objects are not those of' in content.text
    assert 'reliability_0' in content.ids and 'reliability_1' not in content.ids


def test_names_are_escaped(detection_runs, tmp_path):
    folder = tmp_path / '<b>bold & "$x"$'
    shutil.copytree(detection_runs[0], folder)
    text = report_of([folder], tmp_path / 'out', draw=False).read_text()
    assert '<b>bold' not in text and '&lt;b&gt;bold' in text


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UsageError, match='not a work dir'):
        write_report([tmp_path], tmp_path / 'out')


@pytest.mark.parametrize('value, expected', [
    (0.12345, '0.123'), (-0.5, '−0.500'), (12.345, '12.35'), (1234.5, '1234.5'),
    (float('nan'), '–')])
def test_numbers(value, expected):
    assert number(value) == expected


# ------------------------------------------------------------------ in a browser

PROBE = """<script>
addEventListener('load', () => {
  const result = {};
  for (const element of document.querySelectorAll('.grid svg, .panel img')) {
    const box = element.getBoundingClientRect();
    const shown = element.tagName == 'IMG' ? element.naturalWidth > 0
        : [...element.querySelectorAll('path')].some(p => p.getBoundingClientRect().width > 9);
    result[element.parentNode.id || element.alt] = shown && box.width > 100 && box.height > 50;
  }
  const ink = getComputedStyle(document.querySelector('.grid svg text')).fill;
  const wide = document.documentElement.scrollWidth - innerWidth;
  document.body.innerHTML = '';
  document.body.dataset.probe = JSON.stringify({figures: result, ink, wide});
});
</script></body>"""


def browse(path, folder, *options):
    """The document that Chromium makes of a file, and what it writes to its console."""
    done = subprocess.run(
        [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr',
         f'--user-data-dir={folder / "profile"}', *options, '--dump-dom', path.as_uri()],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if ':CONSOLE' in line]


@pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium')
class TestInABrowser:

    def test_the_console_is_heard(self, tmp_path):
        """Else its silence would mean nothing."""
        bad = tmp_path / 'bad.html'
        bad.write_text('<script>console.error("a loud complaint"); missing()</script>')
        _, console = browse(bad, tmp_path)
        assert any('a loud complaint' in line for line in console) and len(console) == 2

    @pytest.mark.parametrize('kind', ['detection', 'pose'])
    def test_no_complaints(self, kind, request, tmp_path):
        """Loading anything from elsewhere would be one: the page forbids it."""
        document, console = browse(request.getfixturevalue(f'{kind}_report'), tmp_path)
        assert console == []
        assert '</footer>' in document

    @pytest.mark.parametrize('kind, dark', [('detection', True), ('pose', False)])
    def test_all_figures_are_seen(self, kind, dark, request, tmp_path):
        report = request.getfixturevalue(f'{kind}_report')
        text = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', '', report.read_text())
        copy = tmp_path / 'copy.html'
        copy.write_text(text.replace('</body>', PROBE))
        scheme = f'--blink-settings=preferredColorScheme={1 - dark}'
        document, console = browse(copy, tmp_path, scheme)
        assert console == []
        encoded = re.search(r'data-probe="([^"]*)"', document).group(1)
        probe = json.loads(encoded.replace('&quot;', '"').replace('&amp;', '&'))
        charts = DETECTION_CHARTS if kind == 'detection' else POSE_CHARTS
        assert charts <= set(probe['figures'])
        images = [name for name in probe['figures'] if 'ground truth' in name]
        assert images and all(probe['figures'].values()), probe['figures']
        assert probe['ink'] == ('rgb(236, 236, 236)' if dark else 'rgb(26, 26, 26)')
        assert probe['wide'] <= 0, 'nothing sticks out sideways'
