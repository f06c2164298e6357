"""Where a run's teachers are, written into its config."""
import os
from typing import Optional

from mmskd.models.teachers.option import FILES, TeacherOption


def config_folder(runner) -> Optional[str]:
    """Where the config of a run is, beside which it names its teachers.

    None if it was not a file.
    """
    return os.path.dirname(runner.cfg.filename) if runner.cfg.filename else None


def keep_teacher_paths(runner, given: TeacherOption, folder: Optional[str]) -> None:
    """Write where the teachers' files are into the run's config, which is dumped to another folder.

    Args:
        runner (Runner): In ``before_run``.
        given (TeacherOption): Option of a hook of the run. Its paths become absolute.
        folder (str, optional): As :func:`config_folder` returned.
    """
    changes = dict(given.resolve(folder))
    if not changes:
        return
    for hook in runner.cfg.get('custom_hooks') or ():
        teachers = hook.get('teacher') if isinstance(hook, dict) else None
        for teacher in teachers if isinstance(teachers, (list, tuple)) else [teachers]:
            if not isinstance(teacher, dict):
                continue
            for key in FILES:
                if teacher.get(key) in changes:
                    teacher[key] = changes[teacher[key]]
    runner.dump_config()
