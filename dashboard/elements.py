"""The few elements that everything else on the page is made of.

Whatever a model, a user or a file wrote is shown with `plain`, in a code block or in a data grid: nothing else in
Streamlit leaves Markdown, HTML, LaTeX and colour directives alone.
"""

import streamlit as st


def plain(text: str) -> None:
    """Show text exactly as it is."""
    st.text(text, width="stretch")


def bullets(lines: tuple[str, ...]) -> None:
    """Show lines of text, each with a dash."""
    plain("\n".join(f"–  {line}" for line in lines))


def show_lines(label: str, lines: tuple[str, ...]) -> None:
    """Show lines below a constant label, or nothing when there are none."""
    if lines:
        st.caption(label)
        bullets(lines)


def show_png(data: bytes, alt: str) -> None:
    """Show an image, or say that it is damaged."""
    try:
        st.image(data, width="stretch", alt=alt)
    except (OSError, ValueError, SyntaxError):  # Pillow's ways to say that it can't read a file
        plain("The image that the server sent cannot be shown.")
