"""The pages about the network and the project: every figure is the server's, and foreign text stays text."""

from collections.abc import Callable
from typing import Any

import altair as alt
import httpx
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import card_values
from dashboard.client import AssistantClient, ClientError
from dashboard.curve_charts import reliability_chart, roc_chart
from modules.answers import Problem
from modules.curves import CURVES_FILE, Curves
from modules.pathologies import NAMES
from modules.records import DISCLAIMER
from modules.weights import EMBEDDED_WEIGHTS, WeightsCard, read_card

URL = "http://127.0.0.1:8000"
HOSTILE = "<script>alert(1)</script> ![x](http://evil.example/x.png) :red[x] $x$"


def shipped_curves() -> Curves:
    return Curves.model_validate_json((EMBEDDED_WEIGHTS / CURVES_FILE).read_bytes())


def problem(status: int, code: str, detail: str = "It went wrong.") -> httpx.Response:
    record = Problem(title="A title", status=status, detail=detail, code=code, request_id="request-9")
    media_type = {"Content-Type": "application/problem+json"}
    return httpx.Response(status, content=record.model_dump_json(exclude_none=True), headers=media_type)


class FakeServer:
    """Answers /model and /model/curves as it is told."""

    def __init__(self) -> None:
        self.card: WeightsCard | httpx.Response | Exception = read_card(EMBEDDED_WEIGHTS)
        self.curves: Curves | httpx.Response | Exception = shipped_curves()
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        answer = {"/model": self.card, "/model/curves": self.curves}[request.url.path]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, content=answer.model_dump_json())

    @property
    def client(self) -> AssistantClient:
        return AssistantClient(URL, 5.0, httpx.MockTransport(self))


def card_page(client: "AssistantClient") -> None:
    from dashboard.model_card import show_model_card

    show_model_card(client)


def about_page(client: "AssistantClient | None") -> None:
    from dashboard.about import show_about

    show_about(client)


def shown(page: Callable[..., None], client: AssistantClient | None) -> AppTest:
    test = AppTest.from_function(page, args=(client,), default_timeout=20).run()
    assert not test.exception
    return test


def words(test: AppTest) -> str:
    """Return everything that is to be read on a page."""
    kinds = ("title", "header", "subheader", "markdown", "caption", "text", "error", "warning", "code")
    return "\n".join(str(element.value) for kind in kinds for element in test.get(kind))


def table(test: AppTest) -> dict[str, dict[str, Any]]:
    return {row["Pathology"]: row for row in test.dataframe[0].value.to_dict("records")}


def charts(test: AppTest) -> list[Any]:
    return [element.proto for element in test.get("vega_lite_chart")]


def kinds_that_show(test: AppTest, text: str) -> set[str]:
    """Return the kinds of elements in which a text arrived."""
    nodes = [*test.main, *test.sidebar]
    return {node.type for node in nodes if getattr(node, "proto", None) is not None and text in str(node.proto)}


# ── The client ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_curves_come_back_as_the_record() -> None:
    assert FakeServer().client.curves() == shipped_curves()


def test_no_curves_are_an_error_with_its_code() -> None:
    server = FakeServer()
    server.curves = problem(404, "not_found")
    with pytest.raises(ClientError) as caught:
        server.client.curves()
    assert (caught.value.code, caught.value.status) == ("not_found", 404)


# ── The model card ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_card_is_told_in_its_own_words() -> None:
    card, test = read_card(EMBEDDED_WEIGHTS), shown(card_page, FakeServer().client)
    texts = [element.value for element in test.text]
    for text in (card.name, card.data, card.training, card.calibration, card.operating_points, card.citation):
        assert text in texts
    assert any(card.sha256 in text for text in texts)
    metrics = {metric.label: metric.value for metric in test.metric}
    assert metrics["Mean AUROC, test films"] == "0.652 (0.612–0.674)"
    assert metrics["Test films / patients"] == "1,085 / 100"
    assert "Pneumonia and Hernia" in words(test)
    assert "6 of 48 boxes" in words(test)


def test_the_table_holds_the_14_with_their_intervals() -> None:
    rows = table(shown(card_page, FakeServer().client))
    assert tuple(rows) == NAMES
    effusion = rows["Effusion"]
    assert effusion["Test AUROC"] == "0.713 (0.581–0.817)"
    assert effusion["Sensitivity"] == "0.72 (0.51–0.86)"
    assert effusion["Specificity"] == "0.60 (0.43–0.77)"
    assert (effusion["Val. AUROC"], effusion["Threshold"], effusion["ECE"]) == ("0.793", "0.125", "0.035")
    assert (effusion["Positive patients"], effusion["Data"]) == ("53 / 37", "")
    assert {name for name, row in rows.items() if row["Data"] == "insufficient data"} == {
        "Cardiomegaly",
        "Edema",
        "Hernia",
    }


