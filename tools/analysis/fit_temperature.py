"""Temperature scaling (Guo et al., ICML 2017) of a trained model, and what it changes.

Fits one temperature T by the likelihood of the hits on one split, and measures calibration without
and with it there or on another split. A score p becomes sigmoid(logit(p) / T). The model is left as
it is.
"""
import argparse
import json
import math
import pickle
import sys
from typing import List

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, load_checkpoint
from rich.console import Console

from mmskd.config import load_config, project_of
from mmskd.checkpoint import use_safe_loading
from mmskd.config import check_data
from mmskd.engine.launch import KeyValueAction, check_checkpoint
from mmskd.errors import UsageError
from mmskd.evaluation.offline import calibration_metric, metrics_table
from mmskd.evaluation.temperature import fit_temperature
from mmskd.progress import track


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a config file, or one that comes with a package, as '
                        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    parser.add_argument('checkpoint', help='a checkpoint file or URL')
    parser.add_argument('--split', choices=['val', 'test'], default='val',
                        help='images to fit T on, default: val')
    parser.add_argument('--eval-split', choices=['val', 'test'],
                        help='images to measure on, default: those that T is fitted on')
    parser.add_argument(
        '--options', nargs='+', action=KeyValueAction, metavar='KEY=VALUE', default={},
        help='settings of the metric that override those of the evaluator, as iou_thr=0.75')
    parser.add_argument(
        '--cfg-options', nargs='+', action=KeyValueAction, metavar='KEY=VALUE', default={},
        help='settings that override those of the config')
    parser.add_argument('--out', help='json file for the temperature and the values')
    parser.add_argument('--quiet', action='store_true', help='no progress bar')
    return parser.parse_args()


def prepare(args: argparse.Namespace) -> Config:
    """The config, once all that the command line names is known to be there."""
    cfg = load_config(args.config)
    cfg.merge_from_dict(args.cfg_options)
    check_checkpoint(args.checkpoint)
    splits = [args.split, args.eval_split or args.split]
    for split in splits:
        if not cfg.get(f'{split}_dataloader'):
            raise UsageError(f'the config has no {split}_dataloader')
    check_data(cfg, splits)
    if args.out and not args.out.endswith('.json'):
        raise UsageError('--out writes a json file: its name must end in .json')
    return cfg


def build_model(cfg: Config, checkpoint: str) -> torch.nn.Module:
    """The trained model, on the device at hand, ready to predict."""
    model = MODELS.build(cfg.model)
    try:
        load_checkpoint(model, checkpoint, map_location='cpu', strict=True, logger='silent')
    except RuntimeError as error:
        raise UsageError(f'{checkpoint} is no checkpoint of this model: {error}') from error
    return model.to(get_device()).eval()


def predict(model: torch.nn.Module, dataloader: dict, metric: BaseMetric, description: str,
            quiet: bool) -> List[dict]:
    """What the metric keeps of the predictions on all images."""
    loader = Runner.build_dataloader(dataloader, seed=0)
    evaluator = Evaluator([metric])
    evaluator.dataset_meta = loader.dataset.metainfo
    with torch.no_grad():
        for batch in track(loader, description, quiet):
            evaluator.process(model.test_step(batch), batch)
    return metric.results


def measure(metric: BaseMetric, results: List[dict], temperature: float) -> dict:
    metric.temperature = temperature
    return metric.compute_metrics(results)


def run(args: argparse.Namespace) -> dict:
    """Fit and measure.

    Returns:
        dict: What ``--out`` writes.
    """
    cfg = prepare(args)
    init_default_scope(cfg.get('default_scope', project_of(cfg)))
    use_safe_loading()
    model = build_model(cfg, args.checkpoint)
    metrics, results = {}, {}
    for split in dict.fromkeys([args.split, args.eval_split or args.split]):
        metrics[split] = calibration_metric(cfg, split, args.options)
        results[split] = predict(
            model, cfg[f'{split}_dataloader'], metrics[split], split, args.quiet)
    scores, hits = metrics[args.split].scores_and_hits(results[args.split])
    temperature = fit_temperature(scores, hits)
    return dict(
        config=args.config, checkpoint=args.checkpoint, temperature=temperature,
        fitted_on=args.split, predictions=len(scores), measured_on=split,
        before=measure(metrics[split], results[split], 1.),
        after=measure(metrics[split], results[split], temperature))


def main() -> None:
    args = parse_args()
    try:
        report = run(args)
    except (ValueError, pickle.UnpicklingError, FileNotFoundError, ModuleNotFoundError) as error:
        sys.exit(f'fit_temperature.py: {error}')
    console = Console()
    console.print('T = {temperature:.4f}, fitted on {predictions} predictions of {fitted_on}, '
                  'measured on {measured_on}'.format(**report), highlight=False)
    if report['fitted_on'] == report['measured_on']:
        console.print('(the same images; --eval-split measures on others)')
    console.print(metrics_table({'T = 1': report['before'], 'with T': report['after']}))
    if args.out:
        for values in (report['before'], report['after']):
            values.update({k: None for k, v in values.items() if math.isnan(v)})  # no nan in json
        with open(args.out, 'w') as file:
            json.dump(report, file, indent=2)


if __name__ == '__main__':
    main()
