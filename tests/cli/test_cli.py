"""The command line as a newcomer meets it: it explains itself, it does what it says, and no mistake is a traceback."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from typer.main import get_command
from typing_extensions import Doc

from sparsemtl import __version__
from sparsemtl.cli.listing import plain_keys, registries
from sparsemtl.cli.main import app, main
from sparsemtl.errors import MaskWarning, MissingExtraError
from sparsemtl.registry.parameters import Count, validated
from sparsemtl.registry.registry import Registry
from sparsemtl.runs.changes import override
from sparsemtl.runs.config import check
from sparsemtl.runs.schema import SECTIONS, in_yaml_words, json_schema
from sparsemtl.sharing import SHARING, DenseSharing
from sparsemtl.storage.yaml_text import dump_yaml
from sparsemtl.training import Trainer

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]  # type: ignore[union-attr]
LISTS = list(registries())


@dataclass
class Outcome:
    """What a command left: exit status, standard output and error stream."""

    code: int
    out: str
    error: str


Shell = Callable[..., Outcome]


@pytest.fixture
def sparsemtl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Shell]:
    """The command, in an empty folder, without a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERMINAL_WIDTH", "100")
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setenv("SPARSEMTL_DATA", "unset")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def command(*words: object) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["sparsemtl", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        out, error = capsys.readouterr()
        return Outcome(code if isinstance(code, int) else 0, out, error)

    yield command
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def tiny_file(tmp_path: Path, tiny: dict[str, Any]) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_yaml(tiny), encoding="utf-8")
    return path


def one_line(text: str) -> str:
    return " ".join(re.sub(r"[│┃|]", " ", text).split())


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_help_names_every_command_and_a_first_step(sparsemtl: Shell, words: list[str]) -> None:
    outcome = sparsemtl(*words)
    assert all(re.search(rf"^│ {command} ", outcome.out, re.MULTILINE) for command in COMMANDS)
    assert "sparsemtl run examples/digits.yaml" in outcome.out
    assert "--version" in outcome.out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_says_something_of_each_of_its_parameters(sparsemtl: Shell, command: str) -> None:
    outcome = sparsemtl(command, "--help")
    assert outcome.code == 0
    text = one_line(outcome.out)
    made = get_command(app).commands[command]  # type: ignore[attr-defined]
    for words in [made.help, *(parameter.help for parameter in made.params if parameter.name != "help")]:
        assert words
        assert one_line(words) in text


def test_the_version_is_said(sparsemtl: Shell) -> None:
    assert sparsemtl("--version") == Outcome(0, f"sparsemtl {__version__}\n", "")


@pytest.mark.parametrize("words", [["rnu"], ["run"], ["run", "a.yaml", "--jobs", "2"], ["study", "a.yaml", "-j", "0"]])
def test_a_wrong_command_line_is_explained(sparsemtl: Shell, words: list[str]) -> None:
    outcome = sparsemtl(*words)
    assert outcome.code == 2
    assert re.search(r"Usage: .*sparsemtl", outcome.error)  # behind `python -m pytest.` if the suite runs so
    assert "Traceback" not in outcome.error


def test_list_alone_says_what_can_be_listed(sparsemtl: Shell) -> None:
    outcome = sparsemtl("list")
    assert outcome.code == 0
    for what, names in {**plain_keys(), **registries()}.items():
        assert what in outcome.out
        assert all(name in outcome.out for name in names)
    assert "sparsemtl list WHAT NAME" in outcome.out


def test_list_of_something_unknown_names_the_nearest(sparsemtl: Shell) -> None:
    outcome = sparsemtl("list", "method")
    assert outcome.code == 1
    assert outcome.error.startswith(
        "ConfigError: unknown list 'method'. Did you mean 'methods'? Known: architecture, architectures, "
    )
    assert "Did you mean 'fisher'?" in sparsemtl("list", "methods", "fishr").error
    assert "unknown list 'trainin'. Did you mean 'training'?" in sparsemtl("list", "trainin").error
    assert "unknown list 'pretrainin'. Did you mean 'pretraining'?" in sparsemtl("list", "pretrainin").error
    assert "unknown run key 'freze'. Did you mean 'freeze'?" in sparsemtl("list", "run", "freze").error


