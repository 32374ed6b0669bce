"""The Streamlit page: the order of its sections, nothing else. Start it with `streamlit run app.py`."""

import streamlit as st

from dashboard import views
from dashboard.client import AssistantClient


def main() -> None:
    """Draw the page for one session."""
    views.set_up_page()
    views.show_disclaimer()
    settings = views.load_settings()
    client = AssistantClient(settings.api_url, settings.dashboard_timeout_s)
    session = views.current_session()

    with st.sidebar:
        views.show_title()
        views.take_film(session, settings)
        views.take_symptoms()
        views.offer_analysis(session)

    slot = st.empty()
    views.run_job(session, client, slot)
    with slot.container():
        views.show_session(session, client)


if __name__ == "__main__":
    main()
