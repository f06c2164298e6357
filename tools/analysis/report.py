"""Compare training runs: one HTML file with curves, calibration, tables and pictures, and PNGs.

Runs whose configs differ in randomness.seed only are one group, and give a mean with its interval;
groups are compared with the first one, by one rule and on the same data, or not at all. What a
run's checkpoint predicts is made here, with its own config, and kept in <run>/report/; a
results.pkl is not read, because unpickling may run code.
"""
import argparse
from pathlib import Path

from mmskd.ending import add_traceback, end_in_a_line
from mmskd.errors import UsageError
from mmskd.evaluation.report.page import write_report


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('run_dirs', nargs='+', metavar='RUN_DIR',
                        help='work dir of tools/train.py; the first is the baseline')
    parser.add_argument('--out-dir', type=Path, default=Path('work_dirs/report'),
                        help='for report.html and the PNGs, default: work_dirs/report')
    parser.add_argument('--baseline', metavar='RUN_DIR', help='the baseline, if not the first')
    parser.add_argument('--split', choices=['val', 'test'], default='val',
                        help='whose images are predicted, default: val')
    parser.add_argument('--checkpoint', choices=['last', 'best'], default='last',
                        help="which of a run's checkpoints predicts, default: last")
    parser.add_argument('--quiet', action='store_true', help='print nothing but errors')
    add_traceback(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        path = write_report(args.run_dirs, args.out_dir, args.baseline, args.split,
                            args.checkpoint, args.quiet)
    except UsageError as error:
        end_in_a_line('report.py', error, args.traceback)
    if not args.quiet:
        print(path)


if __name__ == '__main__':
    main()