def test_a_member_is_explained_without_the_name_of_its_list(sparsemtl: Shell) -> None:
    assert one_line(sparsemtl("list", "balancers", "pcgrad").out) in one_line(sparsemtl("list", "pcgrad").out)
    text = one_line(sparsemtl("list", "fisher").out)
    assert "sharing method fisher:" in text
    assert "criterion fisher:" in text


@pytest.mark.parametrize("what", ["run", "training", "study"])
def test_keys_that_no_registry_gives_are_explained_with_default_and_values(sparsemtl: Shell, what: str) -> None:
    text = one_line(sparsemtl("list", what).out)
    for key, parameter in plain_keys()[what].items():
        default = parameter.default
        shown = "required" if parameter.required else default if isinstance(default, str) else json.dumps(default)
        assert one_line(f"{key}: {shown} ") in text
        assert one_line(f"{in_yaml_words(parameter.kind)} {parameter.meaning}") in text


def test_every_key_of_a_configuration_can_be_listed() -> None:
    assert {*plain_keys()["run"], "training", *SECTIONS} == set(check({}))


@pytest.mark.parametrize(("section", "registry"), [(section, registry) for section, (registry, _) in SECTIONS.items()])
def test_a_section_of_a_file_lists_what_can_stand_in_it(
    sparsemtl: Shell, section: str, registry: Registry[Any]
) -> None:
    what = next(what for what, other in registries().items() if other is registry)
    assert sparsemtl("list", section) == sparsemtl("list", what)
    name = next(iter(registry))
    assert sparsemtl("list", section, name) == sparsemtl("list", what, name)


@pytest.mark.parametrize(
    ("key", "of"), [("pretraining", "run"), ("freeze", "run"), ("epochs", "training"), ("seeds", "study")]
)
def test_a_key_of_a_file_is_explained(sparsemtl: Shell, key: str, of: str) -> None:
    outcome = sparsemtl("list", key)
    assert outcome.code == 0
    assert outcome.out.strip().startswith(f"{key}: ")
    assert outcome == sparsemtl("list", of, key)
    assert f"'{key}' is a {of} key, not a list with 'x'" in sparsemtl("list", key, "x").error


def test_one_key_is_explained_alone(sparsemtl: Shell) -> None:
    text = one_line(sparsemtl("list", "run", "freeze").out)
    meaning = "Keep the encoder's initial weights, so that only heads are trained (a linear probe)."
    assert text == f"freeze: false a bool {meaning}"


@pytest.mark.parametrize("what", LISTS)
def test_a_list_shows_every_member_with_sentence_source_parameters_and_defaults(sparsemtl: Shell, what: str) -> None:
    text = one_line(sparsemtl("list", what).out)
    registry = registries()[what]
    for name in registry:
        assert one_line(f"{name} {registry.summary(name)[:20]}") in text
        assert one_line(registry.source(name)) in text
        for parameter in registry.parameters(name).values():
            default = parameter.default
            shown = "required" if parameter.required else default if isinstance(default, str) else json.dumps(default)
            if len(shown) < 24:
                assert f"{parameter.name} {shown} " in text
            else:  # it takes several lines of its column
                assert all(word in text for word in [parameter.name, *shown.split()])


def test_a_source_is_the_paper_that_the_docstring_names(sparsemtl: Shell) -> None:
    text = one_line(sparsemtl("list", "methods").out)
    assert re.search(
        r"fisher FS and EFS: [^.]*training\. Source: Zhang et al\., FSMTL, AAAI 2024 parameter default", text
    )
    assert "Dynamic weight average: tasks whose loss falls slowly weigh more. Source: Liu et al. 2019" in one_line(
        sparsemtl("list", "balancers").out
    )


def test_one_member_is_explained_parameter_by_parameter(sparsemtl: Shell) -> None:
    text = one_line(sparsemtl("list", "methods", "fisher").out)
    assert "keep: 0.3 a float in (0, 1] or a mapping to floats in (0, 1] Fraction of the maskable weights" in text
    assert "samples: 1024 an int in [1, inf) or null Training samples" in text
    assert "scope: null one of 'global', 'layer' or null Rank the weights of all layers together" in text


