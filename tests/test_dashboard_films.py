"""Several films on the dashboard: the worklist, other pages, two films side by side, sessions apart."""

import threading

import httpx
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import viewer, views
from dashboard.session import Job, Request
from tests.dashboard_page import (
    LIMIT_S,
    active,
    analysed,
    assert_no_exception,
    buttons,
    click,
    edit_uploads,
    go_to,
    grids,
    images,
    opened,
    pick_row,
    session_of,
    until_read,
    upload,
    words,
    worklist,
)
from tests.fake_server import (
    FakeServer,
    analysis,
    field,
    interrupted,
    png,
    problem,
    refused_connection,
    streamed,
)

# ── Several films ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_worklist_appears_with_the_second_film(page: AppTest) -> None:
    upload(page)
    assert grids(page, "Film") == []
    assert "analyze_all" not in buttons(page)
    edit_uploads(page, lambda held: [*held, ("2", "b.png", png(3), "image/png")])
    assert [(row["Film"], row["Risk"], row["File"]) for row in worklist(page)] == [
        ("1", "not analysed", "Jane Doe.png"),
        ("▸ 2", "not analysed", "b.png"),
    ]
    assert page.button(key="analyze_all").label == "Analyze all 2 films"


def three(test: AppTest, server: FakeServer) -> AppTest:
    """Have three films read: of low risk, failed, of high risk."""
    server.analyses = [
        streamed(analysis(risk_level="Low", needs_review=False, request_id="first")),
        problem(400, "undecodable_image"),
        streamed(analysis(risk_level="High", request_id="third")),
    ]
    upload(test, "a.png", "b.png", "c.png")
    test.text_area(key="symptoms_1").set_value("cough")
    return click(test, "analyze_all")


def test_all_films_are_read_one_after_the_other_and_sorted_by_risk(page: AppTest, server: FakeServer) -> None:
    three(page, server)
    assert [(row["Film"], row["Risk"], row["Review"]) for row in worklist(page)] == [
        ("3", "High", "needed"),
        ("▸ 1", "Low", "–"),
        ("2", "failed", ""),
    ]
    assert [field(form, "symptoms") for form in server.forms()] == ["cough", "", ""]
    assert "analyze_all" not in buttons(page)


def test_a_film_that_waits_says_so(page: AppTest) -> None:
    upload(page, "a.png", "b.png")
    first, second = session_of(page).cases
    first.job = Job(Request(first.film, ""))
    second.waiting = True
    session_of(page).active = second
    page.run()
    assert "Waiting for the films before it." in words(page)
    assert [row["Risk"] for row in worklist(page)] == ["being read", "waiting"]


def test_opening_another_film_keeps_the_result_and_the_symptoms_of_the_first(page: AppTest, server: FakeServer) -> None:
    three(page, server)
    page.text_area(key="symptoms_1").set_value("cough, worse")
    pick_row(page, 0)
    assert active(page).number == 3
    assert "Risk level: High" in words(page)
    assert "third" in words(page)
    assert page.text_area(key="symptoms_3").value == ""
    pick_row(page, 2)
    assert active(page).number == 2
    assert "The file cannot be read" in words(page)
    pick_row(page, 1)
    assert active(page).number == 1
    assert "Risk level: Low" in words(page)
    assert page.text_area(key="symptoms_1").value == "cough, worse"
    assert "symptoms were changed" in words(page)
    assert len(server.forms()) == 3


def test_a_film_whose_row_was_picked_before_can_be_opened_again(page: AppTest, server: FakeServer) -> None:
    three(page, server)
    pick_row(page, 0)
    edit_uploads(page, lambda held: [*held, ("4", "d.png", png(4), "image/png")])
    assert active(page).number == 4
    pick_row(page, 0)
    assert active(page).number == 3


def test_a_new_order_of_the_worklist_opens_no_film(page: AppTest, server: FakeServer) -> None:
    upload(page, "a.png", "b.png")
    pick_row(page, 1)
    pick_row(page, 1)  # the film that is open: its row stays marked
    assert active(page).number == 2
    server.analyses = [streamed(analysis(risk_level="High"))]
    click(page, "analyze")
    assert [row["Film"] for row in worklist(page)] == ["▸ 2", "1"]
    assert active(page).number == 2


def test_a_row_that_is_still_marked_opens_no_film(page: AppTest, server: FakeServer) -> None:
    views.SAMPLE_PATH.write_bytes(png(99))
    upload(page, "a.png")
    sample = "Try the synthetic sample"
    next(button for button in page.button if button.label == sample).click().run()
    pick_row(page, 0)
    assert active(page).number == 1
    next(button for button in page.button if button.label == sample).click().run()
    assert active(page).number == 2
    page.run()
    assert active(page).number == 2


