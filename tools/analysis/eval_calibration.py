"""Measure calibration on predictions that tools/test.py saved. Needs no model and no GPU."""
import argparse
import pickle

from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from rich.console import Console

from mmskd.config import change_settings, load_config, project_of
from mmskd.ending import add_traceback, end_in_a_line
from mmskd.engine.launch import KeyValueAction
from mmskd.errors import UsageError
from mmskd.evaluation.offline import (
    calibration_metric,
    check_poses,
    dataset_meta,
    incomparable,
    metrics_table,
)
from mmskd.evaluation.results import load_results


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('results', help='what tools/test.py --dump (or, for MMDetection, --out) '
                        'wrote; read without running code from it')
    parser.add_argument('config', help='the config that was tested, as a file or as mmdet::...')
    parser.add_argument(
        '--options', nargs='+', action=KeyValueAction, metavar='KEY=VALUE', default={},
        help='settings of the metric that override those of test_evaluator, as iou_thr=0.75 '
        'classwise=True, or hit=oks per_keypoint=True')
    parser.add_argument(
        '--cfg-options', nargs='+', action=KeyValueAction, metavar='KEY=VALUE', default={},
        help='settings that override those of the config')
    add_traceback(parser)
    return parser.parse_args()


def evaluate(args: argparse.Namespace) -> dict:
    cfg = load_config(args.config)
    change_settings(cfg, args.cfg_options)
    init_default_scope(cfg.get('default_scope', project_of(cfg)))
    results = load_results(args.results)
    if project_of(cfg) == 'mmpose':
        check_poses(results)
    evaluator = Evaluator([calibration_metric(cfg, 'test', args.options)])
    evaluator.dataset_meta = dataset_meta(cfg.test_dataloader.dataset)
    try:
        return evaluator.offline_evaluate(results)
    except UsageError:
        raise
    except Exception as error:  # whatever the file holds
        raise UsageError(f'{args.results} does not hold what a test of {args.config} writes '
                         f'({type(error).__name__}: {error})') from error


def main() -> None:
    args = parse_args()
    try:
        metrics = evaluate(args)
    except (ValueError, pickle.UnpicklingError, FileNotFoundError, ModuleNotFoundError) as error:
        end_in_a_line('eval_calibration.py', error, args.traceback)
    console = Console(highlight=False, markup=False)
    console.print(metrics_table({'value': metrics}))
    task = 'pose' if project_of(load_config(args.config)) == 'mmpose' else 'detection'
    console.print(incomparable(metrics, task))


if __name__ == '__main__':
    main()
