"""Applies a calibrator to data samples."""
import torch

from .calibrators import Calibrator


def calibrate_sample(sample, calibrator: Calibrator) -> None:
    """Map the predicted scores of a data sample, in place, and note in it by which calibrator.

    Args:
        sample (BaseDataElement): A DetDataSample or PoseDataSample with ``pred_instances``.
        calibrator (Calibrator): What maps the scores; its digest is kept as the meta information
            ``calibrator``.

    Raises:
        ValueError: If the scores of the sample were mapped before, or it is of another task.
    """
    if sample.get('calibrator') is not None:
        raise ValueError('the scores of this sample were mapped by a calibrator before')
    found = sample.pred_instances
    name = 'scores' if calibrator.task == 'detection' else 'keypoint_scores'
    if name not in found:
        raise ValueError(f'a calibrator of task {calibrator.task} maps {name}, and these '
                         f'predictions hold {", ".join(found.keys())}')
    scores = found[name]
    if calibrator.task == 'detection':
        labels = found.labels.cpu().numpy()
        mapped = calibrator(scores.detach().cpu().double().numpy(), labels)
    else:
        values = torch.as_tensor(scores).cpu().double().numpy()
        labels = torch.arange(values.shape[-1]).expand(values.shape).numpy()
        mapped = calibrator(values.reshape(-1), labels.reshape(-1)).reshape(values.shape)
    if torch.is_tensor(scores):
        mapped = torch.from_numpy(mapped).to(scores)
    else:
        mapped = mapped.astype(scores.dtype)
    if found.get('keypoints_visible') is scores:  # what mmpose draws by, without a visibility head
        found.keypoints_visible = mapped
    setattr(found, name, mapped)
    sample.set_metainfo(dict(calibrator=calibrator.digest))