def test_removing_an_upload_drops_the_film_and_its_answer(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(analysis())]
    upload(page, "a.png", "b.png")
    click(page, "analyze")
    edit_uploads(page, lambda held: held[1:])
    assert [case.film.name for case in session_of(page).cases] == ["b.png"]
    assert "Risk level" not in words(page)
    assert "Ready to analyse" in words(page)
    edit_uploads(page, lambda held: [])
    assert session_of(page).cases == []
    assert session_of(page).previews == {}
    assert "Choose a film" in words(page)


def test_what_the_uploader_does_not_hold_can_be_removed_too(page: AppTest, server: FakeServer) -> None:
    views.SAMPLE_PATH.write_bytes(png(99))
    upload(page, "a.png")
    assert "remove" not in buttons(page)  # the uploader has its own way
    go_to(page, "About and limits")
    go_to(page, "Reading room")
    click(page, "remove")
    assert session_of(page).cases == []
    next(button for button in page.button if "synthetic sample" in button.label).click().run()
    click(page, "remove")
    assert session_of(page).cases == []
    assert "Choose a film" in words(page)


@pytest.mark.parametrize("title", ["Compare", "Model card", "About and limits"])
def test_films_that_wait_are_read_while_another_page_is_open(page: AppTest, server: FakeServer, title: str) -> None:
    gate = threading.Event()
    server.analyses = [
        interrupted(streamed(analysis()), "cnn", lambda: assert_waited(gate)),
        streamed(analysis()),
    ]
    upload(page, "a.png", "b.png")
    page.button(key="analyze_all").click().run()
    go_to(page, title)
    gate.set()
    until_read(page)
    assert [case.state for case in session_of(page).cases] == ["done", "done"]


def test_another_page_and_back_keeps_the_films(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(analysis())]
    upload(page, "a.png", "b.png")
    page.text_area(key="symptoms_1").set_value("cough").run()
    click(page, "analyze")
    go_to(page, "Compare")
    assert "Analyse at least two films" in words(page)
    go_to(page, "Reading room")
    assert page.file_uploader(key="films").value == []
    assert [case.film.name for case in session_of(page).cases] == ["a.png", "b.png"]
    assert page.text_area(key="symptoms_1").value == "cough"
    assert "Risk level: Moderate" in words(page)
    upload(page, "c.png")
    assert [case.film.name for case in session_of(page).cases] == ["a.png", "b.png", "c.png"]
    edit_uploads(page, lambda held: [])
    assert [case.film.name for case in session_of(page).cases] == ["a.png", "b.png"]


def test_a_film_is_read_to_the_end_while_another_page_is_open(page: AppTest, server: FakeServer) -> None:
    gate = threading.Event()
    server.analyses = [interrupted(streamed(analysis()), "cnn", lambda: assert_waited(gate))]
    upload(page)
    page.button(key="analyze").click().run()
    go_to(page, "About and limits")
    gate.set()
    until_read(page)
    go_to(page, "Reading room")
    assert "Risk level: Moderate" in words(page)


def assert_waited(gate: threading.Event) -> None:
    assert gate.wait(LIMIT_S)


def test_two_films_are_compared_side_by_side(page: AppTest, server: FakeServer) -> None:
    go_to(page, "Compare")
    assert "Analyse at least two films" in words(page)
    go_to(page, "Reading room")
    three(page, server)
    go_to(page, "Compare")
    assert [page.selectbox(key=f"compare_{side}").value for side in ("Left", "Right")] == [3, 1]
    assert "**Risk level: High**" in words(page)
    assert "**Risk level: Low**" in words(page)
    assert len(grids(page, "Finding")) == 2
    assert len([alt for alt in images(page) if "Grad-CAM map of Effusion" in alt]) == 2
    assert "nothing here says that a difference is a change" in words(page)
    page.selectbox(key="compare_Right").select(3).run()  # the same film on both sides
    assert_no_exception(page)
    page.selectbox(key="compare_Left_3_map").select(viewer.FILM_ALONE).run()
    assert len([alt for alt in images(page) if "Grad-CAM" in alt]) == 1


def test_films_whose_previews_failed_can_be_compared(page: AppTest, server: FakeServer) -> None:
    server.render = refused_connection
    three(page, server)
    go_to(page, "Compare")
    assert_no_exception(page)
    assert [key for key in buttons(page) if "retry_preview" in key] == [
        "compare_Left_3_retry_preview",
        "compare_Right_1_retry_preview",
    ]
    server.render = lambda _: httpx.Response(200, content=png())
    page.button(key="compare_Left_3_retry_preview").click().run()
    assert len([alt for alt in images(page) if "Grad-CAM" in alt]) == 2


def test_two_sessions_share_nothing(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(analysis())]
    analysed(page)
    other = opened()
    assert "Risk level" not in words(other)
    assert "Choose a film" in words(other)
    assert session_of(other).cases == []
    assert "card" not in other.session_state
