"""What a study asks for: the yaml file, its runs, and the config of each.

tools/benchmarks/studies/README.md says what a file may hold.
"""
import hashlib
import json
import os
import shlex
import subprocess
import sys
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import yaml
from mmengine.config import Config

from mmskd.annotations import data_sets
from mmskd.config import change_settings, find_config
from mmskd.errors import UsageError
from mmskd.evaluation.report.runs import Run as Logs
from mmskd.options import Options

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools'
sys.path.append(str(TOOLS))  # where tools/train.py finds what configs of benchmarks import
STUDY_KEYS = ('description', 'configs', 'methods', 'seeds', 'grid', 'options', 'metrics',
              'baseline', 'against', 'average_last', 'test')
METHOD_KEYS = ('flags', 'options', 'hooks', 'description')
GRID_KEYS = ('configs', 'methods', 'seeds')


class Key(NamedTuple):
    """What tells a run of a study from the others."""
    config: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f'{self.config}/{self.method}/{self.seed}'


class Study:
    """What a yaml file asks for.

    Args:
        path (Path): The file; its name is the study's.

    Attributes:
        runs (list[Key]): All runs, a checkpoint's before those that start from it.

    Raises:
        UsageError: If the file says something that a study does not have, or something twice.
    """

    def __init__(self, path: Path):
        self.name = path.stem
        self._loaded: Dict[str, Config] = {}
        self._fingerprints: Dict[Key, str] = {}
        self.definition = read_yaml(path)
        read = _Reader(str(path))
        definition = read.keys(self.definition, STUDY_KEYS)
        for key in ('configs', 'methods', 'metrics'):
            if not definition.get(key):
                raise UsageError(f'{path}: {key} is missing')
        self.configs: Dict[str, str] = read.texts('configs', definition['configs'])
        self.methods: Dict[str, dict] = {
            name: read.method(f'methods.{name}', method)
            for name, method in read.named('methods', definition['methods']).items()}
        self.metrics: List[str] = read.names('metrics', definition['metrics'])
        self.options: dict = read.named('options', definition.get('options'))
        self.average_last: int = read.whole(
            'average_last', definition.get('average_last', 1), least=1)
        self.test = definition.get('test', False)
        if not isinstance(self.test, bool):
            read.known('test', self.test, self.methods, 'true, nor a list of methods')
        self.baseline: str = definition.get('baseline', next(iter(self.methods)))
        read.known('baseline', [self.baseline], self.methods, 'one of the methods')
        self.against: Dict[str, str] = read.texts('against', definition.get('against') or {})
        for config in chain(*self.against.items()):
            read.known('against', [config], self.configs, 'one of the configs')
        self.runs = self._in_order(list(dict.fromkeys(self._grid(read))))

    def _grid(self, read: '_Reader') -> Iterator[Key]:
        every = dict(configs=list(self.configs), methods=list(self.methods),
                     seeds=self.definition.get('seeds', [0]))
        blocks = self.definition.get('grid') or [{}]
        if not isinstance(blocks, list):
            read.refuse('grid', 'a list', blocks)
        for block in blocks:
            block = {**every, **read.keys(block, GRID_KEYS, 'grid')}
            for key in ('configs', 'methods'):
                read.known(f'grid.{key}', block[key], every[key], f'a list of the {key}')
            # Seed by seed, so that a study that is cut short has pairs
            for seed in read.seeds(block['seeds']):
                for config in block['configs']:
                    for method in block['methods']:
                        yield Key(config, method, seed)

    def _in_order(self, runs: List[Key]) -> List[Key]:
        ordered: List[Key] = []

        def add(key: Key, chain: Tuple[Key, ...] = ()) -> None:
            if key in chain:
                raise UsageError(f'{key} starts from a checkpoint of its own')
            if key not in runs:
                raise UsageError(f'{chain[-1]} starts from a checkpoint of {key}, which the grid '
                                 'does not hold')
            if key not in ordered:
                for needed in self.needs(key):
                    add(needed, (*chain, key))
                ordered.append(key)

        for key in runs:
            add(key)
        return ordered

    def tests(self, key: Key) -> bool:
        """Whether a run is measured on the test split."""
        return self.test if isinstance(self.test, bool) else key.method in self.test

    def needs(self, key: Key) -> List[Key]:
        """The runs whose checkpoints a run starts from."""
        needed = Checkpoints(key)
        self.method(key, needed)
        return needed.asked

    def method(self, key: Key, checkpoints: 'Checkpoints') -> dict:
        """What the study says of a run's method, ``{checkpoint[...]}`` and the like filled in.

        Returns:
            dict: ``flags``, a list, to stand behind ``tools/train.py CONFIG``; ``options`` and
            ``hooks`` of the config.
        """

        def fill(node: Any) -> Any:
            if isinstance(node, dict):
                return {name: fill(child) for name, child in node.items()}
            if isinstance(node, list):
                return [fill(child) for child in node]
            if not isinstance(node, str) or '{' not in node:
                return node
            try:
                return node.format(checkpoint=checkpoints, onnx=OnnxFiles(checkpoints),
                                   config=self.configs, seed=key.seed)
            except (KeyError, ValueError, IndexError, AttributeError) as error:
                raise UsageError(
                    f'methods.{key.method}: {node!r} cannot be filled in ({error}); there are '
                    '{checkpoint[METHOD]}, {checkpoint[CONFIG/METHOD]}, '
                    '{checkpoint[CONFIG/METHOD/SEED]}, {onnx[...]} of the same, {config[NAME]} and '
                    '{seed}') from error

        method = self.methods[key.method]
        return dict(flags=fill(shlex.split(method['flags'])),
                    options=fill({**self.options, **method['options']}),
                    hooks=fill(method['hooks']))

    def config(self, key: Key, method: dict) -> Config:
        """The config of a run, with what study and method set."""
        cfg = deepcopy(self._config_file(key.config))
        change_settings(cfg, deepcopy(method['options']), f'methods.{key.method}: options')
        if method['hooks']:
            cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), *method['hooks']]
        cfg.merge_from_dict({'randomness.seed': key.seed})
        return cfg

    def _config_file(self, name: str) -> Config:
        if name not in self._loaded:
            self._loaded[name] = Config.fromfile(
                find_config(self.configs[name]), format_python_code=False)
        return self._loaded[name]

    def fingerprint(self, key: Key) -> str:
        """Tells whether a run that is there is still the one that the study asks for.

        It depends on config, flags and annotations, and on those of the runs that it starts from.
        """
        if key in self._fingerprints:
            return self._fingerprints[key]
        needed = Checkpoints(key)
        cfg = self.config(key, self.method(key, needed))  # without the folders of checkpoints
        essence = dict(config=cfg.to_dict(), flags=self.methods[key.method]['flags'],
                       data=dict(annotation_digests(cfg)))
        if needed.asked:
            essence['starts_from'] = {str(need): self.fingerprint(need) for need in needed.asked}
        self._fingerprints[key] = hashlib.sha256(
            json.dumps(essence, sort_keys=True, default=str).encode()).hexdigest()[:16]
        return self._fingerprints[key]