@pytest.mark.parametrize("what", LISTS)
def test_in_a_narrow_terminal_no_word_is_lost(sparsemtl: Shell, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    outcome = sparsemtl("list", what)
    assert "…" not in outcome.out
    assert all(len(line) <= 40 for line in outcome.out.splitlines())
    assert all(name in outcome.out for name in registries()[what])


def test_a_class_put_in_a_registry_is_at_once_in_configuration_schema_and_list(
    sparsemtl: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mine(DenseSharing):
        """My own way (Me and You 2030)."""

        @validated
        def __init__(self, *, strength: Annotated[Count, Doc("Strength of it.")] = 2) -> None:
            super().__init__()

    assert "sharing_mine" not in json_schema()["$defs"]
    monkeypatch.setattr(SHARING, "_members", dict(SHARING))
    SHARING["mine"] = Mine
    assert check({"sharing": "mine"})["sharing"] == {"name": "mine", "strength": 2}
    strength = json_schema()["$defs"]["sharing_mine"]["properties"]["strength"]
    assert (strength["default"], strength["minimum"], strength["description"]) == (2, 1, "Strength of it.")
    text = one_line(sparsemtl("list", "methods").out)
    assert "mine My own way. Source: Me and You 2030 parameter default values strength 2 an int in [1, inf)" in text
    assert "strength: 2 an int in [1, inf) Strength of it." in one_line(sparsemtl("list", "methods", "mine").out)


def test_the_schema_is_printed_or_written(sparsemtl: Shell, tmp_path: Path) -> None:
    printed = sparsemtl("schema")
    assert json.loads(printed.out) == json_schema()
    assert sparsemtl("schema", "--out", "deep/schema.json") == Outcome(0, "", "")
    assert (tmp_path / "deep" / "schema.json").read_text() == printed.out


def test_a_run_tells_of_every_epoch_and_ends_in_a_table_of_results(
    sparsemtl: Shell, tiny_file: Path, tmp_path: Path, no_reports: None
) -> None:
    outcome = sparsemtl("run", tiny_file, "training.epochs=3", "optimizer.lr=1e-3", "weights={digit: 2}")
    assert outcome.code == 0
    assert [line[:11] for line in outcome.error.splitlines() if line.startswith("epoch")] == [
        f"epoch   {epoch}/3" for epoch in (1, 2, 3)
    ]
    summary = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())
    head, *lines, last = outcome.out.splitlines()
    assert head.split() == ["task", "metric", "validation", "test"]
    assert [line.split() for line in lines] == [
        [task, entry["primary"], *(f"{entry[split][entry['primary']]:.4f}" for split in ("validation", "test"))]
        for task, entry in summary["tasks"].items()
    ]
    assert last == f"Results: {Path('runs') / 'tiny'}"  # no report was drawn
    assert "\x1b" not in outcome.out + outcome.error


def test_a_run_does_not_fail_for_want_of_a_picture(
    sparsemtl: Shell, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(path: Path) -> None:
        raise MissingExtraError("A report needs 'jinja2'.")

    monkeypatch.setattr("sparsemtl.report.write_report", missing)
    outcome = sparsemtl("run", tiny_file, "--out", "here", "-q")
    assert (outcome.code, outcome.error) == (0, "")
    assert "no report was drawn: A report needs 'jinja2'." in outcome.out
    assert outcome.out.splitlines()[-1] == "Results: here"


def test_a_quiet_run_tells_its_results_only(sparsemtl: Shell, tiny_file: Path, no_reports: None) -> None:
    outcome = sparsemtl("run", tiny_file, "--out", "here", "--quiet")
    assert (outcome.code, outcome.error) == (0, "")
    assert outcome.out.splitlines()[-1] == "Results: here"


def test_the_help_says_what_becomes_of_a_mapping_and_it_does(sparsemtl: Shell) -> None:
    text = one_line(sparsemtl("run", "--help").out)
    assert "data.tasks={a: [3, 5]} adds or changes `a`, data.tasks={} changes nothing." in text
    base = {"data": {"name": "label-subsets", "tasks": {"a": [1, 2], "b": [3, 4]}}}
    assert override(base, ["data.tasks={}"]) == base
    assert override(base, ["data.tasks={a: [3, 5]}"])["data"]["tasks"] == {"a": [3, 5], "b": [3, 4]}


def test_overrides_of_the_command_line_are_what_is_run(
    sparsemtl: Shell, tiny_file: Path, tmp_path: Path, tiny: dict[str, Any], no_reports: None
) -> None:
    sparsemtl("run", tiny_file, "--out", "a", "-q", "sharing.keep=0.4", "sharing=random", "optimizer.lr=1e-2", "seed=3")
    expected = {**tiny, "sharing": {"name": "random", "keep": 0.4}, "optimizer": {"lr": 0.01}, "seed": 3}
    assert (tmp_path / "a" / "config.yaml").read_text() == dump_yaml(check(expected))


def test_the_data_root_is_where_data_sets_are_looked_for(sparsemtl: Shell, tiny_file: Path, tmp_path: Path) -> None:
    outcome = sparsemtl("run", tiny_file, "data=mnist", "--data-root", tmp_path / "my data")
    assert outcome.code == 1
    assert outcome.error.startswith(f"DataError: mnist: {tmp_path / 'my data'}")


def test_a_mistake_of_the_configuration_is_said_with_file_and_line(sparsemtl: Shell, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("sharing:\n  name: fisher\n  kep: 0.3\ntraining: {epochs: 0}\n")
    outcome = sparsemtl("run", "bad.yaml", "optimizer.lr=-1")
    assert (outcome.code, outcome.out) == (1, "")
    first, *lines = outcome.error.splitlines()
    assert first == "ConfigError: bad.yaml is not valid:"
    assert [line.split(":")[0].strip() for line in lines] == [
        "training.epochs (line 4)",
        "sharing.kep (line 3)",
        "optimizer.lr (command line)",
    ]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "none.yaml"], "ConfigError: none.yaml does not exist."),
        (["run", "."], "ConfigError: . is a folder; expected a YAML file."),
        (["run", "empty.yaml"], "ConfigError: empty.yaml is empty; expected a mapping of sections"),
        (["run", "study.yaml"], "ConfigError: study.yaml is a study: it has `methods`. Run it with `sparsemtl study"),
        (["study", "run.yaml"], "ConfigError: run.yaml: `data` belongs under `base` in a study. A single run is"),
        (["run", "run.yaml", "weights={digit:", "2}"], "ConfigError: the override 'weights={digit:', line 1, "),
        (["run", "run.yaml", "--out", "empty.yaml"], "CheckpointError: empty.yaml is a file; a run needs a folder"),
        (["run", "run.yaml", "--out", "empty.yaml/x"], "Not a directory: empty.yaml/x"),
        (["study", "study.yaml", "--out", "empty.yaml"], "File exists: empty.yaml"),
        (["resume", "none"], "CheckpointError: none does not exist; expected the folder of a run."),
        (["resume", "run.yaml"], "CheckpointError: run.yaml is a file; expected the folder of a run."),
        (["report", "none"], "CheckpointError: none does not exist; expected the folder of a run or a study."),
        (["schema", "--out", "empty.yaml/x"], "File exists: empty.yaml"),
    ],
)  # fmt: skip
def test_every_mistake_is_one_message(sparsemtl: Shell, tmp_path: Path, words: list[str], message: str) -> None:
    for name, text in {"empty.yaml": "", "run.yaml": "data: digits", "study.yaml": "methods: {a: {}}"}.items():
        (tmp_path / name).write_text(text)
    outcome = sparsemtl(*words)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.error.startswith(message)
    assert outcome.error.count("\n") == 1


