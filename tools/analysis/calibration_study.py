r"""Every calibrator on trained detectors.

Fitted on one split, measured on another, in one json file.

For each detector: the measures of the model as it is and under each map (temperature, Platt,
isotonic), fitted to the IoU and to hits, for all classes together and class by class; with
bootstrap intervals over images, what the config's own metrics say (mAP), and what is wrong with a
fit. A run that the json file has already, of the same checkpoint and with the same settings, is
not measured again, so that the file grows with a study whose runs end one after the other.

    python tools/analysis/calibration_study.py --run configs/bccd/retinanet_r18_bccd.py \
        work_dirs/retinanet_r18_bccd/epoch_24.pth --out results/calibration_study.json
    python tools/analysis/calibration_study.py --runs work_dirs/verdicts_r18 \
        --out results/calibration_study.json
    python tools/fill_pages.py  # docs/calibration.md
"""
import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import pickle
import shlex
import sys
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional

from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope

from mmskd.annotations import check_data
from mmskd.checkpoint import use_safe_loading
from mmskd.config import change_settings, load_config, metrics_of, project_of
from mmskd.ending import add_traceback, end_in_a_line
from mmskd.engine.launch import KeyValueAction, check_checkpoint
from mmskd.errors import UsageError
from mmskd.evaluation import calibrate_sample
from mmskd.evaluation.calibrating import Predicted, build_model, build_splits, predict_apart
from mmskd.evaluation.calibrators import TARGETS, Calibrator
from mmskd.evaluation.held_out import image_keys
from mmskd.evaluation.report.runs import Run

sys.path.append(str(Path(__file__).parents[1]))
from calibration_tables import MEASURES  # noqa: E402

MAPS = ('temperature', 'platt', 'isotonic')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--run', nargs=2, action='append', default=[],
                        metavar=('CONFIG', 'CHECKPOINT'), help='a trained detector; repeatable')
    parser.add_argument('--runs', type=Path, metavar='FOLDER', help='a folder with the work dirs '
                        'of trainings in it, at any depth; what has not ended is left out')
    parser.add_argument('--out', required=True, help='json file for the values')
    parser.add_argument('--fit', choices=['val', 'test'], default='val',
                        help='images to fit on, default: val')
    parser.add_argument('--measure', choices=['val', 'test'], default='test',
                        help='images to measure on, default: test')
    parser.add_argument('--halves', type=int, metavar='SEED', help='fit on a random half of the '
                        'images of --fit and measure on the other half')
    parser.add_argument('--bootstrap', type=int, default=1000,
                        help='how often images are drawn for the intervals, default: 1000')
    parser.add_argument(
        '--cfg-options', nargs='+', action=KeyValueAction, metavar='KEY=VALUE', default={},
        help='settings that override those of every config')
    parser.add_argument('--quiet', action='store_true', help='no progress bar')
    add_traceback(parser)
    return parser.parse_args()


class Trained(NamedTuple):
    """A detector to measure.

    Attributes:
        name (str): How the results call it.
        cfg (Config): Its config.
        checkpoint (str): A file or URL.
    """
    name: str
    cfg: Config
    checkpoint: str


def trained_in(folder: Path) -> Iterator[Trained]:
    """The runs below a folder that have ended, with their own configs and last checkpoints."""
    found = sorted({logs.parent.parent for logs in folder.glob('**/vis_data')})
    if not found:
        raise UsageError(f'--runs {folder}: there is no work dir in it')
    for path in found:
        run, name = Run(path), path.relative_to(folder).as_posix()
        reason = run.unfinished() if run.checkpoint() else 'it has no checkpoint'
        if reason:
            print(f'{name} is left out: {reason}')
            continue
        yield Trained(name, run.cfg, str(run.checkpoint()))


def prepare(args: argparse.Namespace) -> List[Trained]:
    """What is to be measured, once all that the command line names is known to be there."""
    if not args.out.endswith('.json'):
        raise UsageError('--out writes a json file: its name must end in .json')
    detectors = [Trained(name, load_config(name), checkpoint) for name, checkpoint in args.run]
    detectors += trained_in(args.runs) if args.runs else []
    if not detectors:
        raise UsageError('there is nothing to measure: --run CONFIG CHECKPOINT, or --runs FOLDER '
                         'with trainings that have ended')
    for name, cfg, checkpoint in detectors:
        change_settings(cfg, args.cfg_options)
        check_checkpoint(checkpoint)
        if project_of(cfg) != 'mmdet':
            raise UsageError(f'{name} is no detector')
        splits = [args.fit] + [args.measure] * (args.halves is None)
        for split in splits:
            if not cfg.get(f'{split}_dataloader'):
                raise UsageError(f'{name} has no {split}_dataloader')
        check_data(cfg, splits)
    return detectors


