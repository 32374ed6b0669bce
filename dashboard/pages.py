"""The four pages: the order of their sections, nothing else."""

import streamlit as st
from pydantic import ValidationError

from dashboard import about as about_page
from dashboard import model_card as model_card_page
from dashboard import progress, views
from dashboard.client import AssistantClient
from dashboard.compare import show_comparison
from dashboard.elements import plain
from dashboard.session import Session
from modules.records import DISCLAIMER
from modules.settings import Settings, wrong_settings

TITLE = "Chest-radiograph assistant"
# Constant: Streamlit's own margins take a fifth of a laptop's screen. No value of any data reaches it.
STYLE = """<style>
.stMainBlockContainer { padding: 3.9rem 1.6rem 1rem 1.6rem; max-width: none; }
/* A film is shown whole, whatever the screen: its controls above and its explanation below stay in view. */
img[alt^="The radiograph"] {
  max-height: max(20rem, calc(100vh - 26.6rem)); object-fit: contain; object-position: left top; border-radius: 0;
}
.st-key-comparison img[alt^="The radiograph"] { max-height: max(20rem, calc(100vh - 26.9rem)); }
.st-key-hidden_chart { display: none; }
/* The theme's blue is dark enough for white words on a button, and too dark for words on the page (WCAG AA). */
[data-testid="stTab"][aria-selected="true"] p, [data-testid="stSliderThumbValue"] { color: #6fb1ea; }
[data-testid="stCaptionContainer"] { color: #a9b4bd; opacity: 1; }
[data-testid="stSidebarContent"] [data-testid="stSidebarHeader"] { height: 2.4rem; margin-bottom: 0; }
[data-testid="stSidebarUserContent"] { padding-bottom: 1rem; }
[data-testid="stBottomBlockContainer"] { padding: 0.4rem 1.6rem 0.5rem 1.6rem; max-width: none; }
[data-testid="stMetric"] { padding: 0.35rem 0.7rem; }
[data-testid="stMetric"] > div { padding: 0; }
[data-testid="stMetricValue"] { font-size: 1.25rem; }
/* Words wrap where there is no room: a cut "not measured" or "detected" would be worse than a second line. */
[data-testid="stMetric"] :is([data-testid="stMarkdownContainer"], p, [data-testid="stMetricValue"], div),
[data-testid="stCheckbox"] :is([data-testid="stMarkdownContainer"], p) { white-space: normal; overflow: visible; }
@media (max-width: 1150px) {
  [data-testid="stMetric"] { padding: 0.3rem 0.4rem; }
  [data-testid="stMetricLabel"] p { font-size: 0.75rem; }
  [data-testid="stMetricValue"] { font-size: 1rem; }
}
[data-testid="stAlertContainer"] { padding: 0.55rem 0.9rem; }
</style>"""


def set_up() -> None:
    """Set the title and the layout; the first Streamlit calls of a run."""
    st.set_page_config(page_title=TITLE, layout="wide", initial_sidebar_state="expanded")
    st.html(STYLE)
    with st.bottom:
        st.caption(DISCLAIMER)


def reading_room() -> None:
    """Take films, have them analysed, and show one."""
    settings, session = load_settings(), current_session()
    client = AssistantClient(settings.api_url, settings.dashboard_timeout_s, api_key=settings.api_key)
    session.advance(client)
    with st.sidebar:
        views.take_films(session, settings)
        views.take_symptoms(session)
        views.offer_analysis(session, client)
        views.offer_removal(session)
        views.show_worklist(session, client)
    views.show_case(session, client)


def compare() -> None:
    """Show two films of this visit side by side."""
    show_comparison(current_session(), _client_beside_the_queue())


def model_card() -> None:
    """Show what is known of the network."""
    model_card_page.show_model_card(_client_beside_the_queue())


def about() -> None:
    """Show what this is for, and its limits."""
    about_page.show_about(_client_beside_the_queue())


def _client_beside_the_queue() -> AssistantClient:
    """Return a client for a page other than the reading room, while the films that wait are still read in turn."""
    settings, session = load_settings(), current_session()
    client = AssistantClient(settings.api_url, settings.dashboard_timeout_s, api_key=settings.api_key)
    if session.busy:
        progress.keep_going(session, client)
    return client


def load_settings() -> Settings:
    """Read the settings, or say which of them are wrong and stop."""
    try:
        return Settings()
    except ValidationError as exc:
        st.error("The settings cannot be used. Correct them in the environment or in .env, then restart.")
        for wrong in wrong_settings(exc):
            plain(wrong)
        st.stop()


def current_session() -> Session:
    """Return what this browser session holds; other sessions never see it."""
    if "session" not in st.session_state:
        st.session_state["session"] = Session()
    session: Session = st.session_state["session"]
    return session
