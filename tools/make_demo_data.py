"""Write a generated data set: shapes to detect, or stick figures with keypoints."""
import argparse

from rich.console import Console
from rich.progress import Progress

from mmskd.datasets import write_demo_data
from mmskd.ending import add_traceback, end_in_a_line


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out_dir', help='folder to write to, as data/shapes')
    parser.add_argument(
        '--kind', choices=['shapes', 'stick-figures'], default='shapes', help='default: shapes')
    parser.add_argument('--train', type=int, default=480, help='training images, default: 480')
    parser.add_argument('--val', type=int, default=160, help='validation images, default: 160')
    parser.add_argument('--seed', type=int, default=0, help='same seed, same files; default: 0')
    parser.add_argument('--quiet', action='store_true', help='print nothing but errors')
    add_traceback(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    console = Console(quiet=args.quiet)
    try:
        with Progress(console=console) as progress:
            task = progress.add_task(f'{args.kind}', total=args.train + args.val)
            write_demo_data(
                args.out_dir, args.kind, args.train, args.val, args.seed,
                on_image=lambda: progress.advance(task))
    except (ValueError, OSError) as error:
        end_in_a_line('make_demo_data.py', error, args.traceback)
    console.print(f'{args.train} training and {args.val} validation images in {args.out_dir}',
                  soft_wrap=True)


if __name__ == '__main__':
    main()
