"""Write a checkpoint for others: the weights and plain metadata, nothing else.

Every PyTorch loads the file with weights_only=True, without a list of allowed classes, and so do
the tools of MMDetection and MMPose. A checkpoint that was trained with EMAHook has the averaged
weights as its weights already; those are written.
"""
import argparse
import hashlib
import os
from pathlib import Path
from pickle import UnpicklingError

from mmskd.checkpoint import load_checkpoint_safely, publishable, write_checkpoint
from mmskd.ending import add_traceback, end_in_a_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('in_file', help='checkpoint of a training')
    parser.add_argument(
        'out_file', help='file to write; the beginning of its sha256 is added to the name')
    add_traceback(parser)
    return parser.parse_args()


def publish(in_file: str, out_file: str) -> Path:
    """Write ``out_file`` as ``<out_file's name>-<first 8 digits of its sha256>.pth``.

    Returns:
        Path: The file that was written.

    Raises:
        FileNotFoundError: If there is no ``in_file``.
        ValueError, RuntimeError, pickle.UnpicklingError: If it is not a checkpoint to be published.
    """
    checkpoint = publishable(load_checkpoint_safely(in_file, map_location='cpu'))
    stem = out_file[:-len('.pth')] if out_file.endswith('.pth') else out_file
    unfinished = Path(f'{stem}.unfinished')
    write_checkpoint(checkpoint, unfinished)
    digest = hashlib.sha256(unfinished.read_bytes()).hexdigest()
    final = Path(f'{stem}-{digest[:8]}.pth')
    os.replace(unfinished, final)
    return final


def main() -> None:
    args = parse_args()
    try:
        print(publish(args.in_file, args.out_file))
    except (OSError, ValueError, RuntimeError, UnpicklingError) as error:
        end_in_a_line('publish_model.py', error, args.traceback)


if __name__ == '__main__':
    main()