def calibrators(fitted: Predicted) -> Iterator[Calibrator]:
    """None, and each map in every way."""
    yield fitted.metric.fit(fitted.gathered, 'none', 'iou', False)
    for kind, target, classwise in product(MAPS, TARGETS, (False, True)):
        yield fitted.metric.fit(fitted.gathered, kind, target, classwise)


def own_metrics(evaluator: Evaluator, measured: Predicted, calibrator: Calibrator
                ) -> Dict[str, float]:
    """What the config's metrics, as CocoMetric, say of the mapped predictions."""
    samples = [sample.clone() for sample in measured.samples]
    if calibrator.kind != 'none':
        for sample in samples:
            sample.pred_instances = deepcopy(sample.pred_instances)
            calibrate_sample(sample, calibrator)
    with contextlib.redirect_stdout(io.StringIO()):  # COCO's tables
        found = evaluator.offline_evaluate([sample.to_dict() for sample in samples])
    return {key: float(value) for key, value in found.items()}


def study(cfg: Config, checkpoint: str, args: argparse.Namespace) -> dict:
    """On which images, and a row for each calibrator."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    loaders = build_splits(cfg, args.fit, args.measure if args.halves is None else None)
    fitted, measured = predict_apart(build_model(cfg, checkpoint), cfg, loaders, args.halves,
                                     dict(bootstrap=args.bootstrap), args.quiet)
    split = args.fit if args.halves is not None else args.measure
    own = [metric for metric in metrics_of(cfg.get(f'{split}_evaluator'))
           if 'Calibration' not in str(metric['type'])]
    evaluator = Evaluator(deepcopy(own)) if own and args.halves is None else None
    rows = []
    for calibrator in calibrators(fitted):
        values = measured.values(calibrator, True)
        if evaluator is not None:
            evaluator.dataset_meta = loaders[split].dataset.metainfo
            values.update(own_metrics(evaluator, measured, calibrator))
        rows.append(dict(
            kind=calibrator.kind, target=calibrator.target, classwise=calibrator.classwise,
            notes=calibrator.notes, fitted_to=calibrator.fitted_on,
            values={key: None if math.isnan(value) else value for key, value in values.items()}))
    return dict(data=data_of(measured), rows=rows)


def data_of(measured: Predicted) -> dict:
    """What tells the images and objects that are measured from others."""
    objects = measured.gathered.objects
    digest = hashlib.sha256(repr(sorted(image_keys(measured.files))).encode())
    return dict(images=len(measured.files), objects=len(objects.labels),
                digest=digest.hexdigest()[:12])


def digest_of(checkpoint: str) -> Optional[str]:
    """What tells a checkpoint from others of the same name; None for a URL."""
    if '://' in checkpoint:
        return None
    with open(os.path.expanduser(checkpoint), 'rb') as file:
        return hashlib.sha256(file.read()).hexdigest()


def show(rows: List[dict]) -> None:
    """The values that matter most."""
    key = next((key for key in rows[0]['values'] if key.endswith('mAP')), None)
    print(f'{"":28}' + ''.join(f'{name:>9}' for name in (*MEASURES, *['mAP'] * bool(key))))
    for row in rows:
        name = row['kind'] if row['kind'] == 'none' else (
            f'{row["kind"]}, {row["target"]}, {"each class" if row["classwise"] else "all"}')
        values = [row['values'][f'calibration/{shown}'] for shown in MEASURES]
        values += [row['values'][key]] * bool(key)
        print(f'{name:28}' + ''.join(f'{"-" if v is None else round(v, 4):>9}' for v in values))


def known_runs(path: str) -> Dict[str, dict]:
    """What the json file holds already, by name."""
    if not os.path.exists(path):
        return {}
    try:
        with open(path) as file:
            return {run['name']: run for run in json.load(file)['runs']}
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f'{path} is no file of this tool: give another --out') from error


def measure(args: argparse.Namespace) -> None:
    """All that the command line names. The json file is written after every run."""
    detectors, runs = prepare(args), known_runs(args.out)
    for name, cfg, checkpoint in detectors:
        run = dict(name=name, checkpoint=os.path.basename(checkpoint), sha256=digest_of(checkpoint),
                   fitted_on=args.fit, measured_on=args.measure if args.halves is None else
                   f'the other half, seed {args.halves}', bootstrap=args.bootstrap,
                   options={key: str(value) for key, value in args.cfg_options.items()})
        if not run['sha256'] or not run.items() <= runs.get(name, {}).items():
            runs[name] = dict(run, **study(cfg, checkpoint, args))
        print(name)
        show(runs[name]['rows'])
        with open(args.out, 'w') as file:
            json.dump(dict(command=shlex.join(['python', *sys.argv]), runs=list(runs.values())),
                      file, indent=1)


def main() -> None:
    args = parse_args()
    use_safe_loading()
    try:
        measure(args)
    except (ValueError, pickle.UnpicklingError, FileNotFoundError, ModuleNotFoundError) as error:
        end_in_a_line('calibration_study.py', error, args.traceback)


if __name__ == '__main__':
    main()
