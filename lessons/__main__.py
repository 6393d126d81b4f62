"""The course on the command line: python -m lessons list | run 04 | check 01 | hint 01 | solution 01 | reset 01."""

import argparse
import concurrent.futures
import importlib.util
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

LESSONS = Path(__file__).parent
sys.path[:0] = [str(LESSONS), str(LESSONS.parent)]
EXERCISES = LESSONS / "exercises"
SOLUTIONS = EXERCISES / "solutions"


def wrong(message: str) -> NoReturn:
    """End with one line and exit code 2: the command was wrong, and nothing was done."""
    print(message, file=sys.stderr)
    sys.exit(2)


def find(folder: Path, number: str) -> list[Path]:
    """Files of a lesson or exercise by its number, 4 or 04, its file, or all. Exercises go by their solutions."""
    prefix = "exercise_" if folder == EXERCISES else ""
    files = sorted((SOLUTIONS if prefix else folder).glob(f"{prefix}[0-9][0-9]_*.py"))
    files = [folder / path.name for path in files]
    if number == "all":
        return files
    wanted = Path(number).stem
    chosen = [path for path in files if wanted == path.stem or wanted.zfill(2) == number_of(path)]
    if not chosen:
        kind = prefix.strip("_") or "lesson"
        wrong(f"{kind} {number!r}: there is none; `python -m lessons list` shows all.")
    return chosen


def number_of(path: Path) -> str:
    """Number of a lesson or exercise, two digits, by the name of its file."""
    return path.stem.removeprefix("exercise_")[:2]


def title_of(path: Path) -> str:
    """First heading or first line of the docstring of a lesson or exercise, without its number."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# # "):
            return line[7:]
        if line.startswith('"""'):
            return line.strip('"').rstrip(".").partition(": ")[2]
    return path.stem


def list_all(_: argparse.Namespace) -> int:
    from course import blanks

    print("Lessons (read lessons/NN_name.md; python -m lessons run NN)")
    for path in find(LESSONS, "all"):
        print(f"  {number_of(path)}  {title_of(path)}")
    print("Exercises (edit lessons/exercises/exercise_NN_name.py; python -m lessons check NN)")
    for path in find(EXERCISES, "all"):
        solution = SOLUTIONS / path.name
        is_begun = path.exists() and path.read_text(encoding="utf-8") != blanks.blank_of(
            solution.read_text(encoding="utf-8")
        )
        print(f"  {number_of(path)}  {title_of(solution)}{'  (begun)' if is_begun else ''}")
    return 0


def run(args: argparse.Namespace) -> int:
    """Run lessons. More than one: each in a process of its own, with its time."""
    paths = [path for number in args.numbers for path in find(LESSONS, number)]
    if len(paths) > 1:
        return run_each(paths, args)
    from course import lesson

    lesson.current = lesson.Lesson(name=paths[0].stem, share=args.steps, seed=args.seed, asks=args.ask)
    runpy.run_path(str(paths[0]), run_name="__main__")
    return report_misses(lesson.current.name, lesson.current.misses)


def run_each(paths: list[Path], args: argparse.Namespace) -> int:
    """Run lessons as processes, `args.jobs` at once, and print the seconds of each and the output of what failed."""
    if args.ask:
        wrong("--ask takes one lesson, whose questions you answer.")

    def run_one(path: Path) -> tuple[float, subprocess.CompletedProcess]:
        start = time.perf_counter()
        options = [number_of(path), f"--steps={args.steps}", f"--seed={args.seed}"]
        command = [sys.executable, "-m", "lessons", "run", *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=LESSONS.parent, stdin=subprocess.DEVNULL)
        return time.perf_counter() - start, done

    failed = []
    total = 0.0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for path, (seconds, done) in zip(paths, pool.map(run_one, paths), strict=True):
            total += seconds
            print(f"{path.stem:32s}{seconds:6.1f} s{'  failed' if done.returncode else ''}", flush=True)
            if done.returncode:
                failed.append(path.stem)
                print(done.stderr[-3000:], file=sys.stderr)
    print(f"{'together':32s}{total:6.1f} s")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def render(args: argparse.Namespace) -> int:
    """Run one lesson in full and write its page and its pictures."""
    import matplotlib

    matplotlib.use("Agg")
    from course import lesson, render

    paths = find(LESSONS, args.number)
    if len(paths) > 1:
        wrong("render takes one lesson: each page needs a process of its own.")
    render.render(paths[0])
    return report_misses(lesson.current.name, lesson.current.misses)


def claims(_: argparse.Namespace) -> int:
    """Write claims.md from the pages of the lessons."""
    from course import claims

    (LESSONS / "claims.md").write_text(claims.table(LESSONS), encoding="utf-8")
    return 0


