"""The Streamlit app: its pages, nothing else. Start it with `streamlit run app.py`."""

import streamlit as st

from dashboard import pages


def main() -> None:
    """Draw the page that was chosen, for one session."""
    pages.set_up()
    st.navigation(
        [
            st.Page(pages.reading_room, title="Reading room", url_path="reading", default=True),
            st.Page(pages.compare, title="Compare", url_path="compare"),
            st.Page(pages.model_card, title="Model card", url_path="model-card"),
            st.Page(pages.about, title="About and limits", url_path="about"),
        ],
        position="top",
    ).run()


if __name__ == "__main__":
    main()
