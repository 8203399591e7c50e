"""What can keep submissions from being graded; each is told with its remedy."""

from kernel_provider.errors import SandboxError
from kernel_provider.run.model import ExitCode


class NbgraderMissingError(SandboxError):
    """A course of nbgrader's, and no nbgrader to read it with."""

    exit_code = 78
    summary = "grading a course needs nbgrader, which is not installed beside executor-ml"
    fix = (
        "run: pip install 'executor-ml-kernel[grading]' (or grade plain notebooks: "
        "executor-ml grade --plain TESTS.ipynb SUBMISSION.ipynb)"
    )


class CourseError(SandboxError):
    """A course, or an assignment of it, that cannot be graded at all."""

    exit_code = int(ExitCode.BAD_INPUT)
    summary = "{what}: {reason}"
    fix = "{remedy}"


class GradesFolderError(SandboxError):
    """The folder for grades and journals cannot be written to."""

    exit_code = int(ExitCode.NOT_SAVED)
    summary = "the folder for grades, {path}, cannot be used: {reason}"
    fix = "make it writable, with room on its disk, or give another one with -o FOLDER"


class GradesBusyError(SandboxError):
    """Somebody else is grading the same assignment."""

    exit_code = 75
    summary = "another run is grading into {path} now"
    fix = "wait for it, or end it"


class GradebookError(SandboxError):
    """A grade that could not be written to the gradebook; its journal has it."""

    exit_code = int(ExitCode.NOT_SAVED)
    summary = "the gradebook {path} could not be written for {student}: {reason}"
    fix = "mend that and run the same command with --resume: nothing is run again"


class SubmissionError(SandboxError):
    """A submission that is none; the others are graded."""

    exit_code = int(ExitCode.BAD_INPUT)
    summary = "{what}: {reason}"
    fix = "ask for another one, and grade it with --resume"


class MemoryShortError(SandboxError):
    """Not one sandbox has room in this machine's memory."""

    exit_code = 70
    summary = "a sandbox may take {memory}, and this machine has {free} free"
    fix = "end what takes the memory, or give each sandbox less with --memory"


class StoppedError(Exception):
    """Somebody wants it all to stop: what is under way is not graded."""
