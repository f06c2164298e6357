"""The whole report, of real runs and of made up ones, as a file and as a browser shows it."""
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from mmskd.errors import UsageError
from mmskd.evaluation.report import figures, members, page
from mmskd.evaluation.report.charts import chart as charts
from mmskd.evaluation.report.page import write_report
from mmskd.evaluation.report.results import number
from mmskd.evaluation.report.runs import Run
from tests.support import report_runs

CHROMIUM = next(filter(None, map(shutil.which, (
    'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))), None)
POSE_CHARTS = {
    'curve_loss', 'curve_PCK', 'reliability_0', 'reliability_1', 'risk_coverage', 'by_name_PCK',
    'by_name_ECE', 'precision_recall', 'f1', 'precision_recall_by_name', 'f1_by_name',
    'confusion_0', 'confusion_1'
}
DETECTION_CHARTS = POSE_CHARTS - {'curve_PCK', 'by_name_PCK'} | {
    'curve_pskd_alpha', 'curve_coco_bbox_mAP', 'curve_calibration_LaECE_0_own_thr', 'by_name_AP',
    'by_name_LaECE_0_own_thr', 'reliability_by_size_0'
}
LONG = 'retinanet_r50_fpn_1x_bccd_with_a_name_that_says_everything'


def report_of(folders, out_dir, draw=True, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, 'NUM_CURVES', 6)
        patch.setattr(members, 'DRAWS', 20)
        if not draw:  # what is drawn is looked at in two reports, which is enough
            patch.setattr(page.charts, 'save', lambda chart, folder: '')
            patch.setattr(page, 'NUM_PICTURES', 1)
            patch.setattr(page, 'NUM_MISTAKES', 1)
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
        named = values.get('alt') or values.get('aria-label') or values.get('aria-hidden')
        if tag in ('img', 'svg') and not named:
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
    names = DETECTION_CHARTS if kind == 'detection' else POSE_CHARTS
    assert names | {'disagreement_1', 'mistakes_0', 'mistake_1_1', 'best_0'} <= set(content.ids)
    assert len(content.ids) == len(set(content.ids))
    assert all(address.startswith(('#', 'data:')) for address in content.addresses)
    assert not re.search(r'url\((?!#)', content.text) and '<script' not in content.text
    assert not content.unnamed, 'each picture has an alternative text'
    for name in names:
        assert (path.parent / f'{name}.png').is_file()
        assert (path.parent / f'{name}_dark.png').is_file()
    assert (path.parent / 'disagreement_1.png').is_file()


def test_tables_of_metrics(detection_report, detection_runs):
    tables = Page(detection_report).tables
    header, *rows = tables['own_coco_bbox_mAP']
    assert header == ['group', 'mean', 'difference']
    logged = [Run(folder).last_metrics()['coco/bbox_mAP'] for folder in detection_runs]
    means = [(logged[0] + logged[1]) / 2, (logged[2] + logged[3]) / 2]
    assert [row[0] for row in rows] == ['baseline', 'pskd']
    assert [row[1].split('±')[0].strip() for row in rows] == [number(mean) for mean in means]
    assert rows[0][2] == ''
    assert rows[1][2].split('±')[0].strip(' ▲▼') == number(means[1] - means[0], signed=True)
    assert {'metric_mAP', 'metric_LaECE_0_own_thr', 'metric_OCE_own_thr',
            'metric_ECE'} <= set(tables)
    assert not any('circle' in str(name) for name in tables), 'classes are charts'


def test_the_diagram_and_the_table_say_the_same(detection_report, pose_report):
    for report in (detection_report, pose_report):
        content = Page(report)
        for i, row in enumerate(content.tables['metric_ECE'][1:]):
            value = row[1].split('±')[0].strip()
            assert re.search(f'id="reliability_{i}".*?Calibration error {value}', content.text,
                             re.S)


def test_differences_of_the_configs(detection_report, pose_report):
    rows = Page(detection_report).tables['differences'][1:]
    assert rows[0][0] == 'custom_hooks'
    assert 'PSKDHook' not in rows[0][1] and 'PSKDHook' in rows[1][1]
    assert [row[2] for row in rows] == ['baseline', 'pskd']
    rows = Page(pose_report).tables['differences'][1:]
    assert [row[:2] for row in rows] == [['optim_wrapper.optimizer.lr', '0.0001'], ['', '0.01']]


def test_baseline_and_one_group(detection_runs, tmp_path):
    path = report_of(detection_runs[1:3], tmp_path, draw=False, baseline=str(detection_runs[2]))
    header, *rows = Page(path).tables['metric_mAP']
    assert [row[0] for row in rows] == ['pskd', 'baseline']
    assert '±' not in rows[1][2] and '▲' not in rows[1][2], 'single runs prove nothing'
    assert '[' in Page(path).tables['metric_OCE_own_thr'][1][1], 'an interval over images'
    content = Page(report_of(detection_runs[:2], tmp_path, draw=False))
    assert content.tables['metric_mAP'][0] == ['group', 'mean']
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
    rows = content.tables['own_coco_bbox_mAP'][1:]
    assert '–' not in [row[1] for row in rows], 'one from the log, the other from the checkpoint'
    assert 'No verdicts here: it cannot be told whether all runs were measured' in content.text


def test_runs_of_other_images_are_not_mixed(detection_runs, tmp_path):
    from tests.support import runs
    shutil.copytree(detection_runs[1], tmp_path / 'other')
    data = runs.data(tmp_path / 'data', train=8, val=3)
    for config in (tmp_path / 'other').rglob('*.py'):
        config.write_text(config.read_text().replace(
            str(detection_runs[0].parent / 'data'), str(data)))
    content = Page(report_of([detection_runs[0], tmp_path / 'other'], tmp_path / 'out', draw=False))
    assert ('left out of means, differences and charts: its image ids are not those of'
            in content.text)
    assert 'reliability_0' in content.ids and 'reliability_1' not in content.ids
    assert all('▲' not in cell and '▼' not in cell for rows in content.tables.values()
               for row in rows for cell in row)


def test_names_are_escaped(detection_runs, tmp_path):
    folder = tmp_path / '<b>bold & "$x"$'
    shutil.copytree(detection_runs[0], folder)
    text = report_of([folder], tmp_path / 'out', draw=False).read_text()
    assert '<b>bold' not in text and '&lt;b&gt;bold' in text


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UsageError, match='not a work dir'):
        write_report([tmp_path], tmp_path / 'out')


def test_a_rerun_in_the_same_folder_is_said(detection_runs, tmp_path):
    shutil.copytree(detection_runs[0], tmp_path / 'run', ignore=shutil.ignore_patterns('report'))
    session, = (tmp_path / 'run').glob('*/vis_data')
    shutil.copytree(session.parent, tmp_path / 'run/20990101_000000')
    content = Page(report_of([tmp_path / 'run'], tmp_path / 'out', draw=False))
    assert 'holds 2 trainings, of which the last one counts' in content.text
    assert 'was saved at' in content.text and 'reliability_0' not in content.ids


# ------------------------------------------------------------------ in a browser

PROBE = """<body><script>
const found = {};
function inspect(frame) {
  const doc = frame.contentDocument, win = frame.contentWindow, result = {figures: {}, out: [], cut: []};
  doc.querySelectorAll('details').forEach(one => one.open = true);
  for (const element of doc.querySelectorAll('.grid svg, .panel img, .pager input:checked + label + figure img')) {
    const box = element.getBoundingClientRect();
    const shown = element.tagName == 'IMG' ? element.naturalWidth > 0
        : [...element.querySelectorAll('path')].some(p => p.getBoundingClientRect().width > 9);
    result.figures[element.parentNode.id || element.alt] = shown && box.width > 100 && box.height > 50;
  }
  for (const element of doc.querySelectorAll('body *')) {
    if (element.ownerSVGElement || element.closest('.pager input')) continue;
    const box = element.getBoundingClientRect();
    if (box.width && (box.right > win.innerWidth + 0.5 || box.left < -0.5))
      result.out.push(element.tagName + '.' + element.className + ' ' + element.textContent.slice(0, 40));
    if (element.scrollWidth > element.clientWidth + 1 && element.clientWidth && !element.matches('svg, code, span'))
      result.out.push('overfull ' + element.tagName + '.' + element.className);
  }
  for (const text of doc.querySelectorAll('.grid svg text')) {
    const box = text.getBoundingClientRect(), all = text.ownerSVGElement.getBoundingClientRect();
    if (box.left < all.left - 3 || box.right > all.right + 3 || box.bottom > all.bottom + 3 || box.top < all.top - 3)
      result.cut.push(text.ownerSVGElement.parentNode.id + ': ' + text.textContent);
  }
  const pager = doc.querySelector('.pager');
  const pages = () => [...pager.querySelectorAll('figure')].filter(f => win.getComputedStyle(f).display != 'none').length;
  const second = pager.querySelectorAll('input')[1];
  if (second) {
    const first = pager.querySelector('figure');
    second.focus(); second.click();
    result.pages = [pages(), win.getComputedStyle(first).display, doc.activeElement == second];
  }
  result.ink = win.getComputedStyle(doc.querySelector('.grid svg text')).fill;
  result.width = win.innerWidth;
  result.wide = doc.documentElement.scrollWidth - win.innerWidth;
  found[frame.name] = result;
}
addEventListener('load', () => {
  document.querySelectorAll('iframe').forEach(inspect);
  document.body.innerHTML = '';
  document.body.dataset.probe = JSON.stringify(found);
});
</script>"""  # noqa: E501 (JavaScript)


def browse(path, folder, *options):
    """The document that Chromium makes of a file, and what it writes to its console."""
    done = subprocess.run(
        [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr',
         '--allow-file-access-from-files', f'--user-data-dir={folder / "profile"}', *options,
         '--dump-dom', path.as_uri()],
        capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if ':CONSOLE' in line]


def inspected(pages, folder, dark):
    """What a browser says of pages, {name: path}, each in a wide window and on a phone."""
    frames = ''.join(
        f'<iframe name="{name} {width}" src="{path.as_uri()}" style="width:{width}px;height:900px">'
        '</iframe>' for name, path in pages.items() for width in (1280, 390))
    wrapper = folder / 'pages.html'
    wrapper.write_text(PROBE + frames)
    document, console = browse(wrapper, folder,
                               f'--blink-settings=preferredColorScheme={1 - dark}')
    assert console == []
    encoded = re.search(r'data-probe="([^"]*)"', document).group(1)
    return json.loads(encoded.replace('&quot;', '"').replace('&lt;', '<').replace('&gt;', '>')
                      .replace('&amp;', '&'))


def quick_save(kept):
    """Draws charts for the page alone, and those of single groups twice only."""
    kept = {name: svg for name, svg in kept.items() if name[-1].isdigit() and name != 'f1'}

    def save(chart, folder):
        kind = re.sub(r'_[2-9]$', '_1', chart.name)
        if kind not in kept:
            buffer = io.StringIO()
            with charts.drawn(chart) as figure:
                figure.savefig(buffer, format='svg', transparent=True)
            kept[kind] = charts._for_page(chart, buffer.getvalue())
        return kept[kind].replace(f'{kind}-', f'{chart.name}-')

    return save, kept


@pytest.fixture(scope='module')
def studies(tmp_path_factory):
    """Reports of 12 runs in 4 groups and of 10 groups, with long names."""
    root = tmp_path_factory.mktemp('studies')
    shapes = report_runs.pictures(root / 'shapes')

    def make(seed, skill):
        return report_runs.detections(seed, skill, paths=shapes, objects=60)

    found, kept = {}, {}
    for name, ends, seeds in (
            ('four', ('baseline', 'pskd', 'nkd', 'after_that_twice_as_long'), (0, 1, 2)),
            ('ten', [f'number_{i}' for i in range(10)], (0, ))):
        skills = {f'{LONG}_{end}': .3 + .5 * i / len(ends) for i, end in enumerate(ends)}
        with pytest.MonkeyPatch.context() as patch:
            predictions = report_runs.study(root / name, skills, seeds, make)
            report_runs.predict_from(predictions, patch)
            save, kept = quick_save(kept)
            patch.setattr(page.charts, 'save', save)
            patch.setattr(page, 'NUM_PICTURES', 1)
            patch.setattr(members, 'DRAWS', 20)
            patch.setattr(page, 'MOST_MISTAKES', 20)
            found[name] = write_report(list(predictions), root / f'{name}_report', quiet=True)
    return found


def test_a_page_of_twelve_runs(studies):
    content = Page(studies['four'])
    assert len(content.tables[None][1:]) >= 12 and len(content.tables['metric_mAP'][1:]) == 4
    assert sum('▲' in row[2] for row in content.tables['metric_mAP'][1:]) >= 1
    assert not content.unnamed and len(content.ids) == len(set(content.ids))


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium')
class TestInABrowser:

    def test_the_console_is_heard(self, tmp_path):
        """Else its silence would mean nothing."""
        bad = tmp_path / 'bad.html'
        bad.write_text('<script>console.error("a loud complaint"); missing()</script>')
        _, console = browse(bad, tmp_path)
        assert any('a loud complaint' in line for line in console) and len(console) == 2

    def test_what_sticks_out_is_noticed(self, tmp_path):
        """Else nothing would."""
        bad = tmp_path / 'bad.html'
        bad.write_text(
            '<div class="grid"><div id="x"><svg viewBox="0 0 9 9" width="80"><text x="7">'
            'cut off</text></svg></div></div><fieldset class="pager"></fieldset>'
            '<p style="width: 500px">wide</p>')
        found = inspected(dict(bad=bad), tmp_path, dark=False)
        assert found['bad 1280']['out'] == [] and found['bad 1280']['cut'] == ['x: cut off']
        assert found['bad 390']['out'] == ['P. wide'] and found['bad 390']['wide'] > 0

    @pytest.mark.parametrize('dark', [True, False])
    def test_all_is_seen_and_nothing_sticks_out(self, dark, studies, detection_report, pose_report,
                                                tmp_path):
        """Loading anything from elsewhere would be a complaint: the pages forbid it."""
        pages = studies if dark else dict(detection=detection_report, pose=pose_report)
        found = inspected(pages, tmp_path, dark)
        assert len(found) == 2 * len(pages)
        for name, probe in found.items():
            assert probe['width'] == int(name.split()[1])
            assert (probe['out'], probe['cut'], max(probe['wide'], 0)) == ([], [], 0), name
            assert all(probe['figures'].values()), probe['figures']
            assert [alt for alt in probe['figures'] if 'ground truth' in alt], name
            assert probe['pages'] == [1, 'none', True], name
            assert probe['ink'] == ('rgb(236, 236, 236)' if dark else 'rgb(26, 26, 26)')
        figures = set(found['ten 1280' if dark else 'detection 1280']['figures'])
        assert {'risk_coverage', 'f1', 'confusion_9'} <= figures if dark else \
            DETECTION_CHARTS <= figures