def test_figures_are_the_servers_and_no_constants() -> None:
    server = FakeServer()
    card = read_card(EMBEDDED_WEIGHTS)
    found = card.metrics["test"]["discrimination"]
    found = found | {"mean_auroc": 0.123, "pathologies": found["pathologies"] | {"Mass": {"auroc": 0.987}}}
    server.card = card.model_copy(
        update={"metrics": card.metrics | {"test": card.metrics["test"] | {"discrimination": found}}}
    )
    test = shown(card_page, server.client)
    assert test.metric[0].value.startswith("0.123")
    assert table(test)["Mass"]["Test AUROC"] == "0.987"


def test_both_curves_are_of_the_pathology_that_is_chosen() -> None:
    test = shown(card_page, FakeServer().client)
    curves = shipped_curves()
    most = max(NAMES, key=lambda name: curves.pathologies[name].positive_films)
    chooser = test.selectbox(key="curve_pathology")
    assert (chooser.value, tuple(chooser.options)) == (most, NAMES)
    assert len(charts(test)) == 2
    before = [str(chart) for chart in charts(test)]
    test.selectbox(key="curve_pathology").select("Hernia").run()
    assert not test.exception
    assert all(a != str(b) for a, b in zip(before, charts(test), strict=True))
    assert "19 positive films of 3 patients among 1,085 films" in words(test)


def test_a_chart_has_named_axes_a_diagonal_and_the_operating_point() -> None:
    found = shipped_curves().pathologies["Effusion"]
    with alt.data_transformers.enable(consolidate_datasets=False):
        roc, reliability = roc_chart(found).to_dict(), reliability_chart(found).to_dict()
    assert [layer["mark"]["type"] for layer in roc["layer"]] == ["line", "line", "point"]
    assert "specificity" in roc["layer"][1]["encoding"]["x"]["title"]
    assert found.operating_point is not None
    assert found.operating_point.sensitivity in [row["y"] for row in roc["layer"][2]["data"]["values"]]
    assert {"positive films", "negative films"} <= set(roc["layer"][1]["data"]["values"][0])
    assert {tip["field"] for tip in reliability["layer"][2]["encoding"]["tooltip"]} == {"x", "y", "films"}
    for chart in (roc, reliability):
        assert chart["usermeta"]["embedOptions"] == {"actions": False}  # no way to another host
    without = roc_chart(found.model_copy(update={"operating_point": None})).to_dict()
    assert len(without["layer"]) == 2


def test_weights_without_figures_say_what_was_not_measured() -> None:
    server = FakeServer()
    server.card = read_card(EMBEDDED_WEIGHTS).model_copy(update={"metrics": {}, "calibration": None})
    server.curves = problem(404, "not_found")
    test = shown(card_page, server.client)
    assert {metric.value for metric in test.metric} == {"not measured"}
    assert table(test)["Effusion"]["Test AUROC"] == table(test)["Effusion"]["Sensitivity"] == "–"
    assert table(test)["Effusion"]["Threshold"] == "0.125"
    assert "none: the outputs are no probabilities" in words(test)
    assert "There are no curves of these weights" in words(test)
    assert not charts(test)
    assert not test.error


def test_without_a_test_the_figures_of_validation_are_shown() -> None:
    server = FakeServer()
    card = read_card(EMBEDDED_WEIGHTS)
    server.card = card.model_copy(update={"metrics": {"validation": card.metrics["validation"]}})
    test = shown(card_page, server.client)
    row = table(test)["Effusion"]
    assert (row["Test AUROC"], row["Val. AUROC"], row["Sensitivity"]) == ("–", "0.793", "0.49 (0.35–0.63)")
    assert "validation films" in words(test)


@pytest.mark.parametrize(
    "metrics",
    [
        {"test": None, "validation": [1]},
        {"test": {"discrimination": {"pathologies": "x", "pathologies_in_mean": 3}, "baselines": 7, "counts": []}},
        {"test": {"discrimination": {"mean_auroc": True, "mean_auroc_interval": [0.1, "x"]}, "subgroups": {"age": 1}}},
        {"test": {"discrimination": {"mean_auroc": 1e308}, "bootstrap": {"interval": HOSTILE}}},
    ],
)
def test_metrics_of_any_shape_break_nothing(metrics: dict[str, Any]) -> None:
    server = FakeServer()
    server.card = read_card(EMBEDDED_WEIGHTS).model_copy(update={"metrics": metrics})
    assert shown(card_page, server.client).metric[0].value == "not measured"
    shown(about_page, server.client)


def test_weights_without_thresholds_are_drawn_without_a_point() -> None:
    server = FakeServer()
    card, curves = read_card(EMBEDDED_WEIGHTS), shipped_curves()
    server.card = card.model_copy(
        update={"outputs": tuple(output.model_copy(update={"threshold": None}) for output in card.outputs)}
    )
    only = curves.pathologies["Mass"].model_copy(update={"operating_point": None, "auroc_interval": None})
    server.curves = curves.model_copy(update={"pathologies": {"Mass": only}, "calibrated": False})
    test = shown(card_page, server.client)
    assert table(test)["Mass"]["Threshold"] == "–"
    assert table(test)["Mass"]["Data"] == "insufficient data"
    assert "no operating point" in words(test)
    assert "not calibrated" in words(test)


