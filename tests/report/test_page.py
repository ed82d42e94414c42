"""The page's text: what is in it, what is kept back, what is escaped. What it does in a browser: ``test_browser.py``."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import statistics
from html.parser import HTMLParser
from pathlib import Path

import pytest

from scatterdp.errors import ConfigError
from scatterdp.privacy.certificate import rounded_up
from scatterdp.report.page import check_out, write_report
from scatterdp.report.runs import find_runs


class Page(HTMLParser):
    """Elements, identifiers and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.markup = path.read_text(encoding="utf-8")
        self._inside: list[str] = []
        self.feed(self.markup)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data):
        if not self._inside:
            self.text += f" {data}"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def report(finished_runs, own_fit, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(find_runs([finished_runs, own_fit]), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def page(report) -> Page:
    return Page(report)


def test_figures_lie_beside_it_twice(report, page):
    names = sorted(path.name for path in (report.parent / "report_files").iterdir())
    stems = {name.rsplit(".", 1)[0] for name in names}
    assert names == sorted(f"{stem}.{kind}" for stem in stems for kind in ("png", "svg"))
    shown = {attributes["id"].removesuffix("-title") for attributes in page.all("h3") if attributes.get("id")}
    assert shown == stems
    assert {
        "digits_accuracy_epsilon",
        "digits_training",
        "digits_epsilon_by_mechanism",
        "digits_confusion",
        "digits_misclassified",
        "digits_scattering",
        "own_confusion",
    } <= stems
    assert not {"own_misclassified", "own_scattering", "train_confusion"} & stems


def test_nothing_else_is_left(report):
    assert sorted(path.name for path in report.parent.iterdir()) == ["report.html", "report_files"]


def test_nothing_is_loaded(page):
    links = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "action", "srcset", "data") and value
    ]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "url(http" not in page.markup
    assert "@import" not in page.markup


def test_the_policy_lets_one_script_run(page):
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    (script,) = re.findall(r"<script>(.*?)</script>", page.markup, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_names_that_are_markup_are_text(page):
    assert len(page.all("script")) == 1
    assert not any(attributes.get("src") == "x" for attributes in page.all("img"))
    assert "document.title='taken'" in page.text


def test_identifiers_are_unique_and_links_lead_somewhere(page):
    identifiers = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(identifiers) == len(set(identifiers))
    targets = {attributes["href"][1:] for attributes in page.all("a") if attributes.get("href")}
    assert targets <= set(identifiers)
    labels = {attributes["aria-labelledby"] for attributes in page.all("section")}
    assert labels <= set(identifiers)


def test_every_figure_has_an_alternative_text(page):
    pictures = [attributes for attributes in page.all("div") if attributes.get("role") == "img"]
    assert len(pictures) == len(page.all("figure"))
    assert all(len(attributes["aria-label"] or "") > 40 for attributes in pictures)


def test_every_run_is_in_it(page, finished_runs):
    for run in ("seed0", "seed1", "own"):
        summary = json.loads((finished_runs / run / "summary.json").read_text())
        certificate = json.loads((finished_runs / run / "certificate.json").read_text())
        assert f"ε = {rounded_up(summary['epsilon'])}" in page.text
        assert f"{100 * summary['test_accuracy']:.2f}" in page.text
        for limit in certificate["limits"]:
            assert limit in page.text
        assert certificate["adjacency"] in page.text


def test_commands(page):
    assert "python -m scatterdp.baselines" in page.text
    assert "--dataset=digits" in page.text
    assert "python -m scatterdp fit" in page.text
    assert "--seed=0" in page.text


def test_a_column_that_nobody_fills_is_left_out(page):
    assert "Validation (%)" not in page.text


def test_what_would_undo_the_guarantee_is_kept_back(page):
    for seed in ("987654321", "13572468"):
        assert seed not in page.markup
    assert "kept back" in page.text
    assert "whoever knows it can subtract the noise" in page.text
    assert "training loss" not in page.text


def test_someones_own_test_images_are_not_shown(page):
    assert "their test split may be of private people" in page.text


@pytest.mark.parametrize("scheme", ["grid", "random"])
def test_runs_of_a_random_search_make_a_private_page(finished_runs, tmp_path, scheme):
    shutil.copytree(finished_runs / "seed0", tmp_path / "sweep" / "runs" / "001")
    record = {"selection": {"scheme": scheme, "statement": "as it is"}, "runs": []}
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(record))
    write_report(find_runs([tmp_path / "sweep"]), tmp_path / "report.html")
    assert ("A private page" in Page(tmp_path / "report.html").text) == (scheme == "random")


