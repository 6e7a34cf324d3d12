from __future__ import annotations

import json
import os
import shutil
from datetime import datetime

import pandas as pd
import pytest
import torch
from reading import Page
from synthetic import KINDS, make_run

from sparsemtl.errors import CheckpointError
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.report import write_report
from sparsemtl.storage.files import write_tree

OPTIONAL = ("metrics.csv", "networks.safetensors", "samples.safetensors", "config.yaml", "environment.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "one", notes=["Watch <out>."])


@pytest.fixture(scope="module")
def html(folder):
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def change_summary(folder, **values):
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_page_loads_nothing_from_anywhere(html, page):
    assert page.outside() == []
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html


def test_ids_are_unique_and_every_reference_inside_a_figure_has_its_target(html, page):
    ids = page.ids()
    assert len(ids) == len(set(ids))
    used = {value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")}
    used |= {value[5:-1] for _, name, value in page.attributes if name == "clip-path"}
    assert used
    assert used <= set(ids)


def test_stand_in_colours_do_not_reach_the_page(html):
    assert "#0101" not in html
    assert "#0505" not in html
    assert "var(--c3)" in html


def test_every_task_stands_with_its_validation_and_test_figures(folder, page):
    for task, about in json.loads((folder / "summary.json").read_text())["tasks"].items():
        assert task in page.text
        for split in ("validation", "test"):
            value = about[split][KINDS[task][1]]
            assert any(f"{value:.{digits}f}" in page.text for digits in (4, 5))


def test_the_page_opens_with_the_cost(page):
    blank = "\N{NO-BREAK SPACE}"
    lead = (
        f"Compacted, the 4 networks together need 12.0{blank}M multiply-adds per sample (30{blank}% of the uncompacted "
        f"40.0{blank}M) and 60.0{blank}k weights (30{blank}%)."
    )
    assert " ".join(lead.split()) in page.text
    assert "median of a batch of 16 samples on 1 thread (cpu)" in page.text


def test_a_network_that_was_not_compacted_is_named_with_the_reason(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    cost = json.loads((copy / "summary.json").read_text())["cost"]
    cost["networks"][1]["failure"] = "cannot follow <Strange>."
    change_summary(copy, cost=cost)
    text = Page(write_report(copy).read_text()).text
    assert "Not compacted : even. cannot follow <Strange>." in text


def test_a_run_that_was_not_measured_has_no_cost(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    change_summary(copy, cost=None)
    assert Page(write_report(copy).read_text()).sections[0] == "Results"


def test_every_section_is_there(page):
    assert page.sections == [
        "Cost of all tasks",
        "Results",
        "Learning curves",
        "Sharing between tasks",
        "Sharing method: fisher",
        "Balancing: mean",
        "Predictions on test samples",
        "Notes",
        "Configuration and environment",
    ]


def test_the_page_states_when_the_run_ended(tmp_path):
    folder = make_run(tmp_path / "run", tasks=["digit"], epochs=2)
    os.utime(folder / "summary.json", (0, datetime(2026, 3, 9, 17, 45).timestamp()))
    assert "9 March 2026, 17:45" in Page(write_report(folder).read_text()).text


def test_what_a_user_wrote_is_escaped(html, page):
    assert "Watch &lt;out&gt;." in html
    assert "Watch <out>." in page.text


def test_the_lead_says_the_result_and_what_is_shared(folder, page):
    masks = TaskNetworks.load(folder / "networks.safetensors").masks
    jaccard = masks.overlap().jaccard
    mean = float((jaccard.sum() - len(masks)) / (len(masks) * (len(masks) - 1)))
    assert "On test data: accuracy 0." in page.text
    assert f"Each task uses {100 * masks.density():.0f} % of the {masks.size():,} weights" in page.text
    assert f"Two tasks have on average {100 * mean:.0f} %" in page.text


@pytest.mark.parametrize("name", OPTIONAL)
def test_what_is_missing_is_left_out(tmp_path, name):
    folder = make_run(tmp_path / "run", tasks=["digit", "ink"], epochs=4)
    (folder / name).unlink()
    gone = {
        "metrics.csv": {"Learning curves", "Sharing method: fisher", "Balancing: mean"},
        "networks.safetensors": {"Sharing between tasks"},
        "samples.safetensors": {"Predictions on test samples"},
    }
    everything = {
        "Cost of all tasks",
        "Results",
        "Learning curves",
        "Sharing between tasks",
        "Sharing method: fisher",
        "Balancing: mean",
    }
    everything |= {"Predictions on test samples", "Configuration and environment"}
    assert set(Page(write_report(folder).read_text()).sections) == everything - gone.get(name, set())


def test_a_summary_alone_makes_a_page(tmp_path):
    folder = make_run(tmp_path / "run", tasks=["digit", "ink"], epochs=4)
    for name in OPTIONAL:
        (folder / name).unlink()
    assert Page(write_report(folder).read_text()).sections == ["Cost of all tasks", "Results"]


def test_one_dense_task_makes_a_page(tmp_path):
    folder = make_run(tmp_path / "run", tasks=["ink"], keep=None, epochs=1)
    page = Page(write_report(folder).read_text())
    assert "Sharing between tasks" not in page.sections
    assert "mse" in page.text


def test_one_sparse_task_has_no_overlap_with_anything(tmp_path):
    page = Page(write_report(make_run(tmp_path / "run", tasks=["ink"], epochs=4)).read_text())
    assert "Sharing between tasks" in page.sections
    assert "Overlap of two tasks" not in page.text


def test_constant_loss_weights_are_named_and_not_drawn(tmp_path):
    folder = make_run(tmp_path / "run", tasks=["digit", "ink"], epochs=4)
    metrics = pd.read_csv(folder / "metrics.csv")
    metrics.loc[metrics["split"] == "balancing", "value"] = 1.0
    metrics.to_csv(folder / "metrics.csv", index=False)
    html = write_report(folder).read_text()
    assert "Loss weights over epochs" not in html
    assert "Not drawn, because they did not change: Loss weights 1.000." in html


def test_a_figure_that_was_not_measured_is_an_en_dash_and_validation_leads_without_test(tmp_path):
    folder = make_run(tmp_path / "run", tasks=["digit"], epochs=4)
    tasks = json.loads((folder / "summary.json").read_text())["tasks"]
    tasks["digit"]["test"] = {"accuracy": None}
    change_summary(folder, tasks=tasks)
    page = Page(write_report(folder).read_text())
    assert f"On validation data: accuracy {tasks['digit']['validation']['accuracy']:.4f} on digit." in page.text
    assert "–" in page.text


def test_of_a_run_that_was_interrupted_it_is_said_how_to_go_on(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.safetensors").touch()
    with pytest.raises(CheckpointError, match=f"has not ended.* Go on with `sparsemtl resume {tmp_path}`"):
        write_report(tmp_path)


def test_a_stopped_run_says_so(tmp_path, page):
    folder = make_run(tmp_path / "run", tasks=["digit", "ink"], epochs=4)
    change_summary(folder, status="stopped")
    assert "stopped before its end" in Page(write_report(folder).read_text()).text
    assert "stopped before its end" not in page.text


def test_many_layers_and_tasks_make_a_page(tmp_path):
    layers = {f"encoder.layer{i}.weight": (8, 8) for i in range(60)}
    page = Page(write_report(make_run(tmp_path / "run", tasks=["digit", "ink"], layers=layers, epochs=4)).read_text())
    assert all(f"layer{i}" in page.text for i in range(60))


def test_losses_that_are_not_finite_leave_a_gap(tmp_path):
    folder = make_run(tmp_path / "run", tasks=["digit"], epochs=4)
    metrics = pd.read_csv(folder / "metrics.csv")
    metrics.loc[(metrics["metric"] == "loss") & (metrics["epoch"] == 2), "value"] = float("inf")
    metrics.to_csv(folder / "metrics.csv", index=False)
    assert "Learning curves" in Page(write_report(folder).read_text()).sections


def test_the_same_folder_gives_the_same_page(folder, html):
    assert write_report(folder).read_text(encoding="utf-8") == html


def test_folders_that_hold_no_run_are_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere does not exist; expected the folder of a run or a study"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.yaml is missing.*study\.json is missing.*a run that has ended"):
        write_report(tmp_path)


def damage_metrics(folder):
    (folder / "metrics.csv").write_text("epoch,step\n1,2\n")


def damage_masks(folder):
    write_tree(folder / "networks.safetensors", {"a": torch.zeros(2)})


def damage_samples(folder):
    (folder / "samples.safetensors").write_bytes(b"nothing")


def damage_summary(folder):
    (folder / "summary.json").write_text("{}")


def damage_a_task(folder):
    change_summary(folder, tasks={"digit": {}, "ink": {}})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_a_task, r"summary\.json, or a file beside it, is not as sparsemtl wrote it"),
        (damage_metrics, r"metrics\.csv: expected the columns epoch, step, split, .* found epoch, step\."),
        (damage_masks, r"networks\.safetensors is not a file of task networks"),
        (damage_samples, r"samples\.safetensors is not a whole safetensors file"),
        (damage_summary, r"summary\.json .*'tasks' is missing"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage, message):
    folder = make_run(tmp_path / "run", epochs=2)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_the_page_says_by_which_rule_the_epoch_was_chosen(tmp_path):
    folder = make_run(tmp_path / "run")
    change_summary(
        folder,
        selection={
            "rule": "mean over the tasks",
            "references": {"digit": {"metric": "accuracy", "value": 0.51234, "scale": 0.51234, "epoch": 2}},
            "undefined": [{"task": "ink", "metric": "r2", "epochs": [3, 4]}],
        },
    )
    text = write_report(folder).read_text(encoding="utf-8")
    assert "Selected by the mean over the tasks. References R: digit accuracy 0.5123 (epoch 2)." in text
    assert "Undefined, and left out: r2 of ink in epoch 3, 4." in text
