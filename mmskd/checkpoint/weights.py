"""Loading the weights of a checkpoint into a model."""
from torch import nn

from .reading import load_from_http_safely, load_from_local_safely


def load_weights(model: nn.Module, path: str) -> None:
    """Load the weights of a checkpoint into a model.

    Args:
        model (nn.Module): As the checkpoint's model was built.
        path (str): A file or URL.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it lacks a weight that the model has, has one that the model lacks, or one of
            another shape; names the file and the keys.
        pickle.UnpicklingError, RuntimeError: If it is not a checkpoint.
    """
    load = load_from_http_safely if '://' in path else load_from_local_safely
    checkpoint = load(path, map_location='cpu')
    given, wanted = checkpoint.get('state_dict', checkpoint), model.state_dict()
    problems = {
        'lacks': wanted.keys() - given.keys(),
        'has beyond the model': given.keys() - wanted.keys(),
        'has in another shape': [key for key in wanted.keys() & given.keys()
                                 if wanted[key].shape != given[key].shape]
    }
    found = [f'{what} {len(keys)} weights, such as {sorted(keys)[0]}'
             for what, keys in problems.items() if keys]
    if found:
        hint = ('; it was saved by a distiller that holds two models: '
                'tools/convert_dwpose_checkpoint.py makes a stock checkpoint of it'
                if any(key.startswith('student.') for key in given) else '')
        raise ValueError(f'{path} does not fit {type(model).__name__}: it {"; ".join(found)}{hint}')
    model.load_state_dict(given)