def test_choosing_is_said_not_to_be_free(page):
    assert "2 of digits" in page.text
    assert "to pick the best by its accuracy is not free either" in page.text


def test_means_over_seeds(page, finished_runs):
    accuracies = [
        100 * json.loads((finished_runs / run / "summary.json").read_text())["test_accuracy"]
        for run in ("seed0", "seed1")
    ]
    told = f"{statistics.fmean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f}"
    assert told in page.text


def test_a_sweeps_failed_runs_and_the_cost_of_selection(finished_runs, tmp_path):
    sweep = tmp_path / "sweep"
    shutil.copytree(finished_runs / "own", sweep / "runs" / "a")
    summary = json.loads((sweep / "runs" / "a" / "summary.json").read_text())
    (sweep / "runs" / "a" / "summary.json").write_text(json.dumps(summary | {"validation_accuracy": 0.87654}))
    record = {
        "runs": [
            {"name": "a", "state": "done", "run_dir": "runs/a"},
            {"name": "b<b>", "state": "failed", "error": "<script>x</script>", "run_dir": "runs/b"},
        ],
        "selection": {"statement": "Selection costs ε = 5.5.", "runs": 2, "epsilon": 5.50001},
    }
    (sweep / "sweep.json").write_text(json.dumps(record))
    write_report(find_runs([sweep]), tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    assert "Selection costs ε = 5.5." in page.text
    assert "epsilon 5.5001" in page.text
    assert "Validation (%)" in page.text
    assert "87.65" in page.text
    assert "it failed: <script>x</script>" in page.text
    assert "b<b>" in page.text
    assert len(page.all("script")) == 1


def test_a_run_whose_certificate_disagrees_is_marked(finished_runs, tmp_path):
    run = Path(shutil.copytree(finished_runs / "own", tmp_path / "run"))
    certificate = json.loads((run / "certificate.json").read_text())
    certificate["ledger"][0]["event"]["count"] -= 1
    (run / "certificate.json").write_text(json.dumps(certificate))
    write_report(find_runs([run]), tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    assert "certificate disagrees" in page.text
    assert "NO. Do not rely on it:" in page.text


def test_runs_without_predictions_are_said_to_be(finished_runs, tmp_path):
    run = Path(shutil.copytree(finished_runs / "own", tmp_path / "run"))
    (run / "test_predictions.npz").unlink()
    write_report(find_runs([run]), tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    assert "these runs recorded no test predictions" in page.text
    assert "there is no test_predictions.npz in the run folder" in page.text
    assert not (tmp_path / "r_files" / "own_confusion.png").exists()


class TestOut:
    def test_a_report_is_replaced(self, finished_runs, report, tmp_path):
        out = Path(shutil.copy(report, tmp_path / "r.html"))
        write_report(find_runs([finished_runs / "own"]), out)
        assert "digits" not in out.read_text().split("<script>")[0].split("</style>")[1]

    def test_another_file_is_left_alone(self, tmp_path):
        out = tmp_path / "mine.html"
        out.write_text("<html>mine</html>")
        with pytest.raises(ConfigError, match=r"mine\.html: is there already and is no report; give another --out$"):
            check_out(out)
        assert out.read_text() == "<html>mine</html>"

    def test_a_folder_is_no_page(self, tmp_path):
        (tmp_path / "x.html").mkdir()
        with pytest.raises(ConfigError, match="is no report"):
            check_out(tmp_path / "x.html")

    @pytest.mark.parametrize("name", ["report", "report.pdf", "report_files/"])
    def test_another_ending(self, tmp_path, name):
        with pytest.raises(ConfigError, match=r"expected a file name that ends in \.html"):
            check_out(tmp_path / name)

    def test_no_folder_to_write_in(self, tmp_path):
        with pytest.raises(ConfigError, match="none is no folder; make it"):
            check_out(tmp_path / "none" / "r.html")

    def test_the_place_of_the_figures_is_taken(self, finished_runs, tmp_path):
        (tmp_path / "r_files").write_text("mine")
        with pytest.raises(ConfigError, match=r"r\.html: cannot be written .*give another --out"):
            write_report(find_runs([finished_runs / "own"]), tmp_path / "r.html")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["r_files"]