class Checkpoints:
    """Fills in ``{checkpoint[baseline]}``: the last checkpoint of another run.

    Args:
        key (Key): Who asks: ``METHOD`` is of the same config and seed, ``CONFIG/METHOD`` of the
            same seed.
        work_dir (Path, optional): Where the runs are. Defaults to None: only note who is asked for.
    """

    def __init__(self, key: Key, work_dir: Optional[Path] = None):
        self.key = key
        self.work_dir = work_dir
        self.asked: List[Key] = []

    def __getitem__(self, name: str) -> str:
        parts = name.split('/')
        if len(parts) > 3:
            raise ValueError(f'{name} has more than three parts')
        if len(parts) == 1:
            parts = [self.key.config, *parts]
        config, method, seed = (*parts, self.key.seed)[:3]
        key = Key(config, method, int(seed))
        self.asked.append(key)
        if self.work_dir is None:
            return str(key)
        path = Logs(self.work_dir / str(key)).checkpoint()
        if path is None:
            raise UsageError(f'{self.key} starts from {key}, whose checkpoint is gone')
        return str(path)

    def __str__(self) -> str:
        raise ValueError('it takes a name in brackets')


class OnnxFiles:
    """Fills in ``{onnx[baseline]}``.

    The last checkpoint of another run as an .onnx file, which is written when it is first needed.

    Args:
        checkpoints (Checkpoints): Finds them.
    """

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints

    def __getitem__(self, name: str) -> str:
        checkpoint = Path(self.checkpoints[name])
        if self.checkpoints.work_dir is None:
            return str(checkpoint)
        file = checkpoint.with_suffix('.onnx')
        if not file.is_file():
            config, = (checkpoint.parent / 'study').glob('*.py')
            partial = file.with_name(f'.{file.name}')
            done = subprocess.run(
                [sys.executable, str(TOOLS / 'export_onnx.py'), str(config), str(checkpoint),
                 str(partial)], capture_output=True, text=True, env=one_thread())
            if done.returncode:
                raise UsageError(f'{checkpoint} is not written as {file.name}: '
                                 f'{done.stderr.strip()[-300:]}')
            os.replace(partial, file)
        return str(file)