def notebooks(args: argparse.Namespace) -> int:
    """Write a notebook of each lesson."""
    from course import notebooks

    notebooks.write(find(LESSONS, "all"), Path(args.folder))
    print(f"{args.folder}: a notebook of each lesson; read them with Jupyter, in this environment")
    return 0


def report_misses(name: str, misses: list[str]) -> int:
    for miss in misses:
        print(f"{name}: {miss}", file=sys.stderr)
    return int(bool(misses))


def check(args: argparse.Namespace) -> int:
    """Grade exercises; 0 if every part passes."""
    from course import grading

    is_passed = True
    for path in find(EXERCISES, args.number):
        print(path.relative_to(LESSONS.parent))
        if not path.exists():
            print(f"  the file is missing: python -m lessons reset {number_of(path)}")
            is_passed = False
            continue
        exercise = grading.exercise_of(path.stem)
        try:
            answers = grading.load(path)
        except grading.LEARNERS_ERRORS as error:
            print(f"  the file does not run: {grading.place_of_error(error, str(path))}")
            is_passed = False
            continue
        verdicts = grading.check(exercise, answers)
        for verdict in verdicts:
            print(f"  {verdict.part}: {verdict.message}")
        if all(verdict.state == "passed" for verdict in verdicts):
            print(f"  Exercise {number_of(path)} is solved.")
        else:
            is_passed = False
    return int(not is_passed)


def hint(args: argparse.Namespace) -> int:
    """Print one of the three hints of an exercise."""
    from course import grading

    path = only(args.number)
    exercise = grading.exercise_of(path.stem)
    print(exercise.hints[args.level - 1])
    if args.level < 3:
        print(f"More: python -m lessons hint {args.number} {args.level + 1}")
    return 0


def solution(args: argparse.Namespace) -> int:
    """Print the solution of an exercise, without its marks."""
    lines = (SOLUTIONS / only(args.number).name).read_text(encoding="utf-8").splitlines()
    print("\n".join(line for line in lines if not line.strip().startswith(("# answer", "# end"))))
    return 0


def reset(args: argparse.Namespace) -> int:
    """Make the blank anew; an answer that was begun is kept beside it."""
    from course import blanks

    path = only(args.number)
    blank = blanks.blank_of((SOLUTIONS / path.name).read_text(encoding="utf-8"))
    if path.exists() and path.read_text(encoding="utf-8") != blank:
        number = next(n for n in range(1, 10_000) if not path.with_suffix(f".{n}.txt").exists())
        kept = path.with_suffix(f".{number}.txt")
        path.rename(kept)
        print(f"your answer is kept in {kept.relative_to(LESSONS.parent)}")
    path.write_text(blank, encoding="utf-8")
    print(f"{path.relative_to(LESSONS.parent)} is blank")
    return 0


def only(number: str) -> Path:
    if number == "all":
        wrong("one exercise at a time: give its number.")
    return find(EXERCISES, number)[0]


def share(text: str) -> float:
    """Share of the training steps, above 0 and at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0 and at most 1")
    return value


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lessons", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("list", help="all lessons and exercises").set_defaults(do=list_all)
    command = commands.add_parser("run", help="run lessons, or all, in full")
    command.add_argument("numbers", nargs="+", metavar="number", help="such as 04, or all")
    command.add_argument("--ask", action="store_true", help="ask for your prediction before each outcome")
    command.add_argument("--steps", type=share, default=1.0, help="share of the training steps; below 1 no band holds")
    command.add_argument("--seed", type=int, default=0, help="0 for the pages; the bands hold for others too")
    command.add_argument("--jobs", type=int, default=1, choices=range(1, 65), metavar="N", help="lessons at once")
    command.set_defaults(do=run)
    for name, do, text in (
        ("render", render, "run a lesson and write its page and pictures"),
        ("check", check, "grade an exercise, or all"),
        ("hint", hint, "a hint for an exercise; three levels"),
        ("solution", solution, "print the solution of an exercise"),
        ("reset", reset, "make an exercise blank again; your answer is kept beside it"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("number", help="such as 01")
        if name == "hint":
            command.add_argument("level", type=int, nargs="?", default=1, choices=(1, 2, 3))
        command.set_defaults(do=do)
    commands.add_parser("claims", help="write claims.md from the pages").set_defaults(do=claims)
    command = commands.add_parser("notebooks", help="write a notebook of each lesson")
    command.add_argument("folder", nargs="?", default="build/notebooks")
    command.set_defaults(do=notebooks)
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse(argv)
    if code := args.do(args):
        sys.exit(code)


if __name__ == "__main__":
    if importlib.util.find_spec("jax") is None:
        wrong(f"this Python, {sys.executable}, has no JAX. In the folder of the clone: . .venv/bin/activate")
    from transformer_jax.commands.cli import report_errors

    sys.exit(report_errors(main, sys.argv[1:]))