@pytest.fixture
def heeded(sent: signal.Signals) -> Iterator[None]:
    """Heed the signal although the test runner ignores it, as under nohup or in a script's background."""
    before = signal.signal(sent, signal.default_int_handler)
    yield
    signal.signal(sent, before)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("heeded")
def test_a_run_that_is_interrupted_says_how_to_go_on_and_goes_on(
    sent: signal.Signals,
    sparsemtl: Shell,
    tiny_file: Path,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_reports: None,
) -> None:
    train_epoch = Trainer._train_epoch

    def interrupted(self: Trainer, *given: Any) -> None:
        if self.position.epoch == 1:
            os.kill(os.getpid(), sent)  # as Ctrl-C, a batch system, a terminal that hangs up
        train_epoch(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", interrupted)
        outcome = sparsemtl("run", tiny_file, "-q")
    assert outcome == Outcome(128 + sent, "", f"Stopped. Resume with `sparsemtl resume {Path('runs') / 'tiny'}`.\n")
    assert sparsemtl("resume", "runs/tiny", "-q").code == 0
    assert (tmp_path / "runs/tiny/model.safetensors").read_bytes() == (finished_run / "model.safetensors").read_bytes()


def test_a_run_that_is_interrupted_before_it_began_has_nothing_to_go_on_with(
    sparsemtl: Shell, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparsemtl.runs.run.make_trainer", interrupted)
    assert sparsemtl("run", tiny_file, "-q") == Outcome(130, "", "Stopped.\n")


def test_a_study_ends_in_its_table(
    sparsemtl: Shell, study_file: Path, finished_study: Path, tmp_path: Path, no_reports: None
) -> None:
    shutil.copytree(finished_study, tmp_path / "out")
    outcome = sparsemtl("study", study_file, "--out", "out")
    lines = "6 of 6 runs are finished already.\nDrawing the reports of 6 runs.\n"  # the fixture has drawn none
    assert (outcome.code, outcome.error) == (0, lines)
    assert "primary metrics" in outcome.out
    for line in (tmp_path / "out" / "tables.md").read_text(encoding="utf-8").split("\n## ")[1].splitlines()[4:]:
        for cell in filter(None, (part.strip(" *") for part in line.split("|"))):
            for figure in re.split(r"\**,? ±? ?", cell):
                assert figure in outcome.out
    assert outcome.out.splitlines()[-2:] == [f"Tables: {Path('out/tables.md')}", f"Report: {Path('out/report.html')}"]


@pytest.mark.parametrize("columns", [20, 200])
def test_the_numbers_of_a_study_are_never_broken(
    sparsemtl: Shell,
    study_file: Path,
    finished_study: Path,
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
    no_reports: None,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    out = sparsemtl("study", study_file, "--out", finished_study).out
    assert "…" not in out
    assert len(re.findall(r"±\d+\.\d+", out)) >= 3 * 4
    assert "accuracy ↑" in out
    assert "seeds" in out


def test_a_study_with_a_run_without_a_result_fails_after_its_table(
    sparsemtl: Shell, tiny_file: Path, tmp_path: Path, no_reports: None
) -> None:
    study = {"base": "tiny.yaml", "methods": {"a": {}, "b": {"optimizer": {"lr": 1e30}}}, "seeds": [0]}
    (tmp_path / "s.yaml").write_text(dump_yaml(study))
    outcome = sparsemtl("study", "s.yaml", "-q")
    assert outcome.code == 1
    assert "primary metrics" in outcome.out
    assert outcome.error.startswith("No result of b_seed-0: the loss of task ")
    alone = sparsemtl("study", "s.yaml", "-q", "optimizer.lr=1e30", "--out", "other")
    assert (alone.code, alone.out) == (1, "")
    assert alone.error.count("No result of ") == 2


def test_a_study_that_is_interrupted_says_how_to_go_on(
    sparsemtl: Shell, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparsemtl.study.runner.run", interrupted)
    outcome = sparsemtl("study", study_file, "-q")
    assert outcome == Outcome(130, "", "Stopped. Resume with the same command.\n")


def test_a_report_is_drawn_again(sparsemtl: Shell, finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    assert sparsemtl("report", "run") == Outcome(0, f"Report: {Path('run/report.html')}\n", "")
    assert (tmp_path / "run" / "report.html").exists()


def test_warnings_of_ours_are_messages_and_others_keep_their_place(sparsemtl: Shell) -> None:
    sparsemtl("--version")
    assert warnings.formatwarning("mind this", MaskWarning, "x.py", 3) == "MaskWarning: mind this\n"
    assert warnings.formatwarning("old", DeprecationWarning, "x.py", 3).startswith("x.py:3: DeprecationWarning: old\n")


def test_a_terminal_that_cannot_write_a_sign_gets_another_one(
    sparsemtl: Shell, study_file: Path, finished_study: Path, monkeypatch: pytest.MonkeyPatch, no_reports: None
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    assert sparsemtl("study", study_file, "--out", finished_study, "-q").code == 0
    assert "accuracy ?" in written.getvalue().decode("ascii")