def test_a_server_that_is_down_is_named_and_can_be_asked_again() -> None:
    server = FakeServer()
    server.card = httpx.ConnectError("refused")
    test = shown(card_page, server.client)
    assert "cannot be reached" in words(test)
    assert not test.dataframe
    server.card = read_card(EMBEDDED_WEIGHTS)
    test.button(key="retry_model_card").click().run()
    assert test.dataframe
    assert not test.error


@pytest.mark.parametrize(
    ("curves", "says"),
    [
        (httpx.ReadTimeout("late"), "No answer in time"),
        (problem(500, "internal_error"), "The server failed"),
        (httpx.Response(200, json={"weights": "x"}), "do not fit together"),
        (httpx.Response(404, text="<html>"), "cannot be understood"),
    ],
)
def test_failed_curves_leave_the_rest_of_the_card(curves: httpx.Response | Exception, says: str) -> None:
    server = FakeServer()
    server.curves = curves
    test = shown(card_page, server.client)
    assert says in words(test)
    assert tuple(table(test)) == NAMES
    assert test.button(key="retry_curves")


def test_curves_of_nothing_are_said_to_be_none() -> None:
    server = FakeServer()
    server.curves = shipped_curves().model_copy(update={"pathologies": {}})
    test = shown(card_page, server.client)
    assert "No film of this evaluation" in words(test)
    assert not charts(test)


# ── About and limits ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_about_says_what_it_is_for_and_what_it_cannot_do() -> None:
    test = shown(about_page, FakeServer().client)
    assert DISCLAIMER in [element.value for element in test.text]
    headings = [element.value for element in test.subheader]
    assert headings == [
        "What it is for",
        "Six stages",
        "How to read a result",
        "Known limits",
        "Privacy",
        "Licences and citations",
    ]
    for text in ("64% (50%–76%)", "0.652 (0.612–0.674)", "Mass, Nodule, Emphysema", "Cardiomegaly, Edema, Hernia"):
        assert text in words(test)


@pytest.mark.parametrize("with_client", [True, False])
def test_about_needs_no_server_and_then_gives_no_figures(with_client: bool) -> None:
    server = FakeServer()
    server.card = httpx.ConnectError("refused")
    test = shown(about_page, server.client if with_client else None)
    assert "Most detections are false alarms." in words(test)
    assert "AUROC" not in words(test)
    assert not test.error


# ── Foreign text ─────────────────────────────────────────────────────────────────────────────────────────────────────


def hostile_card() -> WeightsCard:
    card = read_card(EMBEDDED_WEIGHTS)
    words_of_it = ("name", "calibration", "operating_points", "data", "training", "licence", "citation")
    test = card.metrics["test"] | {
        "how": HOSTILE,
        "bootstrap": dict.fromkeys(("interval", "unit", "replicates"), HOSTILE),
    }
    test["discrimination"] = test["discrimination"] | {"pathologies_in_mean": [HOSTILE], "mean_auroc": HOSTILE}
    test["baselines"] = {HOSTILE: dict.fromkeys(NAMES, 0.99)}
    validation = card.metrics["validation"] | {"how": HOSTILE, "films": HOSTILE}
    update: dict[str, Any] = dict.fromkeys(words_of_it, HOSTILE)
    update["file"] = HOSTILE.replace("/", "")
    return card.model_copy(update=update | {"metrics": {"test": test, "validation": validation}})


@pytest.mark.parametrize("page", [card_page, about_page])
def test_hostile_text_of_a_card_stays_text(page: Callable[..., None]) -> None:
    server = FakeServer()
    server.card = hostile_card()
    server.curves = shipped_curves().model_copy(
        update=dict.fromkeys(("weights", "cohort", "split", "made_by"), HOSTILE)
    )
    test = shown(page, server.client)
    assert kinds_that_show(test, "evil.example") <= {"text"}
    if page is card_page:
        assert HOSTILE in [element.value for element in test.text]
    assert all("evil.example" not in str(chart) for chart in charts(test))


def test_hostile_text_of_an_error_stays_text() -> None:
    server = FakeServer()
    server.curves = problem(500, HOSTILE, HOSTILE)
    assert kinds_that_show(shown(card_page, server.client), "evil.example") <= {"text", "code"}


def test_hostile_text_elsewhere_would_be_noticed() -> None:
    def careless() -> None:
        import streamlit as st

        st.caption("![x](http://evil.example/x.png)")

    assert kinds_that_show(AppTest.from_function(careless).run(), "evil.example") == {"caption"}


@pytest.mark.parametrize("value", [None, True, "0.5", float("nan"), float("inf"), 1e300, [0.5]])
def test_what_is_no_number_is_not_measured(value: Any) -> None:
    assert card_values.number_at({"a": value}, "a") is None
    assert card_values.shown(None) == "–"
