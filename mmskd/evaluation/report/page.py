"""Puts the report together: one HTML file that needs nothing else, and PNGs beside it."""
import base64
import datetime
import io
import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from mmskd.progress import track
from mmskd.version import __version__

from . import figures, pictures
from .charts import chart as charts
from .charts.theme import DARK, LIGHT, MARKER_PATHS, css_variables, style_of
from .members import Member, members_of
from .mistakes import picture_of, surest_mistakes
from .results import Row, confidences, judged_table, number, own_table, summary
from .rules import PoseRule, Rule, common_rule, in_words
from .runs import Run, config_differences, group_runs

NUM_PICTURES = 6
NUM_MISTAKES = 12  # of each group; fewer where there are many groups
MOST_MISTAKES = 48  # of all groups together
CLIPPED = 0.001  # share of scores outside [0, 1] that is worth a word


def write_report(folders: Sequence[Any], out_dir: Any, baseline: Optional[str] = None,
                 split: str = 'val', which: str = 'last', quiet: bool = False) -> Path:
    """Compare training runs.

    Args:
        folders (sequence[str or Path]): Work dirs of ``tools/train.py``. Runs whose configs differ
            in the seed only are one group.
        out_dir (str or Path): Where ``report.html`` and the PNGs go; made if it does not exist.
        baseline (str, optional): Folder of a run of the group that the others are compared with.
            Defaults to None: the first.
        split (str): ``'val'`` or ``'test'``: whose images are predicted. Defaults to ``'val'``.
        which (str): ``'last'`` or ``'best'`` checkpoint. Defaults to ``'last'``.
        quiet (bool): Show no progress bars. Defaults to False.

    Returns:
        Path: The page.

    Raises:
        UsageError: If a folder is no run, or the runs cannot be compared.
    """
    groups = group_runs([Run(folder) for folder in folders], baseline)
    names = [group.name for group in groups]
    notes: List[str] = []
    rule, differ = common_rule([run for group in groups for run in group.runs], split)
    members = members_of(groups, split, which, rule, notes, quiet)
    task = 'pose' if isinstance(rule, PoseRule) else 'detection'
    known = [member for member in members if member.verdicts and not member.left_out]
    notes += [f'{member.run.folder} is left out of means, differences and charts: '
              f'{member.left_out}.' for member in members if member.left_out]
    clipped = _on_clipping(known, names)
    notes += [f'{clipped}: they are no probabilities.'] * bool(clipped)

    tables = judged_table(members, len(groups), task), own_table(members, len(groups), task, split)
    thresholds = figures.threshold_section(known, names)
    by_name, bars_left_out = figures.by_name_charts(known, names, task)
    sections = dict(
        curves=figures.curve_charts(members, names, task),
        reliability=figures.reliability_charts(known, names, rule, task),
        by_size=figures.size_charts(known, names), risk=figures.risk_charts(known, names),
        thresholds=thresholds.charts, by_name=by_name,
        confusion=figures.confusion_charts(known, names, task))

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    drawn = [chart for section in sections.values() for chart in section]
    svgs = {}
    for chart in track(drawn, 'charts', quiet):
        svgs[chart.name] = Markup(charts.save(chart, out_dir))
    firsts = [mine[0] for mine in figures.by_group(known).values()]
    page = _template().render(
        version=__version__, made=datetime.datetime.now().strftime('%Y-%m-%d %H:%M'),
        names=names, members=members, number=number, split=split, which=which, rule=rule,
        rule_text=in_words(rule), rule_note=_on_the_rule(differ), task=task if known else None,
        noun=figures.noun_of(task), judged=tables[0], own=tables[1],
        summary=summary(tables, names), svgs=svgs, charts=sections, best=thresholds.best,
        confidences=confidences(tables[0], members, names, task),
        bars_left_out=bars_left_out, clipped=clipped,
        mistakes=_mistakes(firsts, rule, notes, quiet),
        scenes=_scenes(firsts, names, out_dir, notes, quiet),
        scene_thresholds=', '.join(f'{names[m.group]} {m.verdicts.threshold:.2f}' for m in firsts),
        notes=notes, differences=_differences([group.runs[0].essence() for group in groups]),
        light=css_variables(LIGHT), dark=css_variables(DARK),
        styles=[style_of(group) for group in range(len(groups))], marker_paths=MARKER_PATHS,
        marks=dict(right=pictures.RIGHT['color'], wrong=pictures.WRONG['color'],
                   missed=pictures.MISSED['color'], truth=pictures.TRUTH['color']))
    path = out_dir / 'report.html'
    path.write_text(page, encoding='utf-8')
    return path


# ------------------------------------------------------------------ words


def _on_the_rule(differ: str) -> str:
    return f"The runs' evaluators differ in {differ}; the baseline's count here." if differ else ''