def one_thread() -> Dict[str, str]:
    """The environment of a process that finds this checkout and has one thread.

    It keeps the memory of large tensors, which glibc gives back and asks for again in each step: a
    fourteenth of the time.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    return dict(os.environ, OMP_NUM_THREADS='1', MKL_NUM_THREADS='1',
                MALLOC_MMAP_THRESHOLD_=str(2**32), MALLOC_TRIM_THRESHOLD_=str(2**33),
                PYTHONPATH=os.pathsep.join(paths))


def annotation_digests(cfg: Config) -> Iterator[Tuple[str, str]]:
    """The annotation files that the data sets of a config read, and what tells their contents.

    Raises:
        UsageError: If one is not there.
    """
    for split in ('train', 'val', 'test'):
        for dataset in data_sets(cfg.get(f'{split}_dataloader') or {}):
            path = Path(dataset.get('data_root') or '', dataset['ann_file'])
            if not path.is_file():
                raise UsageError(f'{path} is not there; tools/prepare_data.py says where the data '
                                 'sets are and lays them out')
            yield str(path), hashlib.sha256(path.read_bytes()).hexdigest()[:16]


class UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, of which yaml would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """As the original, of which ``<<`` may be overridden."""
        keys = [key.value for key, _ in node.value
                if isinstance(key, yaml.ScalarNode) and key.value != '<<']
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f'{min(twice)} stands here twice', node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """What a yaml file holds.

    Raises:
        UsageError: If it is not there, no yaml, or has a key twice.
    """
    if not path.is_file():
        raise UsageError(f'there is no study {path}')
    try:
        return yaml.load(path.read_text(), UniqueKeys)  # a SafeLoader
    except yaml.YAMLError as error:
        raise UsageError(f'{path} is no yaml: {" ".join(str(error).split())}') from error


class _Reader(Options):
    """Checks what a study says, part by part."""

    def keys(self, node: Any, known: Tuple[str, ...], where: str = '') -> dict:
        """A mapping with none but these keys."""
        where = f'{self._owner}: {where}' if where else self._owner
        if not isinstance(node, dict):
            raise UsageError(f'{where}: {", ".join(known)} are wanted here, not {node!r}')
        unknown = [key for key in node if key not in known]
        if unknown:
            raise UsageError(f'{where}: there is no {unknown[0]}; there are {", ".join(known)}')
        return node

    def named(self, name: str, value: Any) -> dict:
        """A mapping with names, which ``no``, ``off`` and numbers are in quotes only."""
        if not isinstance(value or {}, dict):
            self.refuse(name, 'a mapping of names', value)
        for key in value or {}:
            if not isinstance(key, str):
                self.refuse(name, 'a mapping of names (put them in quotes)', key)
        return value or {}

    def texts(self, name: str, value: Any) -> Dict[str, str]:
        """A mapping of names to strings."""
        return {key: self.text(f'{name}.{key}', text)
                for key, text in self.named(name, value).items()}

    def method(self, name: str, method: Any) -> dict:
        """``flags``, ``options`` and ``hooks`` of a method, empty where it does not name them."""
        method = self.keys(method or {}, METHOD_KEYS, name)
        flags = method.get('flags') or ''
        try:
            shlex.split(flags)
        except (ValueError, AttributeError):
            self.refuse(f'{name}.flags', 'what could stand on a command line', flags)
        hooks = method.get('hooks') or []
        if hooks:
            self.configs(f'{name}.hooks', hooks)
        return dict(flags=flags, hooks=hooks,
                    options=self.named(f'{name}.options', method.get('options')))

    def known(self, name: str, value: Any, among: Any, wanted: str) -> None:
        """A list of things that are there."""
        wrong = [value] if not isinstance(value, list) else [
            each for each in value if not (isinstance(each, str) and each in among)]
        if wrong or not value:
            raise UsageError(f'{self._owner}: {name}: {(wrong or [value])[0]!r} is not {wanted}')

    def seeds(self, value: Any) -> List[int]:
        """A list of whole numbers, at least one."""
        if not isinstance(value, list) or not value:
            self.refuse('seeds', 'a list of whole numbers', value)
        return [self.whole('seeds', seed, least=0) for seed in value]
