"""The film with its maps: painted here from the grids in the answer, so that no control asks the server again."""

import functools
from collections.abc import Mapping

import streamlit as st
from numpy.typing import NDArray

from dashboard import film as painter
from dashboard.elements import plain, show_png
from dashboard.findings import ranked
from modules.answers import ImageSize
from modules.records import Finding, Heatmap

FILM_ALONE = "Film alone"
AS_UPLOADED = "The film as it was uploaded"
DEFAULT_OPACITY = 65


@st.fragment
def show_viewer(
    key: str,
    picture: NDArray,  # type: ignore[type-arg]
    size: ImageSize,
    findings: tuple[Finding, ...],
    heatmaps: Mapping[str, Heatmap],
    caption: str,
) -> None:
    """Show a film (H, W) with a chooser over its maps; each control draws only this part of the page anew."""
    by_name = {finding.pathology: finding for finding in findings}
    names = [finding.pathology for finding in ranked(findings) if finding.pathology in heatmaps]
    chooser, toggle, opacity = st.columns([9, 5, 6], vertical_alignment="bottom", gap="small")
    with chooser:
        chosen = st.selectbox(
            "Map over the film",
            [FILM_ALONE, *names],
            key=chooser_key(key),
            format_func=functools.partial(_choice, by_name),
        )
    with toggle:
        shown = st.toggle("Show map", value=True, key=f"{key}_shown", disabled=chosen == FILM_ALONE)
    with opacity:
        percent = st.slider("Opacity", 0, 100, DEFAULT_OPACITY, 5, key=f"{key}_opacity", format="%d%%")
    place = st.container(gap="xxsmall")
    view = _display_controls(key, percent)
    heatmap = heatmaps.get(chosen) if shown else None
    label = None
    if heatmap is not None and not by_name[chosen].detected:
        label = f"{chosen}: NOT DETECTED"
    with place:
        try:
            jpeg = painter.painted(picture, heatmap, size, view, label)
        except ValueError as exc:  # a map that can't be painted takes nothing from the film
            plain(f"{exc} The film is shown alone.")
            heatmap = None
            jpeg = painter.painted(picture, None, size, view)
        show_png(jpeg, _description(chosen, heatmap))  # the page's style keeps it within the screen
        if heatmap is None or caption != AS_UPLOADED:  # there is room for what no one must overlook
            st.caption(caption)
        if heatmap is not None:
            _explain(by_name[chosen], heatmap, view)


def chooser_key(key: str) -> str:
    """Return the key under which the choice of a map is kept."""
    return f"{key}_map"


def choose_first_detected(key: str, findings: tuple[Finding, ...], heatmaps: Mapping[str, Heatmap]) -> None:
    """Show at first the map of the top finding that was detected, or else the film alone."""
    known = {FILM_ALONE, *(f.pathology for f in findings if f.pathology in heatmaps)}
    if st.session_state.get(chooser_key(key)) not in known:
        detected = [f.pathology for f in ranked(findings) if f.detected and f.pathology in heatmaps]
        st.session_state[chooser_key(key)] = detected[0] if detected else FILM_ALONE


def _choice(by_name: Mapping[str, Finding], name: str) -> str:
    if name == FILM_ALONE:
        return name
    return f"{name} ({'detected' if by_name[name].detected else 'not detected'})"


def _display_controls(key: str, percent: int) -> painter.View:
    """Take window, scale and marks, below the film where they are out of the way."""
    with st.expander("Window, scale and marks"):
        left, right = st.columns(2, gap="medium")
        with left:
            level = st.slider("Level", 0, 100, 50, key=f"{key}_level", format="%d%%", help="Centre of the grey window")
            width = st.slider("Window", 5, 100, 100, key=f"{key}_width", format="%d%%", help="Width of the grey window")
            invert = st.toggle("Invert the greyscale", key=f"{key}_invert", help="For viewing only")
        with right:
            relative = st.toggle(
                "Relative scale",
                key=f"{key}_relative",
                help="Stretched to this map's maximum. Off: the same colour means the same on every film and finding",
            )
            peak = st.toggle("Mark the peak", key=f"{key}_peak")
            box = st.toggle("Draw the box", key=f"{key}_box", help="Only where the network's grid is fine enough")
    return painter.View(
        opacity=percent / 100,
        relative=relative,
        show_peak=peak,
        show_box=box,
        level=level / 100,
        width=width / 100,
        invert=invert,
    )


def _explain(finding: Finding, heatmap: Heatmap, view: painter.View) -> None:
    """Say what the colours mean, and how little they prove."""
    detected = "detected" if finding.detected else "NOT detected"
    threshold = f"threshold {finding.operating_threshold:.3f}"
    zone = f" Peak: {heatmap.zone}." if heatmap.zone else ""
    bar, words = st.columns([2, 5], vertical_alignment="center", gap="small")
    with bar:
        st.image(painter.legend(view, heatmap), width="stretch", alt="Colour scale of the map")
    with words:
        st.caption(painter.legend_text(view, heatmap))
    plain(
        f"{finding.pathology}: {detected} (CNN {finding.cnn_probability:.3f}, {threshold}).{zone} What raised the "
        "score; a coarse map, it does not locate a finding."
    )


def _description(chosen: str, heatmap: Heatmap | None) -> str:
    if heatmap is None:
        return "The radiograph"
    return f"The radiograph with the Grad-CAM map of {chosen}" + (
        f", peak in the {heatmap.zone}" if heatmap.zone else ""
    )