def _on_clipping(known: Sequence[Member], names: Sequence[str]) -> str:
    """Which share of keypoint scores is no probability."""
    shares = {group: np.mean([m.verdicts.judged.clipped for m in mine])
              for group, mine in figures.by_group(known).items()}
    return ', '.join(f'{share:.0%} of the scores of {names[group]} are outside [0, 1] and were '
                     'clipped' for group, share in shares.items() if share > CLIPPED)


def _differences(configs: Sequence[dict]) -> List[Tuple[str, Dict[str, List[int]]]]:
    """Each setting that differs, with the groups that have each of its values."""
    found = []
    for key, values in config_differences(configs):
        groups: Dict[str, List[int]] = {}
        for i, value in enumerate(values):
            groups.setdefault(_code(value), []).append(i)
        found.append((key, groups))
    return found


def _code(value: Any) -> str:
    """A config value as one would write it."""
    return value if value == '(not set)' else json.dumps(value, default=str, ensure_ascii=False)


# ------------------------------------------------------------------ images


class _Images:
    """Images that are shown, read once; what cannot be read is noted once."""

    def __init__(self, notes: List[str]) -> None:
        self.notes = notes
        self.missing: Set[str] = set()

    def get(self, path: str) -> Optional[np.ndarray]:
        image = pictures.load_image(path)
        if image is None and path not in self.missing:
            self.missing.add(path)
            self.notes.append(f'{path} cannot be read, so it is not shown.')
        return image


def _mistakes(firsts: Sequence[Member], rule: Rule, notes: List[str], quiet: bool) -> List[dict]:
    """The surest mistakes of the groups' first runs."""
    each = max(1, min(NUM_MISTAKES, MOST_MISTAKES // max(len(firsts), 1)))
    images, pagers = _Images(notes), []
    for member in track(firsts, 'mistakes', quiet):
        predictions, pages = member.predictions, []
        for one in surest_mistakes(predictions, member.verdicts.judged, rule, each):
            path = str(predictions.image_paths[one.image])
            image = images.get(path)
            if image is not None:
                pages.append(dict(
                    file=Path(path).name, what=one.what, score=one.score, why=one.why,
                    src=_data_uri(picture_of(predictions, one, image))))
        if pages:
            pagers.append(dict(group=member.group, pages=pages))
    return pagers


def _scenes(firsts: Sequence[Member], names: Sequence[str], out_dir: Path, notes: List[str],
            quiet: bool) -> List[dict]:
    """The images on which the groups' first runs disagree most."""
    if len(firsts) < 2:
        return []
    predictions = firsts[0].predictions
    assert predictions is not None  # what has verdicts has them
    task = predictions.task
    shown = [m.verdicts.judged.above(m.verdicts.threshold) for m in firsts]
    chosen, differ = pictures.disagreements(
        shown, len(predictions.image_ids), NUM_PICTURES, count_alarms=task == 'detection')
    images, scenes = _Images(notes), []
    for rank, one in enumerate(track(chosen, 'pictures', quiet), 1):
        path = str(predictions.image_paths[one.image])
        image = images.get(path)
        if image is None:
            continue
        columns = [('ground truth', pictures.Scene(predictions, None, one.image))] + [
            (names[m.group],
             pictures.Scene(m.predictions or predictions, judged, one.image, differ))
            for m, judged in zip(firsts, shown)]
        pictures.montage([(image, columns)]).savefig(out_dir / f'disagreement_{rank}.png')
        scenes.append(dict(
            id=f'disagreement_{rank}', file=Path(path).name, objects=one.objects,
            alarms=one.alarms, panels=[dict(
                title=title, src=_data_uri(pictures.picture(image, scene)),
                text=pictures.counts(scene.judged, one.image, task) if scene.judged else '')
                for title, scene in columns]))
    return scenes


def _data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='jpeg', dpi=160, pil_kwargs=dict(quality=80, optimize=True))
    return 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode()


# ------------------------------------------------------------------ the template


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / 'templates')
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(number=number, scale=_scale, file_name=figures.file_name,
                               multiply=lambda value, by: f'{value * by:g}')
    return environment.get_template('page.html')


def _scale(row: Row) -> Callable[[float], float]:
    """Where a value lies in the strips of a metric, in per cent of their width."""
    ends = [value for values in row.values for value in values]
    ends += [end for pair in row.over_images for end in pair]
    ends += [one.mean + sign * one.margin for one in row.means for sign in (-1, 1)]
    ends = [end for end in ends if np.isfinite(end)]
    low, high = min(ends, default=0.), max(ends, default=0.)
    if low == high:
        return lambda value: 50.
    return lambda value: round(3 + 94 * min(max((value - low) / (high - low), 0), 1), 2)
