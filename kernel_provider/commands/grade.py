"""``executor-ml grade``: a class's notebooks, each in a sandbox of its own."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from kernel_provider.commands.arguments import at_least_one, duration, number, size
from kernel_provider.entry import held_back
from kernel_provider.errors import SandboxError, suggest
from kernel_provider.grading.errors import CourseError
from kernel_provider.grading.model import SubmissionRecord, Verdict, to_json
from kernel_provider.run.model import ExitCode

CELL_TIMEOUT: Final = 30.0
TOTAL_TIMEOUT: Final = 600.0
MOST_JOBS: Final = 16
"""As a default: one process hears all of their kernels."""
KERNEL: Final = "executor-ml"

BAD_SUBMISSIONS: Final = 20
NOT_GRADED: Final = 21

EXIT_CODES: Final[Mapping[int, str]] = {
    0: "all are graded, whatever they have earned",
    2: "a wrong command line",
    BAD_SUBMISSIONS: "some submissions cannot be graded; the others are",
    NOT_GRADED: "some could not be graded for want of a sandbox: --resume",
    int(ExitCode.BAD_INPUT): "no such course, assignment, student or tests",
    69: "the container engine does not answer, or failed",
    72: "the image is missing, or of another version",
    int(ExitCode.NOT_SAVED): "grades or the gradebook cannot be written: --resume",
    75: "another run is grading the same assignment",
    77: "this user may not use the container engine",
    78: "a setting or kernel that is not possible, or no nbgrader",
    int(ExitCode.INTERRUPTED): "Ctrl-C; what is graded stays: --resume",
    int(ExitCode.TERMINATED): "SIGTERM; what is graded stays: --resume",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Grade an assignment of an nbgrader course, or plain notebooks by one with tests, each\n"
        "notebook in a sandbox of its own. Scores go to the gradebook; records, tables and\n"
        "executed notebooks to the folder of grades."
    )
    codes = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())
    parser.epilog = f"exit codes:\n{codes}"
    parser.add_argument(
        "what",
        nargs="+",
        metavar="WHAT",
        help="COURSE ASSIGNMENT: the course's folder and the assignment's name; with --plain, "
        "TESTS.ipynb SUBMISSION.ipynb...",
    )
    parser.add_argument("--plain", action="store_true", help="grade notebooks without a course")
    parser.add_argument(
        "--student",
        dest="students",
        action="append",
        default=[],
        metavar="NAME",
        help="grade this one only; * and ? stand for any letters",
    )
    parser.add_argument(
        "--jobs",
        type=at_least_one,
        metavar="N",
        help="so many at a time, where memory allows; default: as the processors do",
    )
    parser.add_argument(
        "--cell-timeout",
        type=duration,
        metavar="TIME",
        help="default: the course's Execute.timeout, else 30s",
    )
    parser.add_argument(
        "--total-timeout", type=duration, metavar="TIME", help="of a notebook; default: 10m"
    )
    parser.add_argument("--memory", type=size, metavar="SIZE", help="such as 512m, of each sandbox")
    parser.add_argument("--cpus", type=number, metavar="NUMBER", help="processors of each sandbox")
    parser.add_argument(
        "--kernel",
        metavar="NAME",
        help="the kernelspec; default: the course's Execute.kernel_name, else executor-ml",
    )
    parser.add_argument(
        "--after-death",
        choices=("continue", "stop"),
        default="continue",
        help="what becomes of the cells after one that ended its kernel. continue (default): a "
        "new sandbox runs the cells again that had ended by themselves, uncounted, since later "
        "ones need their variables, and goes on after the one that did not, so that each test "
        "is tried; stop: they are not run and earn nothing",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="the folder of grades; default: grades/ASSIGNMENT in the course's folder, or with "
        "--plain grades/TESTS here",
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep what is graded and unchanged, grade the rest"
    )
    parser.add_argument("--json", action="store_true", help="print each record as a line of JSON")


def main(args: argparse.Namespace) -> int:
    """Grade; raises SandboxError where it could not begin, or grades not be written."""
    with held_back():
        from kernel_provider.grading import conditions  # noqa: PLC0415  brings Jupyter: 1 s
        from kernel_provider.grading.grade import GradeRequest, grade  # noqa: PLC0415
        from kernel_provider.grading.journal import locked  # noqa: PLC0415
        from kernel_provider.grading.marking import Rules  # noqa: PLC0415
        from kernel_provider.grading.table import Table  # noqa: PLC0415

    source = _source(args)
    grades = args.output or _grades(args, source)
    kernel = args.kernel or source.kernel or KERNEL
    asked = {"memory": args.memory, "cpus": args.cpus}
    given = {name: value for name, value in asked.items() if value is not None}
    total = args.total_timeout or TOTAL_TIMEOUT
    rules = Rules(
        kernel=kernel,
        overrides=conditions.overrides(kernel, given),
        cell_timeout=min(args.cell_timeout or source.cell_timeout or CELL_TIMEOUT, total),
        total_timeout=total,
        after_death=args.after_death,
        environ={**os.environ, **source.environ},
    )
    policy = conditions.policy_of(kernel, rules.overrides)
    chosen = _chosen(source.submissions(), args.students)
    with locked(grades):
        request = GradeRequest(
            submissions=chosen,
            rules=rules,
            conditions=conditions.conditions_of(rules, policy, source),
            grades=grades,
            jobs=args.jobs or default_jobs(policy.cpus),
            memory=policy.memory,
            resume=args.resume,
        )
        stream = sys.stderr if args.json else sys.stdout
        outcome = grade(request, source, Table(stream, os.environ))
        return _tell(args, outcome, grades, len(chosen))


def _source(args: argparse.Namespace) -> Any:
    with held_back():
        from kernel_provider.grading.course import NbgraderCourse  # noqa: PLC0415  brings Jupyter
        from kernel_provider.grading.plain import PlainCourse  # noqa: PLC0415  as above

    words = args.what
    if args.plain:
        if len(words) < 2:  # noqa: PLR2004  tests, and something to test
            raise CourseError(
                what="--plain",
                reason="there is no submission",
                remedy="write: executor-ml grade --plain TESTS.ipynb SUBMISSION.ipynb...",
            )
        return PlainCourse(Path(words[0]), [Path(word) for word in words[1:]])
    if len(words) != 2:  # noqa: PLR2004  the two
        raise CourseError(
            what=" ".join(words),
            reason="a course and one assignment are needed",
            remedy="write: executor-ml grade COURSE ASSIGNMENT, or --plain for notebooks",
        )
    return NbgraderCourse(Path(words[0]), words[1])


def _grades(args: argparse.Namespace, source: Any) -> Path:
    top = Path() if args.plain else source.folder
    return Path(top, "grades", source.assignment).absolute()


def _chosen(submissions: Sequence[Any], wanted: Sequence[str]) -> tuple[Any, ...]:
    """Those whose names are wanted; all where none is. Raises CourseError."""
    there = [one.student for one in submissions]
    for name in wanted:
        if not any(fnmatchcase(student, name) for student in there):
            raise CourseError(
                what=f"--student {name}",
                reason=f"there is no such submission{suggest(name, there)}",
                remedy="check the folder of submissions",
            )
    return tuple(
        one
        for one in submissions
        if not wanted or any(fnmatchcase(one.student, name) for name in wanted)
    )


def default_jobs(cpus: float) -> int:
    """As many as keep the processors busy, where each may use so many of them."""
    return max(1, min(MOST_JOBS, int((os.cpu_count() or 1) / cpus)))


def exit_code(records: Sequence[SubmissionRecord]) -> int:
    """What scripts see of a run that came to its end."""
    verdicts = {record.verdict for record in records}
    if Verdict.COULD_NOT_START in verdicts:
        return NOT_GRADED
    return BAD_SUBMISSIONS if Verdict.BAD_SUBMISSION in verdicts else 0


def _tell(args: argparse.Namespace, outcome: Any, grades: Path, total: int) -> int:
    """Write reports, print what is wanted; the exit code."""
    from kernel_provider.grading import journal  # noqa: PLC0415  brings Jupyter
    from kernel_provider.grading.reports import write_reports  # noqa: PLC0415
    from kernel_provider.grading.table import summary  # noqa: PLC0415

    known = {record.student: record for record in journal.records(grades)}
    known |= {record.student: record for record in outcome.records}
    files = write_reports(grades, [known[name] for name in sorted(known)])
    if args.json:
        for record in outcome.records:
            print(json.dumps(to_json(record)))
    stream = sys.stderr if args.json else sys.stdout
    if outcome.records:
        print(summary(outcome.records), file=stream)
    print("saved " + ", ".join(str(path) for path in files), file=stream, flush=True)
    errors: list[SandboxError] = list(outcome.unsaved)
    for error in errors:
        print(f"executor-ml: {error}", file=sys.stderr)
    if outcome.stopped is not None:
        graded = sum(record.verdict is not Verdict.COULD_NOT_START for record in outcome.records)
        print(
            f"executor-ml: stopped; {graded} of {total} are graded\n"
            "Fix: go on with the same command and --resume",
            file=sys.stderr,
        )
        return int(outcome.stopped)
    return errors[0].exit_code if errors else exit_code(outcome.records)
