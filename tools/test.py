"""Test a model of MMDetection or MMPose."""
import argparse
import warnings
from copy import deepcopy

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmskd.annotations import check_data
from mmskd.config import (
    change_settings,
    check_metrics,
    load_config,
    project_of,
    require_parts,
)
from mmskd.engine.hooks import CalibratedScores
from mmskd.engine.launch import (
    OneLineParser,
    add_common_arguments,
    check_checkpoint,
    check_weights,
    draw_predictions,
    run_tool,
    set_local_rank,
    set_work_dir,
)
from mmskd.errors import UsageError


def parse_args() -> argparse.Namespace:
    parser = OneLineParser(description=__doc__)
    parser.add_argument(
        'config', help='a config file, or one that comes with a package, as '
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    parser.add_argument('checkpoint', help='a checkpoint file or URL')
    parser.add_argument(
        '--out', help='MMDetection: pickle file for the predictions; '
        'MMPose: file for the values of the metrics (json, yaml or pickle)')
    parser.add_argument('--dump', help='pickle file for the predictions')
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation (MMDetection)')
    parser.add_argument(
        '--calibrator', help='json file of tools/analysis/calibrate.py: test the scores as it maps '
        'them (mmskd.CalibratedScores)')
    parser.add_argument(
        '--badcase', action='store_true', help='collect the worst predictions (MMPose)')
    add_common_arguments(parser)
    args = parser.parse_args()
    set_local_rank(args)
    return args


def add_tta(cfg: Config) -> None:
    """Test-time augmentation: that of the config, else a horizontal flip."""
    if 'tta_model' not in cfg:
        warnings.warn('the config has no tta_model; predictions are merged by NMS', stacklevel=2)
        cfg.tta_model = dict(
            type='DetTTAModel',
            tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
    if 'tta_pipeline' not in cfg:
        warnings.warn('the config has no tta_pipeline; images are tested with and without a flip',
                      stacklevel=2)
        dataset = cfg.test_dataloader.dataset
        while 'dataset' in dataset:
            dataset = dataset.dataset
        pack = dict(
            type='PackDetInputs',
            meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip',
                       'flip_direction'))
        flips = [dict(type='RandomFlip', prob=prob) for prob in (1., 0.)]
        cfg.tta_pipeline = deepcopy(dataset.pipeline)
        cfg.tta_pipeline[-1] = dict(type='TestTimeAug', transforms=[flips, [pack]])
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def collect_bad_cases(cfg: Config, args: argparse.Namespace) -> None:
    """Switch on MMPose's BadCaseAnalysisHook.

    Raises:
        UsageError: If the config has no such hook, or one that it does not know how to rank by.
    """
    hook = cfg.get('default_hooks', {}).get('badcase')
    if hook is None:
        raise UsageError('--badcase needs default_hooks.badcase in the config, as '
                         'dict(type="BadCaseAnalysisHook")')
    hook.update(enable=True, show=args.show, interval=args.interval or 1)
    if args.show:
        hook.wait_time = 1 if args.wait_time is None else args.wait_time
    metric_type = hook.get('metric_type', 'loss')
    if metric_type not in ('loss', 'accuracy'):
        raise UsageError(f'default_hooks.badcase.metric_type must be loss or accuracy, '
                         f'but is {metric_type}')
    if not hook.get('metric'):
        hook.metric = cfg.model.head.loss if metric_type == 'loss' else cfg.test_evaluator


def check_args(args: argparse.Namespace, project: str) -> None:
    """Raise UsageError for what the config's project does not have."""
    if args.tta and project == 'mmpose':
        raise UsageError('--tta is for MMDetection; MMPose flips by model.test_cfg.flip_test')
    if args.badcase and project == 'mmdet':
        raise UsageError('--badcase is for MMPose')
    for name in ('dump', 'out'):
        path = getattr(args, name)
        if path and (name == 'dump' or project == 'mmdet') \
                and not path.endswith(('.pkl', '.pickle')):
            raise UsageError(f'--{name} writes a pickle file: its name must end in .pkl')


def prepare(args: argparse.Namespace) -> Config:
    """The config with everything that the command line says."""
    cfg = load_config(args.config)
    require_parts(cfg, 'model', 'test_dataloader', 'test_evaluator')
    project = project_of(cfg)
    check_args(args, project)
    check_checkpoint(args.checkpoint)
    # Where a flag and --cfg-options say different things, the flag wins in MMDetection and
    # --cfg-options in MMPose
    if project == 'mmdet':
        change_settings(cfg, args.cfg_options)
    set_work_dir(cfg, args)
    cfg.load_from = args.checkpoint
    show = args.show and not args.badcase
    if show or args.show_dir is not None:
        draw_predictions(cfg, args, project, show)
    if args.badcase:
        collect_bad_cases(cfg, args)
    if args.tta:
        add_tta(cfg)
    if project == 'mmpose':
        change_settings(cfg, args.cfg_options)
    if args.calibrator:
        hook = dict(type='mmskd.CalibratedScores', calibrator=args.calibrator)
        CalibratedScores(args.calibrator)  # is it one?
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
    check_metrics(cfg, 'test', project)
    check_data(cfg, ['test'])
    return cfg


class SaveMetricsHook(Hook):
    """Writes the values of the metrics to a file.

    Args:
        path (str): File to write; its ending says how (json, yaml, pickle).
    """

    priority = 'LOWEST'

    def __init__(self, path: str):
        self.path = path

    def after_test_epoch(self, runner, metrics=None) -> None:
        if metrics is not None:
            mmengine.dump(metrics, self.path)


def write_results(runner: Runner, args: argparse.Namespace, project: str) -> None:
    """Let the runner write what ``--out`` and ``--dump`` ask for."""
    dumps = [args.dump]
    if project == 'mmpose':
        from mmengine.evaluator import DumpResults
        if args.out:
            runner.register_hook(SaveMetricsHook(args.out))
    else:
        from mmdet.evaluation import DumpDetResults as DumpResults
        dumps.append(args.out)
    runner.test_evaluator.metrics += [DumpResults(out_file_path=path) for path in dumps if path]


def test(runner: Runner, args: argparse.Namespace) -> None:
    """Test, and write what is asked for."""
    check_weights(runner, args.checkpoint, all_of_them=True)
    if args.out or args.dump:
        write_results(runner, args, project_of(runner.cfg))
    runner.test()


def main() -> None:
    run_tool('test.py', parse_args(), prepare, test)


if __name__ == '__main__':
    main()
