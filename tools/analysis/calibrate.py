"""Fit a calibrator to a trained model, and say what it changes on images that it has not seen.

Predicts the images of one split, finds the LRP-optimal threshold of each class of a detector, fits
a map of the scores to how well boxes fit (or to hits), and measures on another split. The json file
that it writes goes into mmskd.CalibratedScores and the calibration metrics; the model is left as it
is.
"""
import argparse
import pickle
from typing import Optional, Tuple

from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.console import Console

from mmskd.annotations import check_data
from mmskd.checkpoint import use_safe_loading
from mmskd.config import change_settings, load_config, project_of
from mmskd.ending import add_traceback, end_in_a_line
from mmskd.engine.launch import KeyValueAction, check_checkpoint
from mmskd.errors import UsageError
from mmskd.evaluation.calibrating import Predicted, build_model, build_splits, predict_apart
from mmskd.evaluation.calibrators import KINDS, TARGETS, Calibrator
from mmskd.evaluation.offline import incomparable, metrics_table


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a config file, or one that comes with a package, as '
                        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    parser.add_argument('checkpoint', help='a checkpoint file or URL')
    parser.add_argument('--kind', choices=KINDS, default='platt',
                        help='none only finds the thresholds; default: platt')
    parser.add_argument('--target', choices=TARGETS, help='what a score is to tell: the IoU (0 for '
                        'a miss; default for detectors) or hit or miss (the only one of poses)')
    parser.add_argument('--classwise', action='store_true',
                        help='a map for each class (keypoint), else one for all')
    parser.add_argument('--fit', choices=['val', 'test'], default='val',
                        help='images to fit on, default: val')
    parser.add_argument('--measure', choices=['val', 'test', 'none'], default='test',
                        help='images to measure on, default: test')
    parser.add_argument('--halves', type=int, metavar='SEED', help='fit on a random half of the '
                        'images of --fit and measure on the other half')
    parser.add_argument('--out', help='json file for the calibrator')
    parser.add_argument(
        '--options', nargs='+', action=KeyValueAction, metavar='KEY=VALUE', default={},
        help='settings of the metric that override those of the evaluator, as iou_thr=0.75')
    parser.add_argument(
        '--cfg-options', nargs='+', action=KeyValueAction, metavar='KEY=VALUE', default={},
        help='settings that override those of the config')
    parser.add_argument('--quiet', action='store_true', help='no progress bar')
    add_traceback(parser)
    return parser.parse_args()


def prepare(args: argparse.Namespace) -> Config:
    """The config, once all that the command line names is known to be there."""
    cfg = load_config(args.config)
    change_settings(cfg, args.cfg_options)
    check_checkpoint(args.checkpoint)
    wrong = {'calibrator', 'thresholds'} & set(args.options)
    if wrong:
        raise UsageError(f'--options {min(wrong)}: it is what this tool makes')
    splits = [args.fit] + [args.measure] * (args.measure != 'none' and args.halves is None)
    for split in splits:
        if not cfg.get(f'{split}_dataloader'):
            raise UsageError(f'the config has no {split}_dataloader')
    check_data(cfg, splits)
    if args.out and not args.out.endswith('.json'):
        raise UsageError('--out writes a json file: its name must end in .json')
    args.target = args.target or ('hit' if project_of(cfg) == 'mmpose' else 'iou')
    return cfg


def run(args: argparse.Namespace) -> Tuple[Calibrator, Optional[Predicted]]:
    """Fit; the calibrator, and what to measure it on."""
    cfg = prepare(args)
    init_default_scope(cfg.get('default_scope', project_of(cfg)))
    use_safe_loading()
    apart = args.measure != 'none' and args.halves is None
    loaders = build_splits(cfg, args.fit, args.measure if apart else None)
    model = build_model(cfg, args.checkpoint)
    fitted, measured = predict_apart(model, cfg, loaders, args.halves, args.options, args.quiet)
    calibrator = fitted.metric.fit(fitted.gathered, args.kind, args.target, args.classwise)
    calibrator.fitted_on.update(
        config=args.config, checkpoint=args.checkpoint, split=args.fit,
        half_by_seed=args.halves)
    return calibrator, measured


def describe(args: argparse.Namespace, calibrator: Calibrator,
             measured: Optional[Predicted]) -> str:
    """What was done, in a line."""
    of = calibrator.fitted_on
    kept = ' kept at the LRP-optimal thresholds' if calibrator.task == 'detection' else ''
    half = '' if args.halves is None else f', a random half by seed {args.halves}'
    where = 'not measured' if measured is None else (
        f'measured on {"the other half" if half else args.measure} '
        f'({len(set(measured.files))} images)')
    maps = 'no map' if args.kind == 'none' else f'{args.kind}, ' + (
        'class by class' if args.classwise else 'all classes together')
    return (f'{maps}, fitted to {"the IoU" if args.target == "iou" else "hits"} of '
            f'{of["predictions"]} predictions{kept} of {args.fit} ({of["images"]} images{half}), '
            f'{where}')


def main() -> None:
    args = parse_args()
    try:
        calibrator, measured = run(args)
    except (ValueError, pickle.UnpicklingError, FileNotFoundError, ModuleNotFoundError) as error:
        end_in_a_line('calibrate.py', error, args.traceback)
    console = Console(highlight=False, markup=False)
    console.print(describe(args, calibrator, measured))
    for note in calibrator.notes:
        console.print(f'note: {note}')
    if measured is not None:
        columns = dict(before=measured.values(calibrator, False))
        if args.kind != 'none':
            columns['after'] = measured.values(calibrator, True)
        console.print(metrics_table(columns))
        console.print(incomparable(columns['before'], calibrator.task))
    if args.out:
        calibrator.save(args.out)
        console.print(f'wrote {args.out}; tools/test.py --calibrator {args.out} applies it, and so '
                      'does the hook mmskd.CalibratedScores')


if __name__ == '__main__':
    main()
